"""The steered update of `benchmarks/steering.py`, written the direct way.

Every (rollout, hint) pair is a forward pass over context + rollout, of which
the float32 logits of the rollout's window [T, V] are kept; the teacher's logits
are pooled, z = z0 + strength (mean over P+ of z(g) - mean over P- of z(g)), and
the divergence is that of two plain log-softmaxes, differentiated by JAX.
Decoder and optimizer are the package's.

`batching` says how passes are grouped:

  pairs    all (rollout, hint) pairs in one pass, their logits pooled after it
  scanned  one hint at a time with all rollouts, logits added up as they come
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ogls_jax.batches import Hints, TrainState, pad_rows
from ogls_jax.models.transformer import Decoder, project

BATCHINGS = ('pairs', 'scanned')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReferenceBatch:
  """Whole sequences of one question: context, then rollout, then padding.

  R rollouts, M contexts, S positions; a length is that of the context.
  """

  student_RS: jax.Array  # int32
  student_length_R: jax.Array  # int32
  teacher_MRS: jax.Array  # int32
  teacher_length_MR: jax.Array  # int32
  anchor_MR: jax.Array  # float32
  positive_MR: jax.Array  # float32
  negative_MR: jax.Array  # float32
  mask_RT: jax.Array  # bool


def make_reference_batch(
  *,
  prompt_P: np.ndarray,
  response_RT: np.ndarray,
  hints: Hints,
  is_scored_R: np.ndarray,
  row_R: np.ndarray,
) -> ReferenceBatch:
  """Lays out the rollouts `row_R` of one question, pair by pair, on the host.

  Args:
    prompt_P: without padding.
    response_RT: the window of all rollouts.
    hints: contexts and weights of one question and all its rollouts.
    is_scored_R: which rollouts carry loss.
    row_R: indices of the rollouts to lay out.
  """
  context_MC, length_M = hints.context_BMC[0], hints.length_BM[0]
  num_rows, num_tokens = row_R.size, response_RT.shape[1]

  def sequences(context, width):
    rows = [[*context, *response_RT[r]] for r in row_R]
    return pad_rows(rows, width + num_tokens)

  def weights(weight_BGM):
    return np.ascontiguousarray(weight_BGM[0, row_R].T)

  return ReferenceBatch(
    student_RS=sequences(prompt_P, prompt_P.size),
    student_length_R=np.full(num_rows, prompt_P.size, np.int32),
    teacher_MRS=np.stack(
      [
        sequences(context[:length], context.size)
        for context, length in zip(context_MC, length_M, strict=True)
      ]
    ),
    teacher_length_MR=np.repeat(length_M[:, None], num_rows, axis=1),
    anchor_MR=weights(hints.anchor_BGM),
    positive_MR=weights(hints.positive_BGM),
    negative_MR=weights(hints.negative_BGM),
    mask_RT=np.repeat(is_scored_R[row_R, None], num_tokens, axis=1),
  )


def window_logits(
  decoder: Decoder, tokens_RS: jax.Array, length_R: jax.Array, num_tokens: int
) -> jax.Array:
  """One forward pass over whole sequences; float32 logits [R, T, V].

  Logits t predict token length_R + t.
  """
  nothing = jnp.zeros((1, 1), jnp.int32)
  prefix = decoder.read(nothing, jnp.zeros(1, jnp.int32))
  hidden_1RSD, _ = decoder.continue_from(tokens_RS[None], prefix)
  place_RT = length_R[:, None] - 1 + jnp.arange(num_tokens)[None]
  hidden_RTD = jnp.take_along_axis(hidden_1RSD[0], place_RT[..., None], axis=1)
  return project(hidden_RTD, decoder.unembedding_VD)


def steered_logits(
  teacher: Decoder, batch: ReferenceBatch, *, strength: float, batching: str
) -> jax.Array:
  """z0 + strength (mean over P+ of z - mean over P- of z), [R, T, V]."""
  num_contexts, num_rows, _ = batch.teacher_MRS.shape
  num_tokens = batch.mask_RT.shape[1]
  if batching == 'scanned':
    weight_MR = batch.anchor_MR + strength * (
      batch.positive_MR - batch.negative_MR
    )

    def add(total_RTV, hint):
      tokens_RS, length_R, weight_R = hint
      logits_RTV = window_logits(teacher, tokens_RS, length_R, num_tokens)
      return total_RTV + weight_R[:, None, None] * logits_RTV, None

    shape = (num_rows, num_tokens, teacher.settings.vocab_size)
    hints = (batch.teacher_MRS, batch.teacher_length_MR, weight_MR)
    return jax.lax.scan(add, jnp.zeros(shape, jnp.float32), hints)[0]
  logits = window_logits(
    teacher,
    batch.teacher_MRS.reshape(num_contexts * num_rows, -1),
    batch.teacher_length_MR.reshape(-1),
    num_tokens,
  )
  logits_MRTV = logits.reshape(num_contexts, num_rows, num_tokens, -1)

  # Not an array's sum over its first axis: in jaxlib 0.10 on CPUs the time of
  # that grows with the square of V.
  def mean(weight_MR):
    return sum(
      weight_MR[m, :, None, None] * logits_MRTV[m] for m in range(num_contexts)
    )

  direction_RTV = mean(batch.positive_MR) - mean(batch.negative_MR)
  return mean(batch.anchor_MR) + strength * direction_RTV


def reference_loss(
  student: Decoder,
  teacher: Decoder,
  batch: ReferenceBatch,
  *,
  strength: float,
  batching: str,
) -> jax.Array:
  """Forward KL(steered teacher || student), a mean over the mask, in nats."""
  steered_RTV = steered_logits(
    teacher, batch, strength=strength, batching=batching
  )
  steered_RTV = jax.nn.log_softmax(jax.lax.stop_gradient(steered_RTV))
  student_RTV = window_logits(
    student,
    batch.student_RS,
    batch.student_length_R,
    batch.mask_RT.shape[1],
  )
  student_RTV = jax.nn.log_softmax(student_RTV)
  kl_RT = (jnp.exp(steered_RTV) * (steered_RTV - student_RTV)).sum(-1)
  return jnp.where(batch.mask_RT, kl_RT, 0).sum() / batch.mask_RT.sum()


def make_reference_step(
  graphdef: nnx.GraphDef,
  teacher_graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  *,
  strength: float,
  batching: str,
):
  """Jitted (state, frozen, teacher_params, batch) -> (state, loss).

  Arguments as of `step.make_distill_step`; it donates `state`, too.
  """

  def reference_step(state, frozen, teacher_params, batch):
    def loss_of(params):
      return reference_loss(
        nnx.merge(graphdef, params, frozen),
        nnx.merge(teacher_graphdef, *teacher_params),
        batch,
        strength=strength,
        batching=batching,
      )

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    rate = schedule(state.step)
    updates = jax.tree.map(lambda update: rate * update, updates)
    state = TrainState(
      step=state.step + 1,
      key=state.key,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      ema_params=None,
    )
    return state, loss

  return jax.jit(reference_step, donate_argnums=0)
