r"""Reads one arithmetic or algebraic expression, by a grammar of its own.

    sum     = [+ | -] product {(+ | -) product}
    product = power {(* | \cdot | \times | / | \div | nothing) power}
    power   = atom [!] [^ exponent]
    atom    = number | mixed number | letter | \pi | \frac | \sqrt | \binom
            | ( sum ) | { sum }

Nothing is evaluated but exact sums, products, small powers and roots, within
the bounds of `values`; nesting and length are bounded here.
"""

import fractions
import math
import re

from ogls_jax.tasks import values
from ogls_jax.tasks.values import Unsupported, Value

_MAX_TOKENS = 256
_MAX_DEPTH = 16
_MAX_FACTORIAL = 30
_MAX_BINOMIAL = 100
# The number under a root or \overline is short enough for exact work anyway.
_MAX_DIGITS = 100

_TOKEN = re.compile(
  r'(?P<repeating>[0-9]*\.[0-9]*\\overline ?\{[0-9]+\})'
  r'|(?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9,])'
  r'|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)'
  r'|(?P<command>\\[A-Za-z]+)'
  r'|(?P<letter>[A-Za-z](?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]{1,8}\}))?)'
  r'|(?P<sign>[-+*/^!(){}\[\]])'
  r'|(?P<space> +)'
)
_GREEK = r"""
  \alpha \beta \gamma \delta \epsilon \varepsilon \zeta \eta \theta \kappa
  \lambda \mu \nu \xi \rho \sigma \tau \phi \varphi \chi \psi \omega
  \pi
""".split()  # noqa: SIM905 - reads as a table
_TIMES = ('*', '\\cdot', '\\times')
_OVER = ('/', '\\div')
_LETTER_RUN = re.compile(r'(?<![\\A-Za-z])[A-Za-z]{2,}')
# Followed by a parenthesis these are rather functions than factors.
_FUNCTIONS = frozenset('fghFGHPQ')
_WORDS = """
  or and to if no yes is of for the not in sin cos tan log ln exp max min mod
  gcd lcm deg arg det cm mm km kg ft mph
""".split()  # noqa: SIM905 - reads as a table


class Ambiguous(Unsupported):
  """The text can be read in two ways; it equals neither."""


def parse(text: str) -> Value:
  r"""The value of a cleaned expression (`latex.clean`).

  Raises:
    Unsupported: it is no expression of the grammar, or too much work.
    Ambiguous: `1/2x`, `1 2`, `2\frac{3}{2}`.
  """
  _check_words(text)
  parser = _Parser(_tokens(text))
  value = parser.sum(0)
  if parser.kind != 'end':
    raise Unsupported(parser.text)
  return value


def _check_words(text):
  """Adjacent letters are factors, but words are not."""
  has_structure = re.search(r'[0-9+*/^-]|\\(?:frac|sqrt)', text)
  # What a command is made of is no word.
  for run in _LETTER_RUN.findall(re.sub(r'\\[A-Za-z]+', ' ', text)):
    is_word = len(run) > 3 or not run.islower() or run in _WORDS
    if is_word or not has_structure:
      raise Unsupported('words')


def _tokens(text):
  tokens, position = [], 0
  while position < len(text):
    match = _TOKEN.match(text, position)
    if match is None or len(tokens) > _MAX_TOKENS:
      raise Unsupported('outside the grammar')
    position = match.end()
    if len(match[0]) > _MAX_DIGITS:
      raise Unsupported('a long number')
    tokens.append((match.lastgroup, match[0]))
  spaced, tokens = tokens, []
  is_after_space = False
  for kind, token in spaced:
    if kind != 'space':
      tokens.append((kind, token, is_after_space))
    is_after_space = kind == 'space'
  return [*tokens, ('end', '', False)]


class _Parser:
  """A position in a list of tokens."""

  def __init__(self, tokens):
    self._tokens, self._at = tokens, 0

  @property
  def kind(self):
    return self._tokens[self._at][0]

  @property
  def text(self):
    return self._tokens[self._at][1]

  def _ahead(self, steps):
    index = min(self._at + steps, len(self._tokens) - 1)
    return self._tokens[index]

  def _take(self):
    self._at += 1
    return self._tokens[self._at - 1][1]

  def _expect(self, text):
    if self._take() != text:
      raise Unsupported(f'no {text}')

  def sum(self, depth):
    if depth > _MAX_DEPTH:
      raise Unsupported('deep nesting')
    total = self._signed(depth)
    while self.text in ('+', '-'):
      is_minus = self._take() == '-'
      term = self._product(depth)
      total = values.add(total, values.negative(term) if is_minus else term)
    return total

  def _signed(self, depth):
    sign = self._take() if self.text in ('+', '-') else '+'
    value = self._product(depth)
    return values.negative(value) if sign == '-' else value

  def _product(self, depth):
    result, is_over = self._power(depth), False
    while True:
      if self.text in _TIMES:
        self._take()
        result, is_over = values.multiply(result, self._factor(depth)), False
      elif self.text in _OVER:
        self._take()
        if is_over:
          raise Ambiguous('a/b/c')
        result, is_over = values.divide(result, self._factor(depth)), True
      elif self._begins_atom():
        if is_over:
          raise Ambiguous('a/bc')
        if self.kind in ('number', 'repeating'):
          raise Ambiguous('a number after a factor')
        result = values.multiply(result, self._power(depth))
      else:
        return result

  def _factor(self, depth):
    """After an explicit operator a sign may stand: `2 * -3`, `1/-2`."""
    if self.text == '-':
      self._take()
      return values.negative(self._power(depth))
    return self._power(depth)

  def _begins_atom(self):
    return (
      self.kind in ('number', 'repeating', 'letter')
      or self.text in ('(', '{')
      or self.kind == 'command'
    )

  def _power(self, depth):
    base = self._atom(depth)
    if self.text == '!':
      self._take()
      base = _factorial(base)
    if self.text != '^':
      return base
    self._take()
    if self.text == '{':
      exponent = self._group(depth)
    else:
      is_minus = self.text == '-'
      if is_minus:
        self._take()
      # Not the whole part of a mixed number: 2^3\frac{1}{2} is a product.
      is_number = self.kind == 'number'
      exponent = (
        values.rational(_number(self._take()))
        if is_number
        else self._atom(depth)
      )
      exponent = values.negative(exponent) if is_minus else exponent
    if self.text in ('^', '!'):
      raise Ambiguous('a^b^c')
    return values.power(base, exponent)

  def _atom(self, depth):
    kind, text, _ = self._ahead(0)
    self._take()
    if kind == 'number':
      return self._mixed(_number(text), depth)
    if kind == 'repeating':
      return values.rational(_repeating(text))
    if kind == 'letter':
      if text in _FUNCTIONS and self.text == '(':
        raise Unsupported('a function')
      return values.symbol(text.replace('{', '').replace('}', ''))
    if text in _GREEK:
      return values.symbol(text)
    if text in ('(', '{'):
      value = self.sum(depth + 1)
      self._expect(')' if text == '(' else '}')
      return value
    if text == '\\frac':
      over = self._argument(depth)
      return values.divide(over, self._argument(depth))
    if text == '\\sqrt':
      degree = self._degree()
      return values.root(self._argument(depth), degree)
    if text == '\\binom':
      return _binomial(self._argument(depth), self._argument(depth))
    raise Unsupported(text)

  def _group(self, depth):
    self._expect('{')
    value = self.sum(depth + 1)
    self._expect('}')
    return value

  def _argument(self, depth):
    """`{...}`, or one letter or digit."""
    if self.text == '{':
      return self._group(depth)
    if self.kind == 'number' and len(self.text) == 1:
      return values.rational(_number(self._take()))
    if self.kind == 'letter' or self.text in _GREEK:
      return self._atom(depth)
    raise Unsupported('an argument')

  def _degree(self):
    if self.text != '[':
      return 2
    self._take()
    kind, text = self.kind, self._take()
    self._expect(']')
    if kind != 'number' or not text.isdecimal() or len(text) > 2:
      raise Unsupported('degree of a root')
    return int(text)

  def _mixed(self, whole, depth):
    r"""A number, and a fraction after it: `3\frac{1}{2}` or `3 1/2`."""
    if whole.denominator != 1:
      return values.rational(whole)
    texts = [self._ahead(i)[1] for i in range(3)]
    if texts[0] == '\\frac' and texts[1] == '{':
      start = self._at
      self._take()
      over, under = self._argument(depth), self._argument(depth)
      parts = [values.as_rational(over), values.as_rational(under)]
      if None not in parts and 0 not in parts:
        part = parts[0] / parts[1]
        if whole == 0 or not 0 < part < 1:
          raise Ambiguous('a number and a fraction')
        return values.rational(whole + part)
      self._at = start  # 2\frac{\pi}{3} is a product
    elif self._is_spaced_fraction():
      over, under = _number(texts[0]), _number(texts[2])
      if under == 0 or not 0 < over / under < 1:
        raise Ambiguous('a number and a fraction')
      self._at += 3
      return values.rational(whole + over / under)
    return values.rational(whole)

  def _is_spaced_fraction(self):
    kinds = [self._ahead(i)[0] for i in range(4)]
    is_fraction = kinds == ['number', 'sign', 'number', 'end']
    return is_fraction and self._ahead(1)[1] == '/' and self._ahead(0)[2]


def _number(text):
  return fractions.Fraction(text.replace(',', ''))


def _repeating(text):
  r"""0.1\overline{6} is (16 - 1) / 90."""
  head, _, tail = text.partition('\\overline')
  whole, _, fixed = head.partition('.')
  block = tail.strip(' {}')
  scale = 10 ** len(fixed)
  start = int((whole + fixed) or '0')
  cycle = 10 ** len(block) - 1
  return fractions.Fraction(start * cycle + int(block), scale * cycle)


def _whole(value, most):
  number = values.as_rational(value)
  if number is None or number.denominator != 1 or not 0 <= number <= most:
    raise Unsupported('a small whole number is needed')
  return int(number)


def _factorial(value):
  return values.rational(math.factorial(_whole(value, _MAX_FACTORIAL)))


def _binomial(over, under):
  n, k = _whole(over, _MAX_BINOMIAL), _whole(under, _MAX_BINOMIAL)
  return values.rational(math.comb(n, k))
