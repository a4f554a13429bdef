r"""Units: which words after a number may be left out, and which may not.

7 \text{ days}, 7 days, 3 apples    7, whatever the words
5 \text{ hundredths}, 5 dozen       not 5
5 km, 5 kilometers                  the same unit
"""

import re

from ogls_jax.tasks.latex import TEXT_COMMAND
from ogls_jax.tasks.values import Unsupported

# `7 \text{ days}`, `25 \text{ cm}^2`
TEXT_UNIT = re.compile(
  TEXT_COMMAND + r'\{([^{}0-9]*)\}(\^(?:[0-9]|\{[0-9]\}))?$'
)
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

_PLAIN_UNIT = re.compile(
  r'(?<=[0-9}) ]) ?([A-Za-z]{2,}(?: [A-Za-z]{2,})*)(\^(?:[0-9]|\{[0-9]\}))?$'
)
# Those that may follow a number without a space.
_UNIT_WORDS = """
  cm mm km kg mg ml ft yd mi oz lb lbs hr hrs sec mph meter meters metre
  metres centimeter centimeters kilometer kilometers inch inches foot feet
  yard yards mile miles gram grams kilogram kilograms pound pounds ounce
  ounces liter liters litre litres second seconds minute minutes hour hours
  day days week weeks month months year years dollar dollars cent cents
  degree degrees radian radians unit units square cubic people students ways
  per percent percentage
""".split()  # noqa: SIM905 - reads as a table
# Long names of units, singular and cut as in `take_unit`, and their signs.
_SIGNS = {
  'meter': 'm', 'metre': 'm', 'centimeter': 'cm', 'centimetre': 'cm',
  'millimeter': 'mm', 'millimetre': 'mm', 'kilometer': 'km',
  'kilometre': 'km', 'inche': 'in', 'inch': 'in', 'foot': 'ft', 'feet': 'ft',
  'yard': 'yd', 'mile': 'mi', 'gram': 'g', 'kilogram': 'kg', 'milligram': 'mg',
  'pound': 'lb', 'ounce': 'oz', 'liter': 'l', 'litre': 'l', 'milliliter': 'ml',
  'millilitre': 'ml', 'second': 'sec', 's': 'sec', 'minute': 'min',
  'hour': 'hr', 'h': 'hr',
}  # fmt: skip
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


def take_unit(text):
  """Returns (the text before a unit, the unit: words in the singular, or '').

  Raises:
    Unsupported: it ends in words that may change the number.
  """
  match = TEXT_UNIT.search(text)
  if match and match.start():
    is_scale = match[1].strip(' .').lower() in SCALES  # see below
    if not is_scale and not is_unit(match[1]):
      raise Unsupported('words that may change the number')
    unit = match[1] + re.sub('[{}]', '', match[2] or '')
  else:
    match = _PLAIN_UNIT.search(text)
    if match is None or not _is_plain_unit(match):
      return text, ''
    unit = match[1] + re.sub('[{}]', '', match[2] or '')
  words = [
    word.rstrip('s') if len(word) > 2 else word
    for word in unit.lower().strip(' .').split()
  ]
  return text[: match.start()].strip(), ' '.join(
    _SIGNS.get(x, x) for x in words
  )


def _is_plain_unit(match):
  """Known units; or other words after a number and a space: 3 apples."""
  if all(word in _UNIT_WORDS for word in match[1].lower().split()):
    return True
  before = match.string[: match.start()]
  is_number = re.fullmatch(r'-?[0-9.,]*[0-9]', before)
  return is_number and match[0][0] == ' ' and is_unit(match[1])
