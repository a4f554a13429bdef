"""The process that grades: it reads questions from a pipe until that closes.

A task of a user's own is a Python file; it is loaded here and nowhere else.

It imports neither JAX nor the main program, sees none of the environment's
secrets, and may be killed at any moment. Requests and replies are JSON, so that
nothing it sends can run in the process that started it.
"""

import contextlib
import importlib.util
import json
import math as numbers
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

from ogls_jax.errors import UserError
from ogls_jax.tasks import math, superglue, symbolic
from ogls_jax.tasks.question import Question

# (text, question) to a reward in [0, 1], or None: undecided.
REWARDS = {
  'arithmetic': math.compare,
  'math': math.compare,
  'superglue': superglue.is_correct,
}
# What a task's file is called as a module.
_OWN_TASK = 'ogls_task'
_MIB = 2**20
# The kernel ends a worker so long after its parent should have.
_GRACE_SECONDS = 10
# Of the memory limit: what was in use when an allocation failed.
_NEARLY_ALL = 0.9


def main(descriptor: int, parent: int, limit_mib: int) -> None:
  """Answers requests that come through the pipe `descriptor`.

  Each is {do, seconds, ...} with `do` one of
    load: of task: loads its file, or else imports what `symbolic` needs;
    reward: of task, text and question: in [0, 1], or null for undecided;
    symbolic: of text and question: 0 or 1.
  A reply is {reward, is_full} or {error}; the process ends instead where a
  request takes more than `seconds` or the memory limit.
  """
  resource.setrlimit(resource.RLIMIT_AS, (limit_mib * _MIB,) * 2)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  _end_with(parent)
  pipe = Connection(descriptor)
  pipe.send_bytes(b'ready')
  # What a parser prints of hostile text is not for the terminal.
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  os.dup2(2, 1)
  while True:
    try:
      request = json.loads(pipe.recv_bytes())
    except EOFError:
      return
    # Without a handler SIGALRM ends the process, whatever it is doing.
    signal.alarm(numbers.ceil(request['seconds']) + _GRACE_SECONDS)
    try:
      reply = {'reward': _answer(request)}
    except UserError as error:
      reply = {'error': str(error)}
    except MemoryError:
      os._exit(1)
    signal.alarm(0)
    used = _peak_bytes() / (limit_mib * _MIB)
    if used > _NEARLY_ALL:
      os._exit(1)  # math-verify passes over a MemoryError within
    reply['is_full'] = used > 0.5
    pipe.send_bytes(json.dumps(reply).encode())


def _answer(request) -> float | None:
  task = request['task']
  if request['do'] == 'load':
    if task in REWARDS:
      symbolic.load()
    else:
      _load_own(task)
    return None
  text, reference = request['text'], request['question']['answer']
  if request['do'] == 'reward':
    fields = request['question']
    fields['choices'] = tuple(fields['choices'])
    question = Question(**fields)
    if task not in REWARDS:
      return _own_reward(task, text, question)
    reward = REWARDS[task](text, question)
    if reward is None and symbolic.candidates(text, reference) is None:
      return 0.0
    return None if reward is None else float(reward)
  try:
    return float(symbolic.is_equal(*symbolic.candidates(text, reference)))
  except MemoryError:
    raise
  except Exception:  # whatever sympy raises: it cannot say that they are equal
    return 0.0


def _load_own(path: str) -> None:
  """Runs a task's file, once in the life of this process.

  Raises:
    UserError: that fails, or leaves no function `reward`.
  """
  spec = importlib.util.spec_from_file_location(_OWN_TASK, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[_OWN_TASK] = module  # where dataclasses look for their module
  with _named(path, 'cannot be loaded'):
    spec.loader.exec_module(module)
  if not isinstance(getattr(module, 'reward', None), Callable):
    raise UserError(
      f'data.task = {path} has no function `reward`; it needs'
      ' `def reward(text, question)` that returns a number in [0, 1]'
    )


def _own_reward(path: str, text: str, question: Question) -> float:
  """What the file's `reward` returns, which must be a number in [0, 1]."""
  with _named(path, f'question {question.id!r}'):
    reward = sys.modules[_OWN_TASK].reward(text, question)
    is_number = not isinstance(reward, str) and reward is not None
    number = float(reward) if is_number else numbers.nan
  if not 0 <= number <= 1:
    raise UserError(
      f'data.task = {path}: question {question.id!r}: reward returned'
      f' {repr(reward)[:200]}, which is no number in [0, 1]'
    )
  return number


@contextlib.contextmanager
def _named(path: str, what: str):
  """Turns what a task's file raises into one line, with its own line number."""
  try:
    yield
  except MemoryError:
    raise
  except (Exception, SystemExit) as error:
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename == path
    ]
    place = f'{path}:{lines[-1]}' if lines else path
    reason = ' '.join(str(error).split())[:300]
    raise UserError(
      f'data.task = {place}: {what}: {type(error).__name__}: {reason}'
    ) from error


def _peak_bytes() -> int:
  """The most address space so far; 0 where Linux does not say."""
  try:
    with open('/proc/self/status') as f:
      fields = dict(line.split(':', 1) for line in f)
  except OSError:
    return 0
  return int(fields['VmPeak'].split()[0]) * 1024


def _end_with(parent: int) -> None:
  """Ends this worker when its parent is gone, as after SIGKILL."""

  def watch():
    while os.getppid() == parent:
      time.sleep(1)
    # With the programs that a task's file has started. The group is this
    # worker's own: `sandbox` starts it as the leader of one.
    os.killpg(os.getpid(), signal.SIGKILL)

  threading.Thread(target=watch, daemon=True).start()
