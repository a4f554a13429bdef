import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ogls_jax.errors import UserError
from ogls_jax.tasks import grading, symbolic
from ogls_jax.tasks.grading import Grader
from ogls_jax.tasks.question import Question

# Stands in for math-verify and does on request what it must not.
STAND_IN = """
import dataclasses, os, time

@dataclasses.dataclass(frozen=True)
class Normalization:
  units: bool = True
  boxed: str = 'all'

@dataclasses.dataclass(frozen=True)
class LatexExtractionConfig:
  boxed_match_priority: int = 50
  normalization_config: Normalization = Normalization()

def parse(text, *_, **__):
  return [text]

def fill():
  kept = []
  while True:
    kept.append(bytearray(2**22))

def verify(_, target, **__):
  what = target[0].split()[1]
  if what == 's$':
    time.sleep(60)
  if what == 'g$':
    sum(range(10**12))  # holds the lock of the interpreter
  if what == 'k$':
    return 'OGLS_TOKEN' not in os.environ and 'PATH' in os.environ
  if what == 'b$':
    bytearray(2**40)
  if what == 'm$':
    fill()
  if what == 'e$':
    try:
      fill()
    except Exception:
      pass
  if what == 'r$':
    raise ValueError('what sympy raises')
  if what == 'd$':
    raise SystemExit(3)
  return True
"""


def question(answer='\\sin y'):
  return Question('q', '?', answer)


def grade(grader, *answers, reference='\\sin y'):
  texts = [f'\\boxed{{{answer}}}' for answer in answers]
  grades = grader.submit(texts, [question(reference)] * len(texts))()
  return grades.reward_R.tolist(), grades.is_timeout_R.tolist()


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
  (tmp_path / 'math_verify.py').write_text(STAND_IN)
  monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def make():
  graders = []

  def make(**arguments):
    graders.append(Grader('math', **arguments))
    return graders[-1]

  yield make
  for grader in graders:
    grader.close()


@pytest.fixture(scope='module')
def grader():
  grader = Grader('math', symbolic_seconds=20)
  yield grader
  grader.close()


def workers():
  return {
    child
    for child in psutil.Process().children(recursive=True)
    if 'worker.main' in ' '.join(child.cmdline())
  }


@pytest.mark.parametrize('what', ['s', 'g'])
def test_a_worker_that_takes_too_long_is_killed_and_replaced(
  stand_in, make, what
):
  before = workers()
  grader = make(symbolic_seconds=1)
  assert grade(grader, '\\sin x') == ([True], [False])
  first = workers() - before
  began = time.monotonic()
  assert grade(grader, *[f'\\sin {what}'] * 2, '\\sin x') == (
    [False, False, True],
    [True, True, False],
  )
  # Sooner than the kernel, which would end them at 1 + 10 seconds.
  assert time.monotonic() - began < 9
  assert not [w for w in first if w.is_running()]


@pytest.mark.parametrize('what', ['m', 'b', 'e', 'd'])
def test_a_worker_that_takes_too_much_memory_is_replaced(stand_in, make, what):
  """`b` asks for all at once; `e` passes over the MemoryError, as sympy may;
  `d` ends by itself.
  """
  grader = make(symbolic_seconds=60, symbolic_mib=512)
  began = time.monotonic()
  assert grade(grader, f'\\sin {what}', '\\sin x', '1') == (
    [False, True, False],
    [True, False, False],
  )
  assert time.monotonic() - began < 40  # it was not the limit of time


def test_what_math_verify_raises_is_no_match(stand_in, make):
  grader = make()
  assert grade(grader, '\\sin r', '\\sin x') == ([False, True], [False, False])


def test_workers_see_no_secrets(stand_in, make, monkeypatch):
  monkeypatch.setenv('OGLS_TOKEN', 'secret')
  assert grade(make(), '\\sin k') == ([True], [False])


def test_zero_seconds_turn_symbolic_equality_off(stand_in, make):
  grader = make(symbolic_seconds=0)
  assert grade(grader, '\\sin x', '\\sin y') == ([False, True], [False, False])


def test_a_plain_comparison_has_a_limit_too(make):
  grader = make(seconds=0.2)
  assert grade(grader, '1', reference='1')[0] == [True]
  long = '\\boxed{1}' * 2_000_000
  grades = grader.submit([long, '\\boxed{1}'], [question('1')] * 2)()
  assert grades.is_timeout_R.tolist() == [True, False]
  assert grades.reward_R.tolist() == [False, True]


def test_a_worker_that_does_not_read_is_replaced(make):
  """Its pipe is full long before the request is sent."""
  before, grader = workers(), make(seconds=1.0)
  assert grade(grader, '1', '1', reference='1')[0] == [True, True]
  for worker in workers() - before:
    worker.suspend()
  began = time.monotonic()
  long = '\\boxed{1}' * 200_000
  grades = grader.submit([long] * 2, [question('1')] * 2)()
  assert grades.is_timeout_R.tolist() == [True, True]
  assert time.monotonic() - began < 10
  assert grade(grader, '1', '1', reference='1')[0] == [True, True]


def test_algebra(grader):
  assert grade(
    grader, '2\\sin x\\cos x', '\\sin x', 'word', 'f(2x)', reference='\\sin 2x'
  ) == ([True, False, False, False], [False] * 4)
  assert grade(grader, 'x + y = 3', reference='y = 3 - x')[0] == [True]


def test_no_text_runs_as_code(grader, tmp_path):
  file = tmp_path / 'made'
  calls = [
    f"__import__('os').system('touch {file}')",
    f"exec(\"open('{file}', 'w')\")",
    f"().__class__.__base__.__subclasses__(); open('{file}','w')",
    f'\\immediate\\write18{{touch {file}}}',
    f'$(touch {file})',
    f'`touch {file}`',
    f'{{0.__class__.open("{file}","w")}}',
  ]
  calls += [f'1 + {call}' for call in calls] + [f'\\sin {c}' for c in calls]
  is_correct, is_timeout = grade(grader, *calls)
  assert not any(is_correct) and not any(is_timeout)
  for call in calls:
    assert not any(grade(grader, '\\sin x', '1', reference=call)[0])
  assert not file.exists()


def test_errors_of_a_worker_arrive(make):
  grader = Grader('superglue')
  with pytest.raises(UserError, match='q has no `choices`'):
    grader.submit(['yes'], [question('yes')])()
  grader.close()


def test_workers_import_no_jax():
  program = 'import sys, ogls_jax.tasks.worker as w;' + (
    "assert not {'jax', 'numpy', 'sympy'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, '-c', program], check=True)


def test_close_ends_workers_that_are_busy(stand_in, make):
  before = workers()
  grader = make(symbolic_seconds=300)
  grader.submit(['\\boxed{\\sin s}'] * 4, [question()] * 4)
  while len(workers() - before) < 2:
    time.sleep(0.05)
  began = time.monotonic()
  mine = workers() - before
  grader.close()
  assert time.monotonic() - began < 5
  assert not psutil.wait_procs(mine, timeout=5)[1]


def test_workers_end_with_a_killed_parent(stand_in, tmp_path):
  """Also one that holds the lock of the interpreter: the kernel ends it."""
  program = tmp_path / 'parent.py'
  program.write_text(
    f"""
import os, psutil, sys, time
sys.path[:0] = [{str(tmp_path)!r}, {str(pathlib.Path().resolve())!r}]
from ogls_jax.tasks.grading import Grader
from ogls_jax.tasks.question import Question
grader = Grader('math', symbolic_seconds=3)
wait = grader.submit(['\\\\boxed{{1}}', '\\\\boxed{{\\\\sin g}}'],
                     [Question('', '', '\\\\sin y')] * 2)
while len(psutil.Process().children()) < 2:
  time.sleep(0.05)
# Has the pipes to the workers as well, and keeps them open.
print(os.fork() or time.sleep(60) or os._exit(0), flush=True)
wait()
"""
  )
  parent = subprocess.Popen(
    [sys.executable, str(program)], stdout=subprocess.PIPE
  )
  forked = int(parent.stdout.readline())
  time.sleep(1.5)  # one is at work on the sum by now
  children = set(psutil.Process(parent.pid).children())
  children.remove(psutil.Process(forked))
  os.kill(parent.pid, signal.SIGKILL)
  parent.wait()
  assert len(children) == 2
  assert not psutil.wait_procs(children, timeout=30)[1]
  os.kill(forked, signal.SIGKILL)


def test_a_missing_math_verify_is_named(monkeypatch):
  monkeypatch.setattr(symbolic.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(UserError, match='seconds = 2.*math-verify.*0'):
    symbolic.check_installed('grading.symbolic_seconds = 2.0')


PIECES = st.lists(
  st.sampled_from(
    ['\\sin', '\\sqrt', '\\frac', '{', '}', '(', ')', '^', 'x', 'y', '1', '2']
    + ['+', '-', '=', '<', ',', '|', '\\cup', '\\pm', ' ', '\\le', '!', '_']
    + ["__import__('os')", '\x00', '\u202e', '9^{9^9}', '\\boxed{']
  ),
  max_size=12,
).map(''.join)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(PIECES | st.text(), min_size=1, max_size=5))
def test_no_text_equals_what_it_cannot_be(grader, texts):
  # No piece has a theta or a 7.
  grades = grader.submit(
    [f'\\boxed{{{text}}}' for text in texts],
    [question('\\tan(\\theta + 7)')] * len(texts),
  )()
  assert not grades.reward_R.any()
  assert grade(grader, '7', reference='7') == ([True], [False])


def test_tasks():
  assert grading.TASKS == ('arithmetic', 'math', 'superglue')
