"""Sampling and an update on several meshes, by any number of processes.

    python -m tests.on_meshes FILE [COORDINATOR NUM_PROCESSES PROCESS_ID]

writes what came out to FILE (npz): 8 devices in all, whoever holds them.
"""

import sys

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from ogls_jax import hosts, mesh, rollout
from tests.small import VOCAB, make_batch, make_decoder
from tests.test_step import setup

SHAPES = [(8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)]
NUM_PROMPTS, GROUP = 8, 3


def own_part(batch, grid):
  """This process's rows of a whole batch."""
  own_B = hosts.own_rows(NUM_PROMPTS, grid)
  own_R = hosts.own_rows(NUM_PROMPTS * GROUP, grid)
  return jax.tree.map(
    lambda array: array[own_B if len(array) == NUM_PROMPTS else own_R], batch
  )


def whole(tree):
  return jax.tree.leaves(multihost_utils.process_allgather(tree, tiled=True))


def results(shape):
  grid = mesh.make_mesh(dict(zip(mesh.AXES, shape, strict=True)))
  with jax.set_mesh(grid):
    distill_step, state, frozen, teacher = setup()
    local = jax.tree.map(
      # Keys are the only leaves that have no numpy form.
      lambda x: x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
      else np.asarray(x),
      (state, frozen, teacher),
    )  # fmt: skip
    placed = jax.device_put(local, mesh.shardings_of(local, grid))
    state, frozen, teacher = placed
    batch = make_batch(num_prompts=NUM_PROMPTS, group=GROUP)
    own = hosts.put_rows(own_part(batch, grid), grid)
    graphdef, _ = nnx.split(make_decoder(), nnx.Param)
    rollouts = rollout.make_sampler(
      graphdef, group_size=GROUP, max_tokens=9, eos_ids=(VOCAB,),
      temperature=1.0, cache_tokens=4, min_rows=1,
    )(state.params, frozen, own.prompts, state.key)  # fmt: skip
    taken = hosts.take_rows(rollouts.log_prob_RT)
    shared = hosts.share_rows(taken, grid)
    state, sums = distill_step(state, frozen, teacher, own)
  arrays = [
    *whole(state.params), *whole(rollouts), shared, *jax.tree.leaves(sums)
  ]  # fmt: skip
  return [np.asarray(array) for array in arrays]


def main():
  file, *rest = sys.argv[1:]
  num_processes = int(rest[1]) if rest else 1
  jax.config.update('jax_num_cpu_devices', 8 // num_processes)
  if rest:
    hosts.start(rest[0], num_processes, int(rest[2]))
  assert jax.device_count() == 8
  found = {
    f'{shape}/{n}': array
    for shape in SHAPES
    for n, array in enumerate(results(shape))
  }
  if hosts.is_first():
    np.savez(file, **found)


if __name__ == '__main__':
  main()
