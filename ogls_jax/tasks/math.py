r"""Grades \boxed answers, as in GSM8K, MATH and AIME.

1. as text, after LaTeX spelling is normalized
2. as exact rationals, with a unit
3. by their form: values, sets, intervals... (`forms`)

What none of these decides is left to the caller (`symbolic`). Nothing in a
response is ever evaluated, and the work is bounded.
"""

import fractions
import re

from ogls_jax.tasks import forms, latex, units
from ogls_jax.tasks.question import Question

# The longest reference answer in MATH has 159 characters. Beyond the bound an
# answer counts only if it is the reference, character for character.
MAX_ANSWER_CHARS = 512

_NUMBER = (
  r'(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?'  # 13,800
  r'|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)'
  r'(?:[eE][+-]?[0-9]{1,2})?'  # at most 99 zeros: 1e999999999 is no number
)
_FRACTION = re.compile(
  rf'([+-]?) ?(?:'
  rf'({_NUMBER})(?: ?/ ?([+-]?{_NUMBER}))?'
  rf'|\\frac ?\{{ ?([+-]?{_NUMBER}) ?\}} ?\{{ ?([+-]?{_NUMBER}) ?\}})'
)


def compare(text: str, question: Question) -> bool | None:
  """Whether the response's boxed answer equals the reference; None: undecided.

  A unit in a text command may be left out on one side but not differ. A
  percentage equals both its number and a hundredth of it.
  """
  answer = latex.extract_boxed(text)
  if answer is None:
    return False
  if answer.strip() == question.answer.strip():
    return True
  if max(len(answer), len(question.answer)) > MAX_ANSWER_CHARS:
    return False
  if units.has_other_unit(answer, question.answer):
    return False
  answer, reference = latex.clean(answer), latex.clean(question.answer)
  plain = latex.strip_spaces(answer)
  if plain and plain == latex.strip_spaces(reference):
    return True
  number, unit = _parse_quantity(answer)
  reference_number, reference_unit = _parse_quantity(reference)
  is_unit_equal = not unit or not reference_unit or unit == reference_unit
  if number is not None and number == reference_number and is_unit_equal:
    return True
  return forms.compare(answer, reference)


def canonical(answer: str) -> str:
  """One text for a number, whatever its spelling and unit; else the answer's.

  Without spaces. Of more than `MAX_ANSWER_CHARS` characters: as it is.
  """
  if len(answer) > MAX_ANSWER_CHARS:
    return answer
  answer = latex.clean(answer)
  number, _ = _parse_quantity(answer)
  return latex.strip_spaces(answer) if number is None else str(number)


def is_correct(text: str, question: Question) -> bool:
  """Whether the response's boxed answer is known to equal the reference."""
  return compare(text, question) is True


def _parse_quantity(answer: str) -> tuple[fractions.Fraction | None, str]:
  answer = answer.removesuffix('%')
  unit = units.TEXT_UNIT.search(answer)
  if unit is None or not units.is_unit(unit[1]):
    return _parse_number(latex.TEXT_GROUP.sub(r'\1', answer)), ''
  number = _parse_number(answer[: unit.start()].rstrip())
  if number is None:  # \text{42}
    return _parse_number(latex.TEXT_GROUP.sub(r'\1', answer).strip()), ''
  return number, (unit[1] + (unit[2] or '')).replace(' ', '')


def _parse_number(text: str) -> fractions.Fraction | None:
  match = _FRACTION.fullmatch(text.strip())
  if match is None:
    return None
  sign, over, under = match[1], match[2] or match[4], match[3] or match[5]
  parts = [
    fractions.Fraction(part.replace(',', '')) for part in (over, under or '1')
  ]
  if parts[1] == 0:
    return None
  value = parts[0] / parts[1]
  return -value if sign == '-' else value
