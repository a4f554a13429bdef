import fractions
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ogls_jax.tasks import forms, latex, math, symbolic
from ogls_jax.tasks.question import Question


def verdict(answer, reference):
  return math.compare(f'\\boxed{{{answer}}}', Question('q', '?', reference))


@pytest.mark.parametrize(
  'answer,reference',
  [
    # arithmetic
    ('2+2', '4'),
    ('2^2', '4'),
    ('2 \\cdot 3 \\times 4', '24'),
    ('3 \\times 10^5', '300,000'),
    ('6 \\div 4', '1.5'),
    ('-2^2', '-4'),
    ('2^{-1}', '0.5'),
    ('2^{4950}', '2 \\cdot 2^{4949}'),
    ('10!', '3628800'),
    ('\\binom{5}{2}', '10'),
    ('0.\\overline{3}', '\\frac{1}{3}'),
    ('0.1\\overline{6}', '\\frac{1}{6}'),
    ('4^{1/2}', '2'),
    ('\\frac{\\frac{1}{2}}{3}', '1/6'),
    # mixed numbers
    ('3\\frac{1}{2}', '3.5'),
    ('3 1/2', '\\frac72'),
    ('-1\\frac{1}{4}', '-1.25'),
    ('2^3\\frac{1}{2}', '4'),
    # roots
    ('\\sqrt{12}', '2\\sqrt{3}'),
    ('\\frac{1}{\\sqrt{2}}', '\\frac{\\sqrt2}{2}'),
    ('\\frac{1}{1+\\sqrt{2}}', '\\sqrt{2}-1'),
    ('\\sqrt{\\frac{3}{4}}', '\\frac{\\sqrt{3}}{2}'),
    ('\\sqrt[3]{-27}', '-3'),
    ('\\sqrt{-4}', '2i'),
    ('(1+i)^2', '2i'),
    ('\\frac{\\sqrt6}3', '\\sqrt{\\frac{2}{3}}'),
    # pi and symbols
    ('\\frac{\\pi}{2}', '\\pi/2'),
    ('\\frac\\pi 2', '0.5\\pi'),
    ('(x+1)^2', 'x^2+2x+1'),
    ('13a^2(a+7)', '13a^3 + 91a^2'),
    ('(t-7)(t+7)', 't^2-49'),
    ('\\frac{x^2-1}{x-1}', 'x+1'),
    ('x_{1}+x_2', 'x_2+x_1'),
    # percent
    ('50\\%', '0.5'),
    ('50\\%', '50'),
    ('12.5\\%', '12.5'),
    ('50\\text{ percent}', '50\\%'),
    # names, units, words and choices
    ('x = 5', '5'),
    ('x=5', 'x = 10/2'),
    ('x = .3', '.3'),
    ('f(x) = 2x', '2x'),
    ('x \\in [0, 2)', '[0,2)'),
    ('5 cm', '5'),
    ('5 square units', '5'),
    ('10\\sqrt{2}\\text{ cm}', '\\sqrt{200}'),
    ('7 \\text{ day}', '7.0 \\text{ days}'),
    ('\\text{Yes}', 'yes'),
    ('\\text{Evelyn}', 'evelyn'),
    ('(B)', 'B'),
    ('\\text{(B)}', '\\textbf{B}.'),
    ('\\text{A,C}', 'C, A'),
    # lists, sets, tuples, intervals
    ('1, 2', '2,1'),
    ('1, 1, 2', '1, 2, 1'),
    ('\\{1, 2, 2\\}', '\\{2, 1\\}'),
    ('\\{1,2\\}', '2, 1'),
    ('5', '\\{5\\}'),
    ('\\emptyset', '\\{\\}'),
    ('1 \\text{ or } 2', '2, 1'),
    ('3\\pm\\sqrt2', '3-\\sqrt2, 3+\\sqrt{2}'),
    ('x = 1 \\pm 2', '3, -1'),
    ('(1, \\frac{2}{4})', '(1,0.5)'),
    ('(1,234)', '(1, 117 \\cdot 2)'),
    ('(-\\infty, 2) \\cup [3, \\infty)', '[3,\\infty) \\cup (-\\infty,4/2)'),
    ('\\begin{pmatrix} 1/2 \\\\ 2 \\end{pmatrix}',
     '\\begin{pmatrix}0.5\\\\2\\\\\\end{pmatrix}'),
    # digits in a base
    ('1011_{2}', '1011_2'),
  ],
)  # fmt: skip
def test_equal(answer, reference):
  assert verdict(answer, reference) is True
  assert verdict(reference, answer) is True


@pytest.mark.parametrize(
  'answer,reference',
  [
    ('2^3', '6'),
    ('-2^2', '4'),
    ('2+2', '5'),
    ('1/2x', '\\frac{x}{2}'),  # rather \frac{1}{2x}
    ('1/2x', '\\frac{1}{2x}'),
    ('8/4/2', '1'),
    ('2^3^2', '512'),
    ('1 2', '12'),
    ('1 2', '2'),
    ('2\\frac{3}{2}', '3'),
    ('2\\frac{3}{2}', '3.5'),
    ('0.333333', '\\frac{1}{3}'),
    ('3.1416', '\\pi'),
    ('1.41421356', '\\sqrt{2}'),
    ('2\\sqrt{3}', '3\\sqrt{2}'),
    ('\\sqrt{2}+\\sqrt{3}', '\\sqrt{5}'),
    ('2\\pi', '2'),
    ('90', '\\frac{\\pi}{2}'),
    ('x', 'y'),
    ('5m', '5'),
    ('x+1', 'x-1'),
    ('AB', 'BA'),
    ('50\\%', '0.05'),
    ('50\\%', '5000'),
    ('0.5\\%', '50\\%'),
    ('x = 5', 'y = 5'),
    ('5 cm', '5 km'),
    ('7 \\text{ days}', '7.0 \\text{ hours}'),
    ('\\text{yes}', 'no'),
    ('ABC', 'abc'),
    ('B', 'C'),
    ('A, B', 'A'),
    ('A, B, B', 'A, B'),
    ('1, 2', '1, 2, 2'),
    ('1, 1, 2', '1, 2, 2'),
    ('1, 2', '(1, 2)'),
    ('(1, 2)', '(2, 1)'),
    ('(1, 2)', '[1, 2]'),
    ('[1, 2)', '(1, 2]'),
    ('(1, 2)', '(1, 2, 3)'),
    ('\\{1, 2\\}', '(1, 2)'),
    ('\\{1, 2\\}', '\\{1\\}'),
    ('1', '\\{1, 2\\}'),
    ('(0, \\infty)', '(0, -\\infty)'),
    ('10,000', '10.000'),
    ('3,000', '3'),
    ('1, 234', '1,234'),
    ('1 , 234', '1234'),
    ('[-\\infty, 2)', '(-\\infty, 2)'),
    ('3\\pm1', '4'),
    ('101_2', '101'),
    ('101_2', '5'),
    ('101_2', '101_3'),
    ('\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}',
     '\\begin{pmatrix} 1 & 2 \\end{pmatrix}'),
  ],
)  # fmt: skip
def test_different(answer, reference):
  assert verdict(answer, reference) is False
  assert verdict(reference, answer) is False


@pytest.mark.parametrize(
  'answer,reference',
  [
    ('x > 5', '(5, \\infty)'),
    ('\\sin 2x', '2 \\sin x \\cos x'),
    ('2x + y = 3', 'y = 3 - 2x'),
    ('\\sqrt{3+2\\sqrt2}', '1+\\sqrt2'),
    ('(0,1) \\cup [1,2)', '(0,2)'),
    ('f(x+1)', 'fx + f'),
    ('2AB', '2BA'),
    ('1+word', '1+drow'),
    ('x=1, y=2', '2, 1'),
    ('1%+1', '2'),
    ('5 \\text{ million}', '5'),
    ('5000000', '5 \\text{ million}'),
    ('1/0', '0'),
    ('\\frac{1}{x-x}', '0'),
  ],
)
def test_undecided(answer, reference):
  assert verdict(answer, reference) is None
  assert not math.is_correct(
    f'\\boxed{{{answer}}}', Question('q', '?', reference)
  )


@pytest.mark.parametrize(
  'text',
  [
    '(' * 500 + '1' + ')' * 500,
    '(' * 100 + '1' + ')' * 100,
    '{' * 400,
    '-' * 500,
    '9^{9^{9^{9}}}',
    '9^{99999}',
    '((9^{99})^{99})^{99}',
    '((((9^{9999})^{9999})^{9999})^{9999})^{9999}',
    '1^{9^{99}}',
    '(a+b+c+d+e+f)^{60}',
    '(\\sqrt2+\\sqrt3+\\sqrt5+\\sqrt7+\\sqrt{11}+\\sqrt{13})^{9999}',
    '(' * 14 + '1+x' + ')^{9}' * 14,
    '\\sqrt{' + '9' * 90 + '8}',
    '\\sqrt[60]{' + '9' * 90 + '}',
    '30!' * 80,
    '(30!)!',
    '\\binom{100}{50}^{99}',
    ','.join('123456789'[i % 9] for i in range(250)),
    '\\{' * 200,
    '\\cup'.join(['(1,2)'] * 60),
    '0.\\overline{' + '9' * 90 + '}',
    '\\frac' * 100,
    '\\frac{1}{' * 60 + '1' + '}' * 60,
    'x_{' * 100,
    '1' + '/(1+x)' * 70,
    '+'.join(f'\\frac{{1}}{{x+{i}}}' for i in range(30)),
    "__import__('os').system('true')",
  ],
  ids=lambda text: repr(text[:20]),
)
def test_work_on_nasty_text_is_bounded(text):
  start = time.process_time()
  for reference in ('1', text + '+1', '(' + text + ')'):
    assert forms.compare(latex.clean(text), latex.clean(reference)) in (
      (None, False) if reference[0] != '(' else (None, False, True)
    )
  assert time.process_time() - start < 3


# Expressions of which plain fractions know the value.
NUMBERS = st.integers(0, 30).map(lambda n: (str(n), fractions.Fraction(n)))


def combined(inner):
  pairs = st.tuples(inner, inner)
  return (
    pairs.map(lambda p: (f'{p[0][0]}+({p[1][0]})', p[0][1] + p[1][1]))
    | pairs.map(lambda p: (f'{p[0][0]}-({p[1][0]})', p[0][1] - p[1][1]))
    | pairs.map(lambda p: (f'({p[0][0]})({p[1][0]})', p[0][1] * p[1][1]))
    | pairs.filter(lambda p: p[1][1] != 0).map(
      lambda p: (f'\\frac{{{p[0][0]}}}{{{p[1][0]}}}', p[0][1] / p[1][1])
    )
    | inner.map(lambda a: (f'({a[0]})^2', a[1] ** 2))
  )


@settings(max_examples=200, deadline=None)
@given(
  a=st.recursive(NUMBERS, combined, max_leaves=6),
  b=st.recursive(NUMBERS, combined, max_leaves=6),
)
def test_expressions_have_the_value_that_fractions_have(a, b):
  assume(len(a[0]) + len(b[0]) < 200)
  text = f'{a[1].numerator}/{a[1].denominator}'
  assert verdict(a[0], text) is True
  assert verdict(a[0], b[0]) is (a[1] == b[1])


SNIPPETS = st.lists(
  st.sampled_from(
    ['\\frac', '\\sqrt', '{', '}', '(', ')', '[', ']', '\\{', '\\}', '\\pm']
    + ['1', '2', '34', '.', ',', '/', '-', '+', '^', '_', '=', '%', '!', ' ']
    + ['x', 'y', 'i', 'A', '\\pi', '\\infty', '\\cup', '\\text{ cm}', '\\\\']
    + ['\\overline', '\\sin', '\\begin{pmatrix}', '\\end{pmatrix}', '&', ';']
  ),
  max_size=25,
).map(''.join)


@settings(max_examples=500, deadline=None)
@given(a=SNIPPETS | st.text(max_size=40), b=SNIPPETS | st.text(max_size=40))
def test_forms_never_raise_and_agree_both_ways(a, b):
  a, b = latex.clean(a), latex.clean(b)
  assert forms.compare(a, b) in (True, False, None)
  assert forms.compare(a, b) is forms.compare(b, a)
  assert forms.compare(a, a) in (True, None) or forms.compare(a, b) is not True
  assert isinstance(symbolic.is_harmless(a), bool)


def test_an_equation_is_no_value_but_a_name_may_stand_before_one():
  for text, is_shown in [
    ('\\sin 2x', True),
    ('y = \\sin 2x', True),
    ('1 = \\sin 2x', False),
    ('x = \\sin 2x', False),
    ('y^2 = \\sin 2x', False),
  ]:
    pair = symbolic.candidates(f'\\boxed{{{text}}}', '\\sin 2x')
    assert (pair is not None) is is_shown
  assert symbolic.candidates('\\boxed{y = x + 1}', 'x = y - 1')


@pytest.mark.parametrize(
  'text',
  [
    'x > 5', '\\sin 2x', '12x - 4y + 3z - 169 = 0', '\\sqrt{x^2 - 1}',
    '(0,1) \\cup [1,2)', '\\begin{pmatrix} x & 1 \\\\ 2 & y \\end{pmatrix}',
    '12^{1/7}', '\\log_2 x', '1 + \\sqrt[3]{2}', '2^{n - 1}', '3^x - 2^x',
  ],
)  # fmt: skip
def test_what_math_verify_may_see(text):
  assert symbolic.is_harmless(latex.clean(text))


@pytest.mark.parametrize(
  'text',
  [
    "__import__('os').system('touch x')", 'eval(x)', 'exec', 'lambda x',
    'x.__class__', 'print(1)', '"a"', 'a;b', 'a:b', 'a\\nb', '\x00', '\u202e1',
    '\u0663', 'x\ny', '`x`', 'a@b', '#', '$x$', '\\input{x}', '\\def\\x{1}',
    '\\text{x}', '\\write18', '\\int x', '\\sum', '\\', '9^{9^{9}}', '9^9^9^9',
    '9^{999}', '99!', '(9!)!', '9!!', '9**9', '1' * 13, '{' * 9 + '}' * 9,
    'x' + '+x' * 100, 'AB', 'word', '1 2', '12_5', 'f(x)', '1/2x',
    '2^x1', '\\sin x \\infty', '0.5 = x = y', '1\\\\2',
  ],
)  # fmt: skip
def test_what_math_verify_must_not_see(text):
  assert not symbolic.is_harmless(text)
