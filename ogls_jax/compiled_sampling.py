"""The programs of sampling, compiled from shapes, in order.

begin    reads the prompts (sampling's prefill)
place    the weights as decoding wants them, where `fsdp` shares them out
decode   one token for every row, at the first and at the largest cache
compact  half of the rows of the cache's largest part
"""

import dataclasses
from collections.abc import Callable

import jax

from ogls_jax import build, rollout, sampling, shapes
from ogls_jax.batches import PromptBatch
from ogls_jax.mesh import num_row_shards, num_shards_of


def compile_sampling(
  run: Callable,
  student: build.Model,
  prompts: PromptBatch,
  key: jax.ShapeDtypeStruct,
  *,
  lasting,
  note_cache: Callable[[int], None],
  max_tokens: int,
  **options,
) -> None:
  """Compiles them, up to the first for which `run` raises.

  Args:
    run: (name, jitted, *arguments, slots, live, **options) -> outputs; compiles
      a program, while what is `live` is on the devices as well.
    student: what samples.
    prompts: the longest.
    key: of sampling.
    lasting: what stays on the devices.
    note_cache: gets the bytes of the largest cache on a device, before what may
      have no room for it.
    max_tokens: as for `make_sampler`.
    **options: the rest of `make_sampler`'s.
  """
  first = min(rollout.CACHE_TOKENS, max_tokens)
  jitted = rollout.sampler_programs(
    student.graphdef,
    max_tokens=max_tokens,
    eos_ids=(0,),
    num_slots=first,
    is_unstacked=False,
    **options,
  )
  model = (student.params, student.frozen)
  prefix, own, rows, rollouts = run(
    'begin', jitted.begin, *model, prompts, key, None, slots=first, live=lasting
  )
  if num_shards_of('fsdp') > 1:
    live = (lasting, prefix, own, rows, rollouts)
    model = run('place', jitted.place, *model, live=live)
    lasting = (lasting, model)
  smaller = tuple(
    sampling.smaller_shapes(
      *rows.is_done_BG.shape,
      min_rows=rollout.MIN_ROWS * num_row_shards(),
      num_shards=num_row_shards(),
    )
  )

  def decode():
    run(
      'decode', jitted.decode, *model, None, prefix, own, rows, rollouts,
      smaller, slots=own.num_slots,
      live=(lasting, prefix, own, rows, rollouts),
    )  # fmt: skip

  if first < max_tokens:
    decode()
  while own.num_slots < max_tokens:
    slots = rollout.more_slots(
      own.num_slots, first_slots=first, max_tokens=max_tokens
    )
    own, rows = _with_room(own, rows, slots)
  note_cache(shapes.bytes_per_device((prefix, own)))
  decode()
  if smaller:
    num_prompts, size = smaller[0]
    parts = [*own.earlier, (own.key_LBHGKT, own.value_LBHGTK)]
    largest = max(parts, key=shapes.bytes_per_device)
    run(
      'compact', jitted.compact, largest, rows.is_done_BG,
      num_prompts=num_prompts, group_size=size, slots=own.num_slots,
      live=(lasting, prefix, own, rows, rollouts),
    )  # fmt: skip


def _with_room(own, rows, num_slots: int):
  """As `sampling.room` and `OwnCache.with_room` leave them."""

  def resized(leaf, axis, size):
    shape = list(leaf.shape)
    shape[axis] = size
    return jax.ShapeDtypeStruct(
      tuple(shape), leaf.dtype, sharding=leaf.sharding
    )

  added = num_slots - own.num_slots
  own = own.with_room(
    resized(own.key_LBHGKT, -1, added), resized(own.value_LBHGTK, -2, added)
  )
  rows = dataclasses.replace(
    rows,
    response_BGT=resized(rows.response_BGT, -1, num_slots),
    log_prob_BGT=resized(rows.log_prob_BGT, -1, num_slots),
  )
  return own, rows
