r"""Grades multiple-choice answers, as in the SuperGLUE tasks."""

from ogls_jax import errors
from ogls_jax.tasks import latex
from ogls_jax.tasks.question import Question

_MARKER = 'answer is'
_PUNCTUATION = ' \t\r\n.,:;!?*"\'`()[]$'


def is_correct(text: str, question: Question) -> bool:
  r"""Whether the response's final answer is the reference choice.

  The final answer is the last \boxed{...}; without one, the line or sentence
  after the last "answer is"; without that, the whole response. It must be
  exactly one of the choices, but for case and the punctuation around it: a
  response that only mentions choices on its way has no final answer.
  """
  if not question.choices:
    raise errors.UserError(
      f'row {question.id} has no `choices`, which data.task = superglue needs; '
      'add them or choose another task'
    )
  choices = {_plain(choice) for choice in question.choices}
  for candidate in _candidates(text):
    if candidate in choices:
      return candidate == _plain(question.answer)
  return False


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
