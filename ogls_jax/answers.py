"""From sampled tokens to text and grades, as rollouts end."""

from collections.abc import Callable

import numpy as np

from ogls_jax.batches import Rollouts
from ogls_jax.tasks.grading import Grader, Grades
from ogls_jax.tasks.question import Question
from ogls_jax.tokenizer import Tokenizer


class Answers:
  """The text of each of R rollouts and its reward.

  Those that end early are decoded and graded while the device samples the rest.
  """

  def __init__(
    self, questions: list[Question], tokenizer: Tokenizer, grader: Grader
  ):
    """`questions`: one for each rollout."""
    self._questions, self._tokenizer = questions, tokenizer
    self._grader = grader
    self._texts: list[str | None] = [None] * len(questions)
    self._jobs = []

  def take_ended(self, rollouts: Rollouts) -> None:
    """Takes the rollouts that have ended by an end-of-sequence token."""
    self._take(rollouts, ~rollouts.is_truncated_R)

  def take_all(self, rollouts: Rollouts) -> None:
    """Takes all that have not been taken."""
    self._take(rollouts, np.ones(len(self._texts), bool))

  def wait(
    self, poll: Callable[[], None] = lambda: None
  ) -> tuple[list[str], Grades]:
    """All texts and their grades, once all are taken and graded.

    `poll` is called again and again meanwhile.
    """
    num_rows = len(self._texts)
    grades = Grades(np.zeros(num_rows, np.float32), np.zeros(num_rows, bool))
    for rows, wait in self._jobs:
      for all_R, some in zip(grades, wait(poll), strict=True):
        all_R[rows] = some
    return self._texts, grades

  def _take(self, rollouts, is_over_R):
    rows = [r for r in np.flatnonzero(is_over_R) if self._texts[r] is None]
    if not rows:
      return
    for r in rows:
      # The end-of-sequence token is left out.
      num_tokens = rollouts.length_R[r] - (not rollouts.is_truncated_R[r])
      ids = rollouts.response_RT[r, :num_tokens].tolist()
      self._texts[r] = self._tokenizer.decode(ids)
    wait = self._grader.submit(
      [self._texts[r] for r in rows], [self._questions[r] for r in rows]
    )
    self._jobs.append((rows, wait))
