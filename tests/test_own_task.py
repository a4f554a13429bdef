"""A task in a file of the user's own: loaded, limited and refused."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ogls_jax import build, train
from ogls_jax import validate as validate_lib
from ogls_jax.errors import UserError
from ogls_jax.tasks.grading import Grader
from ogls_jax.tasks.question import Question
from tests.small_run import read_rows, small_config

QUESTION = Question(
  'q', 'How?', 'a', 's', ('a', 'b'), {'tests': [1, {'of': None}]}
)


@pytest.fixture
def grade(tmp_path):
  """Rewards and timeouts of texts by a file with this program."""
  graders = []

  def grade(program, *texts, **limits):
    file = tmp_path / 'own.py'
    file.write_text(program)
    graders.append(Grader(str(file), **limits))
    grades = graders[-1].submit(texts, [QUESTION] * len(texts))()
    return grades.reward_R.tolist(), grades.is_timeout_R.tolist()

  grade.graders = graders
  yield grade
  for grader in graders:
    grader.close()


def test_rewards_are_numbers_or_bools(grade):
  program = (
    'REWARDS = {"0.25": 0.25, "True": True, "0": 0, "1": 1, "False": False}\n'
    'def reward(text, question): return REWARDS[text]'
  )
  assert grade(program, '0.25', 'True', '0', '1', 'False')[0] == [
    0.25, 1, 0, 1, 0,
  ]  # fmt: skip


def test_it_sees_the_whole_question(grade):
  program = (
    'from ogls_jax.tasks.question import Question\n'
    f'EXPECTED = {QUESTION!r}\n'
    'def reward(text, question): return question == EXPECTED'
  )
  assert grade(program, 'x')[0] == [1]


def test_it_is_loaded_once_and_only_by_workers(grade, tmp_path):
  program = (
    'import os, pathlib\n'
    f'with open({str(tmp_path / "pids")!r}, "a") as f:\n'
    '  print(os.getpid(), file=f)\n'
    'def reward(text, question): return 1'
  )
  assert grade(program, *'abcdefgh')[0] == [1] * 8
  pids = (tmp_path / 'pids').read_text().split()
  assert len(pids) == len(set(pids)) <= 2
  assert str(os.getpid()) not in pids and 'ogls_task' not in sys.modules


@pytest.mark.parametrize(
  ('program', 'problem'),
  [
    ('\n\nimport nothing_of_this_name', r'own.py:3: cannot be loaded: Module'),
    ('def reward(', r'own.py: cannot be loaded: SyntaxError'),
    ('raise SystemExit(3)', r'own.py:1: cannot be loaded: SystemExit: 3'),
    ('REWARD = 1', r'own.py has no function `reward`'),
    ('reward = 1', r'own.py has no function `reward`'),
    (
      'def reward(text, question):\n  return 1 / 0',
      r"own.py:2: question 'q': ZeroDivisionError",
    ),
    ('def reward(text, question): return 1.5', r"'q': reward returned 1.5, "),
    ('def reward(text, question): return -1', r'returned -1, which is no'),
    ('def reward(text, question): return None', r'returned None, which is no'),
    ('def reward(text, question): return "1"', r"returned '1', which is no"),
    ('def reward(text, question): return float("nan")', r'returned nan, which'),
    ('def reward(text, question): return []', r"'q': TypeError"),
    ('def reward(text): return 1', r"'q': TypeError.*1 positional argument"),
  ],
)
def test_a_file_that_is_no_task_is_one_line(tmp_path, program, problem):
  file = tmp_path / 'own.py'
  file.write_text(program)
  config = small_config(data__task=str(file))
  with pytest.raises(UserError, match=problem) as error:
    build.check_task(config, QUESTION)
  assert str(error.value).startswith(f'data.task = {tmp_path}')
  assert '\n' not in str(error.value)


def test_a_slow_or_large_answer_gets_nothing(grade):
  program = (
    'import time\n'
    'def reward(text, question):\n'
    '  if text == "slow": time.sleep(60)\n'
    '  if text == "large": bytearray(2**40)\n'
    '  return 1'
  )
  began = time.monotonic()
  assert grade(program, 'slow', 'a', 'large', 'b', seconds=1) == (
    [0, 1, 0, 1],
    [True, False, True, False],
  )
  assert time.monotonic() - began < 30


def test_a_task_that_is_slow_from_the_start_is_refused(tmp_path):
  file = tmp_path / 'own.py'
  file.write_text('def reward(text, question):\n  while True: pass')
  config = small_config(data__task=str(file), grading__seconds=0.5)
  with pytest.raises(UserError, match='own.py: to load.*grading.seconds'):
    build.check_task(config, QUESTION)


SLEEPER = """
import subprocess
def reward(text, question):
  subprocess.run(['sleep', '98.7'])
"""


def sleepers():
  found = set()
  for process in psutil.process_iter(['cmdline']):
    if process.info['cmdline'] == ['sleep', '98.7']:
      found.add(process)
  return found


def test_programs_of_a_task_end_with_its_worker(grade):
  before = sleepers()
  assert grade(SLEEPER, 'x', seconds=1.5)[1] == [True]
  grader = grade.graders[0]
  assert not psutil.wait_procs(sleepers() - before, timeout=5)[1]
  grader.submit(['x'], [QUESTION])
  while not sleepers() - before:
    time.sleep(0.05)
  grader.close()
  assert not psutil.wait_procs(sleepers() - before, timeout=5)[1]


def test_programs_of_a_task_end_with_a_killed_run(tmp_path):
  (tmp_path / 'own.py').write_text(SLEEPER)
  program = (
    'from ogls_jax.tasks.grading import Grader\n'
    'from ogls_jax.tasks.question import Question\n'
    f'grader = Grader({str(tmp_path / "own.py")!r})\n'
    'grader.submit(["x"], [Question("", "", "")])()'
  )
  before = sleepers()
  parent = subprocess.Popen([sys.executable, '-c', program])
  while not sleepers() - before:
    time.sleep(0.05)
  os.kill(parent.pid, signal.SIGKILL)
  parent.wait()
  assert not psutil.wait_procs(sleepers() - before, timeout=15)[1]


def test_a_built_in_task_needs_no_check(monkeypatch):
  monkeypatch.setattr(Grader, 'submit', None)  # not even a worker
  build.check_task(small_config(), QUESTION)


def test_validate_knows_tasks(tmp_path):
  config = small_config(data__task='own.py', warmup__num_steps=0)
  with pytest.raises(UserError, match="data.task = 'own.py' is no file"):
    validate_lib.validate(config, 1)
  config.data.task = 'own'
  with pytest.raises(UserError, match="'own' is none of: arith.*end in .py"):
    validate_lib.validate(config, 1)
  config.data.task = str(tmp_path / 'own.py')
  (tmp_path / 'own.py').touch()
  validate_lib.validate(config, 1)


def arithmetic_rows(path):
  rows = [
    {'id': f'q{i}', 'question': f'{i} + 1', 'answer': str(i)} for i in range(9)
  ]
  path.write_text('\n'.join(map(json.dumps, rows)))
  return str(path)


def test_a_run_with_partial_rewards(tmp_path):
  (tmp_path / 'own.py').write_text(
    'def reward(text, question): return len(text) % 3 / 2'
  )
  config = small_config(
    data__task=str(tmp_path / 'own.py'),
    data__path=arithmetic_rows(tmp_path / 'a.jsonl'),
    warmup__num_steps=0, eval__num_questions=0, num_steps=1,
    rollouts__group_size=4, hints__min_reward=0.5, log__samples_rollouts=32,
    log__samples_every_steps=1,
  )  # fmt: skip
  train.train(config, tmp_path / 'run')
  values = read_rows(tmp_path / 'run' / 'metrics.jsonl')[0]
  samples = read_rows(tmp_path / 'run' / 'samples.jsonl')
  rewards = [sample['reward'] for sample in samples]
  assert set(rewards) == {0, 0.5, 1}
  assert values['reward_mean'] == pytest.approx(sum(rewards) / 32)
  for sample in samples:
    assert sample['reward'] == len(sample['response']) % 3 / 2
    assert sample['is_correct'] == (sample['reward'] > 0)
    assert not (sample['is_scored'] and sample['is_correct'])
  num_steered = values['steered_rollout_fraction'] * 32
  assert 0 < num_steered <= rewards.count(0)


def test_a_bad_task_ends_the_run_before_it_begins(tmp_path, monkeypatch):
  (tmp_path / 'own.py').write_text('def reward(text, question): return 2')
  config = small_config(
    data__task=str(tmp_path / 'own.py'),
    data__path=arithmetic_rows(tmp_path / 'a.jsonl'),
    warmup__num_steps=0,
    eval__num_questions=0,
  )
  monkeypatch.setattr(build, 'base_model', None)  # not even weights are made
  with pytest.raises(UserError, match='own.py.*returned 2'):
    train.train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
