r"""Grades multiple-choice answers, as in the SuperGLUE tasks."""

import collections
from collections.abc import Sequence

from ogls_jax import errors
from ogls_jax.tasks import latex, superglue_rows
from ogls_jax.tasks.question import Question

_MARKER = 'answer is'
_PUNCTUATION = ' \t\r\n.,:;!?*"\'`()[]$'


def is_correct(text: str, question: Question) -> bool:
  """Whether the response's final answer is the, or a, right choice."""
  choice = choice_of(text, question)
  if choice is None:
    return False
  return _plain(choice) in map(_plain, right_answers(question))


def choice_of(text: str, question: Question) -> str | None:
  r"""The choice that is the response's final answer, None if there is none.

  The final answer is the last \boxed{...}; without one, the line or sentence
  after the last "answer is"; without that, the whole response. It must be
  exactly one of the choices, but for case and the punctuation around it: a
  response that only mentions choices on its way has no final answer. What comes
  before `</think>` is no answer.
  """
  if not question.choices:
    raise errors.UserError(
      f'row {question.id} has no `choices`, which data.task = superglue needs; '
      'add them or choose another task'
    )
  if text in question.choices:
    return text
  text = text.rpartition('</think>')[2]
  choices = {_plain(choice): choice for choice in reversed(question.choices)}
  for candidate in _candidates(text):
    if candidate in choices:
      return choices[candidate]
  return None


def task_of(question: Question) -> str | None:
  """Which of the eight tasks it is from.

  By the field `task`, or else by what the id begins with, as in `cb-train-3`.
  """
  name = question.fields.get('task', question.id.partition('-')[0])
  return name if name in superglue_rows.TASKS else None


def groups_of(questions: Sequence[Question]) -> list[str]:
  """What each question shares with others, so that they do not vary apart.

  The text, of MultiRC and ReCoRD; of others the question itself.
  """
  return [_group_of(question) for question in questions]


def _group_of(question):
  task = task_of(question)
  key = {'multirc': 'paragraph_idx', 'record': 'passage_idx'}.get(task)
  if key not in question.fields:
    return question.id
  return f'{task} {key} {question.fields[key]}'


def multirc_question(row: Question) -> str:
  """Names the question that a row of MultiRC has a proposed answer to."""
  return f'{row.fields.get("paragraph_idx")} {row.fields.get("question_idx")}'


def num_parted(questions: Sequence[Question], kept: Sequence[Question]) -> int:
  """How many questions of MultiRC have some answers in `kept`, and not all.

  Args:
    questions: rows of any task; those of MultiRC are answers to questions.
    kept: some of them.
  """
  num_before, num_after = (
    collections.Counter(
      multirc_question(q) for q in rows if task_of(q) == 'multirc'
    )
    for rows in (questions, kept)
  )
  return sum(num < num_before[key] for key, num in num_after.items())


def right_answers(question: Question) -> Sequence[str]:
  """All right choices: of ReCoRD every name of the entity, else one."""
  if task_of(question) == 'record':
    return question.fields.get('answers') or [question.answer]
  return [question.answer]


def _candidates(text: str) -> list[str]:
  """Readings of the final answer, the longest first."""
  boxed = latex.extract_boxed(text)
  if boxed is not None:
    return [_plain(latex.TEXT_GROUP.sub(r'\1', boxed))]
  _, marker, tail = text.lower().rpartition(_MARKER)
  if not marker:
    return [_plain(text)]
  line = tail.strip(_PUNCTUATION).partition('\n')[0]
  return [_plain(line), _plain(line.partition('. ')[0])]


def _plain(text: str) -> str:
  return ' '.join(text.lower().strip(_PUNCTUATION).split())
