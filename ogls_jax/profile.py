"""Traces of a few updates, for XProf (TensorBoard) or Perfetto."""

import pathlib
from collections.abc import Callable

import jax


class Profile:
  """Traces updates `first` to `first + num - 1` into `workdir`/profile."""

  def __init__(self, workdir: pathlib.Path, *, first: int, num: int):
    self._folder = workdir / 'profile'
    self._first, self._num = first, num
    self._is_on = False

  def before(self, number: int, finish: Callable[[], None]) -> None:
    """To be called before update `number`; `finish` waits for the device."""
    if self._num and number in (self._first, self._first + self._num):
      finish()
      self.close()
      if number == self._first:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every Python call would be in it
        jax.profiler.start_trace(str(self._folder), profiler_options=options)
        self._is_on = True

  def close(self) -> None:
    """Writes the trace, if one is under way."""
    if self._is_on:
      self._is_on = False
      jax.profiler.stop_trace()
