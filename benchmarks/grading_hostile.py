"""Answers made to hang, crash, fill or run what grades them."""

import random

# A prime that no piece below leads to, in forms that all paths have to judge.
REFERENCES = (
  '7919',
  '\\frac{7919}{2}',
  '(0, 7919)',
  '\\{7919, 3\\}',
  'x > 7919',
  '\\sin(7919x)',
  '7919x + y = 3',
  '(0,7919) \\cup (7920,\\infty)',
  '\\begin{pmatrix} \\sin x & 7919 \\end{pmatrix}',
)
_PIECES = (
  '\\frac', '\\sqrt', '\\sin', '\\log', '\\cup', '\\pm', '\\infty', '\\pi',
  '\\binom', '\\left', '\\right', '\\text{', '\\begin{pmatrix}', '\\\\', '&',
  '\\end{pmatrix}', '\\{', '\\}', '{', '}', '(', ')', '[', ']', '|', '^', '_',
  '!', '=', '<', '\\le', '+', '-', '*', '/', ',', '.', '%', '$', ' ', '1', '2',
  '30', 'x', 'y', 'e', 'i', 'AB',
)  # fmt: skip
_SYMBOLS = ('x', 'y', '2', '3', '\\pi', 'a')
_FUNCTIONS = ('\\sin', '\\cos', '\\tan', '\\log', '\\arctan', '\\sqrt', '')
_OPERATORS = ('+', '-', '\\cdot ', '/', '^')
_MEGABYTE = 2**20


def make(num: int, *, seed: int, canary: str) -> list[tuple[str, str, str]]:
  """(kind, answer, reference) of `num` answers, all of them wrong.

  Args:
    num: how many; every hundredth has a megabyte.
    seed: of all choices.
    canary: the path of a file that some of them try to write.
  """
  rng = random.Random(seed)
  kinds = {
    kind.__name__: kind
    for kind in (
      pieces, expressions, exponents, nesting, code, formats, controls,
      right_to_left, unterminated, numbers, unicode,
    )
  }  # fmt: skip
  answers = []
  for i in range(num):
    name = rng.choice(tuple(kinds))
    answer = kinds[name](rng, canary)
    if i % 100 == 0:
      name, answer = 'megabytes', _repeated(answer, rng)
    answers.append((name, answer, rng.choice(REFERENCES)))
  return answers


def _repeated(answer, rng):
  unit = rng.choice([answer or '(', '{', '\\boxed{', '9', '\\frac', ' ', '-'])
  return unit * (_MEGABYTE // len(unit))


def pieces(rng, _):
  return ''.join(rng.choices(_PIECES, k=rng.randint(1, 30)))


def expressions(rng, _, depth=0):
  """Well-formed, and of little use: what math-verify has to simplify."""
  if depth > 3 or rng.random() < 0.2:
    return rng.choice(_SYMBOLS)
  a = expressions(rng, _, depth + 1)
  b = expressions(rng, _, depth + 1)
  operator = rng.choice(_OPERATORS)
  if operator == '/':
    return f'\\frac{{{a}}}{{{b}}}'
  if operator == '^':
    return f'({a})^{{{b}}}'
  function = rng.choice(_FUNCTIONS)
  if function == '\\sqrt':
    return f'\\sqrt{{{a}{operator}{b}}}'
  return f'{function}({a}{operator}{b})'


def exponents(rng, _):
  base = rng.choice(['9', 'x', '(1+x)', '\\sqrt{2}', '\\sin 9', 'i'])
  height = rng.randint(1, 12)
  exponent = rng.choice(['9', '99', '999999999', '{99}', '9!', '{9^9}'])
  return rng.choice(
    [
      f'{base}^{{' * height + exponent + '}' * height,
      '(' * height + base + f')^{{{exponent}}}' * height,
      f'{base}**' * height + '9',
      f'{base}^{exponent} + {base}^{exponent}',
      f'{exponent}' + '!' * height,
      f'\\binom{{{exponent}}}{{{exponent}}}',
    ]
  )


def nesting(rng, _):
  opener, closer = rng.choice(
    ['()', '{}', '[]', ('\\{', '\\}'), ('\\frac{1}{', '}'), ('\\sqrt{', '}')]
    + [('\\text{', '}'), ('\\left(', '\\right)'), ('-', ''), ('|', '|')]
  )
  depth = rng.choice([5, 50, 500, 5000])
  return opener * depth + '1' + closer * rng.choice([depth, depth - 1])


def code(rng, canary):
  call = rng.choice(
    [
      f"__import__('os').system('touch {canary}')",
      f"open('{canary}','w').close()",
      f"exec('open(\"{canary}\",\"w\")')",
      f"eval(compile('open(\"{canary}\",\"w\")','','eval'))",
      f"().__class__.__base__.__subclasses__()[9]('{canary}')",
      f"Symbol('x').__class__.__init__.__globals__['os'].mknod('{canary}')",
      f'\\immediate\\write18{{touch {canary}}}',
      f'\\input{{|"touch {canary}"}}',
      f'$(touch {canary}) `touch {canary}` ; touch {canary}',
      f'cos\nsystem\n(S"touch {canary}"\ntR.',
      "lambda: (yield from iter(int, 1))",
      '1 if ().__class__ else 2',
    ]
  )  # fmt: skip
  return rng.choice(['{}', '1+{}', '\\sin {}', '\\text{{{}}}', 'x={}']).format(
    call
  )


def formats(rng, _):
  return rng.choice(
    ['%s' * 99, '%999999999d', '{0:>999999999}', '{:{:{}}}', '{0.__class__}']
    + ['%n' * 99, '{x!r:^{y}}', '$' * 99, '\\N{BULLET}', '&#x41;', '%(a)s']
  )


def controls(rng, _):
  characters = [chr(i) for i in range(32)] + ['\x7f', '\x85', '\x9b', '\u2028']
  body = ''.join(rng.choices([*characters, '1', '2'], k=rng.randint(1, 40)))
  return rng.choice(['', '\x1b[2J', '\x1b]0;']) + body


def right_to_left(rng, _):
  characters = '\u202e\u202d\u2066\u2069\u200f\u200b\u05d0\u0627\u0661\u06f2'
  return ''.join(rng.choices(characters + '12+-()', k=rng.randint(1, 40)))


def unterminated(rng, _):
  return rng.choice(
    ['\\frac{1}{', '\\frac', '\\sqrt[', '\\sqrt[3', '\\begin{pmatrix} 1 & ']
    + ['\\left(', '\\text{', '\\', '1\\\\', '\\end{pmatrix}', '(1,', '\\{1,']
    + ['x =', '^', '_', '2^', '2^{', '\\cup', '(1,2) \\cup', '\\pm', '1/', '%']
  ) * rng.randint(1, 9)


def numbers(rng, _):
  return rng.choice(
    ['1e999999999', '1e-999999999', '9' * 5000, '0.' + '0' * 5000 + '1', '1/0']
    + ['nan', 'inf', '-inf', '0x1ef', '1_000', '\u0661\u0662', '\u00b2', '1j']
    + ['0.\\overline{' + '3' * 400 + '}', '\\sqrt{' + '9' * 90 + '8}']
    + ['\\frac{0}{0}', '0^0', '0^{-1}', '\\infty-\\infty', '1,,2', '1,2,', '.']
  )


def unicode(rng, _):
  """Any code points, lone surrogates too."""
  return ''.join(
    chr(rng.choice([rng.randrange(0x110000), rng.randrange(0x250)]))
    for _ in range(rng.randint(1, 40))
  )
