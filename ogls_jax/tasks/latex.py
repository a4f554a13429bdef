r"""How answers are written: \boxed, braces, spacing, signs; text only.

Nothing in a response is ever evaluated, and the work is linear in its length.
"""

import re

_BRACES = re.compile(r'\\boxed\s*\{|\\\\|\\[{}]|[{}]')

TEXT_COMMAND = r'\\(?:text|textnormal|textbf|textit|mathrm|mathbf|mbox)\s*'
TEXT_GROUP = re.compile(TEXT_COMMAND + r'\{([^{}]*)\}')

# Unicode for what LaTeX has commands for, or what nobody sees.
_CHARACTERS = str.maketrans(
  {
    '\u2212': '-', '\u2013': '-', 'π': r'\pi ', '∞': r'\infty ', '±': r'\pm ',
    '×': r'\times ', '÷': r'\div ', '·': r'\cdot ', '≤': r'\le ', '≥': r'\ge ',
    '∪': r'\cup ', '∩': r'\cap ', '²': '^2', '³': '^3', '½': r'\frac{1}{2}',
    '¼': r'\frac{1}{4}', '¾': r'\frac{3}{4}',
  }
  # The wide forms of Chinese and Japanese texts.
  | {chr(ord(sign) + 0xFEE0): sign for sign in '0123456789.,+-/='}
  # Joiners and marks of direction.
  | dict.fromkeys(
    '\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u202a\u202b\u202c\u202d'
    '\u202e\u2066\u2067\u2068\u2069'
  )
)  # fmt: skip
_SPACED_THOUSANDS = re.compile(r'-?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?')
_IN_MATH = re.compile(r'\\\((.*)\\\)|\\\[(.*)\\\]', re.DOTALL)

_REWRITES = [
  (re.compile(pattern), replacement)
  for pattern, replacement in (
    (r'√ ?([0-9]+(?![0-9.]))', r'\\sqrt{\1}'),
    (r'\\(?:displaystyle|textstyle|qquad|quad)(?![A-Za-z])', ' '),
    (r'\\[dt]binom(?![A-Za-z])', r'\\binom'),
    (r'\\([lg])eq(?:slant)?(?![A-Za-z])', r'\\\1e'),
    # `1\,2` is not 12, but `1\,200` is 1200.
    (r'(?<=[0-9])\\[,!;:](?=[0-9])(?![0-9]{3}(?![0-9]))', ' '),
    # Thin spaces; not after a backslash, where `\\` ends a row.
    (r'(?<!\\)\\[,!;:]', ''),
    (r'(?<!\\)\\ |~', ' '),
    (r'\{,\}(?=[0-9])', ','),
    (r'\\(?:left|right)(?![A-Za-z])', ''),
    (r'\\[dtc]frac(?![A-Za-z])', r'\\frac'),
    # A space, lest 60^\circ,120^\circ be a large number.
    (r'\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})', ' '),
    (r'\\degree(?![A-Za-z])|\u00b0', ' '),
    # \frac12, \frac 5{12}, \frac{5}2, \sqrt3: the braces TeX lets one omit.
    (r'\\(frac|sqrt) ?([0-9])', r'\\\1{\2}'),
    (r'\\frac(\{[^{}]*\}) ?([0-9])', r'\\frac\1{\2}'),
  )
]
# `1, 234` is not `1,234`.
_TWO_ITEMS = re.compile(r'(?<=[0-9])(?: , ?|, )(?=[0-9]{3}(?![0-9]))')
_CURRENCY = re.compile(r'\\?\$')
_PERCENT = re.compile(r'\\?%')


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


def clean(answer: str) -> str:
  """One spelling of spaces, fractions, degrees and currency; `%` stays."""
  answer = answer.translate(_CHARACTERS).strip()
  if match := _IN_MATH.fullmatch(answer):
    answer = match[1] or match[2] or ''
  if _SPACED_THOUSANDS.fullmatch(answer):
    answer = answer.replace(' ', '')
  answer = _CURRENCY.sub('', _PERCENT.sub('%', answer))
  for pattern, replacement in _REWRITES:
    answer = pattern.sub(replacement, answer)
  answer = ' '.join(answer.split()).rstrip('., ')
  while answer.endswith(r'\\'):  # the end of a line
    answer = answer[:-2].rstrip('., ')
  return answer


def strip_spaces(answer: str) -> str:
  """A cleaned answer without percent signs, text commands and most spaces."""
  answer = TEXT_GROUP.sub(r'\1', re.sub('%(?![0-9A-Za-z])', '', answer))
  answer = _TWO_ITEMS.sub(';', answer)
  # A space between two digits stays: `1 2` is not `12`.
  answer = re.sub(r'(?<![0-9]) | (?![0-9])', '', ' '.join(answer.split()))
  return answer.rstrip('.')
