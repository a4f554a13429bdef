r"""How answers are written: \boxed, braces, spacing, units; text only.

Nothing in a response is ever evaluated, and the work is linear in its length.
"""

import re

_BRACES = re.compile(r'\\boxed\s*\{|\\\\|\\[{}]|[{}]')

_TEXT = r'\\(?:text|textnormal|textbf|textit|mathrm|mathbf|mbox)\s*'
TEXT_GROUP = re.compile(_TEXT + r'\{([^{}]*)\}')
# `7 \text{ days}`, `25 \text{ cm}^2`
TEXT_UNIT = re.compile(_TEXT + r'\{([^{}0-9]*)\}(\^(?:[0-9]|\{[0-9]\}))?$')
# No units: they change the number.
SCALES = """
  percent percentage hundred hundreds thousand thousands million millions
  billion billions trillion trillions dozen dozens pair pairs half halves
  quadrillion quadrillions lakh lakhs crore crores bn mn mio mil halve
  pi k score gross or and less more squared cubed factorial
  plus minus times mod base about power root sqrt remainder divided
  multiplied over under above below not no wrong false incorrect impossible
  negative fewer most least approximately approx roughly nearly almost rounded
  debt
  quarter third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth
  hundredth thousandth millionth billionth
  quarters thirds fourths fifths sixths sevenths eighths ninths tenths
  elevenths twelfths hundredths thousandths millionths billionths
  zero one two three four five six seven eight nine ten eleven twelve
""".split()  # noqa: SIM905 - reads as a table
# Of other units of one letter nothing is known: i, e and x are numbers.
_LETTERS = 'mgshlLNJWVAC'
# Nor of other words of two or three: ln, sin and ab are factors.
_SHORT = """
  mm cm dm km um nm in ft yd mi mg kg lb lbs oz ml dl kl cc pt pts qt gal
  ms sec min hr hrs am pm day yr yrs wk wks mph kph kmh rpm bps ppm deg rad
  hz khz mhz ghz kb mb gb tb kw mw kj kn pa kpa ev mol cal psi atm amp ohm
  usd eur gbp yen won sq cu per men man boy kid way cup box bag jar row pen
  egg ant bee bus car cat dog cow pig hen toy hat fan can of by
""".split()  # noqa: SIM905 - reads as a table

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
# Signs that `clean` drops, and units that are others.
_CLASHES = [
  (
    re.compile(r'\$'),
    re.compile(
      r'(?<![A-Za-z])(?:cents?|pence|euros?|pounds?|yen|yuan|rupees?|pesos?'
      r'|francs?|won)(?![A-Za-z])'
    ),
  ),
  (re.compile(r'\\circ(?![A-Za-z])|\\degree|\u00b0'), re.compile('%')),
  (
    re.compile(r'\\circ(?![A-Za-z])|\\degree|\u00b0'),
    re.compile(r'(?<![A-Za-z])rad(?:ians?)?(?![A-Za-z])'),
  ),
]
_PERCENT = re.compile(r'\\?%')


def is_unit(text: str) -> bool:
  """Whether words after a number may be a unit: they leave it as it is."""
  text = text.strip(' .')
  words = re.findall('[A-Za-z]+', text.lower())
  if len(text) == 1:
    return text in _LETTERS
  is_scaled = any(word in SCALES for word in (*words, ''.join(words)))
  is_known = all(
    len(word) > 3 or word in _SHORT or word in _LETTERS for word in words
  )
  return bool(words) and '!' not in text and not is_scaled and is_known


def has_other_unit(answer: str, reference: str) -> bool:
  """Whether one has a sign of a unit, and the other another: $5, 5 cents."""
  pairs = ((answer, reference), (reference, answer))
  return any(
    sign.search(a) and word.search(b)
    for sign, word in _CLASHES
    for a, b in pairs
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


def clean(answer: str) -> str:
  """One spelling of spaces, fractions, degrees and currency; `%` stays."""
  answer = answer.translate(_CHARACTERS).strip()
  if match := _IN_MATH.fullmatch(answer):
    answer = match[1] or match[2] or ''
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
