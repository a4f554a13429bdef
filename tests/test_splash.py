"""The splash attention kernel against the plain path."""

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ogls_jax import build, mesh
from ogls_jax.errors import UserError
from ogls_jax.models import splash
from tests.small import SETTINGS, VOCAB, make_decoder
from tests.small_run import small_config

# Heads of 8: interpreted, size is time.
LONG = dataclasses.replace(SETTINGS, num_layers=1, head_size=8)
NUM_PROMPTS, GROUP, CONTEXT, TOKENS = 2, 2, 160, 130


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
  kernel = splash.splash_attention_kernel
  make = functools.partial(kernel.make_splash_mqa, interpret=True)
  monkeypatch.setattr(kernel, 'make_splash_mqa', make)


def inputs(num_prompts=NUM_PROMPTS):
  rng = np.random.default_rng(0)
  lengths = np.array([CONTEXT, 1, 40, 129] * 2, np.int32)[:num_prompts]
  return (
    rng.integers(1, VOCAB, (num_prompts, CONTEXT)).astype(np.int32),
    lengths,
    rng.integers(1, VOCAB, (num_prompts, GROUP, TOKENS)).astype(np.int32),
  )


def score_and_gradient(decoder, arrays):
  """Hidden states, and the gradient of a sum of their sines."""
  graphdef, params = nnx.split(decoder)

  def total(params):
    hidden = nnx.merge(graphdef, params).score(*arrays)
    return jnp.sin(hidden.astype(jnp.float32)).sum(), hidden

  grads, hidden = jax.jit(jax.grad(total, has_aux=True))(params)
  return hidden, grads


def with_kernel(dtype=jnp.float32):
  decoder = make_decoder(settings=LONG, dtype=dtype)
  decoder.attention = 'splash'
  return decoder


def assert_trees_are_close(got, expected, tolerance):
  """Each array to within a share of its largest entry."""
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    a, b = np.float32(a), np.float32(b)
    scale = np.abs(b).max()
    assert scale > 1e-3
    np.testing.assert_allclose(a / scale, b / scale, atol=tolerance)


@pytest.mark.parametrize(
  ('dtype', 'tolerance'), [(jnp.float32, 2e-4), (jnp.bfloat16, 6e-2)]
)
def test_states_and_gradients_equal_the_plain_path(dtype, tolerance):
  plain = make_decoder(settings=LONG, dtype=dtype)
  expected = score_and_gradient(plain, inputs())
  got = score_and_gradient(with_kernel(dtype), inputs())
  assert_trees_are_close(got, expected, tolerance)


def test_short_sequences_take_the_plain_path():
  tokens, lengths, response = inputs()
  arrays = tokens[:, :40], np.minimum(lengths, 40), response[..., :30]
  expected = score_and_gradient(make_decoder(settings=LONG), arrays)
  got = score_and_gradient(with_kernel(), arrays)
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_an_unused_context_gives_no_nan():
  tokens, lengths, response = inputs()
  lengths[1] = 0
  hidden, grads = score_and_gradient(with_kernel(), (tokens, lengths, response))
  assert np.isfinite(hidden).all()
  assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))


def test_on_a_mesh_each_device_runs_its_own_rows_and_heads():
  assert jax.device_count() == 8
  arrays = inputs(8)
  expected = score_and_gradient(make_decoder(settings=LONG), arrays)
  grid = mesh.make_mesh({'data': 2, 'fsdp': 2, 'model': 2})
  with jax.set_mesh(grid):
    got = score_and_gradient(with_kernel(), arrays)
  assert_trees_are_close(got, expected, 2e-4)


def mesh_of(platform, model=1):
  """All of a mesh that the choice depends on."""
  device = types.SimpleNamespace(platform=platform)
  return types.SimpleNamespace(
    devices=np.array([device]), shape={'model': model}
  )


@pytest.mark.parametrize(
  ('grid', 'settings', 'obstacle'),
  [
    (mesh_of('tpu'), LONG, ''),
    (mesh_of('tpu', model=2), LONG, ''),
    (mesh_of('tpu', model=4), LONG, 'mesh.model = 4 does not divide 2 key-val'),
    (mesh_of('tpu'), dataclasses.replace(LONG, windows=(8,)), 'have windows'),
    (mesh_of('cpu'), LONG, 'there is no TPU'),
    (mesh_of('gpu'), LONG, 'there is no TPU'),
  ],
)
def test_the_kernel_is_chosen_where_it_can_be_had(grid, settings, obstacle):
  config = small_config()

  def chosen(attention):
    config.model.attention = attention
    make = build.decoder_maker(config, settings, grid, lora_rank=0)
    return nnx.eval_shape(make, jax.random.key(0)).attention

  assert chosen('auto') == ('plain' if obstacle else 'splash')
  assert chosen('plain') == 'plain'
  if obstacle:
    with pytest.raises(UserError, match=f"'splash', but .*{obstacle}"):
      chosen('splash')
  else:
    assert chosen('splash') == 'splash'


COMPILE = """
import jax, jax.numpy as jnp, math, numpy as np, re, sys
from flax import nnx
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from ogls_jax import mesh, program_cost, shapes
from ogls_jax.models.transformer import Decoder
from ogls_jax.models.settings import DecoderSettings

devices = topologies.get_topology_desc(sys.argv[1], 'tpu').devices
grid = mesh.make_mesh({'data': 1, 'fsdp': 2, 'model': 2}, list(devices))
settings = DecoderSettings(512, 256, 2, 4, 2, int(sys.argv[2]), 512)
make = lambda: Decoder(
  settings, dtype=jnp.bfloat16, attention=sys.argv[3], remat='full',
  rngs=nnx.Rngs(0))
graphdef, params = nnx.split(nnx.eval_shape(make))
params = shapes.placed(params, mesh.shardings_of(params, grid))
def array(*shape):
  sharding = NamedSharding(grid, PartitionSpec(mesh.ROW_AXES))
  return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
def total(params, *arrays):
  return nnx.merge(graphdef, params).score(*arrays).astype(jnp.float32).sum()
with jax.set_mesh(grid):
  compiled = jax.jit(jax.grad(total)).lower(
    params, array(2, 640), array(2), array(2, 2, 384)).compile()
text = compiled.as_text()
cost = program_cost.total(program_cost.count(text))
found = re.findall(r'\\bf32\\[([\\d,]+)\\]', text)
largest = max(math.prod(map(int, dims.split(','))) for dims in found)
num_kernels = text.count('tpu_custom_call')
print(num_kernels, largest, cost.flops, len(cost.unknown))
"""


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='needs the TPU compiler: pip install libtpu',
)
@pytest.mark.parametrize(
  ('topology', 'head_size'),
  [('v5e:2x2', 128), ('v5p:2x2x1', 64), ('v6e:2x2', 64)],
)
def test_compiles_and_keeps_no_scores(topology, head_size):
  def counts(attention):
    found = subprocess.run(
      [sys.executable, '-c', COMPILE, topology, str(head_size), attention],
      env=os.environ
      | {
        'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'TPU_SKIP_MDS_QUERY': '1',
        'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
        'TPU_WORKER_HOSTNAMES': 'localhost', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
      },
      capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    return [float(text) for text in found.stdout.split()]

  # Of one head: responses against contexts and themselves, and contexts.
  scores = min(384 * 1024, 640 * 640)
  num_kernels, largest, flops, num_unknown = counts('splash')
  assert num_kernels >= 6 and largest < scores and num_unknown == 0
  if head_size == 128:  # What the same search finds in the plain path.
    num_kernels, largest, plain_flops, _ = counts('plain')
    assert num_kernels == 0 and largest > scores
    # Causality spares pairs, padding and two products more add some.
    assert 0.9 * plain_flops < flops < 1.1 * plain_flops
