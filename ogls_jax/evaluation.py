"""Samples and grades questions, batch by batch."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from ogls_jax import hosts
from ogls_jax.answers import Answers
from ogls_jax.prompts import PromptMaker, make_prompt_batch
from ogls_jax.questions import own_questions
from ogls_jax.repetition import repeated_fractions
from ogls_jax.tasks.grading import Grader, is_correct
from ogls_jax.tasks.question import Question


@dataclasses.dataclass(frozen=True)
class GradedBatch:
  """G rollouts of each of B questions, of all hosts; without filling.

  Attributes:
    questions: B of them.
    responses_BG: lists of texts; None if they were not asked for.
    reward_BG: float64; 0 where grading exceeded a limit.
    is_timeout_BG: whether it did.
    length_BG: tokens, with the end-of-sequence token.
    is_truncated_BG: whether that is missing.
    repeated_BG: share of the tokens that repeat others (`repetition`).
  """

  questions: list[Question]
  responses_BG: list[list[str]] | None
  reward_BG: np.ndarray
  is_timeout_BG: np.ndarray
  length_BG: np.ndarray
  is_truncated_BG: np.ndarray
  repeated_BG: np.ndarray


def graded_batches(
  sample: Callable,
  questions: list[Question],
  maker: PromptMaker,
  mesh,
  *,
  grader: Grader,
  batch_questions: int,
  bucket_tokens: int,
  has_responses: bool = False,
  poll: Callable[[], None] = lambda: None,
) -> Iterator[GradedBatch]:
  """Batches of `questions` in this order, the same on all hosts.

  Each host grades the questions whose rows it holds; one batch is graded while
  the next is sampled.

  Args:
    sample: PromptBatch -> Rollouts, any number of rollouts per prompt.
    questions: a last batch is filled up with repeats of its first question,
      which are left out again.
    maker: renders prompts and decodes responses.
    mesh: where batches go.
    grader: of the task.
    batch_questions: questions sampled at a time.
    bucket_tokens: prompts are padded to a multiple of this.
    has_responses: whether texts are gathered from all hosts.
    poll: called again and again while answers are waited for.

  Raises:
    FloatingPointError: the model's logits are not finite.
  """

  def finished(chunk, answers, rollouts):
    responses, grades = answers.wait(poll)
    facts = [
      grades.reward_R,
      grades.is_timeout_R,
      rollouts.length_R,
      rollouts.is_truncated_R,
      repeated_fractions(rollouts.response_RT, rollouts.length_R),
    ]
    facts_R5 = hosts.share_rows(np.stack(facts, -1).astype(np.float32), mesh)
    facts_BG5 = facts_R5.reshape(batch_questions, -1, 5)[: len(chunk)]
    num_samples, responses_BG = facts_BG5.shape[1], None
    if has_responses:
      responses = hosts.share_texts(responses, mesh)
      responses_BG = [
        responses[b * num_samples : (b + 1) * num_samples]
        for b in range(len(chunk))
      ]
    reward, is_timeout, length, is_truncated, repeated = np.moveaxis(
      facts_BG5.astype(np.float64), -1, 0
    )
    return GradedBatch(
      questions=chunk,
      responses_BG=responses_BG,
      reward_BG=reward,
      is_timeout_BG=is_timeout > 0,
      length_BG=length.astype(np.int32),
      is_truncated_BG=is_truncated > 0,
      repeated_BG=repeated,
    )

  held = None
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
    if held:
      yield finished(*held)
    held = chunk, answers, rollouts
  if held:
    yield finished(*held)


def accuracy(
  batches: Iterator[GradedBatch], min_reward: float
) -> tuple[np.ndarray, int]:
  """Share of correct rollouts of each question, float64 [Q], and timeouts.

  The second is how many rollouts have no reward because grading them exceeded a
  limit. A rollout is correct from a reward of `min_reward`.
  """
  shares, num_timeouts = [], 0
  for batch in batches:
    shares.append(is_correct(batch.reward_BG, min_reward).mean(1))
    num_timeouts += int(batch.is_timeout_BG.sum())
  return np.concatenate(shares), num_timeouts
