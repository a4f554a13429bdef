"""Masked sums, float32 log-probabilities and (sum, count) metrics."""

import jax
import jax.numpy as jnp

# A metric travels as (sum, count) so that it adds over blocks, microbatches and
# devices, and is divided once. A mean of means weighs tokens unevenly.
Metric = tuple[jax.Array, jax.Array]


def log_probs(logits_V: jax.Array) -> jax.Array:
  """Log-softmax over the last axis in float32 (or wider, if given wider)."""
  dtype = jnp.promote_types(logits_V.dtype, jnp.float32)
  return jax.nn.log_softmax(logits_V.astype(dtype), axis=-1)


def masked_sum(values: jax.Array, mask: jax.Array) -> jax.Array:
  """Sums `values` where `mask`; what lies elsewhere is never read.

  A product with the mask would carry a nan of the padding into the sum and
  into its gradient; selecting first does not.
  """
  return jnp.where(mask, values, 0).sum()


def masked_metric(values: jax.Array, mask: jax.Array) -> Metric:
  """(sum, count) of `values` over `mask`, both float32."""
  mask = jnp.broadcast_to(mask, values.shape)
  total = masked_sum(values.astype(jnp.float32), mask)
  return total, mask.sum(dtype=jnp.float32)


def divide_metrics(sums: dict[str, Metric]) -> dict[str, float]:
  """Means of host-side (sum, count) pairs; nan where nothing was counted."""
  return {
    name: float(total) / float(count) if count else float('nan')
    for name, (total, count) in sums.items()
  }


def round_up(length: int, multiple: int) -> int:
  """Smallest multiple of `multiple` that is at least max(length, 1)."""
  return -(-max(length, 1) // multiple) * multiple
