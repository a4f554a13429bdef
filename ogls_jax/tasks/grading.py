"""Grades responses, whatever the task, in worker processes with limits."""

import concurrent.futures
import os
import queue
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ogls_jax import errors
from ogls_jax.tasks import sandbox
from ogls_jax.tasks.question import Question
from ogls_jax.tasks.worker import REWARDS

TASKS = tuple(REWARDS)
OWN_TASK_SUFFIX = '.py'

_NUM_WORKERS = 2
# How often someone who waits for grades can do something else.
_POLL_SECONDS = 0.5


class Grades(NamedTuple):
  """Of R answers.

  Attributes:
    reward_R: float32, in [0, 1]; 0 where grading exceeded a limit.
    is_timeout_R: bool, it took more than its limit of time or memory.
  """

  reward_R: np.ndarray
  is_timeout_R: np.ndarray


def is_correct(reward_R: np.ndarray, min_reward: float) -> np.ndarray:
  """Which rewards count as correct, bool: those of at least `min_reward`."""
  # In float32 both: as a float64 0.7 is above the reward 0.7.
  return np.float32(reward_R) >= np.float32(min_reward)


class Grader:
  """Grades in worker processes, while the caller goes on.

  They start with the first answers and end with `close`. A worker that exceeds
  a limit is killed and replaced; the reward of its answer is 0.
  """

  def __init__(
    self,
    task: str,
    *,
    symbolic_seconds: float = 2.0,
    symbolic_mib: int = 2048,
    seconds: float = 60.0,
  ):
    """Starts nothing yet.

    Args:
      task: one of `TASKS`, or the path of a Python file with a function
        `reward(text, question)`.
      symbolic_seconds: for one answer of which only algebra can tell whether
        it is right; 0 for no such answers.
      symbolic_mib: memory of a worker.
      seconds: for one answer otherwise.
    """
    self._is_own = task.endswith(OWN_TASK_SUFFIX)
    self._task = os.path.abspath(task) if self._is_own else task
    self._symbolic_seconds = symbolic_seconds
    self._seconds = seconds
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
      rewards = [job.result() for job in jobs]
      return Grades(
        np.array([reward or 0.0 for reward in rewards], np.float32),
        np.array([reward is None for reward in rewards], bool),
      )

    return wait

  def check(self, question: Question) -> None:
    """Tries a task's file on an empty answer, so that it fails early.

    Raises:
      UserError: it cannot be loaded, has no function `reward`, raises, takes
        more than a limit, or returns what is no reward.
    """
    if not self._is_own:
      return
    if self.submit([''], [question])().is_timeout_R[0]:
      raise errors.UserError(
        f'data.task = {self._task}: to load it and to grade an empty answer to'
        f' question {question.id!r} takes more time than grading.seconds or'
        ' more memory than grading.symbolic_mib; raise them, or let it do less'
      )

  def close(self) -> None:
    """Ends the workers, whatever they do."""
    self._threads.shutdown(wait=False, cancel_futures=True)
    for worker in self._all:
      worker.close()
    self._threads.shutdown()

  def _grade(self, text, question) -> float | None:
    """Its reward; None where a limit was exceeded."""
    fields = dict(task=self._task, text=text, question=vars(question))
    worker = self._free.get()
    try:
      if self._is_own:
        worker.load(self._task)
      reward = worker.ask(self._seconds, do='reward', **fields)
      if reward is not None:
        return reward
      if not self._symbolic_seconds:
        return 0.0
      worker.load(self._task)
      return worker.ask(self._symbolic_seconds, do='symbolic', **fields)
    except sandbox.Exceeded:
      return None
    finally:
      self._free.put(worker)
