"""The pure parts of sampling: begin, decode, compact, room.

A decode step costs what it reads, so it should read what is needed and no more:

  begin    reads each prompt once; all its rollouts share its keys and values
  decode   samples token by token, until the cache is full, every row has ended,
           so many have that the rest fits into half of the rows, or the host
           wants to be asked
  compact  moves the rows that go on to the front, and drops the others
  room     is what every row's cache grows by

`rollout.py` runs them; each compiles once per number of rows and of slots.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ogls_jax.batches import PromptBatch, Rollouts, flatten_rows
from ogls_jax.mesh import num_row_shards, shard
from ogls_jax.models.cache import OwnCache, Prefix, Unstacked
from ogls_jax.models.transformer import Decoder, last_tokens, project
from ogls_jax.token_choice import choose_tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """B x G rollouts under way. `row_BG` is a rollout's place in `Rollouts`."""

  row_BG: jax.Array  # int32
  key_BG: (
    jax.Array
  )  # uint32 [B, G, 2], key data: depends on question and rollout
  limit_BG: jax.Array  # int32, most tokens
  token_BG: jax.Array  # int32, the last one
  length_BG: jax.Array  # int32, tokens so far
  is_done_BG: jax.Array  # bool
  is_truncated_BG: jax.Array  # bool, no end-of-sequence token so far
  response_BGT: jax.Array  # int32, 0 past the length
  log_prob_BGT: jax.Array  # float32, 0 past the length


def row_keys(key: jax.Array, uid_B: jax.Array, group_size: int) -> jax.Array:
  """One key per (question, rollout), whatever else is in the batch. [B, G]."""

  def of_question(uid):
    fold = jax.random.fold_in
    return jax.vmap(lambda g: fold(fold(key, uid), g))(jnp.arange(group_size))

  return jax.vmap(of_question)(uid_B)


def begin(
  decoder: Decoder,
  prompts: PromptBatch,
  key: jax.Array,
  limit_BG: jax.Array | None,
  *,
  group_size: int,
  max_tokens: int,
  num_slots: int,
  is_unstacked: bool = False,
) -> tuple[Prefix, OwnCache, Rows, Rollouts]:
  """Reads the prompts; everything that `decode` starts from.

  Args:
    decoder: its cache dtype is that of its activations.
    prompts: B prompts.
    key: of this call.
    limit_BG: most tokens of each rollout, 1 to `max_tokens`; None for the
      latter.
    group_size: G.
    max_tokens: T of the result.
    num_slots: room in the cache for so many tokens.
    is_unstacked: caches are tuples of one for each layer.
  """
  s = decoder.settings
  num_prompts = prompts.tokens_BP.shape[0]
  shape_BG = (num_prompts, group_size)
  prefix = decoder.read(prompts.tokens_BP, prompts.length_B - 1)
  lead = (s.num_layers, num_prompts, s.num_kv_heads, group_size)

  def empty(sizes, dims):
    return shard(jnp.zeros(lead + sizes, decoder.dtype), dims)

  own = OwnCache(
    empty((s.head_size, num_slots), 'LBHGKT'),
    empty((num_slots, s.head_size), 'LBHGTK'),
    jnp.int32(0),
  )
  if is_unstacked:
    prefix, own = prefix.unstacked(), own.unstacked()
  if limit_BG is None:
    limit_BG = jnp.full(shape_BG, max_tokens, jnp.int32)
  keys_BG = row_keys(key, prompts.uid_B, group_size)
  rows = Rows(
    row_BG=jnp.arange(num_prompts * group_size).reshape(shape_BG),
    key_BG=jax.random.key_data(keys_BG),
    limit_BG=limit_BG,
    token_BG=jnp.broadcast_to(
      last_tokens(prompts.tokens_BP, prompts.length_B)[:, None], shape_BG
    ),
    length_BG=jnp.zeros(shape_BG, jnp.int32),
    is_done_BG=jnp.zeros(shape_BG, bool),
    is_truncated_BG=jnp.ones(shape_BG, bool),
    response_BGT=jnp.zeros((*shape_BG, num_slots), jnp.int32),
    log_prob_BGT=jnp.zeros((*shape_BG, num_slots), jnp.float32),
  )
  num_rows = num_prompts * group_size
  rollouts = Rollouts(
    response_RT=shard(jnp.zeros((num_rows, max_tokens), jnp.int32), 'RT'),
    length_R=shard(jnp.zeros(num_rows, jnp.int32), 'R'),
    log_prob_RT=shard(jnp.zeros((num_rows, max_tokens), jnp.float32), 'RT'),
    is_truncated_R=shard(jnp.ones(num_rows, bool), 'R'),
  )
  return prefix, own, rows, rollouts


def smaller_shapes(
  num_prompts: int,
  group_size: int,
  *,
  min_rows: int,
  num_shards: int,
  has_single: bool = False,
) -> list[tuple[int, int]]:
  """(prompts, rollouts of each) of half of these rows, or a little more.

  Args:
    num_prompts: B.
    group_size: G.
    min_rows: fewer rows are not worth a program of their own.
    num_shards: B stays a multiple of it.
    has_single: a single row is worth one; it comes first.
  """
  shapes = []
  if group_size > 1:
    shapes.append((num_prompts, (group_size + 1) // 2))
  if num_prompts % (2 * num_shards) == 0:
    shapes.append((num_prompts // 2, group_size))
  shapes = [(b, g) for b, g in shapes if b * g >= min_rows]
  is_more = num_prompts * group_size > 1
  if has_single and num_shards == 1 and is_more and (1, 1) not in shapes:
    shapes.insert(0, (1, 1))
  return shapes


def decode(
  decoder: Decoder,
  prefix: Prefix,
  own: OwnCache,
  rows: Rows,
  rollouts: Rollouts,
  *,
  eos_ids: tuple[int, ...],
  smaller: list[tuple[int, int]],
  most_tokens: int,
  unstacked: Unstacked | None = None,
  **choice,
) -> tuple[OwnCache, Rows, Rollouts, jax.Array]:
  """Samples until the cache is full, all rows ended, or one of `smaller` fits.

  Or until so many tokens were sampled.

  A row ends with its first token in `eos_ids`, which counts towards its length,
  or at its limit, and is then truncated.

  Args:
    decoder: the model.
    prefix: of B prompts.
    own: the rows' cache.
    rows: B x G.
    rollouts: gets what the rows have at the end, at their places.
    eos_ids: tokens that end a row.
    smaller: shapes from `smaller_shapes`.
    most_tokens: of this call.
    unstacked: the decoder's; prefix and own are then tuples, too.
    **choice: as for `choose_tokens`.

  Returns:
    own, rows, rollouts, and int32 [3]: tokens decoded, the most running rows of
    a prompt, prompts with a running row if each shard of the rows had as many
    as that with the most.
  """
  num_shards = num_row_shards()
  last = jnp.minimum(own.length + most_tokens, own.num_slots)

  def counts(is_done_BG):
    is_running_BG = ~is_done_BG
    most = is_running_BG.sum(1).max()
    is_running_SB = is_running_BG.any(1).reshape(num_shards, -1)
    return most, num_shards * is_running_SB.sum(1).max()

  def goes_on(carry):
    own, rows, _ = carry
    most, num_prompts = counts(rows.is_done_BG)
    is_smaller = jnp.bool(False)
    for b, g in smaller:
      is_smaller |= (num_prompts <= b) & (most <= g)
    return (own.length < last) & (most > 0) & ~is_smaller

  def next_turns(own):
    return decoder.turns((prefix.length_B + own.length)[:, None])

  def step(carry):
    # Turns are carried: fused into each layer, cosines were 5% of a step.
    own, rows = _decode_token(
      decoder, prefix, *carry, unstacked, eos_ids=eos_ids, **choice
    )
    return own, rows, next_turns(own)

  carry = own, rows, next_turns(own)
  own, rows, _ = jax.lax.while_loop(goes_on, step, carry)
  progress = jnp.stack([own.length, *counts(rows.is_done_BG)])
  progress = shard(progress, '1')  # every host decides by it
  return own, rows, _put(rows, rollouts), progress


def _decode_token(
  decoder, prefix, own, rows, turns_NB1TK, unstacked, *, eos_ids, **choice
):
  """(own, rows) with one more token; 0 where a row is done."""
  t = own.length
  shape_BG = rows.is_done_BG.shape
  layers, unembedding_VD = None, decoder.unembedding_VD
  if unstacked is not None:
    layers, unembedding_VD = unstacked.layers, unstacked.unembedding_DV.T
  hidden_BG1D, own = decoder.append(
    rows.token_BG[..., None], prefix, own, layers, turns_NB1TK
  )
  logits_R1V = project(
    flatten_rows(hidden_BG1D), unembedding_VD, is_decoding=True
  )
  key_R = jax.random.wrap_key_data(flatten_rows(rows.key_BG))
  token_R, log_prob_R = choose_tokens(
    logits_R1V[:, 0],
    jax.vmap(lambda key: jax.random.fold_in(key, t))(key_R),
    **choice,
  )
  token_BG = jnp.where(rows.is_done_BG, 0, token_R.reshape(shape_BG))
  log_prob_BG = jnp.where(rows.is_done_BG, 0, log_prob_R.reshape(shape_BG))
  eos_E = jnp.array(eos_ids, jnp.int32)
  is_eos_BG = (token_BG[..., None] == eos_E[None, None]).any(-1)
  is_eos_BG &= ~rows.is_done_BG
  length_BG = rows.length_BG + ~rows.is_done_BG
  rows = dataclasses.replace(
    rows,
    token_BG=token_BG,
    length_BG=length_BG,
    is_done_BG=rows.is_done_BG | is_eos_BG | (length_BG >= rows.limit_BG),
    is_truncated_BG=rows.is_truncated_BG & ~is_eos_BG,
    response_BGT=rows.response_BGT.at[:, :, t].set(token_BG),
    log_prob_BGT=rows.log_prob_BGT.at[:, :, t].set(log_prob_BG),
  )
  return own, rows


def _put(rows, rollouts):
  """`rollouts` with what the rows have so far, at their places.

  A row never leaves its shard, so that each shard writes into its own.
  """
  num_shards, num_slots = num_row_shards(), rows.response_BGT.shape[-1]
  num_rows = len(rollouts.length_R) // num_shards  # of a shard

  def by_shard(array):
    return array.reshape(num_shards, -1, *array.shape[1:])

  first_S1 = num_rows * jnp.arange(num_shards)[:, None]
  place_SR = by_shard(flatten_rows(rows.row_BG)) - first_S1

  def put(into, array_BG, dims):
    def of_shard(into, place, array):
      index = (place, slice(num_slots)) if into.ndim > 1 else place
      return into.at[index].set(array)

    array = by_shard(flatten_rows(array_BG))
    written = jax.vmap(of_shard)(by_shard(into), place_SR, array)
    return shard(written.reshape(into.shape), dims)

  return Rollouts(
    response_RT=put(rollouts.response_RT, rows.response_BGT, 'RT'),
    length_R=put(rollouts.length_R, rows.length_BG, 'R'),
    log_prob_RT=put(rollouts.log_prob_RT, rows.log_prob_BGT, 'RT'),
    is_truncated_R=put(rollouts.is_truncated_R, rows.is_truncated_BG, 'R'),
  )


def compact(tree, is_done_BG: jax.Array, *, num_prompts: int, group_size: int):
  """Keeps what belongs to running rows, which must fit.

  Args:
    tree: `Rows`, a `Prefix`, or arrays of a cache: any part of it, so that not
      all of it has to be there twice at once.
    is_done_BG: of the rows.
    num_prompts: prompts that are kept.
    group_size: rollouts of each that are.
  """
  order_BG = jnp.argsort(is_done_BG, axis=1)[:, :group_size]
  is_all = num_prompts == is_done_BG.shape[0]
  # Each shard keeps its own, so that no cache moves between devices.
  num_shards = num_row_shards()
  is_over_SB = is_done_BG.all(1).reshape(num_shards, -1)
  order_SB = jnp.argsort(is_over_SB, axis=1)[:, : num_prompts // num_shards]

  def of_prompts(array, axis=0):
    if is_all:
      return array
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    array = array.reshape(*before, *is_over_SB.shape, *after)
    other_axes = set(range(array.ndim)) - {axis, axis + 1}
    index = jnp.expand_dims(order_SB, sorted(other_axes))
    kept = jnp.take_along_axis(array, index, axis=axis + 1)
    return kept.reshape(*before, num_prompts, *after)

  def of_rows(array, axis=0, group_axis=1):
    other_axes = set(range(array.ndim)) - {axis, group_axis}
    index = jnp.expand_dims(order_BG, sorted(other_axes))
    kept = jnp.take_along_axis(array, index, axis=group_axis)
    return of_prompts(kept, axis)

  def of_layers(of_layer, cache, num_axes):
    # A layer at a time: what moves is there twice, and a stack is large.
    return jax.tree.map(
      lambda array: (
        jax.lax.map(of_layer, array)
        if array.ndim > num_axes
        else of_layer(array)
      ),
      cache,
    )

  if isinstance(tree, Rows):
    return jax.tree.map(of_rows, tree)
  if isinstance(tree, Prefix):
    return Prefix(
      of_layers(of_prompts, tree.key_LBHKP, 4),
      of_layers(of_prompts, tree.value_LBHPK, 4),
      of_prompts(tree.length_B),
    )
  return of_layers(lambda array: of_rows(array, 0, 2), tree, 5)


def room(own: OwnCache, rows: Rows, *, num_slots: int) -> tuple[tuple, Rows]:
  """What makes room for `num_slots` tokens in all.

  Returns:
    (key, value) for `own.with_room`: of a stack another part, of tuples the
    same arrays, longer; and rows that are as long.
  """
  added = num_slots - own.num_slots

  def longer(array, axis):
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, added)
    return jnp.pad(array, widths)

  def part(array, axis, dims):
    shape = list(array.shape)
    shape[axis] = added
    return shard(jnp.zeros(shape, array.dtype), dims)

  if own.is_stacked:
    key = part(own.key_LBHGKT, -1, 'LBHGKT')
    value = part(own.value_LBHGTK, -2, 'LBHGTK')
  else:
    key = tuple(longer(array, -1) for array in own.key_LBHGKT)
    value = tuple(longer(array, -2) for array in own.value_LBHGTK)
  rows = dataclasses.replace(
    rows,
    response_BGT=longer(rows.response_BGT, 2),
    log_prob_BGT=longer(rows.log_prob_BGT, 2),
  )
  return (key, value), rows
