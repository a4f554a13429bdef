"""Figures of made-up generations."""

import numpy as np
import pytest

from ogls_jax import evaluation, generations, results
from ogls_jax.intervals import mean_interval
from ogls_jax.tasks import superglue
from ogls_jax.tasks.question import Question
from tests.question_rows import superglue_scores


def multirc(paragraph, question, answer, number):
  fields = {'paragraph_idx': paragraph, 'question_idx': question}
  return Question(
    f'multirc-{number}', '?', answer, choices=('yes', 'no'), fields=fields
  )


def cb(answer, number):
  choices = ('entailment', 'contradiction', 'neutral')
  return Question(f'cb-{number}', '?', answer, choices=choices)


def row(question, response, sample=0, kind='sample'):
  return {
    'kind': kind, 'id': question.id, 'sample': sample, 'response': response,
    'reward': float(response == question.answer), 'is_timeout': False,
    'response_tokens': len(response), 'is_truncated': False,
    'repeated_fraction': 0.0,
  }  # fmt: skip


@pytest.fixture
def asked():
  rng = np.random.default_rng(0)
  questions = [
    multirc(n // 6, n // 3, 'yes' if rng.random() < 0.4 else 'no', n)
    for n in range(90)
  ]
  questions += [
    cb(['entailment', 'neutral', 'contradiction'][n % 3], n) for n in range(30)
  ]
  rows = []
  for question in questions:
    for sample in range(2):
      response = question.answer
      if rng.random() < 0.3:
        response = str(rng.choice([*question.choices, 'perhaps']))
      rows.append(row(question, response, sample))
  return questions, rows


def test_superglue_is_the_mean_over_rollouts_of_its_metrics(asked):
  questions, rows = asked
  found = results.summarize(questions, rows, 1.0)
  expected = [
    superglue_scores(
      (question, rows[2 * q + sample]['response'])
      for q, question in enumerate(questions)
    )
    for sample in range(2)
  ]
  for name in ('multirc/f1a', 'multirc/em', 'cb/accuracy', 'cb/f1'):
    value = np.mean([each[name] for each in expected])
    np.testing.assert_allclose(found[name].mean, value, atol=1e-12)
    assert found[name].low < value < found[name].high
  average = np.mean([each['average'] for each in expected])
  np.testing.assert_allclose(found['average'].mean, average)
  # Six answers to each text: fewer draws than answers, a wider interval.
  width = found['multirc/f1a'].high - found['multirc/f1a'].low
  assert 0.1 < width < 0.5
  correct_Q = np.mean([[r['reward'] for r in rows[n::2]] for n in (0, 1)], 0)
  assert found['avg@2'] == mean_interval(
    correct_Q, superglue.groups_of(questions)
  )
  # The mean's interval by two ways.
  accuracy = results.summarize(
    questions[90:], [r for r in rows if r['id'].startswith('cb')], 1.0
  )
  for side in ('low', 'high'):
    np.testing.assert_allclose(
      getattr(accuracy['cb/accuracy'], side),
      getattr(accuracy['avg@2'], side),
      atol=0.03,
    )


def test_a_generation_says_which_text_it_is_of():
  questions = [
    multirc(7, 0, 'yes', 0),
    multirc(7, 1, 'no', 1),
    cb('neutral', 2),
  ]
  shape = (3, 1)
  batch = evaluation.GradedBatch(
    questions, [['yes']] * 3, np.ones(shape), np.zeros(shape, bool),
    np.ones(shape, int), np.zeros(shape, bool), np.zeros(shape),
  )  # fmt: skip
  groups = [row['group'] for row in generations._rows_of(batch, 'sample')]
  assert groups[0] == groups[1] != groups[2]


def test_texts_that_are_drawn_twice_count_twice():
  """One answer to each text: exact questions are right answers."""
  rng = np.random.default_rng(1)
  questions = [multirc(n, 0, 'yes', n) for n in range(83)]
  rows = [row(q, str(rng.choice(['yes', 'no']))) for q in questions]
  found = results.summarize(questions, rows, 1.0)
  for side in ('mean', 'low', 'high'):
    np.testing.assert_allclose(
      getattr(found['multirc/em'], side), getattr(found['avg@1'], side),
      atol=0.02,
    )  # fmt: skip


def test_nothing_votes_in_a_task_of_ones_own():
  question = Question('1', '?', 'x')
  rows = [row(question, 'Answer: x', n) for n in range(4)]
  found = results.summarize([question], rows, 1.0, has_votes=False)
  unknown = [name for name in found if name.startswith(('maj', 'answered'))]
  assert not unknown


def test_likelihoods_choose_by_sum_token_and_byte():
  answers = ['neutral'] + ['entailment'] * 2 + ['contradiction'] * 3
  questions = [cb(answer, n) for n, answer in enumerate(answers)]
  # By the sum the last choice is the most likely, by token the first.
  rows = [
    {
      'kind': 'likelihood', 'id': question.id, 'log_prob': [-3.0, -9.0, -2.0],
      'num_tokens': [3, 3, 1], 'num_bytes': [10, 99, 7],
    }
    for question in questions
  ]  # fmt: skip
  found = results.summarize(questions, rows, 1.0)
  for n, by in enumerate(('sum', 'token', 'byte'), start=1):
    np.testing.assert_allclose(found[f'likelihood_{by}'].mean, n / 6)
  # F1 of a class that is right once and chosen six times is 2/7, of others 0.
  np.testing.assert_allclose(found['likelihood_sum/cb/f1'].mean, 2 / 21)
  named = [name for name in found if 'likelihood_byte' in name]
  assert named == [
    'likelihood_byte', 'likelihood_byte/cb/accuracy', 'likelihood_byte/cb/f1',
  ]  # fmt: skip


def test_every_name_of_an_entity_is_right():
  question = Question(
    'record-0', '?', 'Rome', choices=('Oslo', 'Roma', 'Rome'),
    fields={'answers': ['Rome', 'Roma']},
  )  # fmt: skip
  for right, log_prob in ((1, [-3, -1, -2]), (0, [-1, -2, -3])):
    row = {
      'kind': 'likelihood', 'id': question.id, 'log_prob': log_prob,
      'num_tokens': [1, 1, 1], 'num_bytes': [4, 4, 4],
    }  # fmt: skip
    found = results.summarize([question], [row], 1.0)
    assert found['likelihood_sum'].mean == right


def test_a_response_without_a_final_answer_is_told_from_a_wrong_one():
  questions = [cb('neutral', 0), Question('1', '?', '7')]
  texts = ['neutral', 'entailment', 'not neutral']
  texts += ['7', r'\boxed{8}', r'\boxed{1}']
  rows = [row(questions[n // 3], text, n % 3) for n, text in enumerate(texts)]
  found = results.summarize(questions, rows, 1.0)
  np.testing.assert_allclose(found['answered_fraction'].mean, 2 / 3)


def test_votes_count_by_what_they_say():
  """1200 has two of four, however it is spelled."""
  question = Question('1', '?', '1200')
  texts = [r'\boxed{1200}', r'\boxed{1,200}', r'\boxed{7}', r'\boxed{8}']
  rows = [row(question, text, n) for n, text in enumerate(texts)]
  for right in (0, 1):
    rows[right]['reward'] = 1.0
  found = results.summarize([question], rows, 1.0)
  assert found['avg@4'].mean == 0.5 and found['pass@4'].mean == 1.0
  assert found['maj@4'].mean == 1.0
  np.testing.assert_allclose(found['pass@2'].mean, 1 - 1 / 6)
  assert 'reward' not in found  # it is the average


def test_the_table_has_a_line_each():
  found = {'avg@1': results.mean_interval(np.array([0.0, 1.0]))}
  text = results.table(found)
  assert text.splitlines()[-1] == '| avg@1 | 50.0% | 0.0% to 100.0% |'
