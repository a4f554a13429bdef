"""AdamW with gradient clipping and a learning-rate schedule."""

import jax.numpy as jnp
import optax

SCHEDULES = ('constant', 'linear', 'cosine')


def make_schedule(
  *, learning_rate: float, warmup_steps: int, num_steps: int, schedule: str
) -> optax.Schedule:
  """Linear warmup from learning_rate / warmup_steps at the first update, then
  constant, or down to 0 at `num_steps`."""
  decay_steps = max(num_steps - warmup_steps, 1)
  if schedule == 'constant':
    after = optax.constant_schedule(learning_rate)
  elif schedule == 'linear':
    after = optax.linear_schedule(learning_rate, 0.0, decay_steps)
  elif schedule == 'cosine':
    after = optax.cosine_decay_schedule(learning_rate, decay_steps)
  else:
    raise ValueError(f'unknown schedule {schedule!r}; one of {SCHEDULES}')

  def at(count):
    ramp = jnp.minimum((count + 1) / max(warmup_steps, 1), 1.0)
    return ramp * after(jnp.maximum(count - warmup_steps, 0))

  return at


def make_optimizer(
  *,
  b1: float,
  b2: float,
  weight_decay: float,
  max_grad_norm: float,
) -> optax.GradientTransformation:
  """Clips by global norm (0 turns it off), then AdamW.

  Both moments are float32, as are the trained weights.

  For a learning rate of 1: the step scales the updates by the schedule at its
  own count, so that the rate logged is the rate used, also after a skipped
  update.
  """
  clip = optax.clip_by_global_norm(max_grad_norm) if max_grad_norm else None
  adamw = optax.adamw(
    1.0, b1=b1, b2=b2, weight_decay=weight_decay, mu_dtype=jnp.float32
  )
  return optax.chain(*([clip] if clip else []), adamw)
