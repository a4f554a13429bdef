import jax
import numpy as np
import pytest

from ogls_jax import build, evaluation, rounds
from ogls_jax.answers import Answers
from ogls_jax.batches import Rollouts, pad_rows
from ogls_jax.mesh import AXES
from ogls_jax.tasks.grading import Grader, Grades
from ogls_jax.tasks.question import Question
from tests.test_train import small_config


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
    is_correct = [
      text == q.answer for text, q in zip(texts, questions, strict=True)
    ]
    is_timeout = [text == '7' for text in texts]
    return lambda poll: Grades(np.array(is_correct), np.array(is_timeout))


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
  np.testing.assert_array_equal(grades.is_correct_R, [True, False, True, False])
  np.testing.assert_array_equal(grades.is_timeout_R, [False] * 3 + [True])


def test_workers_grade_as_this_process_does(grader):
  jobs = [
    grader.submit([f'\\boxed{{{i}}}', '\\boxed{1}'], [question('1')] * 2)
    for i in range(3)
  ]
  assert [job().is_correct_R.tolist() for job in jobs] == [
    [False, True], [True, True], [False, True],
  ]  # fmt: skip
  with pytest.raises(ValueError):
    grader.submit(['a'], [])()


class Timeouts:
  """A grader that reaches a verdict on 1 alone."""

  def submit(self, texts, questions):
    is_one = np.array([text == '1' for text in texts])
    return lambda poll: Grades(is_one, ~is_one)


def make_rollouts(tokenizer, texts):
  rows = [[*tokenizer.encode(t), tokenizer.eos_id] for t in texts]
  rollouts = Rollouts(
    response_RT=pad_rows(rows, 9),
    length_R=np.array([len(row) for row in rows]),
    log_prob_RT=np.zeros((len(rows), 9), np.float32),
    is_truncated_R=np.zeros(len(rows), bool),
  )
  return jax.device_put(rollouts)


def test_timeouts_reach_the_metrics_and_count_as_wrong(maker):
  mesh = jax.make_mesh((1, 1, 1), AXES, devices=jax.devices()[:1])
  rules = rounds.RoundRules(
    method='grpo', group_size=2, is_distilled=False, response_tokens=9,
    tail_tokens=0, bucket_tokens=8, answer_as_solution=False, hints=None,
  )  # fmt: skip
  questions = [question('1', 'a'), question('1', 'b')]
  rollouts = make_rollouts(maker.tokenizer, '1221')
  with jax.set_mesh(mesh):
    round_ = rounds.sampled_round(
      questions,
      lambda *_: rollouts,
      maker,
      rules,
      mesh,
      Timeouts(),
    )
  assert round_.values['grader_timeouts'] == 2
  assert round_.values['reward_mean'] == 0.5


def test_evaluation_counts_timeouts_but_not_those_of_its_filling(maker):
  mesh = jax.make_mesh((1, 1, 1), AXES, devices=jax.devices()[:1])
  batches = iter(['1221', '2212'])  # the second question of the last is filling
  with jax.set_mesh(mesh):
    shares_Q, num_timeouts = evaluation.evaluate(
      lambda _: make_rollouts(maker.tokenizer, next(batches)),
      [question('1', name) for name in 'abc'],
      maker,
      mesh,
      grader=Timeouts(),
      batch_questions=2,
      bucket_tokens=8,
    )
  np.testing.assert_array_equal(shares_Q, [0.5, 0.5, 0])
  assert num_timeouts == 4
