"""Attention of long sequences by the splash attention kernel that JAX ships.

The plain path writes float32 scores of every query and key to main memory; the
kernel keeps a block of them on the chip and never visits blocks that causality
rules out. For TPUs, and for layers without a window: its masks are static, and
windows differ by layer inside a scan.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel,
  splash_attention_mask,
)
from jax.sharding import PartitionSpec

from ogls_jax.mesh import ROW_AXES
from ogls_jax.numerics import round_up

# The kernel's smallest block; shorter sequences are for the plain path.
MIN_TOKENS = 128


def causal(
  key_BHGKT: jax.Array,
  value_BHGTK: jax.Array,
  prefix: tuple[jax.Array, jax.Array] | None = None,
  prefix_length_B: jax.Array | None = None,
) -> Callable:
  """(query_BGTHQK, scale=) -> mixed values, as `attention.attend`.

  Arguments as for `attend_causal`.
  """
  return functools.partial(
    attend_causal,
    key_BHGKT=key_BHGKT,
    value_BHGTK=value_BHGTK,
    prefix=prefix,
    prefix_length_B=prefix_length_B,
  )


def attend_causal(
  query_BGTHQK: jax.Array,
  *,
  key_BHGKT: jax.Array,
  value_BHGTK: jax.Array,
  scale: float,
  prefix: tuple[jax.Array, jax.Array] | None = None,
  prefix_length_B: jax.Array | None = None,
) -> jax.Array:
  """Each token attends to those up to itself, and to a prefix.

  What padding at the right of a sequence gives has no meaning, but is finite.
  A prefix is copied for each of its G continuations, as the kernel wants one
  sequence of keys: 1 / (4 Q) of what their scores in float32 would take for as
  many queries as the head is wide.

  Args:
    query_BGTHQK: of T tokens; Q queries share each of H key-value heads.
    key_BHGKT: of the same tokens.
    value_BHGTK: likewise.
    scale: multiplies the scores.
    prefix: key_BHKP and value_BHPK that all G continuations share.
    prefix_length_B: slots of the prefix from here on are padding.

  Returns:
    [B, G, T, H, Q, K] in the query's dtype.
  """
  query_BHGQTK = jnp.transpose(query_BGTHQK, (0, 3, 1, 4, 2, 5))
  query_BHGQTK = (query_BHGQTK.astype(jnp.float32) * scale).astype(
    query_BGTHQK.dtype
  )
  key_BHGTK = jnp.swapaxes(key_BHGKT, -1, -2)
  num_tokens = query_BHGQTK.shape[-2]
  num_slots = 0 if prefix is None else prefix[1].shape[-2]
  block_T = _block(num_tokens)
  block_S = _block(num_slots + num_tokens)
  padded_T = round_up(num_tokens, block_T)
  # Before the tokens, so that those stay the last keys; no one attends to it.
  gap = round_up(num_slots + padded_T, block_S) - num_slots - padded_T
  query_BHGQTK = _pad(query_BHGQTK, 0, padded_T - num_tokens)
  arrays = []
  for own, shared in zip(
    (key_BHGTK, value_BHGTK),
    (None, None) if prefix is None else (prefix[0].swapaxes(-1, -2), prefix[1]),
    strict=True,
  ):
    own = _pad(own, gap, padded_T - num_tokens)
    if shared is not None:
      shape = (*own.shape[:3], *shared.shape[2:])
      shared = jnp.broadcast_to(shared[:, :, None], shape)
      own = jnp.concatenate([shared.astype(own.dtype), own], axis=-2)
    arrays.append(own)
  key_BHGSK, value_BHGSK = arrays
  first = num_slots + gap  # slot of the first token
  slot_1S = jnp.arange(first + padded_T)[None]
  is_there_BS = slot_1S >= first
  if prefix is not None:
    is_there_BS |= slot_1S < jnp.minimum(prefix_length_B, num_slots)[:, None]
  is_there_BS = jnp.broadcast_to(
    is_there_BS, (query_BHGQTK.shape[0], first + padded_T)
  )
  run = functools.partial(_kernel_of_batch, block_T=block_T, block_S=block_S)
  if not jax.sharding.get_abstract_mesh().empty:
    rows = PartitionSpec(ROW_AXES, 'model')
    # The compiler cannot split a kernel by itself.
    run = jax.shard_map(
      run,
      in_specs=(rows, rows, rows, PartitionSpec(ROW_AXES)),
      out_specs=rows,
      check_vma=False,
    )
  mixed_BHGQTK = run(
    query_BHGQTK, key_BHGSK, value_BHGSK, is_there_BS.astype(jnp.int32)
  )
  return jnp.transpose(mixed_BHGQTK[..., :num_tokens, :], (0, 2, 4, 1, 3, 5))


def _block(num_tokens: int) -> int:
  """Large blocks are fast, and waste more of a short sequence."""
  for block in (512, 256):
    if num_tokens >= 2 * block:
      return block
  return MIN_TOKENS


def _pad(array, before: int, after: int):
  """Zeros around the last axis but one."""
  widths = [(0, 0)] * array.ndim
  widths[-2] = (before, after)
  return jnp.pad(array, widths)


def _kernel_of_batch(query, key, value, is_there_BS, *, block_T, block_S):
  num_queries, num_tokens = query.shape[3:5]
  num_slots = key.shape[3]
  mask = splash_attention_mask.CausalMask(
    (num_tokens, num_slots), offset=num_slots - num_tokens
  )
  kernel = splash_attention_kernel.make_splash_mqa(
    splash_attention_mask.MultiHeadMask([mask] * num_queries),
    block_sizes=splash_attention_kernel.BlockSizes(
      block_q=block_T, block_kv=block_S, block_kv_compute=block_S,
      block_q_dkv=block_T, block_kv_dkv=block_S, block_kv_dkv_compute=block_S,
      block_q_dq=block_T, block_kv_dq=block_S,
    ),
    head_shards=1,
    q_seq_shards=1,
  )  # fmt: skip

  def of_question(query, key, value, is_there_S):
    segments = splash_attention_kernel.SegmentIds(
      q=jnp.ones(num_tokens, jnp.int32), kv=is_there_S
    )
    of_head = jax.vmap(lambda q, k, v: kernel(q, k, v, segments))
    return jax.vmap(of_head)(query, key, value)

  return jax.vmap(of_question)(query, key, value, is_there_BS)
