"""Which tokens carry which loss, and GRPO's advantages; on the host."""

import dataclasses

import numpy as np

from ogls_jax import hosts
from ogls_jax.batches import Hints, LossBatch, PromptBatch, Rollouts, pad_rows
from ogls_jax.numerics import round_up


def advantages(reward_BG: np.ndarray) -> np.ndarray:
  """(reward - group mean) / (group std + 1e-6), float32 [R].

  arXiv:2402.03300, section 4.1.2; a group of equal rewards gives 0.
  """
  mean = reward_BG.mean(1, keepdims=True)
  std = reward_BG.std(1, keepdims=True)
  return ((reward_BG - mean) / (std + 1e-6)).reshape(-1).astype(np.float32)


def make_loss_batch(
  *,
  prompts: PromptBatch,
  rollouts: Rollouts,
  hints: Hints | None,
  is_scored_R: np.ndarray,
  is_correct_R: np.ndarray,
  advantage_R: np.ndarray,
  response_tokens: int | None,
  tail_tokens: int,
  bucket_tokens: int,
) -> LossBatch:
  """Masks of one batch, cut to the columns and rows that carry loss.

  To the same sizes on all hosts, each of which has to call it.

  Args:
    prompts: as sampled from.
    rollouts: host arrays.
    hints: teacher contexts, if a teacher is read.
    is_scored_R: rollouts that carry the main loss.
    is_correct_R: rollouts that can carry the tail loss.
    advantage_R: from `advantages`, or zeros.
    response_tokens: the distilled window T_d; None for whole responses.
    tail_tokens: the tail loss is on the last so many tokens of correct,
      untruncated rollouts, the end-of-sequence token included; 0 for none.
    bucket_tokens: the width is a multiple of this, so that few programs are
      compiled.
  """
  num_columns = rollouts.response_RT.shape[1]
  position_1T = np.arange(num_columns)[None]
  length_R1 = rollouts.length_R[:, None]
  is_response_RT = position_1T < length_R1
  token_mask_RT = is_scored_R[:, None] & is_response_RT
  if response_tokens is not None:
    token_mask_RT &= position_1T < response_tokens
  has_tail_R = is_correct_R & ~rollouts.is_truncated_R
  tail_mask_RT = has_tail_R[:, None] & is_response_RT
  tail_mask_RT &= position_1T >= length_R1 - tail_tokens
  has_loss_RT = token_mask_RT | tail_mask_RT
  num_used = int(np.flatnonzero(has_loss_RT.any(0)).max(initial=-1)) + 1
  num_prompts = prompts.length_B.shape[0]
  has_loss_BG = has_loss_RT.any(1).reshape(num_prompts, -1)
  num_used, most = hosts.largest(num_used, int(has_loss_BG.sum(1).max()))
  width = min(round_up(num_used, bucket_tokens), num_columns)
  order_BG = _rows_with_loss(has_loss_BG, most)
  group_size = length_R1.size // num_prompts
  row_R = (group_size * np.arange(num_prompts)[:, None] + order_BG).reshape(-1)

  def cut(array_RT):
    return np.ascontiguousarray(array_RT[row_R, :width])

  def cut_weights(array_BGM):
    return np.take_along_axis(array_BGM, order_BG[..., None], axis=1)

  if hints is not None:
    hints = dataclasses.replace(
      hints,
      anchor_BGM=cut_weights(hints.anchor_BGM),
      positive_BGM=cut_weights(hints.positive_BGM),
      negative_BGM=cut_weights(hints.negative_BGM),
    )
  return LossBatch(
    prompts=prompts,
    response_RT=cut(rollouts.response_RT),
    token_mask_RT=cut(token_mask_RT),
    tail_mask_RT=cut(tail_mask_RT),
    log_prob_RT=cut(rollouts.log_prob_RT),
    advantage_R=advantage_R[row_R],
    hints=hints,
  )


def _rows_with_loss(has_loss_BG: np.ndarray, most: int) -> np.ndarray:
  """Indices into each group, those with loss first, the rest cut by halves.

  All groups keep the same number, G, G / 2, G / 4, ... rounded up, that holds
  `most`: few sizes, as each is a program.
  """
  num_kept = has_loss_BG.shape[1]
  while num_kept > 1 and most <= (num_kept + 1) // 2:
    num_kept = (num_kept + 1) // 2
  return np.argsort(~has_loss_BG, axis=1, kind='stable')[:, :num_kept]


def given_rollouts(
  responses: list[list[int]], *, bucket_tokens: int
) -> Rollouts:
  """Given responses, end-of-sequence token included, as rollouts.

  As wide on all hosts, each of which has to call it.
  """
  (longest,) = hosts.largest(max(map(len, responses)))
  width = round_up(longest, bucket_tokens)
  tokens = pad_rows(responses, width)
  return Rollouts(
    response_RT=tokens,
    length_R=np.array([len(response) for response in responses], np.int32),
    log_prob_RT=np.zeros(tokens.shape, np.float32),
    is_truncated_R=np.zeros(len(responses), bool),
  )
