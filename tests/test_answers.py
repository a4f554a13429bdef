import jax
import numpy as np
import pytest

from ogls_jax import build, evaluation, hints, rounds
from ogls_jax.answers import Answers
from ogls_jax.batches import Rollouts, pad_rows
from ogls_jax.mesh import AXES
from ogls_jax.tasks.grading import Grader, Grades
from ogls_jax.tasks.question import Question
from tests.small_run import small_config


@pytest.fixture(scope='module')
def grader():
  grader = Grader('arithmetic')
  yield grader
  grader.close()


def question(answer, name='q'):
  return Question(name, '?', answer)


class Recorder:
  """A grader of which the test says when it is done, and what it saw."""

  def __init__(self):
    self.texts = []

  def submit(self, texts, questions):
    self.texts.append(texts)
    reward = [
      float(text == q.answer) / len(text)
      for text, q in zip(texts, questions, strict=True)
    ]
    is_timeout = [text == '7' for text in texts]
    return lambda poll: Grades(np.array(reward), np.array(is_timeout))


def test_what_ends_first_is_graded_while_the_rest_is_sampled():
  tokenizer = build.load_maker(small_config()).tokenizer
  texts = ['12', '3', '456', '7']
  rows = [[*tokenizer.encode(t), tokenizer.eos_id] for t in texts]
  recorder = Recorder()
  questions = [question(text) for text in ('12', '0', '456', '0')]
  answers = Answers(questions, tokenizer, recorder)

  def rollouts(ended):
    """Those in `ended` are over, of the others the end is missing."""
    kept = [row if r in ended else row[:-1] for r, row in enumerate(rows)]
    return Rollouts(
      response_RT=pad_rows(kept, 9),
      length_R=np.array([len(row) for row in kept]),
      log_prob_RT=np.zeros((4, 9)),
      is_truncated_R=np.array([r not in ended for r in range(4)]),
    )

  for ended in ([], [1], [1], [1, 2]):
    answers.take_ended(rollouts(ended))
  assert recorder.texts == [['3'], ['456']]
  answers.take_all(rollouts([1, 2, 3]))  # 0 was cut: it keeps its last token
  assert recorder.texts[2:] == [['12', '7']]
  got, grades = answers.wait()
  assert got == texts
  np.testing.assert_array_equal(
    grades.reward_R, np.float32([1 / 2, 0, 1 / 3, 0])
  )
  np.testing.assert_array_equal(grades.is_timeout_R, [False] * 3 + [True])


def test_workers_grade_as_this_process_does(grader):
  jobs = [
    grader.submit([f'\\boxed{{{i}}}', '\\boxed{1}'], [question('1')] * 2)
    for i in range(3)
  ]
  assert [job().reward_R.tolist() for job in jobs] == [
    [False, True], [True, True], [False, True],
  ]  # fmt: skip
  with pytest.raises(ValueError):
    grader.submit(['a'], [])()


class Timeouts:
  """A grader that reaches a verdict on 1 alone."""

  def submit(self, texts, questions):
    is_one = np.array([text == '1' for text in texts])
    return lambda poll: Grades(is_one.astype(np.float32), ~is_one)


class Tenths:
  """A grader of digits: 7 gets 0.7."""

  def submit(self, texts, questions):
    reward_R = np.array([int(text) / 10 for text in texts], np.float32)
    return lambda poll: Grades(reward_R, np.zeros(len(texts), bool))


def make_rollouts(tokenizer, texts):
  rows = [[*tokenizer.encode(t), tokenizer.eos_id] for t in texts]
  rollouts = Rollouts(
    response_RT=pad_rows(rows, 9),
    length_R=np.array([len(row) for row in rows]),
    log_prob_RT=np.zeros((len(rows), 9), np.float32),
    is_truncated_R=np.zeros(len(rows), bool),
  )
  return jax.device_put(rollouts)


def one_device():
  return jax.make_mesh((1, 1, 1), AXES, devices=jax.devices()[:1])


def round_of(maker, texts, grader, **changes):
  """A round of two questions with two rollouts each."""
  rules = dict(
    method='grpo', group_size=2, is_distilled=False, response_tokens=9,
    tail_tokens=0, bucket_tokens=8, answer_as_solution=False, min_reward=1.0,
    hints=None,
  )  # fmt: skip
  rules = rounds.RoundRules(**(rules | changes))
  questions = [question('1', 'a'), question('1', 'b')]
  rollouts = make_rollouts(maker.tokenizer, texts)
  mesh = one_device()
  with jax.set_mesh(mesh):
    return rounds.sampled_round(
      questions, lambda *_: rollouts, maker, rules, mesh, grader
    )


def test_timeouts_reach_the_metrics_and_count_as_wrong(maker):
  round_ = round_of(maker, '1221', Timeouts())
  assert round_.values['grader_timeouts'] == 2
  assert round_.values['reward_mean'] == 0.5


def test_a_partial_reward_is_the_advantage_and_a_threshold_splits_it(maker):
  round_ = round_of(maker, '7925', Tenths(), min_reward=0.7)
  assert round_.values['reward_mean'] == pytest.approx(0.575)
  assert round_.values['correct_fraction'] == 0.5
  assert round_.values['mixed_group_fraction'] == 0
  assert [sample['reward'] for sample in round_.samples] == [0.7, 0.9, 0.2, 0.5]
  is_correct = [sample['is_correct'] for sample in round_.samples]
  assert is_correct == [True, True, False, False]
  # (0.7 - 0.8) / (0.1 + 1e-6); of right and wrong both groups would have 0.
  np.testing.assert_allclose(
    round_.batch.advantage_R, [-1, 1, -1, 1], rtol=1e-4
  )


def test_the_threshold_splits_the_pools(maker):
  """0.7 and 0.3 at 0.5: of each question the second is steered by the first."""
  for min_reward, num_steered in ((0.5, 2), (0.8, 0), (0.2, 0)):
    round_ = round_of(
      maker, '7373', Tenths(), min_reward=min_reward, method='ogls_sd',
      is_distilled=True, hints=hints.HintRules(False, 0, 9, False),
    )  # fmt: skip
    values = round_.values
    assert values['steered_rollout_fraction'] * 4 == num_steered
    assert values['mixed_group_fraction'] == (num_steered > 0)
    scored = [sample['is_scored'] for sample in round_.samples]
    assert scored == [False, num_steered > 0] * 2


def test_evaluation_counts_timeouts_but_not_those_of_its_filling(maker):
  # The second question of the last batch is filling.
  shares_Q, num_timeouts = evaluate(maker, ['1221', '2212'], Timeouts(), 1.0)
  np.testing.assert_array_equal(shares_Q, [0.5, 0.5, 0])
  assert num_timeouts == 4


def test_evaluation_counts_what_reaches_the_threshold(maker):
  shares_Q, _ = evaluate(maker, ['7699', '0700'], Tenths(), 0.7)
  np.testing.assert_array_equal(shares_Q, [0.5, 1, 0.5])


def evaluate(maker, batches, grader, min_reward):
  """Two samples of each of three questions, two at a time."""
  mesh, batches = one_device(), iter(batches)
  with jax.set_mesh(mesh):
    graded = evaluation.graded_batches(
      lambda _: make_rollouts(maker.tokenizer, next(batches)),
      [question('1', name) for name in 'abc'],
      maker,
      mesh,
      grader=grader,
      batch_questions=2,
      bucket_tokens=8,
    )
    return evaluation.accuracy(graded, min_reward)
