"""Norm, rotation and attention over [shared prefix | own tokens]."""

import jax
import jax.numpy as jnp
import numpy as np


def rms_norm(
  x: jax.Array, weight: jax.Array, eps: float, offset: float = 0.0
) -> jax.Array:
  """Root-mean-square norm over the last axis, computed in float32.

  It scales by `offset` + weight.
  """
  x32 = x.astype(jnp.float32)
  x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
  scale = offset + weight.astype(jnp.float32)
  return (x32 * jax.lax.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


def turns(
  position: jax.Array, frequency: np.ndarray
) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine of each position's angles, float32 [..., K / 2].

  Args:
    position: int32, the absolute position of each token.
    frequency: [K / 2], as from `Rope.frequencies`.
  """
  frequency = np.expand_dims(frequency, tuple(range(position.ndim)))
  angle = position.astype(jnp.float32)[..., None] * frequency
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates the two halves of the last axis, in float32.

  Args:
    x: [..., heads (any number of axes), K].
    turn: from `turns`; its leading axes broadcast to those of x.
  """
  cos, sin = (
    jnp.expand_dims(array, tuple(range(array.ndim - 1, x.ndim - 1)))
    for array in turn
  )
  left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = [left * cos - right * sin, right * cos + left * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def einsum_float32(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """einsum that adds up in float32 (float64 of float64), whatever its inputs.

  XLA for CPUs has no such product of bfloat16 arrays with batch dims; they are
  widened there, which gives the same.
  """
  dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)

  def direct(a, b):
    return jnp.einsum(equation, a, b, preferred_element_type=dtype)

  if a.dtype == b.dtype == dtype:
    return direct(a, b)
  return jax.lax.platform_dependent(
    a,
    b,
    cpu=lambda a, b: direct(a.astype(dtype), b.astype(dtype)),
    default=direct,
  )


def attend(query_BGTHQK: jax.Array, parts, *, scale: float) -> jax.Array:
  """Attention over the union of `parts`, as one float32 softmax.

  Scores of all parts are in the layout [B, H, G, Q, T, S]: that of shared keys,
  where all queries of a head are the rows of one matrix, is that of own keys,
  too, so that nothing is transposed between products.

  Args:
    query_BGTHQK: Q queries share each of H key-value heads.
    parts: (key, value, mask) triples. Keys are [B, H, K, S] and values
      [B, H, S, K] where all G continuations share them, with an axis G behind H
      where each has its own; masks broadcast to [B, 1, T, S]. Every query must
      see some key.
    scale: multiplies the scores.

  Returns:
    [B, G, T, H, Q, K] in the query's dtype.
  """
  query_BHGQTK = jnp.transpose(query_BGTHQK, (0, 3, 1, 4, 2, 5))

  def product(equation, left_BHGQTX, right):
    # [.., rows, X] times [.., X, Y]: the rows of shared keys are G Q T, those
    # of own ones Q T.
    rows = left_BHGQTX.reshape(*right.shape[:-2], -1, right.shape[-2])
    found = einsum_float32(equation, rows, right)
    return found.reshape(*left_BHGQTX.shape[:-1], -1)

  def masked_scores(key, mask):
    score_BHGQTS = scale * product('...XK,...KS->...XS', query_BHGQTK, key)
    mask_B1G1TS = mask[:, None, :, None]
    return jnp.where(mask_B1G1TS, score_BHGQTS, -jnp.inf)

  score = jnp.concatenate(
    [masked_scores(key, mask) for key, _, mask in parts], axis=-1
  )
  # The top score only keeps exp in range: the result does not depend on it.
  weight = jnp.exp(score - jax.lax.stop_gradient(score).max(-1, keepdims=True))
  total = weight.sum(-1, keepdims=True)
  ends = np.cumsum([key.shape[-1] for key, _, _ in parts])
  shares = jnp.split(weight, ends[:-1], axis=-1)
  mixed = sum(
    product('...XS,...SK->...XK', share.astype(value.dtype), value)
    for share, (_, value, _) in zip(shares, parts, strict=True)
  )
  mixed_BHGQTK = (mixed / total).astype(query_BGTHQK.dtype)
  return jnp.transpose(mixed_BHGQTK, (0, 2, 4, 1, 3, 5))


def distances(
  num_queries: int, num_keys: int, start: jax.Array | int
) -> jax.Array:
  """How far key s, at s, lies before query t, at start + t. int32 [T, S]."""
  query_T1 = start + jnp.arange(num_queries)[:, None]
  return query_T1 - jnp.arange(num_keys)[None]


def in_reach(
  distance: jax.Array, is_there: jax.Array, window: jax.Array | None
) -> jax.Array:
  """Whether a query may attend to a key: it is there, and in any window."""
  return is_there if window is None else is_there & (distance < window)
