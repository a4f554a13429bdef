"""Chooses the next token without sorting the vocabulary.

The vocabulary is taken as blocks of 128. The k largest logits lie in the k
blocks with the largest maxima, so that two small searches find them; a token is
drawn by the inverse of the distribution function, first the block, then the
entry, from one uniform number instead of one Gumbel number per entry. top_p
without top_k redraws what falls outside, which takes 1 / top_p draws on average
and needs no threshold.
"""

import jax
import jax.numpy as jnp

_BLOCK = 128  # lanes of a TPU register


def _in_blocks(array_RV: jax.Array, fill: float) -> jax.Array:
  """[R, N, 128], the last block filled up."""
  padding = -array_RV.shape[1] % _BLOCK
  padded = jnp.pad(array_RV, ((0, 0), (0, padding)), constant_values=fill)
  return padded.reshape(padded.shape[0], -1, _BLOCK)


def largest(logits_RV: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """The k largest entries of each row and their ids, largest first.

  Equal entries come in the order of their ids. [R, k] each; k at most V.
  """
  blocks_RNE = _in_blocks(logits_RV, -jnp.inf)
  if blocks_RNE.shape[1] <= k:
    return jax.lax.top_k(logits_RV, k)
  _, block_Rk = jax.lax.top_k(blocks_RNE.max(-1), k)
  block_Rk = jnp.sort(block_Rk, axis=-1)
  found_RkE = jnp.take_along_axis(blocks_RNE, block_Rk[..., None], axis=1)
  value_Rk, place_Rk = jax.lax.top_k(
    found_RkE.reshape(found_RkE.shape[0], -1), k
  )
  chosen_Rk = jnp.take_along_axis(block_Rk, place_Rk // _BLOCK, axis=1)
  return value_Rk, chosen_Rk * _BLOCK + place_Rk % _BLOCK


def _invert(weight_RV: jax.Array, uniform_R: jax.Array) -> jax.Array:
  """The first id at which the running sum of weights exceeds the given share.

  Rounding may, once in millions of draws, give an entry of weight 0.
  """
  blocks_RNE = _in_blocks(weight_RV, 0.0)
  sum_RN = blocks_RNE.sum(-1)
  end_RN = jnp.cumsum(sum_RN, axis=-1)
  wanted_R1 = uniform_R[:, None] * end_RN[:, -1:]

  def first_above(end, wanted):
    num_below = (end <= wanted).sum(-1, dtype=jnp.int32)
    return jnp.minimum(num_below, end.shape[-1] - 1)

  block_R = first_above(end_RN, wanted_R1)
  start_RN = end_RN - sum_RN
  before_R1 = jnp.take_along_axis(start_RN, block_R[:, None], axis=1)
  entries_RE = jnp.take_along_axis(blocks_RNE, block_R[:, None, None], axis=1)
  inside_R = first_above(
    before_R1 + jnp.cumsum(entries_RE[:, 0], axis=-1), wanted_R1
  )
  token_R = block_R * _BLOCK + inside_R
  return jnp.minimum(token_R, weight_RV.shape[1] - 1)


def _draw(weight_RV, total_R, key_R, *, top_p):
  """Ids in proportion to weight; what is outside of the top_p set is redrawn.

  An id is inside if those of more weight have less than `top_p` of the total.
  """

  def draw(carry):
    trial, token_R, is_open_R = carry
    uniform_R = jax.vmap(
      lambda key: jax.random.uniform(jax.random.fold_in(key, trial))
    )(key_R)
    drawn_R = _invert(weight_RV, uniform_R)
    weight_R1 = jnp.take_along_axis(weight_RV, drawn_R[:, None], axis=1)
    is_wrong_R = weight_R1[:, 0] <= 0
    if top_p < 1:
      above_R = jnp.where(weight_RV > weight_R1, weight_RV, 0).sum(-1)
      is_wrong_R |= above_R >= top_p * total_R
    token_R = jnp.where(is_open_R, drawn_R, token_R)
    return trial + 1, token_R, is_open_R & is_wrong_R

  first = (
    jnp.int32(0),
    jnp.zeros(total_R.shape, jnp.int32),
    jnp.isfinite(total_R),  # of others no draw would ever be right
  )
  return jax.lax.while_loop(lambda carry: carry[2].any(), draw, first)[1]


def choose_tokens(
  logits_RV: jax.Array,
  key_R: jax.Array,
  *,
  temperature: float,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """One token a row, its log-probability under softmax(logits / temperature).

  The log-probability is that of the unfiltered distribution, the one that
  scoring computes. Temperature 0 is greedy, scored at temperature 1.

  Args:
    logits_RV: float32.
    key_R: a key a row; a row's token depends on nothing else.
    temperature: divides the logits.
    top_k: keep the k largest, 0 for all; of equal ones the lower ids.
    top_p: of these, keep the smallest set with this much of the mass and what
      ties with its last member; 1 for all.
    min_p: of these, keep entries of at least this share of the largest.

  Returns:
    (token_R, log_prob_R): int32 and float32. Logits with a nan or
    +inf give a token without meaning and the log-probability nan.
  """
  kept_RV, id_RV = logits_RV, None
  num_kept = 1 if temperature == 0 else top_k
  if 0 < num_kept < logits_RV.shape[1]:
    kept_RV, id_RV = largest(logits_RV, num_kept)
  top_R1 = kept_RV.max(-1, keepdims=True)

  def scaled(logits):
    return (logits - top_R1) / (temperature or 1.0)

  if temperature == 0:
    token_R = jnp.zeros(logits_RV.shape[0], jnp.int32)
  else:
    weight_RV = jnp.exp(scaled(kept_RV))
    total_R = weight_RV.sum(-1)
    if min_p:
      weight_RV = jnp.where(weight_RV >= min_p, weight_RV, 0)
    token_R = _draw(weight_RV, total_R, key_R, top_p=top_p)
  if id_RV is not None:
    token_R = jnp.take_along_axis(id_RV, token_R[:, None], axis=1)[:, 0]
  chosen_R1 = jnp.take_along_axis(logits_RV, token_R[:, None], axis=1)
  log_total_R = jnp.log(jnp.exp(scaled(logits_RV)).sum(-1))
  log_prob_R = scaled(chosen_R1)[:, 0] - log_total_R
  return token_R.astype(jnp.int32), log_prob_R
