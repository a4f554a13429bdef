"""What the compiled steps gather and hold on each device of a mesh."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from ogls_jax import hlo, hosts, mesh, rollout
from tests.small import SETTINGS, make_batch, make_decoder
from tests.test_step import setup

# Sizes that tell arrays apart: 5 layers, 56 entries, 12 tokens in blocks of 2.
NUM_LAYERS, VOCAB, NUM_TOKENS, BLOCK = 5, 56, 12, 2
WIDE = dataclasses.replace(
  SETTINGS, num_layers=NUM_LAYERS, vocab_size=VOCAB, num_heads=8, num_kv_heads=8
)
NUM_DEVICES = 8


def arrays_of(compiled, opcodes=()):
  """Those of each instruction of these kinds; of all if none.

  Also of the computations that a fusion or a loop calls.
  """
  module = hlo.parse(compiled.as_text())
  for computation in module.computations.values():
    for instruction in computation.instructions:
      if not opcodes or instruction.opcode in opcodes:
        yield from instruction.arrays


def placed(tree, grid):
  return jax.device_put(tree, mesh.shardings_of(tree, grid))


def compile_distill(grid, method, lora_rank):
  distill_step, state, frozen, teacher = setup(
    method, lora_rank=lora_rank, settings=WIDE, block_tokens=BLOCK,
    kl_weight=0.1,
  )  # fmt: skip
  batch = hosts.put_rows(make_batch(num_prompts=8, num_tokens=NUM_TOKENS), grid)
  with jax.set_mesh(grid):
    state, frozen, teacher = placed((state, frozen, teacher), grid)
    return distill_step.lower(state, frozen, teacher, batch).compile()


GATHERS = ('all-gather', 'all-gather-start')


def gathered_stacks(compiled):
  """Gathered arrays that are as large as a matrix of all layers."""
  smallest = NUM_LAYERS * WIDE.width * WIDE.num_kv_heads * WIDE.head_size
  return [
    array.dims
    for array in arrays_of(compiled, GATHERS)
    if NUM_LAYERS in array.dims and array.size >= smallest
  ]


@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize(
  ('method', 'lora_rank'), [('ogls_sd', 0), ('ogls_sd', 2), ('grpo', 2)]
)
def test_an_update_gathers_no_model_and_holds_no_logits(
  shape, method, lora_rank
):
  assert jax.device_count() == NUM_DEVICES
  grid = mesh.make_mesh(dict(zip(mesh.AXES, shape, strict=True)))
  compiled = compile_distill(grid, method, lora_rank)
  assert gathered_stacks(compiled) == []
  if shape[1] > 1:  # layers are gathered, one at a time
    assert any(arrays_of(compiled, GATHERS))
  vocabulary = VOCAB // shape[2]
  rows = 8 * 3 * shape[2] // NUM_DEVICES
  logits = [
    array.dims
    for array in arrays_of(compiled)
    if {VOCAB, vocabulary} & set(array.dims)
    and array.size >= rows * NUM_TOKENS * vocabulary
  ]
  assert logits == []
  # All 8 questions' states on one device: embeddings were, as looked up.
  states = [
    array.dims
    for array in arrays_of(compiled, GATHERS)
    if array.dtype == 'f32' and len(array.dims) > 2 and array.dims[0] == 8
  ]
  assert shape[2] == 8 or states == []


@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 2, 2), (1, 1, 8)])
def test_decoding_moves_no_weights(shape):
  """The largest thing that is gathered is one token's states of all rows."""
  assert jax.device_count() == NUM_DEVICES
  grid = mesh.make_mesh(dict(zip(mesh.AXES, shape, strict=True)))
  graphdef, params = nnx.split(make_decoder(settings=WIDE), nnx.Param)
  programs = rollout.sampler_programs(
    graphdef, group_size=2, max_tokens=3, eos_ids=(0,), num_slots=3,
    is_unstacked=False, temperature=1.0,
  )  # fmt: skip
  prompts = hosts.put_rows(make_batch(num_prompts=8).prompts, grid)
  with jax.set_mesh(grid):
    model = (placed(params, grid), nnx.State({}))
    begun = programs.begin(*model, prompts, jax.random.key(0), None)
    model = programs.place(*model)
    compiled = programs.decode.lower(*model, None, *begun, ()).compile()
  states = 8 * 2 * WIDE.width
  # Of the logits of a row the choice of a token gathers 128; nothing else here
  # has a dim of that size.
  moved = [
    array.dims
    for array in arrays_of(compiled, (*GATHERS, 'all-to-all'))
    if array.size > states and 128 not in array.dims
  ]
  assert moved == []
  assert np.prod(shape[1:]) == 1 or any(arrays_of(compiled, GATHERS))
