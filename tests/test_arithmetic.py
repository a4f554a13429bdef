import pathlib
import re

import numpy as np
import pytest
import sentencepiece

from ogls_jax import errors
from ogls_jax.tasks import arithmetic, math
from ogls_jax.tasks.question import Question

ROOT = pathlib.Path(__file__).parent.parent


def running_totals(solution):
  """Checks that each line starts from the total before; returns the totals."""
  *lines, boxed = solution.split('\n')
  steps = [re.fullmatch(r'(\d+) ([+-]) (\d+) = (\d+)', line) for line in lines]
  assert all(steps) and steps
  for before, after in zip(steps[:-1], steps[1:], strict=True):
    assert after[1] == before[4]
  assert boxed == f'\\boxed{{{steps[-1][4]}}}'
  is_right = [
    int(s[1]) + int(s[2] + s[3]) == int(s[4]) for s in steps if s is not None
  ]
  return [int(s[4]) for s in steps], is_right


def written(parts):
  return ''.join(text for text, _ in parts)


def test_question_by_hand():
  question = arithmetic._question((17, 25, -8))
  assert question == Question(
    id='arithmetic-3-17+25-8',
    question='17 + 25 - 8',
    answer='34',
    solution='17 + 25 = 42\n42 - 8 = 34\n\\boxed{34}',
  )


@pytest.mark.parametrize('num_terms,max_number', [(2, 9), (4, 99), (7, 3)])
def test_generated_questions_are_distinct_and_worked_out(num_terms, max_number):
  questions = arithmetic.generate(
    120, num_terms=num_terms, max_number=max_number, seed=5
  )
  assert len({q.question for q in questions}) == 120
  assert len({q.id for q in questions}) == 120
  for q in questions:
    # Our own test data, digits and signs only.
    assert re.fullmatch(r'\d+( [+-] \d+)+', q.question)
    terms = [int(t) for t in q.question.replace('- ', '-').split() if t != '+']
    assert len(terms) == num_terms
    assert all(1 <= abs(t) <= max_number for t in terms)
    totals, is_right = running_totals(q.solution)
    assert totals == np.cumsum(terms)[1:].tolist()
    assert all(is_right) and min(totals) >= 0
    assert q.answer == str(sum(terms))
    assert math.is_correct(q.solution, q)
  signs = ''.join(q.question for q in questions)
  assert '-' in signs and '+' in signs


def test_generation_follows_the_seed_and_extends_a_shorter_list():
  kwargs = dict(num_terms=3, max_number=20)
  long = arithmetic.generate(2000, seed=1, **kwargs)
  assert arithmetic.generate(300, seed=1, **kwargs) == long[:300]
  assert arithmetic.generate(300, seed=2, **kwargs) != long[:300]


def test_every_chain_can_be_drawn_and_not_one_more():
  # By hand, two terms in [1, 2]: 1+1 1+2 1-1 2+1 2+2 2-1 2-2; 1-2 is below 0.
  questions = arithmetic.generate(7, num_terms=2, max_number=2, seed=0)
  assert {q.question for q in questions} == {
    '1 + 1', '1 + 2', '1 - 1', '2 + 1', '2 + 2', '2 - 1', '2 - 2',
  }  # fmt: skip
  with pytest.raises(errors.UserError) as error:
    arithmetic.generate(8, num_terms=2, max_number=2, seed=0)
  for word in (
    'data.num_questions + eval.num_questions = 8',
    '7 distinct',
    'data.arithmetic.num_terms = 2',
    'data.arithmetic.max_number = 2',
  ):
    assert word in str(error.value)


@pytest.mark.parametrize('num_terms,max_number', [(2, 5), (3, 4), (5, 2)])
def test_count_of_chains_equals_brute_force(num_terms, max_number):
  steps = [s for s in range(-max_number, max_number + 1) if s]
  chains = [(s,) for s in steps if s > 0]
  for _ in range(num_terms - 1):
    chains = [(*c, s) for c in chains for s in steps if sum(c) + s >= 0]
  assert arithmetic._count_chains(num_terms, max_number) == len(chains)


@pytest.mark.parametrize(
  'num_questions,num_terms,max_number,key',
  [
    (0, 3, 9, 'data.num_questions = 0'),
    (5, 1, 9, 'data.arithmetic.num_terms = 1'),
    (5, 3, 0, 'data.arithmetic.max_number = 0'),
    (5, 3, 10**10, 'data.arithmetic.max_number = 10000000000'),
  ],
)
def test_bad_sizes_name_their_key(num_questions, num_terms, max_number, key):
  with pytest.raises(errors.UserError, match=key):
    arithmetic.generate(
      num_questions, num_terms=num_terms, max_number=max_number, seed=0
    )


def test_splits_are_disjoint_and_evaluation_ignores_the_training_size():
  kwargs = dict(num_terms=2, max_number=9, seed=3)
  train, held_out = arithmetic.generate_splits(80, 20, **kwargs)
  assert (len(train), len(held_out)) == (80, 20)
  assert not {q.id for q in train} & {q.id for q in held_out}
  smaller_train, same = arithmetic.generate_splits(10, 20, **kwargs)
  assert same == held_out and smaller_train == train[:10]
  with pytest.raises(errors.UserError, match='negative'):
    arithmetic.generate_splits(10, -1, **kwargs)


@pytest.mark.parametrize('step_error_rate', [0.0, 0.35, 1.0])
@pytest.mark.parametrize('num_terms,max_number', [(2, 1), (4, 99), (6, 2)])
def test_wrong_solutions_are_wrong_and_consistent(
  num_terms, max_number, step_error_rate
):
  num = 2 if max_number == 1 else 100
  questions = arithmetic.generate(
    num, num_terms=num_terms, max_number=max_number, seed=0
  )
  rng = np.random.default_rng(0)
  for q in questions * (200 // num):
    text = arithmetic.wrong_solution(
      q, rng=rng, step_error_rate=step_error_rate
    )
    totals, is_right = running_totals(text)
    assert min(totals) >= 0
    assert totals[-1] != int(q.answer)
    assert not math.is_correct(text, q)
    num_wrong = is_right.count(False)
    if step_error_rate == 0:
      assert num_wrong == 1
    if step_error_rate == 1:
      assert num_wrong == num_terms - 1
    # Same numbers and signs as asked, only the totals differ.
    asked = re.findall(r'([+-]) (\d+)', q.question)
    assert re.findall(r'([+-]) (\d+) =', text) == asked


LONG = arithmetic.generate(300, num_terms=11, max_number=99, seed=0)


def right_steps(write):
  """Share of right steps among the 3,000 of solutions of `LONG`."""
  rng = np.random.default_rng(0)
  return np.mean(
    [ok for q in LONG for ok in running_totals(write(q, rng=rng))[1]]
  )


def test_step_error_rate_is_met():
  def write(question, rng):
    return arithmetic.wrong_solution(question, rng=rng, step_error_rate=0.35)

  # The standard deviation of the mean is 0.009; forcing one wrong step in 1.3 %
  # of the chains adds 0.001.
  assert right_steps(write) == pytest.approx(0.65, abs=0.03)


def test_a_solver_slips_at_its_rate_and_goes_on_from_there():
  def write(question, rng, slip_rate=0.15):
    return written(
      arithmetic.sample_solution(question, rng=rng, slip_rate=slip_rate)
    )

  # The standard deviation of the mean is 0.007.
  assert right_steps(write) == pytest.approx(0.85, abs=0.025)
  rng = np.random.default_rng(0)
  assert LONG[0].solution == write(LONG[0], rng, slip_rate=0.0)


def test_a_solver_follows_its_hint_until_it_leaves_it():
  question = arithmetic._question((5, 4, -3, 2))
  rng = np.random.default_rng(0)
  hint = '5 + 4 = 8\n8 - 3 = 5\n5 + 2 = 6\n\\boxed{6}'
  assert hint == written(
    arithmetic.sample_solution(question, rng=rng, slip_rate=0.0, hint=hint)
  )
  left = 0
  for _ in range(200):
    parts = arithmetic.sample_solution(
      question, rng=rng, slip_rate=0.3, hint=hint
    )
    totals, is_right = running_totals(written(parts))
    first = next(
      (i for i, pair in enumerate(zip(totals, [8, 5, 6], strict=True))
       if pair[0] != pair[1]), None,
    )  # fmt: skip
    if first == 0 and is_right[1]:
      left += 1
      # 8 - 3 is right after the hint's own 8 as well: the third step tells.
      assert totals[1] == totals[0] - 3
  assert left > 10


def test_slips_by_hand():
  # 7: off by at most 10 (below 0 is dropped later, by the floor), or any digit.
  assert arithmetic._slips(7) == set(range(-3, 18)) - {7}
  assert {142, 842, 732, 749, 752, 740, 702} <= arithmetic._slips(742)
  assert 742 not in arithmetic._slips(742)
  assert 731 not in arithmetic._slips(742)


@pytest.fixture(scope='module')
def tokenizer():
  return sentencepiece.SentencePieceProcessor(
    model_file=str(ROOT / 'configs' / 'arithmetic.model')
  )


def test_tokenizer_ids_and_pieces(tokenizer):
  special = [tokenizer.pad_id(), tokenizer.bos_id()]
  assert special + [tokenizer.eos_id(), tokenizer.unk_id()] == [0, 1, 2, 3]
  assert len(tokenizer) == 107
  assert tokenizer.encode('17 + 25 = 42\n\\boxed{42}', out_type=str) == [
    '1', '7', '▁+▁', '2', '5', '▁=▁', '4', '2', '\n', '\\boxed{', '4', '2', '}',
  ]  # fmt: skip
  assert tokenizer.encode('Question:Hint:Answer:', out_type=str) == [
    'Question:',
    'Hint:',
    'Answer:',
  ]


def test_tokenizer_is_lossless(tokenizer):
  questions = arithmetic.generate(50, num_terms=4, max_number=99, seed=0)
  ascii_text = ''.join(map(chr, range(32, 127)))
  texts = [text for q in questions for text in (q.question, q.solution)]
  texts += [
    ascii_text,
    ' Question: a  b\n\n  Hint:\n line  \nAnswer: ',
    '\n \n',
    '1 = 2 + 3 - 4  =  5',
  ]
  for text in texts:
    ids = tokenizer.encode(text)
    assert tokenizer.unk_id() not in ids
    assert tokenizer.decode(ids) == text


def test_tokenizer_training_is_the_shipped_file(tmp_path):
  arithmetic.train_tokenizer(tmp_path / 'again.model')
  again = sentencepiece.SentencePieceProcessor(
    model_file=str(tmp_path / 'again.model')
  )
  shipped = sentencepiece.SentencePieceProcessor(
    model_file=str(ROOT / 'configs' / 'arithmetic.model')
  )
  # Pieces, not bytes: the file also holds the trainer's own settings, and they
  # grow with the library's version.
  assert [again.id_to_piece(i) for i in range(len(again))] == [
    shipped.id_to_piece(i) for i in range(len(shipped))
  ]
