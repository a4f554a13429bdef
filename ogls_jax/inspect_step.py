"""inspect_step: what the loss sees at each token of a few rollouts.

  inspect_step(state, frozen, teacher_params, batch, anchors, row_R) -> views

Pure and jitted; the model is the one that the next update starts from. The
three pools and the steered target are four rows of weights over the same
contexts, so one read of a context serves all four, as in `distill_step`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ogls_jax import steering, teacher
from ogls_jax.batches import (
  Hints,
  LossBatch,
  TrainState,
  flatten_rows,
  pytree,
)
from ogls_jax.loss import divergence_terms, merge_entries
from ogls_jax.loss_blocks import over_blocks
from ogls_jax.mesh import replicate, shard
from ogls_jax.models.transformer import Decoder, project
from ogls_jax.numerics import log_probs, round_up
from ogls_jax.step import Objective, teacher_maker

# The distributions of a token. X counts them, K the candidates of each.
TEACHERS = ('anchor', 'positive', 'negative', 'steered')
NAMES = ('student', *TEACHERS)
_WIDTH = 64


@pytree
class Anchors:
  """The teacher's prompts without a hint, for methods that do not read them."""

  tokens_BC: jax.Array  # int32
  length_B: jax.Array  # int32


@pytree
class TokenViews:
  """Of the rollouts asked for, at every column of the batch, on all devices.

  Past a rollout's end the figures are without meaning. All are of the
  distributions that the loss compares: at its temperature, with end-of-sequence
  ids merged where it merges them.
  """

  divergence_RT: jax.Array  # of student and steered, in nats, before clipping
  moved_RT: jax.Array  # KL(steered || anchor), in nats
  own_RTX: jax.Array  # probability of the rollout's own token
  top_RTXK: jax.Array  # probability of the likeliest tokens, descending
  top_id_RTXK: jax.Array  # int32
  num_hints_RX: jax.Array  # int32, contexts behind each of TEACHERS
  strength: jax.Array


def make_inspect_step(
  graphdef: nnx.GraphDef,
  teacher_graphdef: nnx.GraphDef | None,
  *,
  objective: Objective,
  teacher_kind: str,
  num_candidates: int,
) -> Callable:
  """(state, frozen, teacher_params, batch, anchors, row_R) -> views, jitted.

  Args:
    graphdef: as for `make_distill_step`.
    teacher_graphdef: likewise.
    objective: likewise; with a steered teacher.
    teacher_kind: likewise.
    num_candidates: K, at most the vocabulary.

  Returns:
    The step, to `TokenViews`. `batch` is that of the update; `anchors` is None
    where the method's hints hold them. `row_R` are rows of the batch, as many
    as the mesh has shards of them, or a multiple; they may repeat.
  """

  teacher_of = teacher_maker(graphdef, teacher_graphdef, teacher_kind)

  def views_of(state, frozen, teacher_params, batch):
    strength = steering.strength_at(
      state.step,
      max_strength=objective.max_strength,
      ramp_steps=objective.ramp_steps,
    )
    views = token_views(
      nnx.merge(graphdef, state.params, frozen),
      teacher_of(state, frozen, teacher_params),
      batch,
      objective=objective,
      strength=strength,
      num_candidates=num_candidates,
    )
    return jax.tree.map(replicate, views)

  # Two programs: the sizes of batches vary, and the second takes long to
  # compile.
  views_of, rows_of = jax.jit(views_of), jax.jit(_rows_of)

  def inspect_step(
    state: TrainState,
    frozen: Any,
    teacher_params: Any,
    batch: LossBatch,
    anchors: Anchors | None,
    row_R: jax.Array,
  ) -> TokenViews:
    rows = rows_of(batch, anchors, row_R)
    return views_of(state, frozen, teacher_params, rows)

  return inspect_step


def _rows_of(batch, anchors, row_R):
  """These rows, each with its question: a batch with G = 1.

  Prompts and contexts are as wide as a multiple of `_WIDTH`.
  """
  group_size = batch.response_RT.shape[0] // batch.prompts.length_B.shape[0]
  question_R = row_R // group_size

  def of_question(array, dims):
    return shard(array[question_R], dims)

  def of_row(array, dims):
    return shard(array[row_R], dims)

  def of_group(weight_BGM):
    return shard(flatten_rows(weight_BGM)[row_R][:, None], 'BGM')

  hints = batch.hints if anchors is None else _with(batch.hints, anchors)
  return dataclasses.replace(
    batch,
    prompts=dataclasses.replace(
      batch.prompts,
      tokens_BP=of_question(_widened(batch.prompts.tokens_BP), 'BP'),
      length_B=of_question(batch.prompts.length_B, 'B'),
      uid_B=of_question(batch.prompts.uid_B, 'B'),
    ),
    response_RT=of_row(batch.response_RT, 'RT'),
    token_mask_RT=of_row(batch.token_mask_RT, 'RT'),
    tail_mask_RT=of_row(batch.tail_mask_RT, 'RT'),
    log_prob_RT=of_row(batch.log_prob_RT, 'RT'),
    advantage_R=of_row(batch.advantage_R, 'R'),
    hints=Hints(
      context_BMC=of_question(_widened(hints.context_BMC), 'BMC'),
      length_BM=of_question(hints.length_BM, 'BM'),
      anchor_BGM=of_group(hints.anchor_BGM),
      positive_BGM=of_group(hints.positive_BGM),
      negative_BGM=of_group(hints.negative_BGM),
    ),
  )


def _widened(tokens, least=0):
  """With 0 up to a multiple of `_WIDTH` that is at least `least`."""
  width = round_up(max(tokens.shape[-1], least), _WIDTH)
  missing = [(0, 0)] * (tokens.ndim - 1) + [(0, width - tokens.shape[-1])]
  return jnp.pad(tokens, missing)


def _with(hints, anchors):
  """One context more, the last, which is every rollout's anchor."""
  width = max(hints.context_BMC.shape[-1], anchors.tokens_BC.shape[-1])

  def more(array_B_M, value):
    return jnp.pad(
      array_B_M,
      [(0, 0)] * (array_B_M.ndim - 1) + [(0, 1)],
      constant_values=value,
    )

  context_BMC = _widened(hints.context_BMC, width)
  anchor_BC = _widened(anchors.tokens_BC, width)
  return Hints(
    context_BMC=jnp.concatenate([context_BMC, anchor_BC[:, None]], axis=1),
    length_BM=jnp.concatenate(
      [hints.length_BM, anchors.length_B[:, None]], axis=1
    ),
    anchor_BGM=more(jnp.zeros_like(hints.anchor_BGM), 1),
    positive_BGM=more(hints.positive_BGM, 0),
    negative_BGM=more(hints.negative_BGM, 0),
  )


def token_views(
  student: Decoder,
  teacher_model: Decoder,
  batch: LossBatch,
  *,
  objective: Objective,
  strength: jax.Array,
  num_candidates: int,
) -> TokenViews:
  """Of a batch with G = 1 whose hints have an anchor; see `TokenViews`.

  Logits exist for `objective.block_tokens` columns at a time.
  """
  o, hints, response_RT = objective, batch.hints, batch.response_RT
  pools = dict(
    anchor_BGM=hints.anchor_BGM,
    positive_BGM=hints.positive_BGM,
    negative_BGM=hints.negative_BGM,
  )
  weights = steering.steering_weights(
    **pools, strength=strength, variant=o.method
  )
  weights_BXM = jnp.concatenate([*pools.values(), weights], axis=1)
  hidden_RTD = student.score(
    batch.prompts.tokens_BP, batch.prompts.length_B, response_RT[:, None]
  )[:, 0]
  shape = (response_RT.shape[0], len(TEACHERS), response_RT.shape[1])
  teacher_BXTD = teacher.pooled_states(
    teacher_model,
    hints,
    weights_BXM,
    jnp.broadcast_to(response_RT[:, None], shape),
  )
  matrices = [student.unembedding_VD] + len(TEACHERS) * [
    teacher_model.unembedding_VD
  ]
  matrices = [shard(matrix, 'VD') for matrix in matrices]

  def of_block(hidden_RTD, teacher_RTXD, token_RT):
    states = [hidden_RTD, *jnp.moveaxis(teacher_RTXD, 2, 0)]
    found = [
      merge_entries(
        log_probs(project(state, matrix_VD) / o.temperature), o.eos_ids
      )
      for state, matrix_VD in zip(states, matrices, strict=True)
    ]
    top = [jax.lax.top_k(each, num_candidates) for each in found]
    own = [
      jnp.take_along_axis(each, token_RT[..., None], axis=-1)[..., 0]
      for each in found
    ]
    student_RTV, anchor_RTV, *_, steered_RTV = found
    divergence_RT = divergence_terms(
      student_RTV=student_RTV,
      steered_RTV=steered_RTV,
      kl=o.kl,
      jsd_beta=o.jsd_beta,
    ).sum(-1)
    moved_RT = (jnp.exp(steered_RTV) * (steered_RTV - anchor_RTV)).sum(-1)
    top_RTXK, top_id_RTXK = (
      jnp.stack(arrays, axis=2) for arrays in zip(*top, strict=True)
    )
    own_RTX = jnp.stack(own, axis=2)
    views = divergence_RT, moved_RT, jnp.exp(own_RTX), jnp.exp(top_RTXK)
    return (), (*views, top_id_RTXK)

  token_RT = response_RT
  if len(o.eos_ids) > 1:
    is_end_RT = jnp.isin(token_RT, jnp.array(o.eos_ids))
    token_RT = jnp.where(is_end_RT, o.eos_ids[0], token_RT)
  _, arrays = over_blocks(
    of_block,
    (hidden_RTD, jnp.moveaxis(teacher_BXTD, 1, 2), token_RT),
    o.block_tokens,
  )
  num_hints_RX = (weights_BXM != 0).sum(-1, dtype=jnp.int32)
  return TokenViews(*arrays, num_hints_RX=num_hints_RX, strength=strength)
