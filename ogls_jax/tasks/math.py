r"""Grades \boxed answers, as in GSM8K, MATH and AIME, by rewriting text only.

Nothing in a response is ever evaluated, and the work is linear in its length.
"""

import fractions
import re

from ogls_jax.tasks.question import Question

# The longest reference answer in MATH has 159 characters. Beyond the bound an
# answer counts only if it is the reference, character for character.
MAX_ANSWER_CHARS = 512

_BRACES = re.compile(r'\\boxed\s*\{|\\[{}]|[{}]')

_TEXT = r'\\(?:text|textnormal|textbf|textit|mathrm|mathbf|mbox)\s*'
TEXT_GROUP = re.compile(_TEXT + r'\{([^{}]*)\}')
# `7 \text{ days}`, `25 \text{ cm}^2`
_UNIT = re.compile(_TEXT + r'\{([^{}0-9]*)\}(\^(?:[0-9]|\{[0-9]\}))?$')

_REWRITES = [
  (re.compile(pattern), replacement)
  for pattern, replacement in (
    ('\u2212', '-'),
    # Thin spaces; not after a backslash, where `\\` ends a row.
    (r'(?<!\\)\\[,!;:]', ''),
    (r'(?<!\\)\\ |~', ' '),
    (r'\{,\}(?=[0-9])', ','),
    (r'\\(?:left|right)(?![A-Za-z])', ''),
    (r'\\[dt]frac(?![A-Za-z])', r'\\frac'),
    (r'\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})', ''),
    (r'\\degree(?![A-Za-z])|\u00b0', ''),
    (r'\\?[%$]', ''),
    # \frac12, \frac 5{12}, \frac{5}2, \sqrt3: the braces TeX lets one omit.
    (r'\\(frac|sqrt) ?([0-9])', r'\\\1{\2}'),
    (r'\\frac(\{[^{}]*\}) ?([0-9])', r'\\frac\1{\2}'),
  )
]

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


def extract_boxed(text: str) -> str | None:
  r"""Returns what stands in the \boxed{...} that begins last, if any is closed.

  Braces nest; `\{` and `\}` are text. An unclosed box does not count.
  """
  open_boxes = []  # per open brace: where the box's content begins, else None
  content_start, content = -1, None
  for match in _BRACES.finditer(text):
    if match[0].startswith('\\boxed'):
      open_boxes.append(match.end())
    elif match[0] == '{':
      open_boxes.append(None)
    elif match[0] == '}' and open_boxes:
      start = open_boxes.pop()
      if start is not None and start > content_start:
        content_start, content = start, (start, match.start())
  return None if content is None else text[slice(*content)]


def is_correct(text: str, question: Question) -> bool:
  """Whether the response's boxed answer equals the reference answer.

  Equal as text after LaTeX spelling is normalized, or as exact rationals. A
  unit in a text command may be left out on one side but not differ.
  """
  answer = extract_boxed(text)
  if answer is None:
    return False
  if answer.strip() == question.answer.strip():
    return True
  if max(len(answer), len(question.answer)) > MAX_ANSWER_CHARS:
    return False
  answer, reference = _clean(answer), _clean(question.answer)
  plain = _strip_spaces(answer)
  if plain and plain == _strip_spaces(reference):
    return True
  number, unit = _parse_quantity(answer)
  reference_number, reference_unit = _parse_quantity(reference)
  is_unit_equal = not unit or not reference_unit or unit == reference_unit
  return number is not None and number == reference_number and is_unit_equal


def _clean(answer: str) -> str:
  for pattern, replacement in _REWRITES:
    answer = pattern.sub(replacement, answer)
  return ' '.join(answer.split()).rstrip('. ')


def _strip_spaces(answer: str) -> str:
  answer = ' '.join(TEXT_GROUP.sub(r'\1', answer).split())
  # A space between two digits stays: `1 2` is not `12`.
  return re.sub(r'(?<![0-9]) | (?![0-9])', '', answer).rstrip('.')


def _parse_quantity(answer: str) -> tuple[fractions.Fraction | None, str]:
  unit = _UNIT.search(answer)
  if unit is None:
    return _parse_number(TEXT_GROUP.sub(r'\1', answer)), ''
  number = _parse_number(answer[: unit.start()].rstrip())
  if number is None:  # \text{42}
    return _parse_number(TEXT_GROUP.sub(r'\1', answer).strip()), ''
  return number, (unit[1] + (unit[2] or '')).replace(' ', '')


def _parse_number(text: str) -> fractions.Fraction | None:
  match = _FRACTION.fullmatch(text)
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
