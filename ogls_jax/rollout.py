"""Runs sampling from the host: few compiled programs, each of a fixed size.

Between programs the host reads three numbers and decides: drop rows that have
ended once those that go on fit into half as many prompts, or half as many
rollouts of every prompt; give a cache that is full half as much room again; or
just look around, as it does every few seconds.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from ogls_jax import sampling
from ogls_jax.batches import PromptBatch, Rollouts
from ogls_jax.hosts import take_rows
from ogls_jax.mesh import num_row_shards, num_shards_of, place_for_decoding
from ogls_jax.models.cache import OwnCache
from ogls_jax.numerics import round_up

# Tokens that a cache starts with room for, and a multiple of which it has.
CACHE_TOKENS = 64
# Of one program, so that a stop that is asked for is seen within seconds.
MOST_TOKENS = 256
# Below this a step costs as much as reading the weights, whatever the rows.
MIN_ROWS = 8


@dataclasses.dataclass(frozen=True)
class SamplerPrograms:
  """Jitted functions of `sampling.py`, each compiled for every size it gets.

  Attributes:
    begin: (params, frozen, prompts, key, limit_BG) -> prefix, own, rows,
      rollouts.
    place: (params, frozen) -> the same, as decoding wants them on a mesh.
    unstack: (params, frozen) -> `Unstacked`.
    decode: (params, frozen, unstacked, prefix, own, rows, rollouts, smaller) ->
      own, rows, rollouts, progress; it donates the first three of these.
    room: as `sampling.room`.
    compact: as `sampling.compact`.
  """

  begin: Callable
  place: Callable
  unstack: Callable
  decode: Callable
  room: Callable
  compact: Callable


def sampler_programs(
  graphdef: nnx.GraphDef,
  *,
  group_size: int,
  max_tokens: int,
  eos_ids: tuple[int, ...],
  num_slots: int,
  is_unstacked: bool,
  **choice,
) -> SamplerPrograms:
  """Arguments are as for `make_sampler`; a cache begins with `num_slots`."""

  def begin(params, frozen, prompts, key, limit_BG):
    return sampling.begin(
      nnx.merge(graphdef, params, frozen),
      prompts,
      key,
      limit_BG,
      group_size=group_size,
      max_tokens=max_tokens,
      num_slots=num_slots,
      is_unstacked=is_unstacked,
    )

  def place(params, frozen):
    return place_for_decoding((params, frozen))

  def unstack(params, frozen):
    return nnx.merge(graphdef, params, frozen).unstacked()

  def decode(params, frozen, unstacked, prefix, own, rows, rollouts, smaller):
    return sampling.decode(
      nnx.merge(graphdef, params, frozen),
      prefix,
      own,
      rows,
      rollouts,
      eos_ids=eos_ids,
      smaller=smaller,
      most_tokens=MOST_TOKENS,
      unstacked=unstacked,
      **choice,
    )

  return SamplerPrograms(
    begin=jax.jit(begin),
    place=jax.jit(place),
    unstack=jax.jit(unstack),
    decode=jax.jit(decode, static_argnums=7, donate_argnums=(4, 5, 6)),
    room=jax.jit(sampling.room, static_argnames='num_slots'),
    compact=jax.jit(
      sampling.compact, static_argnames=('num_prompts', 'group_size')
    ),
  )


def compact_cache(
  programs: SamplerPrograms, own: OwnCache, is_done_BG: jax.Array, **sizes
) -> OwnCache:
  """`own` of the rows that go on, one part at a time."""
  parts = []
  for part in (*own.earlier, (own.key_LBHGKT, own.value_LBHGTK)):
    parts.append(programs.compact(part, is_done_BG, **sizes))
    jax.tree.map(lambda array: array.delete(), part)  # now, not after the last
  return OwnCache(*parts[-1], own.length, tuple(parts[:-1]))


def more_slots(num_slots: int, *, first_slots: int, max_tokens: int) -> int:
  """Half as many again, in multiples of `first_slots`, up to `max_tokens`."""
  half_more = num_slots + (num_slots + 1) // 2
  return min(round_up(half_more, first_slots), max_tokens)


def make_sampler(
  graphdef: nnx.GraphDef,
  *,
  group_size: int,
  max_tokens: int,
  eos_ids: tuple[int, ...],
  cache_tokens: int = CACHE_TOKENS,
  min_rows: int = MIN_ROWS,
  has_single: bool | None = None,
  is_unstacked: bool | None = None,
  **choice,
) -> Callable:
  """(params, frozen, prompts, key, limit_BG=None, meanwhile=None) -> Rollouts.

  The same key, question and rollout index give the same token, up to the
  rounding of logits, in any batch, whatever `cache_tokens` and `min_rows` are.

  `meanwhile` is called each time that the device has begun to decode: first
  with None, then with what this host's rollouts were when it stopped last.

  Args:
    graphdef: of the decoder; params and frozen complete it.
    group_size: G rollouts of each prompt.
    max_tokens: T, the most tokens of a rollout.
    eos_ids: tokens that end a rollout.
    cache_tokens: the cache begins with room for so many tokens.
    min_rows: rows are dropped down to so many on each shard of the rows.
    has_single: the last row that runs gets a program of its own; None: on CPUs,
      where products of one row need not rearrange the weights first.
    is_unstacked: decoding has weights and caches of each layer by themselves, a
      second copy of the weights; None: on CPUs, where a scan over the stacks
      copies them for every token.
    **choice: temperature, top_k, top_p, min_p as for `choose_tokens`.

  The sampler raises ValueError where `limit_BG`, a host array, is not in 1 to
  `max_tokens`.
  """
  first_slots = min(cache_tokens, max_tokens)
  is_cpu = jax.default_backend() == 'cpu'
  if has_single is None:
    has_single = is_cpu
  if is_unstacked is None:
    is_unstacked = is_cpu

  programs = sampler_programs(
    graphdef,
    group_size=group_size,
    max_tokens=max_tokens,
    eos_ids=eos_ids,
    num_slots=first_slots,
    is_unstacked=is_unstacked,
    **choice,
  )

  def sample(
    params,
    frozen,
    prompts: PromptBatch,
    key: jax.Array,
    limit_BG: jax.Array | None = None,
    meanwhile: Callable[[Rollouts | None], None] | None = None,
  ) -> Rollouts:
    num_shards, so_far = num_row_shards(), None
    if (
      isinstance(limit_BG, np.ndarray)
      and not ((limit_BG >= 1) & (limit_BG <= max_tokens)).all()
    ):
      raise ValueError(f'limit_BG must be in 1 to {max_tokens}, got {limit_BG}')

    def smaller_than(shape):
      return sampling.smaller_shapes(
        *shape,
        min_rows=min_rows * num_shards,
        num_shards=num_shards,
        has_single=has_single,
      )

    def smallest_fit(shape, num_running, most):
      """Halved again and again: several steps are one copy."""
      while fitting := [
        (b, g) for b, g in smaller_than(shape) if num_running <= b and most <= g
      ]:
        shape = fitting[0]
      return shape

    prefix, own, rows, rollouts = programs.begin(
      params, frozen, prompts, key, limit_BG
    )
    # After the prompts: they are many tokens, for which weights do move.
    if num_shards_of('fsdp') > 1:
      params, frozen = programs.place(params, frozen)
    unstacked = programs.unstack(params, frozen) if is_unstacked else None
    while True:
      smaller = tuple(smaller_than(rows.is_done_BG.shape))
      own, rows, rollouts, progress = programs.decode(
        params, frozen, unstacked, prefix, own, rows, rollouts, smaller
      )
      if meanwhile:
        meanwhile(so_far)
      num_tokens, most, num_running = jax.device_get(progress).tolist()
      if most == 0 or num_tokens == max_tokens:
        return rollouts
      shape = smallest_fit(rows.is_done_BG.shape, num_running, most)
      if shape != rows.is_done_BG.shape:
        is_done_BG = rows.is_done_BG
        sizes = {'num_prompts': shape[0], 'group_size': shape[1]}
        own = compact_cache(programs, own, is_done_BG, **sizes)
        prefix = programs.compact(prefix, is_done_BG, **sizes)
        rows = programs.compact(rows, is_done_BG, **sizes)
      elif num_tokens == own.num_slots:
        slots = more_slots(
          own.num_slots, first_slots=first_slots, max_tokens=max_tokens
        )
        kv, rows = programs.room(own, rows, num_slots=slots)
        own = own.with_room(*kv)
      if meanwhile:  # before `decode` takes the buffers
        so_far = take_rows(rollouts)

  return sample
