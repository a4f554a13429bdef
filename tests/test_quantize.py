"""Quantized bases: their values, places and memory, and training over them."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx

from configs import default
from ogls_jax import build, mesh, runs, train
from ogls_jax.errors import UserError
from ogls_jax.models.quantize import QTYPES, dequantize, quantize
from ogls_jax.models.settings import DecoderSettings
from ogls_jax.validate import validate
from tests.small import tree_max_difference
from tests.small_run import final_state, small_config

SETTINGS = DecoderSettings(
  vocab_size=24,
  width=128,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_size=32,
  mlp_size=192,
)
TOKENS = np.random.default_rng(0).integers(0, 24, (8, 2, 12))


def models(qtype, grid):
  """(base, student) as training makes them, float32 before quantizing."""
  config = default.get_config()
  config.model.update(
    quantize=qtype, dtype='float32', param_dtype='float32', width=128,
    num_layers=2, num_heads=4, num_kv_heads=2, mlp_size=192,
  )  # fmt: skip
  config.lora.rank = 4
  base = build.base_model(config, SETTINGS, grid)
  base = build.quantized(config, base, grid)
  return base, build.student_model(config, base, grid)


def grid_of(data, fsdp, model):
  assert jax.device_count() == 8
  return mesh.make_mesh({'data': data, 'fsdp': fsdp, 'model': model})


def score(model):
  """(logits of `TOKENS`, bytes of the weights on one device)."""

  def logits(params, frozen):
    decoder = nnx.merge(model.graphdef, params, frozen)
    hidden = decoder.score(TOKENS[:, 0], jnp.full(8, 12), TOKENS)
    return hidden @ decoder.unembedding_VD.T

  arrays = model.params, model.frozen
  memory = jax.jit(logits).lower(*arrays).compile().memory_analysis()
  return np.asarray(jax.jit(logits)(*arrays)), memory.argument_size_in_bytes


@pytest.mark.parametrize('rows', [128, 24])
@pytest.mark.parametrize('qtype', QTYPES)
def test_codes_stand_for_the_nearest_values(qtype, rows):
  kernel = jax.random.normal(jax.random.key(0), (3, rows, 5), jnp.bfloat16)
  codes, scale = quantize(kernel, qtype)
  block = {128: 64, 24: 8}[rows]
  assert scale.shape == (3, rows // block, 5)
  got = np.asarray(dequantize(codes, scale, qtype))
  theirs = qwix.dequantize(qwix.QArray(codes, scale, qtype=qtype))
  np.testing.assert_array_equal(got, theirs)
  # All values that a code could stand for, and the nearest of them.
  levels = np.arange(-127, 128.0)
  if qtype == 'nf4':
    levels = np.unique(np.asarray(dequantize(
      jnp.arange(16, dtype=jnp.uint4)[:, None], jnp.ones((1, 1)), qtype
    )))  # fmt: skip
    assert (levels[0], levels[7], levels[-1], len(levels)) == (-1, 0, 1, 16)
  exact = np.asarray(kernel, np.float64)
  steps = np.repeat(np.asarray(scale, np.float64), block, axis=1)
  error = np.abs(exact[..., None] - steps[..., None] * levels).min(-1)
  np.testing.assert_allclose(np.abs(got - exact), error, atol=1e-6)
  # A block's largest entry lies at the end of its levels.
  largest = np.abs(exact).reshape(3, -1, block, 5).max(2)
  end = {'int8': 127.5, 'nf4': 1.0}[qtype]
  np.testing.assert_allclose(scale, largest / end, rtol=1e-6)


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2)])
def test_logits_are_near_and_memory_is_less(shape):
  grid = grid_of(*shape)
  logits, num_bytes = {}, {}
  with jax.set_mesh(grid):
    for qtype in ('', *QTYPES):
      base, student = models(qtype, grid)
      logits[qtype], num_bytes[qtype] = score(student)
      for array, place in zip(
        jax.tree.leaves(base.params),
        jax.tree.leaves(mesh.shardings_of(base.params, grid)),
        strict=True,
      ):
        assert array.sharding.is_equivalent_to(place, array.ndim)
  size = np.linalg.norm(logits[''])
  for qtype, error in (('int8', 0.03), ('nf4', 0.4)):
    assert 0.001 < np.linalg.norm(logits[qtype] - logits['']) / size < error
  # Bits of an entry of a kernel on one device, its scale of 32/64 included
  # where the scales' rows are not split. nf4 codes are packed in pairs.
  kernels = 2 * (128 * (128 + 2 * 64 + 128) + 3 * 128 * 192)
  parts = shape[1] * shape[2]
  saved = {q: 8 * (num_bytes[''] - num_bytes[q]) * parts for q in QTYPES}
  for qtype, bits in (('int8', 8), ('nf4', 4)):
    scale_bits = 32 - bits - saved[qtype] / kernels
    assert 0.5 <= scale_bits <= 0.5 * max(shape[1:]), (qtype, scale_bits)


def dense(model):
  """The same model with its kernels as ordinary arrays."""
  decoder = nnx.merge(model.graphdef, model.params, model.frozen)
  for name in ('q', 'k', 'v', 'o', 'gate', 'up', 'down'):
    linear = getattr(decoder.layers, name)
    kernel = linear.dense_kernel(jnp.float32)
    dims = linear.kernel.get_metadata()['dims']
    linear.kernel, linear.qtype = nnx.Param(kernel, dims=dims), ''
    del linear.kernel_scale
  return decoder


def test_gradients_are_those_over_the_dense_kernels():
  grid = grid_of(1, 1, 8)
  with jax.set_mesh(grid):
    _, student = models('nf4', grid)
    # A fresh lora_b is zero, and so would be the gradient of lora_a.
    params = jax.tree.map(lambda x: x + 0.01, student.params)
    model = build.Model(student.graphdef, params, student.frozen)
    decoder = nnx.merge(student.graphdef, params, student.frozen)
    graphdef, _, frozen = nnx.split(dense(model), nnx.LoRAParam, ...)

    def gradient(graphdef, frozen):
      def total(params):
        decoder = nnx.merge(graphdef, params, frozen)
        return (decoder.score(TOKENS[:, 0], jnp.full(8, 12), TOKENS) ** 2).sum()

      return jax.jit(jax.grad(total))(params)

    assert decoder.remat == 'full'
    got = gradient(student.graphdef, student.frozen)
    expected = gradient(graphdef, frozen)
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
  assert tree_max_difference(got, expected) < 1e-5 * largest


def test_the_base_is_quantized_once_and_shared():
  grid = grid_of(8, 1, 1)
  config = default.get_config()
  config.model.quantize = 'int8'
  base = build.base_model(config, SETTINGS, grid)
  before = base.params.layers.gate.kernel.get_value()
  base = build.quantized(config, base, grid)
  student = build.student_model(config, base, grid)
  assert before.is_deleted()
  theirs, ours = jax.tree.leaves(student.frozen), jax.tree.leaves(base.params)
  assert all(a is b for a, b in zip(theirs, ours, strict=True))
  assert student.frozen.layers.gate.kernel.get_value().dtype == jnp.int8


def test_a_run_saves_adapters_only_and_comes_back(tmp_path):
  config = small_config(
    model__quantize='nf4', model__remat='full', lora__rank=2, num_steps=2,
    warmup__num_steps=2, eval__num_questions=0, method='opsd',
  )  # fmt: skip
  train.train(config, tmp_path)
  names = {
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(final_state(tmp_path))
  }
  assert any('lora_a' in name for name in names)
  assert not any('kernel' in name for name in names)
  run = runs.load_run(
    tmp_path, mesh.single_device_mesh(), step=None, flag='--workdir'
  )
  assert run.student.frozen.layers.q.kernel.get_value().dtype == jnp.uint4


def test_what_cannot_be_quantized_is_an_error(monkeypatch):
  config = default.get_config()
  config.model.tokenizer_path = 'x'
  config.model.quantize = 'int8'
  validate(config, 8)
  config.model.remat = 'none'
  with pytest.raises(UserError, match="quantize = 'int8'.*remat=full"):
    validate(config, 8)
  config.model.update(remat='full', param_dtype='float32')
  config.lora.rank = 0
  with pytest.raises(UserError, match="quantize = 'int8'.*set lora.rank"):
    validate(config, 8)
  config.lora.rank = 1
  config.model.quantize = 'int4'
  with pytest.raises(UserError, match="quantize = 'int4' is none of.*nf4"):
    validate(config, 8)
  config.model.quantize = 'nf4'
  monkeypatch.setitem(sys.modules, 'qwix', None)
  with pytest.raises(UserError, match="quantize = 'nf4'.*pip install qwix"):
    validate(config, 8)
