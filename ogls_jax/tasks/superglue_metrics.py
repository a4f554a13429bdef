"""The metrics of SuperGLUE, of one response to each question; pure functions.

Each is a function of sums of counts over the questions, so that of resampled
questions it is the same function of weighted sums.

Every value is in [0, 1]. A response without a final answer among the choices
is unanswered. It is wrong; for an F1 it is a miss of its class and a false
alarm of none, as it claims nothing.
"""

import collections
import dataclasses
import re
import string
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ogls_jax.tasks import superglue
from ogls_jax.tasks.question import Question

_PUNCTUATION = str.maketrans('', '', string.punctuation)
_ARTICLES = re.compile(r'\b(a|an|the)\b')

# A question and the choice that was made, None if unanswered.
Pair = tuple[Question, str | None]


@dataclasses.dataclass(frozen=True)
class Metric:
  """A metric of a task.

  Attributes:
    counts: of N pairs, float64 [N, C].
    value: of their sums over pairs, [..., C] -> [...].
  """

  counts: Callable[[Sequence[Pair]], np.ndarray]
  value: Callable[[np.ndarray], np.ndarray]


def pairs_of(
  rows: Iterable[tuple[Question, str]],
) -> dict[str | None, list[Pair]]:
  """By task (`superglue.task_of`): questions and the choices that were made.

  Args:
    rows: questions, and the response to each: text of any kind, or one of the
      choices, as by label likelihood.
  """
  pairs = {}
  for question, text in rows:
    pair = question, superglue.choice_of(text, question)
    pairs.setdefault(superglue.task_of(question), []).append(pair)
  return pairs


def _is_right(pairs):
  """[N, 2]: whether the choice is right, and one."""
  return np.array([[choice == q.answer, 1] for q, choice in pairs], float)


def _share(sums):
  return sums[..., 0] / sums[..., 1]


def _class_counts(pairs, names):
  """[N, 3 * classes]: hits, right ones and choices of each class."""
  return np.array(
    [
      [
        count
        for name in names
        for count in (
          choice == name == q.answer, q.answer == name, choice == name,
        )
      ]
      for q, choice in pairs
    ],
    float,
  )  # fmt: skip


def _all_classes(pairs):
  names = {q.answer for q, _ in pairs} | {choice for _, choice in pairs}
  return _class_counts(pairs, sorted(names - {None}))


def _mean_f1(sums):
  """Mean of the classes' F1, over those that were right or chosen."""
  sums = sums.reshape(*sums.shape[:-1], -1, 3)
  num_of = sums[..., 1] + sums[..., 2]
  f1 = 2 * sums[..., 0] / np.maximum(num_of, 1)
  return f1.sum(-1) / np.maximum((num_of > 0).sum(-1), 1)


def _exact_questions(pairs):
  """[N, 2]: in the first row of a question, whether all its answers are right.

  Of MultiRC, whose rows are proposed answers.
  """
  is_right, first = {}, {}
  for place, (q, choice) in enumerate(pairs):
    key = superglue.multirc_question(q)
    first.setdefault(key, place)
    is_right[key] = is_right.get(key, True) and choice == q.answer
  counts = np.zeros((len(pairs), 2))
  for key, place in first.items():
    counts[place] = is_right[key], 1
  return counts


def _best(pairs, compare):
  """[N, 2]: `compare` with the closest of the right entities, and 1."""
  counts = np.zeros((len(pairs), 2))
  for count, (q, choice) in zip(counts, pairs, strict=True):
    count[1] = 1
    if choice is not None:
      golds = map(normalized, superglue.right_answers(q))
      count[0] = max(compare(normalized(choice), gold) for gold in golds)
  return counts


def normalized(text: str) -> str:
  """Lower case without punctuation, articles and needless spaces."""
  text = text.lower().translate(_PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', text).split())


def _token_f1(answer: str, gold: str) -> float:
  answer, gold = answer.split(), gold.split()
  common = collections.Counter(answer) & collections.Counter(gold)
  return 2 * sum(common.values()) / max(len(answer) + len(gold), 1)


_ACCURACY = Metric(_is_right, _share)
METRICS = {
  'boolq': {'accuracy': _ACCURACY},
  'cb': {'accuracy': _ACCURACY, 'f1': Metric(_all_classes, _mean_f1)},
  'copa': {'accuracy': _ACCURACY},
  'multirc': {
    # F1 of `yes` over all proposed answers.
    'f1a': Metric(lambda pairs: _class_counts(pairs, ['yes']), _mean_f1),
    'em': Metric(_exact_questions, _share),
  },
  'record': {
    # With the closest of the right entities.
    'f1': Metric(lambda pairs: _best(pairs, _token_f1), _share),
    'em': Metric(lambda pairs: _best(pairs, str.__eq__), _share),
  },
  'rte': {'accuracy': _ACCURACY},
  'wic': {'accuracy': _ACCURACY},
  'wsc': {'accuracy': _ACCURACY},
}
