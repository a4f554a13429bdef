"""Accuracy on held-out questions, with intervals."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from ogls_jax import mesh as mesh_lib
from ogls_jax.batches import Rollouts
from ogls_jax.prompts import PromptMaker, make_prompt_batch
from ogls_jax.questions import uids_of
from ogls_jax.tasks.grading import check_answers
from ogls_jax.tasks.question import Question


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean over questions and its 95% interval, in [0, 1]."""

  mean: float
  low: float
  high: float

  def __str__(self):
    return f'{self.mean:.1%} [{self.low:.1%}, {self.high:.1%}]'


def mean_interval(values_Q: np.ndarray) -> Interval:
  """Mean of one value per question, +- 1.96 standard errors."""
  mean = float(values_Q.mean())
  error = 0.0
  if values_Q.size > 1:
    error = float(values_Q.std(ddof=1)) / values_Q.size**0.5
  return Interval(mean, mean - 1.96 * error, mean + 1.96 * error)


def decode_responses(rollouts: Rollouts, maker: PromptMaker) -> list[str]:
  """Text of host-side rollouts, the end-of-sequence token left out."""
  texts = []
  for ids, length, is_cut in zip(
    rollouts.response_RT,
    rollouts.length_R,
    rollouts.is_truncated_R,
    strict=True,
  ):
    texts.append(maker.tokenizer.decode(ids[: length - (not is_cut)].tolist()))
  return texts


def evaluate(
  sample: Callable,
  questions: list[Question],
  maker: PromptMaker,
  mesh,
  *,
  task: str,
  batch_questions: int,
  bucket_tokens: int,
) -> np.ndarray:
  """Share of correct rollouts of each question, float64 [Q].

  Args:
    sample: PromptBatch -> Rollouts, any number of rollouts per prompt.
    questions: in this order; a last batch is filled up with repeats of its
      first question, which are not counted.
    maker: renders prompts and decodes responses.
    mesh: where batches go.
    task: how to grade.
    batch_questions: questions sampled at a time.
    bucket_tokens: prompts are padded to a multiple of this.
  """
  shares = []
  for start in range(0, len(questions), batch_questions):
    chunk = questions[start : start + batch_questions]
    filled = chunk + [chunk[0]] * (batch_questions - len(chunk))
    prompts = make_prompt_batch(
      filled, uids_of(filled), maker, bucket_tokens=bucket_tokens
    )
    rollouts = jax.device_get(sample(mesh_lib.put_batch(prompts, mesh)))
    texts = decode_responses(rollouts, maker)
    num_samples = len(texts) // len(filled)
    graded = [q for q in filled for _ in range(num_samples)]
    is_correct_R = check_answers(texts, graded, task=task)
    shares.append(is_correct_R.reshape(-1, num_samples).mean(1)[: len(chunk)])
  return np.concatenate(shares)
