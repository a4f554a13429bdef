"""Accuracy on held-out questions, with intervals."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ogls_jax import hosts
from ogls_jax.answers import Answers
from ogls_jax.prompts import PromptMaker, make_prompt_batch
from ogls_jax.questions import own_questions
from ogls_jax.tasks.grading import Grader, is_correct
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
  min_reward: float,
  batch_questions: int,
  bucket_tokens: int,
  poll: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, int]:
  """Share of correct rollouts of each question, float64 [Q], and timeouts.

  The second is how many rollouts count as wrong because grading them exceeded a
  limit, those to the repeats of the last batch left out. Each host grades the
  questions whose rows it holds.

  Args:
    sample: PromptBatch -> Rollouts, any number of rollouts per prompt.
    questions: in this order; a last batch is filled up with repeats of its
      first question, which are not counted.
    maker: renders prompts and decodes responses.
    mesh: where batches go.
    grader: of the task; it grades one batch while the next is sampled.
    min_reward: a rollout of at least this reward is correct.
    batch_questions: questions sampled at a time.
    bucket_tokens: prompts are padded to a multiple of this.
    poll: called again and again while the last answers are graded.

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
  correct, timeouts = [], []
  for answers, num_samples in batches:
    grades = answers.wait(poll)[1]
    counts = [
      is_so_R.reshape(-1, num_samples).sum(1, dtype=np.float32)
      for is_so_R in (
        is_correct(grades.reward_R, min_reward),
        grades.is_timeout_R,
      )
    ]
    counts_B2 = hosts.share_rows(np.stack(counts, -1), mesh)
    correct.append(counts_B2[:, 0].astype(np.float64) / num_samples)
    timeouts.append(counts_B2[:, 1])
  num_timeouts = np.concatenate(timeouts)[: len(questions)].sum()
  return np.concatenate(correct)[: len(questions)], int(num_timeouts)
