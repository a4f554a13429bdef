"""Grades responses, whatever the task."""

import concurrent.futures
import os
import threading
import time
from collections.abc import Callable, Sequence

import loky
import numpy as np

from ogls_jax import errors
from ogls_jax.tasks import math, superglue
from ogls_jax.tasks.question import Question

_IS_CORRECT = {
  'arithmetic': math.is_correct,
  'math': math.is_correct,
  'superglue': superglue.is_correct,
}
TASKS = tuple(_IS_CORRECT)

_NUM_WORKERS = 2
# Work is linear in the text: what takes so long hangs.
_MOST_SECONDS = 300


def check_answers(
  texts: Sequence[str], questions: Sequence[Question], *, task: str
) -> np.ndarray:
  """Returns is_correct_R, bool: texts[r] answers questions[r]."""
  if task not in _IS_CORRECT:
    raise errors.UserError(
      f'data.task = {task!r} is unknown; use one of {", ".join(_IS_CORRECT)}'
    )
  is_correct = _IS_CORRECT[task]
  return np.array(
    [is_correct(text, q) for text, q in zip(texts, questions, strict=True)],
    dtype=bool,
  )


def _end_with(parent: int) -> None:
  """Ends this worker when its parent is gone, as after SIGKILL.

  Otherwise it would wait for work for ever, with the run's log open.
  """

  def watch():
    while os.getppid() == parent:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


class Grader:
  """`check_answers` in worker processes, while the caller goes on.

  They start with the first answers and end with `close`.
  """

  def __init__(self, task: str, *, most_seconds: float = _MOST_SECONDS):
    self._task, self._most_seconds = task, most_seconds
    # Not the standard library's: its workers import the program, and so JAX.
    self._executor = loky.ProcessPoolExecutor(
      _NUM_WORKERS, initializer=_end_with, initargs=(os.getpid(),)
    )

  def submit(
    self, texts: Sequence[str], questions: Sequence[Question]
  ) -> Callable[[], np.ndarray]:
    """Starts grading; the result waits for is_correct_R.

    It raises TimeoutError after `most_seconds`.
    """
    job = self._executor.submit(
      check_answers, list(texts), list(questions), task=self._task
    )

    def wait() -> np.ndarray:
      try:
        return job.result(timeout=self._most_seconds)
      except concurrent.futures.TimeoutError as error:
        ids = sorted({question.id for question in questions})
        raise TimeoutError(
          f'grading {len(texts)} answers took more than'
          f' {self._most_seconds:g} s; they are to {", ".join(ids)}'
        ) from error

    return wait

  def close(self) -> None:
    """Ends the workers, whatever they do."""
    self._executor.shutdown(kill_workers=True)
