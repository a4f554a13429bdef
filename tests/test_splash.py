"""The splash attention kernel against the plain path."""

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ogls_jax import build, mesh
from ogls_jax.errors import UserError
from ogls_jax.models import splash
from tests.small import SETTINGS, VOCAB, make_decoder
from tests.test_train import small_config

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


def both(arrays, dtype=jnp.float32):
  decoder = make_decoder(settings=LONG, dtype=dtype)
  plain = score_and_gradient(decoder, arrays)
  decoder.attention = 'splash'
  return plain, score_and_gradient(decoder, arrays)


@pytest.mark.parametrize(
  ('dtype', 'tolerance'), [(jnp.float32, 2e-4), (jnp.bfloat16, 6e-2)]
)
def test_states_and_gradients_equal_the_plain_path(dtype, tolerance):
  plain, kernel = both(inputs(), dtype)
  for expected, got in zip(
    jax.tree.leaves(plain), jax.tree.leaves(kernel), strict=True
  ):
    expected, got = np.float32(expected), np.float32(got)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got / scale, expected / scale, atol=tolerance)
    assert scale > 1e-3


def test_an_unused_context_gives_no_nan():
  tokens, lengths, response = inputs()
  lengths[1] = 0
  hidden, grads = both((tokens, lengths, response))[1]
  assert np.isfinite(hidden).all()
  assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))


def test_on_a_mesh_each_device_runs_its_own_rows_and_heads():
  assert jax.device_count() == 8
  arrays = inputs(8)
  decoder = make_decoder(settings=LONG)
  expected, _ = score_and_gradient(decoder, arrays)
  decoder.attention = 'splash'
  grid = mesh.make_mesh({'data': 2, 'fsdp': 2, 'model': 2})
  with jax.set_mesh(grid):
    hidden, _ = score_and_gradient(decoder, arrays)
  np.testing.assert_allclose(hidden, expected, atol=2e-4)


def test_the_kernel_is_for_tpus_without_windows():
  config = small_config()
  grid = mesh.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  make = build.decoder_maker(config, LONG, grid, lora_rank=0)
  assert nnx.eval_shape(make, jax.random.key(0)).attention == 'plain'
  config.model.attention = 'splash'
  with pytest.raises(UserError, match="'splash', but there is no TPU"):
    build.decoder_maker(config, LONG, grid, lora_rank=0)


COMPILE = """
import jax, jax.numpy as jnp, numpy as np, sys
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
found = text.count('tpu_custom_call'), text.count('384,1024]')
print(*found, cost.flops, len(cost.unknown))
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

  num_kernels, num_scores, flops, num_unknown = counts('splash')
  assert num_kernels >= 6 and num_scores == 0 and num_unknown == 0
  if head_size == 128:  # What the same search finds in the plain path.
    num_kernels, num_scores, plain_flops, _ = counts('plain')
    assert num_kernels == 0 and num_scores > 0
    # Causality spares pairs, padding and two products more add some.
    assert 0.9 * plain_flops < flops < 1.1 * plain_flops
