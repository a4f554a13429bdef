"""Grades responses, whatever the task, in worker processes with limits."""

import concurrent.futures
import queue
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ogls_jax import errors
from ogls_jax.tasks import sandbox
from ogls_jax.tasks.question import Question
from ogls_jax.tasks.worker import VERDICTS

TASKS = tuple(VERDICTS)

_NUM_WORKERS = 2
# What is not symbolic is linear in the text; a megabyte takes a second or two.
_PLAIN_SECONDS = 60
# How often someone who waits for grades can do something else.
_POLL_SECONDS = 0.5


class Grades(NamedTuple):
  """Of R answers, bool.

  Attributes:
    is_correct_R: False where no verdict was reached.
    is_timeout_R: grading took more than its limit of time or memory.
  """

  is_correct_R: np.ndarray
  is_timeout_R: np.ndarray


def check_answers(
  texts: Sequence[str], questions: Sequence[Question], *, task: str
) -> np.ndarray:
  """Returns is_correct_R, bool: texts[r] answers questions[r].

  In this process and without symbolic equality.
  """
  if task not in VERDICTS:
    raise errors.UserError(
      f'data.task = {task!r} is unknown; use one of {", ".join(VERDICTS)}'
    )
  pairs = zip(texts, questions, strict=True)
  return np.array([VERDICTS[task](*pair) is True for pair in pairs], dtype=bool)


class Grader:
  """Grades in worker processes, while the caller goes on.

  They start with the first answers and end with `close`. A worker that exceeds
  a limit is killed and replaced; its answer counts as wrong.
  """

  def __init__(
    self,
    task: str,
    *,
    symbolic_seconds: float = 2.0,
    symbolic_mib: int = 2048,
    plain_seconds: float = _PLAIN_SECONDS,
  ):
    """Starts nothing yet.

    Args:
      task: one of `TASKS`.
      symbolic_seconds: for one answer of which only algebra can tell whether
        it is right; 0 for no such answers.
      symbolic_mib: memory of a worker.
      plain_seconds: for one answer otherwise.
    """
    self._task = task
    self._symbolic_seconds = symbolic_seconds
    self._plain_seconds = plain_seconds
    self._all = [sandbox.Sandbox(symbolic_mib) for _ in range(_NUM_WORKERS)]
    self._free = queue.SimpleQueue()
    for worker in self._all:
      self._free.put(worker)
    # A thread for each worker waits for its replies.
    self._threads = concurrent.futures.ThreadPoolExecutor(
      _NUM_WORKERS, 'grading'
    )

  def submit(
    self, texts: Sequence[str], questions: Sequence[Question]
  ) -> Callable[..., Grades]:
    """Starts grading; what it returns waits for the grades.

    That may be given a function to call again and again while it waits.
    """
    jobs = [
      self._threads.submit(self._grade, text, question)
      for text, question in zip(texts, questions, strict=True)
    ]

    def wait(poll: Callable[[], None] = lambda: None) -> Grades:
      left = jobs
      while left := concurrent.futures.wait(left, _POLL_SECONDS)[1]:
        poll()
      verdicts = [job.result() for job in jobs]
      return Grades(
        np.array([verdict is True for verdict in verdicts], bool),
        np.array([verdict is None for verdict in verdicts], bool),
      )

    return wait

  def close(self) -> None:
    """Ends the workers, whatever they do."""
    self._threads.shutdown(wait=False, cancel_futures=True)
    for worker in self._all:
      worker.close()
    self._threads.shutdown()

  def _grade(self, text, question) -> bool | None:
    """Whether it is right; None where a limit was exceeded."""
    fields = dict(
      task=self._task,
      text=text,
      id=question.id,
      answer=question.answer,
      choices=question.choices,
    )
    worker = self._free.get()
    try:
      verdict = worker.ask(self._plain_seconds, do='compare', **fields)
      if verdict is not None:
        return verdict
      if not self._symbolic_seconds:
        return False
      worker.load()
      return worker.ask(self._symbolic_seconds, do='symbolic', **fields)
    except sandbox.Exceeded:
      return None
    finally:
      self._free.put(worker)
