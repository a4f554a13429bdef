"""When stage 2 is saved, and what of the host goes with it."""

import dataclasses
import time
from typing import NoReturn

from ml_collections import config_dict

from ogls_jax.batches import TrainState
from ogls_jax.checkpoint import Checkpointer
from ogls_jax.errors import Preempted
from ogls_jax.reporting import Reporter

# Attempts to save go on for so long where there is nothing else to do, and
# where the machine is about to be taken away.
_MOST_SECONDS_AT_END, _MOST_SECONDS_OF_NOTICE = 3600.0, 10.0


@dataclasses.dataclass
class Counters:
  """Host-side facts of a run that its checkpoints carry along."""

  before: list[float]  # share of correct answers per question at the start
  seconds: dict[str, float]  # wall time by stage
  updates_skipped: float = 0.0


class Saver:
  """Checkpoints of stage 2, with what the host knows of them."""

  def __init__(
    self,
    config: config_dict.ConfigDict,
    counters: Counters,
    checkpointer: Checkpointer,
    reporter: Reporter,
  ):
    self._config, self._counters = config, counters
    self._checkpointer, self._reporter = checkpointer, reporter
    self._began = time.monotonic()

  def is_due(self, number: int) -> bool:
    """Whether update `number` is to be saved, by the config or once more."""
    every_steps = self._config.checkpoint.every_steps
    return self._checkpointer.is_due(number, every_steps=every_steps)

  def save(
    self,
    number: int,
    state: TrainState,
    place: dict,
    share: float | None = None,
  ) -> None:
    """Begins to save, if that has not been done.

    Args:
      number: of the update.
      state: after it.
      place: the iterator's state.
      share: of correct answers, if the model was evaluated.
    """
    position = self._position(place)
    if share is not None:
      self._checkpointer.rate(number, share)
    if number not in self._checkpointer.all_steps():
      first = self._reporter.sync
      self._checkpointer.save(number, state, position, first=first)
    self._reporter.start_clock()

  def save_now(
    self,
    number: int,
    state: TrainState,
    place: dict,
    *,
    is_asked: bool = False,
  ) -> None:
    """The same, and waits until it is on disk; `is_asked`: but not for long."""
    most_seconds = _MOST_SECONDS_OF_NOTICE if is_asked else _MOST_SECONDS_AT_END
    self._checkpointer.save_now(
      number, state, self._position(place),
      first=self._reporter.sync, most_seconds=most_seconds,
    )  # fmt: skip

  def stop(self, number: int, state: TrainState, place: dict) -> NoReturn:
    """Raises Preempted once update `number` is saved."""
    self.settle()
    if number and number not in self._checkpointer.all_steps():
      self.save_now(number, state, place, is_asked=True)
    raise Preempted(f'step {number} is saved')

  def settle(self) -> None:
    """All updates so far are reported, and what was being saved is."""
    self._reporter.flush()
    self._checkpointer.wait()

  def _position(self, place):
    self._reporter.flush()
    self._counters.updates_skipped = self._reporter.updates_skipped
    method, now = self._config.method, time.monotonic()
    seconds = self._counters.seconds
    seconds[method] = seconds.get(method, 0.0) + now - self._began
    self._began = now
    return {'data': place} | dataclasses.asdict(self._counters)
