"""A worker process that answers within limits, or is killed and replaced."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from typing import Any

from ogls_jax.errors import UserError

_START_SECONDS = 120
# What a worker may know of the environment; not the tokens and keys in it.
_VARIABLES = ('PATH', 'LD_LIBRARY_PATH', 'LANG', 'LC_ALL', 'TMPDIR')
_MAX_REPLY_BYTES = 2**16
# Not the standard library's pools: their workers import the main program, and
# so JAX. The path is that of this process.
_PROGRAM = (
  'import json, sys; sys.path[:] = json.loads(sys.argv[1]);'
  ' from ogls_jax.tasks import worker;'
  ' worker.main(*map(int, sys.argv[2:]))'
)


class Exceeded(Exception):  # noqa: N818 - an answer's fault, not ours
  """The worker took too long or too much memory; it is gone."""


class Closed(Exception):  # noqa: N818 - asked for
  """The sandbox has been closed."""


class Sandbox:
  """One worker process at a time, started when it is needed."""

  def __init__(self, limit_mib: int):
    self._limit_mib = limit_mib
    self._process = self._pipe = None
    self._is_closed = self._is_loaded = False

  def load(self, task: str) -> None:
    """Gets a worker ready; once for each worker.

    For the rewards of a task's file, or for symbolic requests of other tasks.
    """
    if not self._is_loaded:
      self.ask(_START_SECONDS, do='load', task=task)
      self._is_loaded = True

  def ask(self, seconds: float, **request: Any) -> float | None:
    """The reward that a request (`worker.main`) asks for, within `seconds`.

    Raises:
      Exceeded: the worker is killed; the next request starts another.
      UserError: as in the worker.
    """
    if self._process is None:
      self._start()
    reply, process, is_late = None, self._process, threading.Event()

    def end():
      is_late.set()
      process.kill()

    # Not a limit of `poll` alone: a worker that was stopped does not read, and
    # a long request does not fit the pipe.
    timer = threading.Timer(seconds, end)
    timer.start()
    try:
      message = json.dumps({'seconds': seconds} | request)
      self._pipe.send_bytes(message.encode())
      reply = json.loads(self._pipe.recv_bytes(_MAX_REPLY_BYTES))
    except (EOFError, OSError):
      pass
    finally:
      timer.cancel()
      timer.join()
    if reply is None or is_late.is_set():
      self._stop()
      raise Closed if self._is_closed else Exceeded
    if reply['is_full']:
      self._stop()
    if 'error' in reply:
      raise UserError(reply['error'])
    return reply['reward']

  def close(self) -> None:
    """Ends the worker, whatever it does; from any thread."""
    self._is_closed = True
    process = self._process
    if process is not None:
      _end(process)

  def _start(self):
    if self._is_closed:
      raise Closed
    self._pipe, theirs = multiprocessing.Pipe()
    with theirs:
      self._process = subprocess.Popen(
        [sys.executable, '-c', _PROGRAM, json.dumps(sys.path)]
        + [str(n) for n in (theirs.fileno(), os.getpid(), self._limit_mib)],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if k in _VARIABLES},
        # A signal to the run's group is not for the workers: the run ends them.
        start_new_session=True,
      )
    if self._is_closed:  # meanwhile
      self.close()
    try:
      is_ready = self._pipe.poll(_START_SECONDS)
      is_ready = is_ready and self._pipe.recv_bytes() == b'ready'
    except (EOFError, OSError):
      is_ready = False
    if not is_ready:
      process = self._process
      self._stop()
      if self._is_closed:
        raise Closed
      raise RuntimeError(
        'a grading worker did not start; it ended with exit code'
        f' {process.returncode} and may have said why above'
      )

  def _stop(self):
    _end(self._process)
    self._pipe.close()
    self._process = self._pipe = None
    self._is_loaded = False


def _end(process: subprocess.Popen) -> None:
  """Kills a worker and the programs that it has started."""
  if process.returncode is None:  # so the number is still its own
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
  process.wait()
