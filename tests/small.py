"""Small models and batches that several tests share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ogls_jax.batches import Hints, LossBatch, PromptBatch
from ogls_jax.models.settings import DecoderSettings
from ogls_jax.models.transformer import Decoder

VOCAB = 24
SETTINGS = DecoderSettings(
  vocab_size=VOCAB,
  width=16,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_size=4,
  mlp_size=24,
)


def make_decoder(seed=0, lora_rank=0, settings=SETTINGS, dtype=jnp.float32):
  return Decoder(
    settings,
    lora_rank=lora_rank,
    lora_alpha=8.0,
    dtype=dtype,
    param_dtype=dtype,
    rngs=nnx.Rngs(seed),
  )


def naive_hidden(decoder, context, response):
  """One unpadded forward of context + response; states for the response."""
  tokens = jnp.array([*context, *response[:-1]])[None, None]
  empty = decoder.read(jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32))
  hidden, _ = decoder.continue_from(tokens, empty)
  return hidden[0, 0, len(context) - 1 :]


def make_batch(
  seed=0, num_prompts=4, group=3, num_tokens=6, contexts=5, ogls=True
):
  """A random LossBatch in which every rollout carries loss unless masked."""
  rng = np.random.default_rng(seed)
  rows = num_prompts * group

  def tokens(*shape):
    return rng.integers(1, VOCAB, shape).astype(np.int32)

  prompts = PromptBatch(
    tokens_BP=tokens(num_prompts, 5),
    length_B=rng.integers(1, 6, num_prompts).astype(np.int32),
    uid_B=np.arange(num_prompts, dtype=np.uint32),
  )
  shape = (num_prompts, group, contexts)
  anchor = np.zeros(shape, np.float32)
  anchor[..., 0] = 1
  positive, negative = np.zeros_like(anchor), np.zeros_like(anchor)
  positive[..., 1:3] = 0.5
  negative[..., 3:] = 1 / (contexts - 3)
  length_R = rng.integers(1, num_tokens + 1, rows)
  position = np.arange(num_tokens)[None]
  return LossBatch(
    prompts=prompts,
    response_RT=tokens(rows, num_tokens),
    token_mask_RT=position < length_R[:, None],
    tail_mask_RT=np.zeros((rows, num_tokens), bool),
    log_prob_RT=-rng.random((rows, num_tokens)).astype(np.float32),
    advantage_R=rng.normal(size=rows).astype(np.float32),
    hints=Hints(
      context_BMC=tokens(num_prompts, contexts, 9),
      length_BM=rng.integers(1, 10, shape[::2]).astype(np.int32),
      anchor_BGM=anchor,
      positive_BGM=positive,
      negative_BGM=negative,
    )
    if ogls
    else None,
  )


def tree_max_difference(a, b):
  leaves = jax.tree.leaves(
    jax.tree.map(
      lambda x, y: np.abs(np.asarray(x, np.float64) - np.asarray(y)).max(),
      a,
      b,
    )
  )
  return max(leaves)
