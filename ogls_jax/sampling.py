"""G rollouts per prompt: prefill each prompt once, then decode all rows.

1. read the prompts, once each; rollouts share their keys and values
2. decode token by token until every row has ended or is full
3. keep each token's log-probability at the sampling temperature
"""

import jax
import jax.numpy as jnp

from ogls_jax.batches import PromptBatch, Rollouts, flatten_rows
from ogls_jax.mesh import shard
from ogls_jax.models.transformer import (
  Decoder,
  OwnCache,
  last_tokens,
  project,
)
from ogls_jax.numerics import log_probs


def row_keys(key: jax.Array, uid_B: jax.Array, group_size: int) -> jax.Array:
  """One key per (question, rollout), whatever else is in the batch. [B, G]."""

  def of_question(uid):
    fold = jax.random.fold_in
    return jax.vmap(lambda g: fold(fold(key, uid), g))(jnp.arange(group_size))

  return jax.vmap(of_question)(uid_B)


def _top_p_threshold(prob_V: jax.Array, top_p: float) -> jax.Array:
  """Largest t such that the entries >= t hold at least `top_p` of the mass.

  Non-negative floats order like their bits, so bisecting the bits finds t
  exactly in 31 passes over the vocabulary, where a sort would need more.
  """

  def halve(_, bounds):
    low, high = bounds  # mass(>= low) >= top_p > mass(>= high)
    middle = low + (high - low) // 2
    kept_V = prob_V >= jax.lax.bitcast_convert_type(middle, jnp.float32)
    is_enough = jnp.where(kept_V, prob_V, 0).sum() >= top_p * prob_V.sum()
    return jnp.where(is_enough, middle, low), jnp.where(is_enough, high, middle)

  one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32)
  low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), one + 1))
  return jax.lax.bitcast_convert_type(low, jnp.float32)


def filter_logits(
  logits_V: jax.Array, *, top_k: int, top_p: float, min_p: float
) -> jax.Array:
  """Sets what sampling may not choose to -inf. Ties at a bound are kept.

  Args:
    logits_V: float32, already divided by the temperature.
    top_k: keep the k largest, 0 for all.
    top_p: then keep the smallest set with this much of the mass, 1 for all.
    min_p: then keep entries of at least this share of the largest, 0 for all.
  """
  kept_V = logits_V
  if top_k:
    smallest = jax.lax.top_k(kept_V, top_k)[0][-1]
    kept_V = jnp.where(kept_V >= smallest, kept_V, -jnp.inf)
  if top_p < 1:
    prob_V = jax.nn.softmax(kept_V)
    kept_V = jnp.where(
      prob_V >= _top_p_threshold(prob_V, top_p), kept_V, -jnp.inf
    )
  if min_p:
    floor = kept_V.max() + jnp.log(min_p)
    kept_V = jnp.where(kept_V >= floor, kept_V, -jnp.inf)
  return kept_V


def choose_token(
  logits_V: jax.Array,
  key: jax.Array,
  *,
  temperature: float,
  top_k: int,
  top_p: float,
  min_p: float,
) -> tuple[jax.Array, jax.Array]:
  """One token and its log-probability under softmax(logits / temperature).

  The log-probability is that of the unfiltered distribution, the one that
  scoring computes. Temperature 0 is greedy, scored at temperature 1.
  """
  scaled_V = logits_V / (temperature or 1.0)
  log_prob_V = log_probs(scaled_V)
  if temperature == 0:
    token = logits_V.argmax()
  else:
    kept_V = filter_logits(scaled_V, top_k=top_k, top_p=top_p, min_p=min_p)
    token = jax.random.categorical(key, kept_V)
  return token.astype(jnp.int32), log_prob_V[token]


def sample(
  decoder: Decoder,
  prompts: PromptBatch,
  key: jax.Array,
  *,
  group_size: int,
  max_tokens: int,
  eos_ids: tuple[int, ...],
  temperature: float,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
) -> Rollouts:
  """Samples G = `group_size` rollouts of each prompt.

  A row ends with its first token in `eos_ids`, which counts towards its
  length, or at `max_tokens`, and is then marked as truncated. The same key,
  question and rollout index give the same tokens in any batch.
  """
  prefix = decoder.read(prompts.tokens_BP, prompts.length_B - 1)
  settings = decoder.settings
  num_prompts = prompts.tokens_BP.shape[0]
  keys_BG = row_keys(key, prompts.uid_B, group_size)
  eos_E = jnp.array(eos_ids, jnp.int32)
  rows = (num_prompts, group_size)
  cache_shape = (
    settings.num_layers,
    *rows,
    settings.num_kv_heads,
    max_tokens,
    settings.head_size,
  )
  choose = jax.vmap(
    jax.vmap(
      lambda logits_V, row_key, t: choose_token(
        logits_V,
        jax.random.fold_in(row_key, t),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
      ),
      (0, 0, None),
    ),
    (0, 0, None),
  )

  def decode(carry):
    t, token_BG, is_done_BG, cache, response_BGT, log_prob_BGT = carry
    hidden_BG1D, new = decoder.continue_from(token_BG[..., None], prefix, cache)
    logits_RTV = project(flatten_rows(hidden_BG1D), decoder.unembedding_VD)
    logits_BGV = logits_RTV.reshape(*rows, -1)
    token_BG, log_prob_BG = choose(logits_BGV, keys_BG, t)
    token_BG = jnp.where(is_done_BG, 0, token_BG)
    log_prob_BG = jnp.where(is_done_BG, 0.0, log_prob_BG)
    response_BGT = response_BGT.at[:, :, t].set(token_BG)
    log_prob_BGT = log_prob_BGT.at[:, :, t].set(log_prob_BG)
    is_eos_BG = (token_BG[..., None] == eos_E[None, None]).any(-1)
    write = jax.lax.dynamic_update_slice_in_dim
    cache = OwnCache(
      write(cache.key_LBGHTK, new.key_LBGHTK, t, axis=4),
      write(cache.value_LBGHTK, new.value_LBGHTK, t, axis=4),
      t + 1,
    )
    is_done_BG |= is_eos_BG
    return t + 1, token_BG, is_done_BG, cache, response_BGT, log_prob_BGT

  def is_running(carry):
    return (carry[0] < max_tokens) & ~carry[2].all()

  first_BG = jnp.broadcast_to(
    last_tokens(prompts.tokens_BP, prompts.length_B)[:, None], rows
  )
  empty = jnp.zeros(cache_shape, decoder.dtype)
  carry = (
    jnp.int32(0),
    first_BG,
    jnp.zeros(rows, bool),
    OwnCache(
      shard(empty, 'LBGHTK'), shard(jnp.copy(empty), 'LBGHTK'), jnp.int32(0)
    ),
    jnp.zeros((*rows, max_tokens), jnp.int32),
    jnp.zeros((*rows, max_tokens), jnp.float32),
  )
  carry = jax.lax.while_loop(is_running, decode, carry)
  _, _, is_done_BG, _, response_BGT, log_prob_BGT = carry
  is_eos_BGT = (response_BGT[..., None] == eos_E[None, None, None]).any(-1)
  length_BG = jnp.where(is_done_BG, is_eos_BGT.argmax(-1) + 1, max_tokens)
  return Rollouts(
    response_RT=flatten_rows(response_BGT),
    length_R=flatten_rows(length_BG.astype(jnp.int32)),
    log_prob_RT=flatten_rows(log_prob_BGT),
    is_truncated_R=flatten_rows(~is_done_BG),
  )
