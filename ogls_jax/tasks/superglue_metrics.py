"""The metrics of SuperGLUE, of one response to each question; pure functions.

Every value is in [0, 1]. A response without a final answer among the choices
is unanswered. It is wrong; for an F1 it is a miss of its class and a false
alarm of none, as it claims nothing.
"""

import collections
import re
import string
from collections.abc import Iterable, Mapping, Sequence

from ogls_jax.tasks import superglue
from ogls_jax.tasks.question import Question

_PUNCTUATION = str.maketrans('', '', string.punctuation)
_ARTICLES = re.compile(r'\b(a|an|the)\b')

# A question and the choice that was made, None if unanswered.
Pair = tuple[Question, str | None]


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


def score(pairs: Mapping[str, Sequence[Pair]]) -> dict[str, float]:
  """Metrics of each task of `pairs`, and their average.

  Returns:
    `<task>/<metric>` for each; `average` over tasks, of which those with two
    metrics count their mean.
  """
  values, means = {}, []
  for task in sorted(pairs):
    metrics = {name: of(pairs[task]) for name, of in METRICS[task].items()}
    values |= {f'{task}/{name}': value for name, value in metrics.items()}
    means.append(sum(metrics.values()) / len(metrics))
  return values | {'average': sum(means) / len(means)}


def accuracy(pairs: Sequence[Pair]) -> float:
  """Share of right choices."""
  return sum(choice == q.answer for q, choice in pairs) / len(pairs)


def macro_f1(pairs: Sequence[Pair]) -> float:
  """Mean of the classes' F1, over those that were right or chosen (CB)."""
  classes = {q.answer for q, _ in pairs} | {choice for _, choice in pairs}
  classes.discard(None)
  return sum(_f1(pairs, name) for name in classes) / len(classes)


def f1a(pairs: Sequence[Pair]) -> float:
  """F1 of `yes` over all proposed answers (MultiRC)."""
  return _f1(pairs, 'yes')


def exact_questions(pairs: Sequence[Pair]) -> float:
  """Share of questions with all proposed answers judged right (MultiRC)."""
  is_right = collections.defaultdict(lambda: True)
  for q, choice in pairs:
    key = q.fields['paragraph_idx'], q.fields['question_idx']
    is_right[key] &= choice == q.answer
  return sum(is_right.values()) / len(is_right)


def exact_entities(pairs: Sequence[Pair]) -> float:
  """Share of choices that are one of the right entities (ReCoRD)."""
  return _best(pairs, lambda choice, gold: choice == gold)


def entity_f1(pairs: Sequence[Pair]) -> float:
  """Mean token F1 with the closest of the right entities (ReCoRD)."""
  return _best(pairs, _token_f1)


METRICS = {
  'boolq': {'accuracy': accuracy},
  'cb': {'accuracy': accuracy, 'f1': macro_f1},
  'copa': {'accuracy': accuracy},
  'multirc': {'f1a': f1a, 'em': exact_questions},
  'record': {'f1': entity_f1, 'em': exact_entities},
  'rte': {'accuracy': accuracy},
  'wic': {'accuracy': accuracy},
  'wsc': {'accuracy': accuracy},
}


def _f1(pairs, name) -> float:
  """Of one class; 0 where it was neither right nor chosen."""
  num_hits = sum(choice == name == q.answer for q, choice in pairs)
  num_right = sum(q.answer == name for q, _ in pairs)
  num_chosen = sum(choice == name for _, choice in pairs)
  return 2 * num_hits / max(num_right + num_chosen, 1)


def _best(pairs, compare) -> float:
  total = 0.0
  for q, choice in pairs:
    if choice is not None:
      golds = map(normalized, superglue.right_answers(q))
      total += max(compare(normalized(choice), gold) for gold in golds)
  return total / len(pairs)


def normalized(text: str) -> str:
  """Lower case without punctuation, articles and needless spaces."""
  text = text.lower().translate(_PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', text).split())


def _token_f1(answer: str, gold: str) -> float:
  answer, gold = answer.split(), gold.split()
  common = collections.Counter(answer) & collections.Counter(gold)
  return 2 * sum(common.values()) / max(len(answer) + len(gold), 1)
