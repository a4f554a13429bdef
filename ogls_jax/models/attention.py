"""Norm, rotation and attention over [shared prefix | own tokens]."""

import functools

import jax
import jax.numpy as jnp


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


def rotate(
  x: jax.Array, position: jax.Array, frequency: jax.Array
) -> jax.Array:
  """Rotates the two halves of the last axis, in float32.

  Args:
    x: [..., heads (any number of axes), K]; leading axes as `position`.
    position: int32, the absolute position of each token.
    frequency: [K / 2], as from `Rope.frequencies`.
  """
  frequency = jnp.expand_dims(frequency, range(position.ndim))
  angle = position.astype(jnp.float32)[..., None] * frequency
  angle = jnp.expand_dims(angle, tuple(range(position.ndim, x.ndim - 1)))
  cos, sin = jnp.cos(angle), jnp.sin(angle)
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
  """Attention over the union of `parts`, one float32 softmax.

  Args:
    query_BGTHQK: Q queries share each of H key-value heads.
    parts: (key, value, mask) triples. Keys and values are [B, H, S, K] where
      all G continuations share them and [B, G, H, S, K] where each has its own;
      masks broadcast to [B, G, H, Q, T, S].
    scale: multiplies the scores.

  Returns:
    [B, G, T, H, Q, K] in the query's dtype.
  """
  scores, values = [], []
  for key, value, mask in parts:
    own = 'G' if key.ndim == 5 else ''
    score = einsum_float32(f'BGTHQK,B{own}HSK->BGHQTS', query_BGTHQK, key)
    score *= scale
    scores.append(jnp.where(mask, score, -jnp.inf))
    values.append((value, f'BGHQTS,B{own}HSK->BGTHQK'))
  # The top score only keeps exp in range: the result does not depend on it.
  tops = [
    jax.lax.stop_gradient(score).max(-1, keepdims=True, initial=-jnp.inf)
    for score in scores
  ]
  top = functools.reduce(jnp.maximum, tops)
  weights = [jnp.exp(score - top) for score in scores]
  total_BGHQT = sum(weight.sum(-1) for weight in weights)
  mixed = sum(
    einsum_float32(equation, weight.astype(value.dtype), value)
    for weight, (value, equation) in zip(weights, values, strict=True)
  )
  total_BGTHQ1 = jnp.moveaxis(total_BGHQT, 4, 2)[..., None]
  return (mixed / total_BGTHQ1).astype(query_BGTHQK.dtype)


def distances(
  num_queries: int, num_keys: int, start: jax.Array | int
) -> jax.Array:
  """How far key s, at s, lies before query t, at start + t. int32 [T, S]."""
  query_T1 = start + jnp.arange(num_queries)[:, None]
  return query_T1 - jnp.arange(num_keys)[None]


def in_reach(distance: jax.Array, window: jax.Array | None) -> jax.Array:
  """Whether a query may attend so far back: causal, and within any window."""
  is_past = distance >= 0
  return is_past if window is None else is_past & (distance < window)
