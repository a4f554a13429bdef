"""The pytrees that travel between the host and the jitted steps.

Rows are flat and prompt-major: row r = b * G + g is rollout g of question b.
Everything is right-padded; lengths say where padding starts.
"""

import dataclasses
from typing import Any

import jax
import numpy as np


def pytree(cls):
  """A frozen dataclass whose fields are all children of a pytree."""
  cls = dataclasses.dataclass(frozen=True)(cls)
  names = [field.name for field in dataclasses.fields(cls)]
  return jax.tree_util.register_dataclass(cls, names, [])


@pytree
class PromptBatch:
  """B tokenized prompts."""

  tokens_BP: jax.Array  # int32
  length_B: jax.Array  # int32, at least 1
  uid_B: jax.Array  # uint32, names the question in the sampling key


@pytree
class Rollouts:
  """G responses to each of B prompts, or B given responses (G = 1)."""

  response_RT: jax.Array  # int32
  length_R: jax.Array  # int32, end-of-sequence token included
  log_prob_RT: jax.Array  # float32, at the sampling temperature; 0 if given
  is_truncated_R: jax.Array  # bool, no end-of-sequence token within T


@pytree
class Hints:
  """What the teacher reads, and how each rollout weighs it.

  Context m of question b is a whole teacher prompt, the longest first; slots
  past the last one have length 0 and weight 0. Pool weights of a rollout sum to
  1, or are all 0 where the pool is empty.
  """

  context_BMC: jax.Array  # int32
  length_BM: jax.Array  # int32
  anchor_BGM: jax.Array  # float32, z0: the context without a hint
  positive_BGM: jax.Array  # float32, P+
  negative_BGM: jax.Array  # float32, P-


@pytree
class LossBatch:
  """One update's worth of rollouts, with all that the losses need.

  T may be shorter than in `Rollouts`, and G smaller: columns and rows that
  carry no loss are cut.
  """

  prompts: PromptBatch
  response_RT: jax.Array
  token_mask_RT: jax.Array  # bool, tokens of the main loss
  tail_mask_RT: jax.Array  # bool, tokens of the tail loss
  log_prob_RT: jax.Array  # float32, as in `Rollouts`
  advantage_R: jax.Array  # float32, 0 unless the method is grpo
  hints: Hints | None  # None where no teacher is read


@pytree
class TrainState:
  """All that an update changes. `params` holds the trained arrays only."""

  step: jax.Array  # int32, updates done
  key: jax.Array  # never advanced: every use folds in the step
  params: Any
  opt_state: Any
  ema_params: Any  # like `params`, or None unless teacher = 'ema'


def pad_rows(rows: list[list[int]], length: int) -> np.ndarray:
  """Right-pads lists of token ids with 0 to [len(rows), length], int32.

  Raises:
    ValueError: a row is longer than `length`.
  """
  padded = np.zeros((len(rows), length), np.int32)
  for i, row in enumerate(rows):
    if len(row) > length:
      raise ValueError(f'row {i} has {len(row)} tokens, more than {length}')
    padded[i, : len(row)] = row
  return padded


def flatten_rows(array_BG: jax.Array) -> jax.Array:
  """[B, G, ...] -> [R, ...], prompt-major."""
  return array_BG.reshape(-1, *array_BG.shape[2:])


def unflatten_rows(array_R: jax.Array, num_prompts: int) -> jax.Array:
  """[R, ...] -> [B, G, ...], the inverse of `flatten_rows`."""
  return array_R.reshape(num_prompts, -1, *array_R.shape[1:])
