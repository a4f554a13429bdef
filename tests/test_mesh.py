import dataclasses
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ogls_jax import mesh
from ogls_jax.errors import UserError
from tests.small import SETTINGS, make_decoder


def test_one_axis_may_take_what_the_others_leave():
  sizes = {'data': -1, 'fsdp': 2, 'model': 2}
  assert mesh.mesh_shape(8, sizes) == {'data': 2, 'fsdp': 2, 'model': 2}


@pytest.mark.parametrize(
  'sizes', [(-1, -1, 1), (3, 1, 1), (-1, 3, 1), (0, 1, 1), (2, -2, 1)]
)
def test_sizes_that_do_not_fit_are_an_error(sizes):
  with pytest.raises(UserError, match='mesh.data = '):
    mesh.mesh_shape(8, dict(zip(mesh.AXES, sizes, strict=True)))


def test_shard_follows_the_table():
  assert jax.device_count() == 8
  grid = mesh.make_mesh({'data': 2, 'fsdp': 2, 'model': 2})
  with jax.set_mesh(grid):
    array = jax.jit(lambda x: mesh.shard(x, 'RTV'))(jnp.zeros((8, 3, 4)))
  assert array.sharding.spec == jax.P(('data', 'fsdp'), None, 'model')


def test_shard_rejects_what_the_table_cannot_place():
  with pytest.raises(ValueError, match='two dims'):
    mesh.shard(jnp.zeros((2, 2)), 'BR')
  with pytest.raises(ValueError, match="'Z'"):
    mesh.shard(jnp.zeros((2, 2)), 'RZ')
  with pytest.raises(ValueError, match='names 2 dims'):
    mesh.shard(jnp.zeros(2), 'RT')
  with pytest.raises(ValueError, match='two dims'):
    mesh.weight_spec('FH')


def test_an_axis_that_does_not_divide_a_weight_is_named():
  grid = mesh.make_mesh({'data': 4, 'fsdp': 1, 'model': 2})
  odd = dataclasses.replace(SETTINGS, vocab_size=107)
  params = nnx.state(make_decoder(settings=odd), nnx.Param)
  with pytest.raises(
    UserError, match='mesh.model = 2 does not divide the vocabulary, 107'
  ):
    mesh.shardings_of(params, grid)


ON_TOPOLOGIES = """
from ogls_jax import mesh, preflight
for topology, num_slices, sizes in (
  ('v6e:4x4', 1, (2, 8, 1)), ('v6e:4x8', 1, (2, 16, 1)),
  ('v5p:4x4x4', 1, (2, 32, 1)), ('v5p:4x4x4', 1, (-1, 8, 2)),
  ('v5e:4x4', 2, (4, 8, 1)), ('v6e:4x4', 2, (2, 8, 2)),
):
  devices = preflight.find_slice(topology, num_slices).devices
  grid = mesh.make_mesh(dict(zip(mesh.AXES, sizes)), devices)
  assert set(grid.devices.flat) == set(devices)
  per_slice = grid.devices.reshape(num_slices, -1)
  for number, members in enumerate(per_slice):
    found = {getattr(device, 'slice_index', 0) for device in members}
    assert found == {number}
"""


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='needs the TPU compiler: pip install libtpu',
)
def test_axes_may_split_the_dims_of_a_torus():
  # A process of its own: libtpu keeps what it was started with.
  found = subprocess.run(
    [sys.executable, '-c', ON_TOPOLOGIES], capture_output=True, text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'}, check=False,
  )  # fmt: skip
  assert found.returncode == 0, found.stderr[-2000:]
