"""Figures of an evaluation, from the rollouts of each question."""

import collections
import re
from collections.abc import Sequence

import numpy as np

from ogls_jax.tasks import latex, math, superglue
from ogls_jax.tasks.question import Question

# Words of a text that turns back on itself. Our choice: the paper (v1) counts
# such words, and names no full list.
REFLECTION_MARKERS = (
  'wait', 'hmm', 'however', 'alternatively', 'double-check', 'check again',
  'let me check', 'let me verify', 'let me re', 'on second thought',
  'actually', 'mistake',
)  # fmt: skip
_MARKERS = re.compile(
  rf'(?<![a-z])(?:{"|".join(REFLECTION_MARKERS)})(?![a-z])', re.IGNORECASE
)


def pass_at(num: int, num_correct_Q: np.ndarray, k: int) -> np.ndarray:
  """Chance that one of k rollouts is right, for each question; unbiased.

  1 - C(num - c, k) / C(num, k) for c right ones of `num`: arXiv 2107.03374,
  Eq. 1, as a product.
  """
  if not 1 <= k <= num:
    raise ValueError(f'k = {k} of {num} rollouts')
  c_Q1 = np.asarray(num_correct_Q, np.float64)[:, None]
  drawn_K = np.arange(k)
  # Of those that are left, the share that is wrong.
  wrong_QK = np.maximum(num - c_Q1 - drawn_K, 0) / (num - drawn_K)
  return 1 - wrong_QK.prod(1)


def answer_of(text: str, question: Question) -> str | None:
  """The final answer, what a response votes for; None: it has none."""
  if question.choices:
    return superglue.choice_of(text, question)
  boxed = latex.extract_boxed(text)
  return None if boxed is None else math.canonical(boxed)


def majority(
  answers: Sequence[str | None], is_correct: Sequence[bool]
) -> float:
  """Whether the most frequent answer is right; ties count by their share.

  Args:
    answers: of the rollouts of one question; None does not vote.
    is_correct: of the same rollouts. Where the verdicts of one answer differ
      (it was spelled in two ways), their mean counts.

  Returns:
    0 where nothing votes.
  """
  votes = collections.Counter(x for x in answers if x is not None)
  if not votes:
    return 0.0
  most = max(votes.values())
  num_right = collections.Counter()
  for answer, is_right in zip(answers, is_correct, strict=True):
    num_right[answer] += bool(is_right)
  tied = [answer for answer, num in votes.items() if num == most]
  return sum(num_right[answer] / most for answer in tied) / len(tied)


def num_markers(text: str) -> int:
  """How many of `REFLECTION_MARKERS` a response has."""
  return len(_MARKERS.findall(text))
