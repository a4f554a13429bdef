"""The steered target: which mix of teacher states each rollout is taught by.

Every method of METHOD.md that has a teacher is a row of weights over the
teacher's contexts (anchor, solution, sibling rollouts). Pooling and steering
are linear and so is the output matrix, so the mix is taken over hidden states
and projected to logits once:

    z^T = W (h0 + strength * (mean over P+ of h - mean over P- of h))

arXiv:2605.12400v1, Eqs. 10-13.
"""

import jax
import jax.numpy as jnp

VARIANTS = ('ogls_sd', 'opsd', 'pos_mean', 'pos_only', 'kd')


def strength_at(
  step: jax.Array, *, max_strength: float, ramp_steps: int
) -> jax.Array:
  """Steering strength (lambda) at a step, float32.

  Our reading of "ramp-up": linear, max_strength / ramp_steps at step 0 and
  max_strength from step ramp_steps - 1 on; constant if ramp_steps is 0.
  """
  progress = (step.astype(jnp.float32) + 1) / max(ramp_steps, 1)
  return max_strength * jnp.minimum(progress, 1.0)


def steering_weights(
  *,
  anchor_BGM: jax.Array,
  positive_BGM: jax.Array,
  negative_BGM: jax.Array,
  strength: jax.Array,
  variant: str,
) -> jax.Array:
  """Weights of the contexts in each rollout's steered state.

  Args:
    anchor_BGM: one-hot, the context without a hint.
    positive_BGM: weights of P+; for `opsd` the single reference solution.
    negative_BGM: weights of P-.
    strength: scalar lambda.
    variant: one of `VARIANTS`.

  Returns:
    weights_BGM float32. `ogls_sd`: anchor + strength * (positive - negative);
    `pos_only`: anchor + strength * (positive - anchor); `opsd`, `pos_mean`:
    positive; `kd`: anchor, of a separate teacher model.
  """
  if variant == 'ogls_sd':
    return anchor_BGM + strength * (positive_BGM - negative_BGM)
  if variant == 'pos_only':
    return anchor_BGM + strength * (positive_BGM - anchor_BGM)
  if variant in ('opsd', 'pos_mean'):
    return positive_BGM
  if variant == 'kd':
    return anchor_BGM
  raise ValueError(f'unknown variant {variant!r}; one of {VARIANTS}')
