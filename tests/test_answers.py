import time

import numpy as np
import psutil
import pytest

from ogls_jax import build
from ogls_jax.answers import Answers
from ogls_jax.batches import Rollouts, pad_rows
from ogls_jax.tasks.grading import Grader
from ogls_jax.tasks.question import Question
from tests.test_train import small_config


class Slow(str):
  """An answer that takes a minute to look at."""

  def strip(self, *_):
    time.sleep(60)


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
    return lambda: np.array(
      [text == q.answer for text, q in zip(texts, questions, strict=True)]
    )


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
  got, is_correct_R = answers.wait()
  assert got == texts
  np.testing.assert_array_equal(is_correct_R, [True, False, True, False])


def test_workers_grade_as_this_process_does(grader):
  jobs = [
    grader.submit([f'\\boxed{{{i}}}', '\\boxed{1}'], [question('1')] * 2)
    for i in range(3)
  ]
  assert [job().tolist() for job in jobs] == [
    [False, True], [True, True], [False, True],
  ]  # fmt: skip
  with pytest.raises(ValueError):
    grader.submit(['a'], [])()


def test_an_answer_that_hangs_is_named_and_its_worker_ended():
  others = psutil.Process().children(recursive=True)
  grader = Grader('math', most_seconds=3)
  job = grader.submit(['\\boxed{1}'], [question(Slow('1'), name='slow-7')])
  with pytest.raises(TimeoutError, match='1 answers .* 3 s; .* slow-7'):
    job()
  workers = set(psutil.Process().children(recursive=True)) - set(others)
  began = time.monotonic()
  grader.close()
  assert time.monotonic() - began < 30
  gone, alive = psutil.wait_procs(workers, timeout=10)
  assert gone
  assert not [p for p in alive if 'resource_tracker' not in str(p.cmdline())]
