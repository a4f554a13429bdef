"""Figures of an evaluation, from the rollouts of each question."""

import collections
import re
from collections.abc import Sequence

import numpy as np

from ogls_jax.tasks import latex, math, superglue
from ogls_jax.tasks.question import Question

# Words of a text that turns back on itself, as regular expressions. Our choice:
# the paper (v1) counts such words, and names no full list.
REFLECTION_MARKERS = (
  'wait', 'hmm', 'however', 'alternatively', 'double[- ]check', 'check again',
  'let me (?:check|verify)',
  'let me re-?(?:check|consider|think|examine|evaluate|calculate|compute|read'
  '|do)',
  'on second thought', 'actually', 'mistakes?',
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
  """The final answer, as the response has it; None: it has none."""
  if question.choices:
    return superglue.choice_of(text, question)
  return latex.extract_boxed(text)


def votes_of(
  answers: Sequence[str | None], is_correct: Sequence[bool], question: Question
) -> list[str | None]:
  """A name for what each answer votes for.

  All that is correct votes for the reference, in whatever form the grader took
  it. Of other answers those are one that have the same number, or the same
  text but for spaces (`math.canonical`): a narrower rule, so that they may be
  split where right ones are not.

  Args:
    answers: of the rollouts of `question` (`answer_of`); None does not vote.
    is_correct: of the same rollouts.
    question: theirs.
  """
  if question.choices:
    return list(answers)
  names = [None if x is None else math.canonical(x) for x in answers]
  right = {
    name for name, is_right in zip(names, is_correct, strict=True) if is_right
  }
  reference = math.canonical(question.answer)
  return [reference if name in right else name for name in names]


def majority(votes: Sequence[str | None], is_correct: Sequence[bool]) -> float:
  """Whether the most frequent answer is right; ties count by their share.

  Args:
    votes: of the rollouts of one question (`votes_of`); None does not vote.
    is_correct: of the same rollouts. Where the verdicts of one answer differ
      (the grader had no time for some), their mean counts.

  Returns:
    0 where nothing votes.
  """
  num_of = collections.Counter(x for x in votes if x is not None)
  if not num_of:
    return 0.0
  most = max(num_of.values())
  num_right = collections.Counter()
  for vote, is_right in zip(votes, is_correct, strict=True):
    num_right[vote] += bool(is_right)
  tied = [vote for vote, num in num_of.items() if num == most]
  return sum(num_right[vote] / most for vote in tied) / len(tied)


def num_markers(text: str) -> int:
  """How many of `REFLECTION_MARKERS` a response has."""
  return len(_MARKERS.findall(text))
