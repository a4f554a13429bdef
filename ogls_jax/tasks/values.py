"""Exact numbers and rational functions, with equality, in bounded work.

A value is a quotient of two sums of terms, each a rational times the square
root of a square-free integer, a power of i and powers of symbols (pi is one of
them). Square roots of different square-free integers, 1 included, are linearly
independent over the rationals, so a sum is 0 only where it has no terms, and
two quotients are equal if and only if they are after cross-multiplication.
"""

import fractions
import math
from typing import NamedTuple

# Beyond these an operation raises Unsupported instead of taking its time.
MAX_TERMS = 64
MAX_BITS = 8192
MAX_POWER = 10_000
_MAX_DEGREE = 64  # of a root
_MAX_RADICAL_BITS = 128
# Square factors are found by trial division up to the root of this.
_MAX_RADICAND = 10**10

# (square-free positive integer under the root, power of i: 0 or 1,
#  (symbol, power) pairs sorted by symbol, none with power 0)
_Term = tuple[int, int, tuple[tuple[str, int], ...]]
_ONE: _Term = (1, 0, ())


class Unsupported(ValueError):  # noqa: N818 - no error: the answer is not ours
  """The text is outside the grammar, or the work beyond the bounds."""


class Value(NamedTuple):
  """A quotient of two sums {term: rational coefficient, never 0}."""

  over: dict[_Term, fractions.Fraction]
  under: dict[_Term, fractions.Fraction]


def rational(number: fractions.Fraction | int) -> Value:
  """The value of a rational number."""
  number = fractions.Fraction(number)
  over = {_ONE: number} if number else {}
  return Value(_checked(over), {_ONE: fractions.Fraction(1)})


def symbol(name: str) -> Value:
  """The value of a letter; that of `i` is the imaginary unit."""
  term = (1, 1, ()) if name == 'i' else (1, 0, ((name, 1),))
  return Value({term: fractions.Fraction(1)}, rational(1).over)


def as_rational(value: Value) -> fractions.Fraction | None:
  """The number, if the value is one as written."""
  if value.over.keys() <= {_ONE} and value.under.keys() == {_ONE}:
    return value.over.get(_ONE, fractions.Fraction(0)) / value.under[_ONE]
  return None


def is_equal(a: Value, b: Value) -> bool:
  """Whether the two are the same wherever both are defined."""
  return _product(a.over, b.under) == _product(b.over, a.under)


def add(a: Value, b: Value) -> Value:
  """a + b."""
  if a.under == b.under:
    return Value(_sum(a.over, b.over), a.under)
  over = _sum(_product(a.over, b.under), _product(b.over, a.under))
  return Value(over, _product(a.under, b.under))


def negative(a: Value) -> Value:
  """-a."""
  return Value({term: -number for term, number in a.over.items()}, a.under)


def multiply(a: Value, b: Value) -> Value:
  """a * b."""
  return Value(_product(a.over, b.over), _product(a.under, b.under))


def divide(a: Value, b: Value) -> Value:
  """a / b; Unsupported where b is 0."""
  if not b.over:
    raise Unsupported('division by zero')
  return Value(_product(a.over, b.under), _product(a.under, b.over))


def power(base: Value, exponent: Value) -> Value:
  """base ** exponent for a small whole exponent, or a half of base >= 0."""
  number = as_rational(exponent)
  if number is None or abs(number) > MAX_POWER or number.denominator > 2:
    raise Unsupported('exponent')
  if number.denominator == 2:
    base = root(base, 2)
  times = number.numerator
  if times < 0 or not base.over:
    if times == 0:
      raise Unsupported('0 ** 0')
    if times < 0:
      base = divide(rational(1), base)
  result, times = rational(1), abs(times)
  while times:
    if times % 2:
      result = multiply(result, base)
    times //= 2
    base = multiply(base, base) if times else base
  return result


def root(base: Value, degree: int) -> Value:
  """The root of a rational; of degree 2, or else one that comes out even."""
  number = as_rational(base)
  if number is None:
    raise Unsupported('a root of more than a number')
  if degree == 2:
    # sqrt(p / q) = sqrt(p q) / q
    inside = number.numerator * number.denominator
    outside, radical = _square_part(abs(inside))
    over = fractions.Fraction(outside, number.denominator)
    term = (radical, int(inside < 0), ())
    return Value({term: over} if over else {}, rational(1).over)
  if not 2 < degree <= _MAX_DEGREE:
    raise Unsupported('degree of a root')
  if number < 0 and degree % 2 == 0:
    raise Unsupported('an even root of a negative number')
  over = _whole_root(abs(number.numerator), degree)
  result = fractions.Fraction(over, _whole_root(number.denominator, degree))
  return rational(-result if number < 0 else result)


def _whole_root(number: int, degree: int) -> int:
  low, high = 0, 1 << (number.bit_length() // degree + 1)
  while low < high:
    middle = (low + high) // 2
    if middle**degree < number:
      low = middle + 1
    else:
      high = middle
  if low**degree != number:
    raise Unsupported('a root that does not come out even')
  return low


def _square_part(number: int) -> tuple[int, int]:
  """(s, r) with number = s * s * r and r square-free."""
  whole = math.isqrt(number)
  if whole * whole == number:
    return whole, 1
  if number > _MAX_RADICAND:
    raise Unsupported('a root of a large number')
  outside, radical, factor = 1, 1, 2
  while factor * factor <= number:
    while number % (factor * factor) == 0:
      number //= factor * factor
      outside *= factor
    if number % factor == 0:
      number //= factor
      radical *= factor
    factor += 1
  return outside, radical * number


def _checked(terms):
  """`terms`, within the bounds and without those of coefficient 0."""
  terms = {term: number for term, number in terms.items() if number}
  if len(terms) > MAX_TERMS:
    raise Unsupported('too many terms')
  for (radical, _, powers), number in terms.items():
    bits = max(number.numerator.bit_length(), number.denominator.bit_length())
    if bits > MAX_BITS or radical.bit_length() > _MAX_RADICAL_BITS:
      raise Unsupported('too large a number')
    if any(abs(times) > MAX_POWER for _, times in powers):
      raise Unsupported('too high a power')
  return terms


def _sum(a, b):
  terms = dict(a)
  for term, number in b.items():
    terms[term] = terms.get(term, 0) + number
  return _checked(terms)


def _product(a, b):
  terms = {}
  for (radical_a, i_a, powers_a), number_a in a.items():
    for (radical_b, i_b, powers_b), number_b in b.items():
      # sqrt(g r) sqrt(g s) = g sqrt(r s) for square-free g r and g s
      common = math.gcd(radical_a, radical_b)
      number = number_a * number_b * common
      if i_a and i_b:
        number = -number
      powers = dict(powers_a)
      for name, times in powers_b:
        powers[name] = powers.get(name, 0) + times
      term = (
        radical_a * radical_b // common**2,
        i_a ^ i_b,
        tuple(sorted((n, times) for n, times in powers.items() if times)),
      )
      terms[term] = terms.get(term, 0) + number
  return _checked(terms)
