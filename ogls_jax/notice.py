"""A stop that is asked for: SIGTERM or SIGINT, on any host."""

import contextlib
import os
import select
import signal
import threading

import jax
from jax.experimental import multihost_utils

from ogls_jax.errors import Preempted

# Clouds give 30 s between the notice and the end of a machine.
_MOST_SECONDS = 25


class StopNotice:
  """Whether a stop is asked for. Outside of its context nothing asks.

  In its context, which the main thread has to enter, the first signal asks; the
  second ends the process at once. So does a first that finds no `check` for 25
  seconds, as within a long compilation: then the last checkpoint counts.

  Several hosts: JAX's own handler of SIGTERM tells the others, and all of them
  stop at the same `check`, with no limit of time; SIGINT is passed on to it.
  """

  def __init__(self, exit_code: int = 0):
    """`exit_code` is that of the first signal without a `check`."""
    self._exit_code, self._num_checks = exit_code, 0
    self._is_asked, self._is_met = False, threading.Event()
    self._earlier, self._earlier_pipe = {}, -1
    self._pipe, self._watcher = (), None

  def __enter__(self):
    numbers = [signal.SIGINT]
    if not jax.distributed.is_initialized():
      numbers.append(signal.SIGTERM)
    self._pipe = os.pipe()
    os.set_blocking(self._pipe[1], False)
    # Python's handlers run between bytecodes, not while XLA compiles; the
    # number of a signal is in the pipe at once.
    self._earlier_pipe = signal.set_wakeup_fd(
      self._pipe[1], warn_on_full_buffer=False
    )
    self._earlier = {
      number: signal.signal(number, lambda *_: None) for number in numbers
    }
    self._watcher = threading.Thread(target=self._watch, daemon=True)
    self._watcher.start()
    return self

  def __exit__(self, *_):
    signal.set_wakeup_fd(self._earlier_pipe)
    for number, handler in self._earlier.items():
      signal.signal(number, handler)
    os.close(self._pipe[1])
    self._watcher.join()
    os.close(self._pipe[0])

  def is_asked(self) -> bool:
    """Whether a stop is asked for: True on all hosts at once.

    All hosts have to call it, or `check`, at the same points of their programs.
    """
    self._num_checks += 1
    if jax.distributed.is_initialized():
      # JAX stops all at the count after the largest, so counts have to go up
      # by one: these are the process's only calls (see `checkpoint.py`).
      is_asked = multihost_utils.reached_preemption_sync_point(self._num_checks)
    else:
      is_asked = self._is_asked
    if is_asked:
      self._is_met.set()
    return is_asked

  def check(self) -> None:
    """Raises Preempted if a stop is asked for, as `is_asked` says."""
    if self.is_asked():
      raise Preempted('what was under way will be done again')

  def poll(self) -> None:
    """As `check` where this is the only process; else it does nothing.

    So it may be called at any point and any number of times.
    """
    if self._is_asked and not jax.distributed.is_initialized():
      self.check()

  def _watch(self):
    most_seconds = None
    while True:
      if not select.select(self._pipe[:1], [], [], most_seconds)[0]:
        most_seconds = None
        if not self._is_met.is_set():
          _end(
            self._exit_code,
            f'no point to stop at within {_MOST_SECONDS} s; the same command'
            ' continues from the last checkpoint',
          )
        continue
      number = os.read(self._pipe[0], 1)
      if not number:
        return
      if number[0] not in self._earlier:
        continue
      if self._is_asked:
        _end(128 + number[0], 'stopped at once; the last checkpoint is whole')
      self._is_asked = True
      _tell('stopping, once all is saved; a second signal stops at once')
      if jax.distributed.is_initialized():
        os.kill(os.getpid(), signal.SIGTERM)
      else:
        most_seconds = _MOST_SECONDS


def _tell(text: str) -> None:
  # Not through a buffer that the main thread may hold. Where nobody reads any
  # more, as behind `| tee` after Ctrl-C, what follows still has to be done.
  with contextlib.suppress(OSError):
    os.write(2, f'{text}\n'.encode())


def _end(code: int, text: str) -> None:
  _tell(text)
  os._exit(code)
