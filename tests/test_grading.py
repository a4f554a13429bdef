import gzip
import json
import os
import pathlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ogls_jax import errors
from ogls_jax.tasks import latex, math, superglue
from ogls_jax.tasks.question import Question

DATA_DIR = pathlib.Path(os.environ.get('OGLS_DATA_DIR', '../shared/data'))


def math_question(answer):
  return Question(id='m-1', question='?', answer=answer)


def boxed(answer):
  return f'So the answer is \\boxed{{{answer}}}.'


@pytest.mark.parametrize(
  'text,content',
  [
    ('\\boxed{1} then \\boxed{2}', '2'),
    ('\\boxed{\\frac{1}{2}} {x}', '\\frac{1}{2}'),
    ('{ } } \\boxed{ 3 }', ' 3 '),
    ('\\boxed{7} and \\boxed{8', '7'),  # cut off: the last complete one
    ('\\boxed{1 \\boxed{2}', '2'),
    ('\\boxed{a \\boxed{b} c}', 'b'),
    ('\\boxed{\\{1, 2\\}}', '\\{1, 2\\}'),
    ('\\boxed{\\{1}', '\\{1'),
    ('\\boxed {5}', '5'),
    ('\\boxed{}', ''),
    ('boxed{5}', None),
    ('\\boxed 5', None),
    ('the answer is 5', None),
    ('', None),
  ],
)
def test_extract_boxed(text, content):
  assert latex.extract_boxed(text) == content
  assert latex.extract_boxed(text) == content


@pytest.mark.parametrize(
  'answer,reference',
  [
    ('34', '34'),
    (' 34. ', '34'),
    ('$34$', '34'),
    ('034', '34'),
    ('+34', '34'),
    ('34.00', '34'),
    ('.5', '0.5'),
    ('5.', '5'),
    ('1/2', '0.5'),
    ('\\dfrac{1}{2}', '\\frac12'),
    ('\\tfrac 1 2', '0.50'),
    ('\\frac 54', '\\frac{5}{4}'),
    ('\\frac{2}{4}', '1/2'),
    ('-\\frac{1}{2}', '\\frac{-1}{2}'),
    ('- 3', '\u22123'),
    ('13,800', '13,\\!800'),
    ('13{,}800', '13800'),
    ('\\$1,500', '1500'),
    ('50\\%', '50'),
    ('50%', '50 \\%'),
    ('82^\\circ', '82'),
    ('82^{\\circ}', '82\u00b0'),
    ('7', '7 \\text{ days}'),
    ('7\\text{ days}', '7 days'),
    ('12 \\mathrm{cm}^2', '12 \\text{ cm}^2'),
    ('12.0 \\mathrm{cm}^{2}', '12'),
    ('\\text{42}', '42'),
    ('\\text{orange}', 'orange'),
    ('\\left( 3, \\frac{\\pi}{2} \\right)', '(3,\\frac{\\pi}{2})'),
    ('\\frac{\\sqrt3}{2}', '\\frac{\\sqrt{3}}{2}'),
    ('1,\\,2', '1, 2'),
    ('1e3', '1000'),
    ('2.5E-1', '1/4'),
    ('x^2+1', 'x^2 + 1'),
    ('\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}',
     '\\begin{pmatrix}1\\\\2\\end{pmatrix}'),
    ('9' * 600, '9' * 600),
  ],
)  # fmt: skip
def test_equal_answers(answer, reference):
  assert math.is_correct(boxed(answer), math_question(reference))
  assert math.is_correct(boxed(reference), math_question(answer))


@pytest.mark.parametrize(
  'answer,reference',
  [
    ('34', '35'),
    ('34', '-34'),
    ('3', '34'),
    ('', '34'),
    ('.', '0'),
    ('-', '0'),
    ('$', '%'),
    ('1 2', '12'),
    ('0.333', '1/3'),
    ('1/0', '1'),
    ('1/0', '2/0'),
    ('\\frac{1}{0}', '0'),
    ('\\frac{1}{2}', '\\frac{2}{1}'),
    ('7 \\text{ days}', '7 \\text{ hours}'),
    ('12 \\text{ cm}^2', '12.0 \\text{ cm}^3'),
    ('5x', '5'),
    ('1\\text{2}', '1'),
    ('1,23', '123'),
    ('24,-3', '24'),
    ('2**2', '4'),
    ('1_000', '1000'),
    ('\u0663', '3'),  # a digit to str.isdigit, not to us
    ('1e999999999', '1e999999998'),
    ('1e100', '1' + '0' * 100),
    ('9' * 600 + '.0', '9' * 600),
    ('\\leftarrow', 'arrow'),
    ('nan', 'NaN'),
    ('inf', 'Infinity'),
  ],
)
def test_different_answers(answer, reference):
  assert not math.is_correct(boxed(answer), math_question(reference))
  assert not math.is_correct(boxed(reference), math_question(answer))


def test_only_a_boxed_answer_counts():
  question = math_question('34')
  assert not math.is_correct('The answer is 34', question)
  assert not math.is_correct('\\boxed{34} no, \\boxed{35}', question)
  assert math.is_correct('\\boxed{35} no, \\boxed{34}', question)


CHOICES = ('yes', 'no', 'maybe')


def choice_question(answer, choices=CHOICES):
  return Question(id='c-1', question='?', answer=answer, choices=choices)


@pytest.mark.parametrize(
  'text,final',
  [
    ('yes', 'yes'),
    (' Yes.\n', 'yes'),
    ('**No**', 'no'),
    ('\\boxed{Maybe}', 'maybe'),
    ('\\boxed{\\text{ no }}.', 'no'),
    ('yes, so the answer is yes... \\boxed{no}', 'no'),
    ('The answer is yes.', 'yes'),
    ('the Answer is: **no**', 'no'),
    ('First the answer is no. Wait, the answer is maybe', 'maybe'),
    ('The answer is yes.\nThere is no doubt.', 'yes'),
    ('The answer is no. The text says so.', 'no'),
    ('The answer is:\n\nyes\n', 'yes'),
    ('yes no', None),
    ('yes or no', None),
    ('I think yes', None),
    ('no, I would say', None),
    ('The answer is yes or no', None),
    ('The answer is not yes', None),
    ('The answer is \nyes and no', None),
    ('The answer is yes. The answer is unclear.', None),
    ('yes \\boxed{perhaps}', None),
    ('yes \\boxed{yes, no}', None),
    ('\\boxed{}', None),
    ('nobody', None),
    ('', None),
  ],
)
def test_superglue_final_answer(text, final):
  for answer in CHOICES:
    is_correct = superglue.is_correct(text, choice_question(answer))
    assert is_correct == (answer == final)


def test_superglue_needs_choices():
  with pytest.raises(errors.UserError, match='c-1.*`choices`.*superglue'):
    superglue.is_correct('yes', choice_question('yes', choices=()))


def test_superglue_choices_with_punctuation():
  question = choice_question('3.5', choices=('3.5', '3. 5', '3'))
  assert superglue.is_correct('The answer is 3.5.', question)
  assert not superglue.is_correct('The answer is 3. 5', question)


# Pieces that reach the parsers far more often than random characters do.
SNIPPETS = st.lists(
  st.sampled_from(
    ['\\boxed{', '{', '}', '\\', '\\frac', '\\text{', '\\left', '^\\circ', ',']
    + ['1', '23', '.', '/', '-', 'e9', ' ', '$', '%', '\\{', '\\,', 'yes', '\n']
    + ['answer is', '\ud800', '\u0130', '\x00', 'x']
  ),
  max_size=40,
).map(''.join)


@settings(max_examples=200, deadline=None)
@given(text=SNIPPETS | st.text(), other=SNIPPETS | st.text())
def test_graders_never_raise(text, other):
  forward = math.is_correct(boxed(text), math_question(other))
  assert isinstance(forward, bool)
  assert isinstance(math.is_correct(text, math_question(other)), bool)
  for response in (text, boxed(text)):
    is_correct = superglue.is_correct(
      response, choice_question('yes', (other, 'yes'))
    )
    assert isinstance(is_correct, bool)
  # Where neither holds a box or a loose brace, the order does not matter, and
  # a text is always its own answer.
  if all(latex.extract_boxed(boxed(t)) == t for t in (text, other)):
    assert math.is_correct(boxed(other), math_question(text)) == forward
    assert math.is_correct(boxed(text), math_question(text))


LONG = 400_000


@pytest.mark.parametrize(
  'text',
  [
    '\\boxed{' * LONG,
    '\\boxed{' * LONG + '}' * LONG,
    '\\boxed{1}' * LONG,
    '{' * LONG + '\\boxed{1}',
    '}' * LONG,
    '\\boxed' + ' ' * LONG,
    ('\\boxed' + ' ' * 50) * (LONG // 50),
    '\\' * LONG,
    '\\boxed{' + '9' * LONG + '}',
    '\\boxed{' + '\\text{' * LONG + '}' * (LONG + 1),
    '\\boxed{' + '\\text ' * LONG + '}',
    '\\boxed{' + '\\frac{' * 80 + '}' * 81,
    '\\boxed{' + '1,' * 250 + '}',
    '\\boxed{' + '1/' * 250 + '}',
    '\\boxed{' + ' ' * 500 + '}',
    '\\boxed{' + '.' * 500 + '}',
    '\\boxed{1e999999999}',
    '\\boxed{1e-999999999}',
    '\\boxed{9**9**9**9}',
    "\\boxed{__import__('os').abort()}",
    'answer is ' * LONG,
    'answer is ' + ' ' * LONG + 'x',
    '. ' * LONG,
    '\u0130' * LONG,
    '\x00' * LONG,
  ],
  ids=lambda text: repr(text[:12]),
)
def test_hostile_text_is_graded_in_linear_time(text):
  # Under a second each even on a busy machine; quadratic work on 400,000
  # repeats would take hours.
  start = time.process_time()
  for reference in ('1e999999997', '\\frac{1}{2}', '{' * 500):
    assert not math.is_correct(text, math_question(reference))
  assert not superglue.is_correct(text, choice_question('yes'))
  assert time.process_time() - start < 5


def test_reference_answers_are_graded_right():
  file = DATA_DIR / 'math500' / 'test.jsonl'
  if not file.exists():
    pytest.skip(f'no {file}; set OGLS_DATA_DIR to the folder of data sets')
  rows = [json.loads(line) for line in file.read_text('utf-8').splitlines()]
  questions = [math_question(row['answer']) for row in rows]
  solutions = [row['solution'] for row in rows]
  assert all(map(math.is_correct, solutions, questions))
  # The reference solutions of other questions: some share small answers.
  shifted = list(map(math.is_correct, solutions[1:], questions[:-1]))
  assert np.mean(shifted) < 0.05


def test_superglue_rows_can_be_answered():
  file = DATA_DIR / 'superglue_multirc' / 'validation.jsonl.gz'
  if not file.exists():
    pytest.skip(f'no {file}; set OGLS_DATA_DIR to the folder of data sets')
  with gzip.open(file, 'rt', encoding='utf-8') as f:
    row = json.loads(f.readline())
  question = choice_question(row['answer'], tuple(row['choices']))
  right = [
    superglue.is_correct(f'\\boxed{{{c}}}', question) for c in row['choices']
  ]
  assert right.count(True) == 1


@pytest.mark.parametrize(
  ('answer', 'reference'),
  [
    ('1\\%2', '12'), ('5%6', '56'), ('3\\mathrm{i}', '3'),
    ('5\\mathrm{e}', '5'), ('5\\mathrm{x}', '5'),
    ('5\\text{ million dollars}', '5'), ('5\\text{k}', '5'),
    ('5\\text{ M}', '5'), ('2\\text{ tenths}', '2'),
    ('5\\text{ per cent}', '0.5'), ('5\\text{ or less}', '5'),
    ('5\\text{ factorial}', '5'), ('5\\text{ minus one}', '5'),
    ('5\\text{!}', '5'), ('5\\text{-}', '5'),
    ('5 \\text{ ms}', '5 \\text{ m}'), ('(1\\,2)', '12'), ('1\\,2', '12'),
    ('5\\text{ hundredths}', '5'), ('5\\text{ crore}', '5'),
    ('3\\text{ halves}', '3'), ('5\\text{ not}', '5'),
    ('5\\text{ is wrong}', '5'), ('5\\text{ power three}', '5'),
    ('5\\text{ to the fourth}', '5'), ('3\\mathrm{ln}', '3'),
    ('3\\mathbf{AB}', '3'), ('3\\mathrm{sin}', '3'),
    ('5\\text{ euros}', '\\$5'), ('90\\%', '90^\\circ'),
    ('√2', '2'), ('x²', 'x2'), ('5²', '52'), ('½', '12'), ('2×3', '23'),
    ('\\\\', '0'), ('\\(\\)', '0'), ('5\u202e1', '5'),
    ('\\$5', '5\\text{ cents}'), ('5 cents', '$5'), ('\\$1', '1 cent'),
    ('90^\\circ', '90 \\text{ radians}'), ('90\u00b0', '90 rad'),
    ('5 abc', '5'), ('5abcd', '5'), ('5 dozen', '5'), ('5 is wrong', '5'),
    ('5 hundredths', '5'), ('3 apples', '3\\text{ pears}'),
    ('5 km', '5 meters'),
    ('5 cm^3', '5 cm^2'), ('1 00', '100'), ('1 2000', '12000'),
    ('12 34', '1234'), ('60^\\circ 120^\\circ', '60120'), ('2 and 3', '23'),
    ('2 and 3', '5'), ('1 and 1/2', '1.5'), ('x and y', 'xy'),
    ('\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}',
     '\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}'),
  ],
)  # fmt: skip
def test_what_changes_a_number_is_no_unit(answer, reference):
  for pair in ((answer, reference), (reference, answer)):
    assert not math.is_correct(boxed(pair[0]), math_question(pair[1]))


@pytest.mark.parametrize(
  ('answer', 'reference'),
  [
    ('7 \\text{ days}', '7'), ('5\\text{ m}', '5'), ('1\\,200', '1200'),
    ('10,\\!000', '10000'), ('3 \\text{ hrs}', '3 \\text{ hr}'),
    ('60 \\text{ km/h}', '60'), ('5\\text{ m/s}', '5'), ('5\\text{ ft}', '5'),
    ('7\\text{ apples}', '7'), ('60 \\text{ miles per hour}', '60'),
    ('\\$5', '5 \\text{ dollars}'), ('π/2', '\\frac{\\pi}{2}'),
    ('2π', '2\\pi'), ('√2', '\\sqrt{2}'), ('x²', 'x^2'), ('½', '0.5'),
    ('\u20135', '-5'), ('2×3', '6'), ('５', '5'), ('１２．５', '12.5'),
    ('5\u200b', '5'), ('\u202e5', '5'), ('\\displaystyle\\frac12', '0.5'),
    ('5 \\quad', '5'), ('5\\\\', '5'), ('\\(5\\)', '5'), ('\\[x\\]', 'x'),
    ('\\dbinom{5}{2}', '\\binom{5}{2}'), ('x \\geqslant 2', 'x \\ge 2'),
    ('90^\\circ', '90 \\text{ degrees}'), ('5 cents', '5'), ('50\\%', '50'),
    ('50 percent', '50\\%'), ('50 percent', '0.5'), ('3 apples', '3'),
    ('1,200 apples', '1200'), ('5 cm^3', '5'), ('5 cm^3', '5\\text{ cm}^3'),
    ('5 km', '5 kilometers'), ('5\\text{ ft}', '5 feet'),
    ('9 \\text{ s}', '9 \\text{ seconds}'), ('12 000', '12000'),
    ('1 234 567.5', '1234567.5'), ('2 and 3', '2, 3'),
    ('2, 3, and 4', '2, 3, 4'), ('\\frac12 or -3', '-3, 0.5'),
    ('\\begin{bmatrix}1&2\\end{bmatrix}', '\\begin{pmatrix}1&2\\end{pmatrix}'),
  ],
)  # fmt: skip
def test_units_that_may_be_left_out(answer, reference):
  for pair in ((answer, reference), (reference, answer)):
    assert math.is_correct(boxed(pair[0]), math_question(pair[1]))
