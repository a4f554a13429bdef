r"""The form of an answer: a value, list, set, interval, tuple, matrix or words.

Two answers of forms known here are equal or not; of others nothing is said.

    x = 5, \text{ cm}      a name or unit may be left out on one side
    1, 2                   a list: in any order, repeats count
    \{1, 2\}               a set: in any order, repeats do not count
    (1, 2)  [1, 2)         the brackets and the order matter
    A \cup B               in any order
    3 \pm x                the list of the two
    B, (B), \text{(B)}     a choice
    50\%                   50 or 0.5, but of another percentage only 50
    12_5                   digits in a base; not 12
"""

import re
from typing import Any, NamedTuple

from ogls_jax.tasks import expressions, latex, units, values
from ogls_jax.tasks.values import Unsupported

_MAX_ITEMS = 32
_MAX_DEPTH = 4

_SEPARATOR = re.compile(
  r'(?:, ?)?\\(?:text|mbox|mathrm) ?\{ ?(?:, ?)?(?:and|or) ?\}|;'
  r'|(?:,|(?<=[0-9)}])) (?:and|or) (?=[^A-Za-z])'
)
_UNION = re.compile(r'\\cup(?![A-Za-z])|\u222a')
_NAME = re.compile(
  r'([A-Za-z]|\\(?:theta|alpha|beta|lambda|phi))'
  r'(_(?:[A-Za-z0-9]|\{[A-Za-z0-9]{1,8}\}))?(\([A-Za-z]\))?'
  r' ?(?:=|\\in(?![A-Za-z])) ?'
)
_INFINITY = re.compile(r'([+-]?) ?(?:\\infty(?![A-Za-z])|\u221e)')
_BASED = re.compile(r'(-?[0-9A-F]+) ?_ ?(?:\{ ?([0-9]{1,2}) ?\}|([0-9]))')
_CHOICE = re.compile(r'\(?([A-Z])\)?')
_WORDS = re.compile(r"[A-Za-z][A-Za-z'-]+(?: [A-Za-z'-]+)*")
_MATRIX = re.compile(
  r'\\begin ?\{([pbv]matrix)\}((?:(?!\\begin|\\end).)*)\\end ?\{\1\}'
)
_THOUSANDS = re.compile('[0-9]{3}(?![0-9])')
_OPENERS, _CLOSERS = '([{', ')]}'


class _Form(NamedTuple):
  """What an answer is.

  Attributes:
    kind: value, list, set, union, matrix, infinity, based, choice, words or,
      of tuples and intervals, the two brackets.
    content: of a value the value, of the next ones a tuple of forms, else text.
    name: of `x` in `x = 5`, else empty.
    unit: likewise.
    is_percent: whether a percent sign ends it.
  """

  kind: str
  content: Any
  name: str = ''
  unit: str = ''
  is_percent: bool = False


def compare(answer: str, reference: str) -> bool | None:
  """Whether two cleaned answers (`latex.clean`) are equal; None: undecided."""
  parsed = []
  for text in (answer, reference):
    try:
      parsed.append(_parse(text, 0))
    except expressions.Ambiguous:
      return False
    except Unsupported:
      parsed.append(None)
  try:
    return None if None in parsed else _is_equal(*parsed)
  except Unsupported:
    return None


def _parse(text, depth):
  if depth > _MAX_DEPTH:
    raise Unsupported('deep nesting')
  text = text.strip().rstrip(' .')
  if match := latex.TEXT_GROUP.fullmatch(text):
    text = match[1].strip().rstrip(' .')
  words = latex.TEXT_GROUP.sub(r'\1', text).strip().rstrip(' .')
  if match := _CHOICE.fullmatch(words):
    return _Form('choice', match[1])
  if _WORDS.fullmatch(words):
    return _Form('words', _fold(words))
  items = _items(_SEPARATOR.sub(',', text), is_inside=depth > 0)
  if len(items) > 1:
    return _Form('list', tuple(_parse_all(items, depth)))
  name = _NAME.match(text)
  text = text[name.end() :] if name else text
  name = re.sub(r'[ {}]|=|\\in', '', name[0]) if name else ''
  if text.count('\\pm') == 1:
    both = [text.replace('\\pm', sign) for sign in '+-']
    return _Form('list', tuple(_parse_all(both, depth)), name)
  text, unit = units.take_unit(text)
  is_percent = text.endswith('%') or unit in ('percent', 'percentage')
  text, unit = text.removesuffix('%').rstrip(), '' if is_percent else unit
  if '%' in text or '=' in text or unit in units.SCALES:
    raise Unsupported('a sign or scale within')
  form = _parse_whole(text, depth)
  return form._replace(name=name, unit=unit, is_percent=is_percent)


def _fold(words):
  """Words in lower case; names such as ABC or NaN as they are."""
  is_prose = words.istitle() or words[1:].islower()
  if words.lower() in ('yes', 'no', 'true', 'false'):
    return words.lower()
  return words.lower() if len(words) > 2 and is_prose else words


def _parse_all(items, depth):
  """Forms of items; one of two, from a plus-minus sign, counts as two."""
  forms = []
  for item in items:
    form = _parse(item, depth + 1)
    forms += form.content if form.kind == 'list' else [form]
  if len(forms) > _MAX_ITEMS:
    raise Unsupported('many items')
  return forms


def _parse_whole(text, depth):
  """A form without name, unit or commas outside of brackets."""
  parts = _UNION.split(text)
  if len(parts) > 1:
    return _Form('union', tuple(_parse_all(parts, depth)))
  if match := _INFINITY.fullmatch(text):
    return _Form('infinity', match[1].replace('+', ''))
  if match := _BASED.fullmatch(text):
    return _Form('based', (match[1], match[2] or match[3]))
  if match := _MATRIX.fullmatch(text):
    return _matrix(match, depth)
  if text in ('\\emptyset', '\\varnothing', '\\{\\}', '\\{ \\}'):
    return _Form('set', ())
  if text.startswith('\\{') and text.endswith('\\}'):
    items = _items(text[2:-2], is_inside=True)
    return _Form('set', tuple(_parse_all(items, depth)))
  if text[:1] in ('(', '[') and text[-1:] in (')', ']'):
    items = _items(text[1:-1], is_inside=True) if _is_wrapped(text) else []
    if len(items) > 1:
      forms = tuple(_parse_all(items, depth))
      ends = zip(text[0] + text[-1], (forms[0], forms[-1]), strict=True)
      if any(b in '[]' and form.kind == 'infinity' for b, form in ends):
        raise expressions.Ambiguous('an end that is infinite and closed')
      return _Form(text[0] + text[-1], forms)
  return _Form('value', expressions.parse(text))


def _matrix(match, depth):
  rows = [row.split('&') for row in match[2].split('\\\\')]
  if not rows[-1][-1].strip():
    rows.pop()  # `\\` may end the last row too
  cells = [_parse(cell, depth + 1) for row in rows for cell in row]
  widths = tuple(len(row) for row in rows)
  if len(cells) > _MAX_ITEMS or any(c.kind != 'value' for c in cells):
    raise Unsupported('a matrix of more than values')
  # Round and square brackets are the same matrix; bars are a determinant.
  kind = match[1].replace('b', 'p')
  return _Form(f'{kind} {widths}', tuple(cells))


def _is_wrapped(text):
  """Whether the first bracket closes at the end: not so in (x)(y)."""
  level = 0
  for character in text[:-1]:
    level += (character in _OPENERS) - (character in _CLOSERS)
    if not level:
      return False
  return True


def _items(text, *, is_inside):
  """Splits at the commas outside of brackets; Unsupported if these are loose.

  `1,234` is one number unless it `is_inside` brackets.
  """
  items, start, level = [], 0, 0
  for i, character in enumerate(text):
    level += (character in _OPENERS) - (character in _CLOSERS)
    if level < 0:
      raise Unsupported('a loose bracket')
    if character != ',' or level:
      continue
    is_thousands = _THOUSANDS.match(text, i + 1) and text[i - 1 : i].isdecimal()
    if is_inside or not is_thousands:
      items.append(text[start:i])
      start = i + 1
  if level:
    raise Unsupported('an open bracket')
  items.append(text[start:])
  if len(items) > 1 and not all(item.strip() for item in items):
    raise Unsupported('an empty item')
  return items


def _is_equal(a, b) -> bool | None:
  if (a.name and b.name and a.name != b.name) or (
    a.unit and b.unit and a.unit != b.unit
  ):
    return False
  kinds = {a.kind, b.kind}
  if kinds == {'list', 'set'}:
    return _is_same_bag(a, b)
  if kinds == {'value', 'set'}:
    # The only solution, and the set of it.
    alone = a.content if a.kind == 'set' else b.content
    other = b if a.kind == 'set' else a
    return len(alone) == 1 and _is_equal(alone[0], other)
  if 'union' in kinds and len(kinds) > 1:
    return None  # it may be one interval, written in parts
  if kinds in ({'value', 'choice'}, {'value', 'words'}):
    return None  # symbols may read as a choice or a word
  if len(kinds) > 1:
    return False
  if a.kind == 'value':
    return _is_equal_value(a, b)
  if a.kind in ('list', 'set', 'union'):
    is_same = _is_same_bag(a, b)
    return None if a.kind == 'union' and not is_same else is_same
  if isinstance(a.content, tuple) and a.kind != 'based':
    pairs = zip(a.content, b.content, strict=False)
    is_same = [_is_equal(*pair) for pair in pairs]
    if len(a.content) != len(b.content) or False in is_same:
      return False
    return None if None in is_same else True
  return a.content == b.content


def _is_equal_value(a, b):
  if values.is_equal(a.content, b.content):
    return True
  if a.is_percent == b.is_percent:
    return False
  part, whole = (a, b) if a.is_percent else (b, a)
  hundredth = values.divide(part.content, values.rational(100))
  return values.is_equal(hundredth, whole.content)


def _is_same_bag(a, b) -> bool | None:
  """Whether the items are the same in some order."""
  names = {item.name for item in (*a.content, *b.content)}
  if len(names - {''}) > 1 and '' in names:
    raise Unsupported('items of which some have names')
  bags = [list(form.content) for form in (a, b)]
  if a.kind == b.kind == 'set':
    bags = [_distinct(bag) for bag in bags]
  if len(bags[0]) != len(bags[1]):
    return False
  alone = []
  for item in bags[0]:
    verdicts = [_is_equal(item, other) for other in bags[1]]
    if True in verdicts:
      bags[1].pop(verdicts.index(True))
    else:
      alone.append(item)
  if not alone:
    return True
  # What has no equal may still have one that is undecided, on either side.
  rows = [[_is_equal(a, b) for b in bags[1]] for a in alone]
  lines = [*rows, *zip(*rows, strict=True)]
  return None if all(None in line for line in lines) else False


def _distinct(items):
  kept = []
  for item in items:
    if not any(_is_equal(item, other) for other in kept):
      kept.append(item)
  return kept
