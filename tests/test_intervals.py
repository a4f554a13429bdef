import itertools

import numpy as np
import pytest
import scipy.stats

from ogls_jax import intervals, scores
from ogls_jax.tasks.question import Question


def test_the_interval_covers_the_mean_as_often_as_it_says():
  rng = np.random.default_rng(0)
  num_covered = 0
  for _ in range(150):
    # Eight rollouts of each of 60 questions of different difficulty.
    chance_Q = rng.beta(1, 2, 60)
    found = intervals.mean_interval(rng.binomial(8, chance_Q) / 8)
    num_covered += found.low <= 1 / 3 <= found.high
  # 95% of 150 is 142.5; the chance of fewer than 135 is below 1%.
  assert 135 <= num_covered <= 149


def test_the_interval_is_about_two_standard_errors():
  values_Q = np.random.default_rng(1).normal(size=400)
  found = intervals.mean_interval(values_Q)
  error = values_Q.std() / 20
  assert found.mean == values_Q.mean()
  np.testing.assert_allclose(
    [found.low, found.high],
    [found.mean - 1.96 * error, found.mean + 1.96 * error],
    atol=0.1 * error,
  )
  assert intervals.mean_interval([0.5]) == intervals.Interval(0.5, 0.5, 0.5)
  with pytest.raises(ValueError, match='no questions'):
    intervals.mean_interval([])


def test_the_interval_over_seeds_is_that_of_students_t():
  # Mean 3, s^2 = (4 + 1 + 9) / 2 = 7, t(0.975; 2) = 4.30265 of any table.
  found = intervals.seed_interval([1, 2, 6])
  half = 4.30265 * (7 / 3) ** 0.5
  np.testing.assert_allclose(
    [found.mean, found.low, found.high], [3, 3 - half, 3 + half], rtol=1e-5
  )
  assert intervals.seed_interval([1]) is None
  assert intervals.seed_interval([2, 2]) == intervals.Interval(2, 2, 2)


def test_what_belongs_together_is_drawn_together():
  """Ten copies of each value say no more than one."""
  values = np.random.default_rng(2).normal(size=40)
  copies, groups = np.repeat(values, 10), np.repeat(np.arange(40), 10)
  found, of_copies, apart = (
    intervals.mean_interval(*of)
    for of in ((values,), (copies, groups), (copies,))
  )
  np.testing.assert_allclose(
    [of_copies.low, of_copies.high], [found.low, found.high], rtol=1e-6
  )
  assert apart.high - apart.low < (found.high - found.low) / 2


def test_weights_are_of_draws_with_replacement():
  """The spread of the mean, drawn so, is its standard error."""
  values_P = np.random.default_rng(2).normal(size=60)
  weights_NP = intervals.draw_weights(60, seed=0)
  assert (weights_NP.sum(1) == 60).all() and weights_NP.max() > 2
  error = values_P.std() / 60**0.5
  spread = (weights_NP @ values_P / 60).std()
  np.testing.assert_allclose(spread, error, rtol=0.1)


def test_a_test_of_questions_on_one_text_is_not_too_sure():
  """20 texts of 10 questions; no difference but chance by text: 5% reject."""
  rng, rejected = np.random.default_rng(4), {'texts': 0, 'questions': 0}
  groups = np.repeat(np.arange(20), 10)
  for _ in range(40):
    by_text_P = rng.normal(0, 0.3, 20)
    ours_Q = by_text_P[groups] + rng.normal(0, 0.3, 200)
    of_texts = intervals.paired(ours_Q, np.zeros(200), groups)
    rejected['texts'] += of_texts.p_value < 0.05
    apart = intervals.paired(ours_Q, np.zeros(200))
    rejected['questions'] += apart.p_value < 0.05
  assert rejected['texts'] <= 5 and rejected['questions'] >= 15


def test_one_question_says_nothing():
  found = intervals.paired([1.0], [0.0])
  assert found == intervals.Paired(intervals.Interval(1.0, 1.0, 1.0), 1.0)


def test_pairs_see_what_two_intervals_do_not():
  rng = np.random.default_rng(3)
  base_Q = rng.uniform(size=80)
  better_Q = base_Q + rng.normal(0.05, 0.15, 80)
  found = intervals.paired(better_Q, base_Q)
  assert found.difference.low > 0
  ours, theirs = map(intervals.mean_interval, (better_Q, base_Q))
  assert ours.low < theirs.high
  expected = scipy.stats.ttest_rel(better_Q, base_Q).pvalue
  np.testing.assert_allclose(found.p_value, expected, atol=0.01)
  swapped = intervals.paired(base_Q, better_Q)
  assert swapped.difference.mean == -found.difference.mean
  assert intervals.paired(base_Q, base_Q).p_value == 1


@pytest.mark.parametrize('num', [1, 2, 5, 8])
def test_pass_at_k_is_the_mean_over_all_choices_of_k(num):
  for num_correct, k in itertools.product(range(num + 1), range(1, num + 1)):
    is_correct = [i < num_correct for i in range(num)]
    chosen = list(itertools.combinations(is_correct, k))
    expected = sum(map(any, chosen)) / len(chosen)
    (found,) = scores.pass_at(num, np.array([num_correct]), k)
    np.testing.assert_allclose(found, expected, atol=1e-12)
  with pytest.raises(ValueError, match='k = 0'):
    scores.pass_at(num, np.array([0]), 0)


@pytest.mark.parametrize(
  ('answers', 'is_correct', 'expected'),
  [
    ('aab', [1, 1, 0], 1), ('abb', [1, 0, 0], 0), ('ab', [1, 0], 0.5),
    ('aabbc', [1, 1, 0, 0, 0], 0.5), ([None, None, 'a'], [0, 0, 1], 1),
    ([None, None], [0, 0], 0), ('aabbc', [0, 0, 0, 0, 1], 0),
    ('aaab', [1, 0, 0, 1], 1 / 3), ('aaab', [0, 0, 1, 1], 1 / 3),
  ],
)  # fmt: skip
def test_the_most_votes_win(answers, is_correct, expected):
  assert scores.majority(list(answers), is_correct) == expected


def test_what_a_response_votes_for():
  number = Question('1', '?', '1200')
  texts = [
    r'so \boxed{1,200}', r'\boxed{x}', r'\boxed{\frac12}', r'\boxed{ .5}',
    r'\boxed{50\%}', r'\boxed{5\text{ cm}}', r'\boxed{5}', r'\boxed{x + 1}',
    r'\boxed{x+1}', 'seven', r'\boxed{1\,200}', f'\\boxed{{{"3" * 5000}}}',
  ]  # fmt: skip
  answers = [scores.answer_of(text, number) for text in texts]
  assert answers[9] is None
  # The grader was late with the last but one, and had symbols for x.
  is_correct = [n < 2 for n in range(12)]
  assert scores.votes_of(answers, is_correct, number) == [
    '1200', '1200', '1/2', '1/2', '50', '5', '5', 'x+1', 'x+1', None, '1200',
    '3' * 5000,
  ]  # fmt: skip
  choice = Question('2', '?', 'yes', choices=('yes', 'no'))
  votes = ['The answer is Yes.', r'\boxed{yes}', 'no', 'perhaps']
  answers = [scores.answer_of(text, choice) for text in votes]
  assert answers == ['yes', 'yes', 'no', None]
  assert scores.votes_of(answers, [False] * 4, choice) == answers


def test_markers_are_words():
  text = 'Wait, let me re-read. Hmm... awaiting the waiter. However: a MISTAKE.'
  assert scores.num_markers(text) == 5
  text = 'Let me reconsider, let me re-check: no mistakes. Let me read, return.'
  assert scores.num_markers(text) == 3
  text = 'Let me redo it. Let me re-do it, and let me do it.'
  assert scores.num_markers(text) == 2
