"""The two pure, jitted steps of training: rollout_step and distill_step.

  rollout_step(state, frozen, prompts)                        -> Rollouts
  distill_step(state, frozen, teacher_params, batch)          -> state, sums

The distill step, per microbatch of questions:
1. teacher states: one read per hint, pooled with the steering weights
2. student states, with gradient
3. the loss, block by block, and its gradient, added up
then one optimizer update from the mean over all tokens that carry loss.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ogls_jax import loss, loss_blocks, rollout, steering, teacher
from ogls_jax.batches import (
  LossBatch,
  PromptBatch,
  Rollouts,
  TrainState,
  flatten_rows,
  unflatten_rows,
)
from ogls_jax.models.transformer import Decoder
from ogls_jax.numerics import Metric, masked_sum

METHODS = (*steering.VARIANTS, 'sft', 'grpo')
TEACHERS = ('base', 'ema', 'live')


@dataclasses.dataclass(frozen=True)
class Objective:
  """What an update minimizes. Field names are those of the config keys."""

  method: str
  temperature: float = 1.0
  block_tokens: int = 16
  kl: str = 'forward'
  jsd_beta: float = 0.5
  clip_mode: str = 'none'
  pointwise_clip: float = 0.05
  max_strength: float = 1.0
  ramp_steps: int = 0
  tail_weight: float = 0.0
  clip_low: float = 0.2
  clip_high: float = 0.2
  kl_weight: float = 0.0
  rollout_temperature: float = 1.0
  eos_ids: tuple[int, ...] = ()  # those to merge

  @property
  def is_distilled(self) -> bool:
    """True where the loss is a divergence to a steered teacher."""
    return self.method in steering.VARIANTS

  @property
  def has_teacher(self) -> bool:
    """True where a second model is evaluated."""
    return self.is_distilled or (self.method == 'grpo' and self.kl_weight > 0)


def make_rollout_step(graphdef: nnx.GraphDef, **sampler) -> Callable:
  """(state, frozen, prompts, meanwhile=None) -> Rollouts.

  `sampler` and `meanwhile` are as for `make_sampler`. The key is
  fold_in(state.key, state.step), so a resumed run samples the same.
  """

  sample = rollout.make_sampler(graphdef, **sampler)
  step_key = jax.jit(jax.random.fold_in)

  def rollout_step(
    state: TrainState,
    frozen: Any,
    prompts: PromptBatch,
    meanwhile: Callable | None = None,
  ) -> Rollouts:
    key = step_key(state.key, state.step)
    return sample(state.params, frozen, prompts, key, meanwhile=meanwhile)

  return rollout_step


def steered_hidden(
  teacher_model: Decoder,
  batch: LossBatch,
  *,
  strength: jax.Array,
  variant: str,
) -> jax.Array:
  """States of the steered target, float32 [R, T, D]."""
  hints = batch.hints
  weights_BGM = steering.steering_weights(
    anchor_BGM=hints.anchor_BGM,
    positive_BGM=hints.positive_BGM,
    negative_BGM=hints.negative_BGM,
    strength=strength,
    variant=variant,
  )
  response_BGT = unflatten_rows(batch.response_RT, weights_BGM.shape[0])
  with jax.named_scope('teacher'):
    hidden_BGTD = teacher.pooled_states(
      teacher_model, hints, weights_BGM, response_BGT
    )
  return flatten_rows(hidden_BGTD)


def _score(name: str, model: Decoder, batch: LossBatch) -> jax.Array:
  """Hidden states along each response, after the plain prompt. [R, T, D]."""
  prompts = batch.prompts
  response_BGT = unflatten_rows(batch.response_RT, prompts.length_B.shape[0])
  with jax.named_scope(name):
    return flatten_rows(
      model.score(prompts.tokens_BP, prompts.length_B, response_BGT)
    )


def loss_sums(
  student: Decoder,
  teacher_model: Decoder | None,
  batch: LossBatch,
  *,
  objective: Objective,
  strength: jax.Array,
) -> dict[str, Metric]:
  """All of a microbatch's (sum, count) metrics; `loss` and `tail_loss` carry
  the gradient, into the student only."""
  o = objective
  hidden_RTD = _score('student', student, batch)
  sums = {}
  if not o.is_distilled or o.tail_weight:
    at_sampling = o.method == 'grpo'
    log_prob_RT, entropy_RT = loss_blocks.token_log_probs(
      hidden_RTD=hidden_RTD,
      unembedding_VD=student.unembedding_VD,
      token_RT=batch.response_RT,
      block_tokens=o.block_tokens,
      temperature=o.rollout_temperature if at_sampling else 1.0,
    )
  if o.is_distilled:
    sums = loss_blocks.blockwise_divergence(
      student_hidden_RTD=hidden_RTD,
      student_unembedding_VD=student.unembedding_VD,
      steered_hidden_RTD=steered_hidden(
        teacher_model, batch, strength=strength, variant=o.method
      ),
      teacher_unembedding_VD=teacher_model.unembedding_VD,
      token_mask_RT=batch.token_mask_RT,
      block_tokens=o.block_tokens,
      kl=o.kl,
      jsd_beta=o.jsd_beta,
      clip_mode=o.clip_mode,
      pointwise_clip=o.pointwise_clip,
      temperature=o.temperature,
      eos_ids=o.eos_ids,
    )
  elif o.method == 'sft':
    sums = loss.nll_sums(log_prob_RT, batch.token_mask_RT, entropy_RT)
  elif o.method == 'grpo':
    base_log_prob_RT = None
    if o.has_teacher:
      base_log_prob_RT, _ = loss_blocks.token_log_probs(
        hidden_RTD=_score('teacher', teacher_model, batch),
        unembedding_VD=teacher_model.unembedding_VD,
        token_RT=batch.response_RT,
        block_tokens=o.block_tokens,
        temperature=o.rollout_temperature,
      )
    sums = loss.grpo_sums(
      log_prob_RT=log_prob_RT,
      sampled_log_prob_RT=batch.log_prob_RT,
      base_log_prob_RT=base_log_prob_RT,
      advantage_R=batch.advantage_R,
      token_mask_RT=batch.token_mask_RT,
      entropy_RT=entropy_RT,
      clip_low=o.clip_low,
      clip_high=o.clip_high,
      kl_weight=o.kl_weight,
    )
  if o.tail_weight:
    sums['tail_loss'] = (
      masked_sum(-log_prob_RT, batch.tail_mask_RT),
      batch.tail_mask_RT.sum(dtype=jnp.float32),
    )
  return sums


def teacher_maker(
  graphdef: nnx.GraphDef,
  teacher_graphdef: nnx.GraphDef | None,
  teacher_kind: str,
) -> Callable[[TrainState, Any, Any], Decoder]:
  """(state, frozen, teacher_params) -> the model that teaches.

  Arguments are as for `make_distill_step`; the model has no gradient.
  """

  def teacher_of(state, frozen, teacher_params):
    if teacher_kind == 'base':
      return nnx.merge(teacher_graphdef, *teacher_params)
    own = state.ema_params if teacher_kind == 'ema' else state.params
    return nnx.merge(graphdef, jax.lax.stop_gradient(own), frozen)

  return teacher_of


def _split_batch(batch: LossBatch, num_microbatches: int) -> LossBatch:
  """Leading microbatch axis; question b goes to microbatch b % N, so that each
  device keeps a share of every microbatch."""
  num_prompts = batch.prompts.length_B.shape[0]

  def split(array):
    groups = array.reshape(
      num_prompts // num_microbatches, num_microbatches, -1, *array.shape[1:]
    )
    return groups.swapaxes(0, 1).reshape(num_microbatches, -1, *array.shape[1:])

  return jax.tree.map(split, batch)


def make_distill_step(
  graphdef: nnx.GraphDef,
  teacher_graphdef: nnx.GraphDef | None,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  *,
  objective: Objective,
  teacher_kind: str = 'base',
  ema_decay: float = 0.999,
  num_microbatches: int = 1,
) -> Callable:
  """Jitted (state, frozen, teacher_params, batch) -> (state, sums).

  Args:
    graphdef: of the student, as from `nnx.split` by the trained kind.
    teacher_graphdef: of the model in `teacher_params`, for the kind `base`;
      `ema` and `live` put state.ema_params and state.params into `graphdef`.
    optimizer: its state is `state.opt_state`; its learning rate is 1.
    schedule: learning rate by `state.step`.
    objective: the loss.
    teacher_kind: `base`, `ema` or `live`.
    ema_decay: per update, for `ema`.
    num_microbatches: divides the batch's questions; bounds memory.

  Returns:
    The step. It donates `state`. A batch in which no token carries loss, and a
    loss or gradient that is not finite, leave params and optimizer as they are;
    `is_skipped` of the sums is 1 for the latter.
  """

  teacher_of = teacher_maker(graphdef, teacher_graphdef, teacher_kind)

  def distill_step(
    state: TrainState, frozen: Any, teacher_params: Any, batch: LossBatch
  ) -> tuple[TrainState, dict[str, Metric]]:
    num_tokens = batch.token_mask_RT.sum(dtype=jnp.float32)
    num_tail = batch.tail_mask_RT.sum(dtype=jnp.float32)
    strength = steering.strength_at(
      state.step,
      max_strength=objective.max_strength,
      ramp_steps=objective.ramp_steps,
    )

    def objective_of(params, microbatch):
      teacher_model = None
      if objective.has_teacher:
        teacher_model = teacher_of(state, frozen, teacher_params)
      sums = loss_sums(
        nnx.merge(graphdef, params, frozen),
        teacher_model,
        microbatch,
        objective=objective,
        strength=strength,
      )
      total = sums['loss'][0] / jnp.maximum(num_tokens, 1)
      if objective.tail_weight:
        tail = sums['tail_loss'][0] / jnp.maximum(num_tail, 1)
        total += objective.tail_weight * tail
      return total, sums

    differentiate = jax.grad(objective_of, has_aux=True)

    def accumulate(carry, microbatch):
      def add(carry):
        added = differentiate(state.params, microbatch)
        return jax.tree.map(jnp.add, carry, added)

      has_loss_RT = microbatch.token_mask_RT | microbatch.tail_mask_RT
      return jax.lax.cond(has_loss_RT.any(), add, lambda c: c, carry), None

    if num_microbatches == 1:
      grads, sums = differentiate(state.params, batch)
    else:
      microbatches = _split_batch(batch, num_microbatches)
      first = jax.tree.map(lambda x: x[0], microbatches)
      shapes = jax.eval_shape(differentiate, state.params, first)
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
      (grads, sums), _ = jax.lax.scan(accumulate, zeros, microbatches)
    learning_rate = schedule(state.step)
    with jax.named_scope('update'):
      grad_norm = optax.tree.norm(grads)
      losses = [sums[name][0] for name in ('loss', 'tail_loss') if name in sums]
      is_finite = jnp.isfinite(jnp.stack([grad_norm, *losses])).all()
      has_tokens = num_tokens + num_tail * (objective.tail_weight > 0) > 0
      state = _update(
        state,
        grads,
        optimizer,
        learning_rate,
        is_usable=has_tokens & is_finite,
        ema_decay=ema_decay,
      )
    one = jnp.float32(1)
    sums['grad_norm'] = (grad_norm, one)
    sums['is_skipped'] = ((has_tokens & ~is_finite).astype(jnp.float32), one)
    sums['learning_rate'] = (learning_rate, one)
    if objective.is_distilled:
      sums['strength'] = (strength, one)
    return state, sums

  return jax.jit(distill_step, donate_argnums=0)


def _update(state, grads, optimizer, learning_rate, *, is_usable, ema_decay):
  """One optimizer step where the gradient is usable, else none."""
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  updates = jax.tree.map(lambda update: learning_rate * update, updates)
  params = optax.apply_updates(state.params, updates)
  select = functools.partial(jnp.where, is_usable)
  params = jax.tree.map(select, params, state.params)
  opt_state = jax.tree.map(select, opt_state, state.opt_state)
  ema_params = state.ema_params
  if ema_params is not None:
    ema_params = jax.tree.map(
      lambda ema, new: select(ema_decay * ema + (1 - ema_decay) * new, ema),
      ema_params,
      params,
    )
  return TrainState(
    step=state.step + 1,
    key=state.key,
    params=params,
    opt_state=opt_state,
    ema_params=ema_params,
  )
