r"""Equality by math-verify (sympy), of answers that look harmless.

Only for worker processes that may be killed: sympy's work on a short text has
no bound, and the library is never given what `is_harmless` rejects.
"""

import dataclasses
import importlib.util
import re

from ogls_jax.errors import UserError
from ogls_jax.tasks import latex

_MAX_CHARS = 200
_MAX_DEPTH = 8
_COMMANDS = r"""
  \frac \sqrt \pi \infty \cup \cap \cdot \times \div \pm \in \left \right
  \sin \cos \tan \cot \sec \csc \arcsin \arccos \arctan \ln \log \exp
  \le \leq \ge \geq \lt \gt \ne \neq \binom \begin \end
  \alpha \beta \gamma \delta \theta \lambda \mu \rho \sigma \phi
  \omega
""".split()  # noqa: SIM905 - reads as a table
_ENVIRONMENT = re.compile(r'\\(?:begin|end) ?\{[pbv]matrix\}|\\\\|\\[{}]')
_COMMAND = re.compile(r'\\[A-Za-z]*')
_MARK = '@'  # where a command was
_HARMLESS = re.compile(r'[A-Za-z0-9+\-*/^_=<>()\[\]{}|,.!&@ ]*')
_HARMFUL = re.compile(
  r'\*\*|__|!!|\.\.'
  r'|[0-9]{13}'  # a large number
  r'|[0-9] +[0-9]'  # `1 2` is read as 1 + 2
  r'|[0-9)}] ?_'  # digits in a base are read without it
  r'|[0-9]{2,} ?!|[)}] ?!'  # a large factorial
  r'|\^ ?(?:\{[^{}]*)?[0-9]{3}'  # a large power
  r'|\^ ?\{(?:[^{}]|\{[^{}]*\})*\^'  # a power of a power
  r'|\^[^{}+\-=,]*\^[^{}+\-=,]*\^'
  r'|[A-Z]{2}|[A-Za-z]{4}'  # words and names of points, not products
  r'|(?<![A-Za-z])[fghFGHPQ] ?\('  # a function is read as a factor
  r'|/ ?(?:[0-9.]+|[A-Za-z]) ?[A-Za-z(]'  # a/bc
  r'|[A-Za-z)}\]] ?[0-9]'  # a number after a factor
  r'|=.*='  # of a chain only one end is compared
)
# The end of an interval; as a factor it would swallow the others.
_INFINITE_END = re.compile(r'(?<=[,(\[<]) ?[+-]? ?\\infty(?= ?[,)\]])')
# Of an equation against no equation only the right side is compared.
_NAMED = re.compile(r' ?([A-Za-z]) ?=([^=]*)')


def is_harmless(text: str) -> bool:
  """Whether a cleaned answer (`latex.clean`) may be given to math-verify."""
  if len(text) > _MAX_CHARS or _MARK in text:
    return False
  rest = _INFINITE_END.sub('x', text)
  if '\\infty' in rest or ('\\\\' in text and '\\begin' not in text):
    return False
  rest = _ENVIRONMENT.sub(_MARK, rest)
  if any(name not in _COMMANDS for name in _COMMAND.findall(rest)):
    return False
  rest = _COMMAND.sub(_MARK, rest)
  depth = 0
  for character in rest:
    depth += (character in '([{') - (character in ')]}')
    if not -_MAX_DEPTH <= depth <= _MAX_DEPTH:
      return False
  return bool(_HARMLESS.fullmatch(rest)) and not _HARMFUL.search(rest)


def candidates(text: str, reference: str) -> tuple[str, str] | None:
  """(answer, reference) of a response to compare, None if there is nothing."""
  pair = latex.extract_boxed(text), reference
  if pair[0] is None or max(map(len, pair)) > 2 * _MAX_CHARS:
    return None
  pair = tuple(latex.clean(answer) for answer in pair)
  has_sides = ['=' in answer for answer in pair]
  if has_sides[0] != has_sides[1]:
    match = _NAMED.fullmatch(pair[has_sides.index(True)])
    if match is None or match[1] in match[2]:
      return None
  letters = set(filter(str.isalpha, _COMMAND.sub('', ' '.join(pair))))
  if any(letter.swapcase() in letters for letter in letters):
    return None  # math-verify does not tell x from X
  return pair if all(map(is_harmless, pair)) and all(pair) else None


def check_installed(key: str) -> None:
  """UserError, naming the config's `key`, where math-verify is missing."""
  if importlib.util.find_spec('math_verify') is None:
    raise UserError(
      f'{key} needs math-verify: pip install "math-verify>=0.9,<0.10", or set'
      ' it to 0'
    )


def load() -> None:
  """Imports math-verify, which takes a second or two."""
  import math_verify  # noqa: F401 - heavy; only where symbolic equality is on


def is_equal(answer: str, reference: str) -> bool:
  """What math-verify says of two harmless answers; without a limit of time."""
  import math_verify

  usual = math_verify.LatexExtractionConfig(boxed_match_priority=-1)
  config = dataclasses.replace(
    usual,
    # Units have been dealt with: of 5m it would drop the m.
    normalization_config=dataclasses.replace(
      usual.normalization_config, units=False, boxed='none'
    ),
  )
  parsed = [
    math_verify.parse(
      f'${text}$',
      [config],
      fallback_mode='no_fallback',
      # Not a part of the text where all of it cannot be read.
      extraction_mode='first_match',
      parsing_timeout=None,
      raise_on_error=True,
    )
    for text in (reference, answer)
  ]
  if not all(parsed):
    return False
  # Of an interval and an inequality it knows only one order.
  return any(
    math_verify.verify(*pair, timeout_seconds=None, raise_on_error=True)
    for pair in (parsed, parsed[::-1])
  )
