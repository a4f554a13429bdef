"""Norm, rotation and attention over [shared prefix | own tokens]."""

import functools

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

  Each part has its own maximum and sum, and the parts are merged by them. In
  that form keys and values keep their layout: all that share a key are the rows
  of one matrix, which an einsum over six dims would first transpose.

  Args:
    query_BGTHQK: Q queries share each of H key-value heads.
    parts: (key, value, mask) triples. Keys are [B, H, K, S] and values
      [B, H, S, K] where all G continuations share them, with an axis G behind B
      where each has its own; masks broadcast to [B, 1, T, S]. Every query must
      see some key.
    scale: multiplies the scores.

  Returns:
    [B, G, T, H, Q, K] in the query's dtype.
  """
  query_BGHQTK = jnp.transpose(query_BGTHQK, (0, 1, 3, 4, 2, 5))
  found = [_attend_part(query_BGHQTK, *part, scale=scale) for part in parts]
  # The top score only keeps exp in range: the result does not depend on it.
  tops = [jax.lax.stop_gradient(top) for _, _, top in found]
  top = functools.reduce(jnp.maximum, tops)
  mixed, total = 0.0, 0.0
  for (part_mixed, part_total, _), part_top in zip(found, tops, strict=True):
    share = jnp.exp(part_top - top)
    mixed += share * part_mixed
    total += share * part_total
  mixed_BGHQTK = (mixed / total).astype(query_BGTHQK.dtype)
  return jnp.transpose(mixed_BGHQTK, (0, 1, 4, 2, 3, 5))


def _attend_part(query_BGHQTK, key, value, mask, *, scale):
  """(sum of exp(score - top) value, sum of exp(score - top), top) of a part."""
  b, g, h, q, t, k = query_BGHQTK.shape
  is_shared = key.ndim == 4
  # BHGQT of shared keys, BGHQT of own ones: their rows are G Q T or Q T.
  query = jnp.swapaxes(query_BGHQTK, 1, 2) if is_shared else query_BGHQTK
  query = query.reshape(*key.shape[:-2], -1, k)
  score = scale * einsum_float32('...XK,...KS->...XS', query, key)
  score = score.reshape(*((b, h, g) if is_shared else (b, g, h)), q, t, -1)
  score = jnp.where(jnp.expand_dims(mask, (2, 3)), score, -jnp.inf)
  top = jax.lax.stop_gradient(score).max(-1, keepdims=True)
  # A part of which a query sees nothing has no top and weighs nothing.
  top = jnp.maximum(top, jnp.finfo(top.dtype).min)
  weight = jnp.exp(score - top)
  total = weight.sum(-1, keepdims=True)
  mixed = einsum_float32(
    '...XS,...SK->...XK',
    weight.astype(value.dtype).reshape(*key.shape[:-2], -1, key.shape[-1]),
    value,
  ).reshape(*weight.shape[:-1], k)
  found = (mixed, total, top)
  if is_shared:
    found = tuple(jnp.swapaxes(array, 1, 2) for array in found)
  return found


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
