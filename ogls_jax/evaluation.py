"""Accuracy on held-out questions, with intervals."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ogls_jax import hosts
from ogls_jax.answers import Answers
from ogls_jax.prompts import PromptMaker, make_prompt_batch
from ogls_jax.questions import own_questions
from ogls_jax.tasks.grading import Grader
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


def evaluate(
  sample: Callable,
  questions: list[Question],
  maker: PromptMaker,
  mesh,
  *,
  grader: Grader,
  batch_questions: int,
  bucket_tokens: int,
) -> np.ndarray:
  """Share of correct rollouts of each question, float64 [Q].

  Each host grades the questions whose rows it holds.

  Args:
    sample: PromptBatch -> Rollouts, any number of rollouts per prompt.
    questions: in this order; a last batch is filled up with repeats of its
      first question, which are not counted.
    maker: renders prompts and decodes responses.
    mesh: where batches go.
    grader: of the task; it grades one batch while the next is sampled.
    batch_questions: questions sampled at a time.
    bucket_tokens: prompts are padded to a multiple of this.

  Raises:
    FloatingPointError: the model's logits are not finite.
  """
  batches = []
  for start in range(0, len(questions), batch_questions):
    chunk = questions[start : start + batch_questions]
    filled = chunk + [chunk[0]] * (batch_questions - len(chunk))
    own, uids = own_questions(filled, mesh)
    prompts = make_prompt_batch(own, uids, maker, bucket_tokens=bucket_tokens)
    rollouts = hosts.take_rows(sample(hosts.put_rows(prompts, mesh)))
    if not np.isfinite(rollouts.log_prob_RT).all():
      raise FloatingPointError(
        'evaluation: the log-probability of a sampled token is not finite'
      )
    num_samples = len(rollouts.length_R) // len(own)
    graded = [q for q in own for _ in range(num_samples)]
    answers = Answers(graded, maker.tokenizer, grader)
    answers.take_all(rollouts)
    batches.append((answers, num_samples))
  shares = []
  for answers, num_samples in batches:
    is_correct_BG = answers.wait()[1].reshape(-1, num_samples)
    num_correct_B1 = is_correct_BG.sum(1, keepdims=True, dtype=np.float32)
    num_correct_B = hosts.share_rows(num_correct_B1, mesh)[:, 0]
    shares.append(num_correct_B.astype(np.float64) / num_samples)
  return np.concatenate(shares)[: len(questions)]
