"""Grades responses, whatever the task."""

from collections.abc import Sequence

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
