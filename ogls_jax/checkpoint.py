"""Orbax checkpoints: train state, data position and run counters.

A step counts once it is complete, and every array of it has the checksum with
which it was saved.
"""

import json
import os
import pathlib
import time
import zlib
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ogls_jax import hosts
from ogls_jax.batches import TrainState
from ogls_jax.checksums import checksums_of
from ogls_jax.errors import UserError

_FIRST_WAIT, _LONGEST_WAIT = 5.0, 300.0  # seconds between attempts
# What Orbax and the file systems below it raise where a disk fails.
_DISK_ERRORS = (OSError, ValueError, RuntimeError)


class _Manager(ocp.CheckpointManager):
  """Leaves JAX's count of preemption checks to `notice.StopNotice`."""

  def reached_preemption(self, step: int) -> bool:
    return False


class _Best:
  """Preserves the step of the highest accuracy, the latest of equal ones."""

  def __init__(self, accuracies: dict[int, float]):
    self._accuracies = accuracies

  def should_preserve(self, checkpoints, *, context):
    steps = [info.step for info in checkpoints]
    rated = [step for step in steps if step in self._accuracies]
    best = max(rated, key=lambda x: (self._accuracies[x], x), default=None)
    return [step == best for step in steps]


class DamagedError(Exception):
  """A step whose files are not what was saved."""


class Checkpointer:
  """Saves and restores one run's steps under `folder`; inside `jax.set_mesh`.

  A save that fails is told and tried again with the state that there is then,
  later and later; on several hosts it ends the run.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    *,
    keep: int,
    verify: bool = True,
    is_read_only: bool = False,
  ):
    """Keeps the last `keep` steps, and the one with the best accuracy.

    `verify`: whether restored arrays are compared with their checksums.
    `is_read_only`: for the steps of a run that may be going on.
    """
    self._folder, self._keep = folder.absolute(), keep
    self._verify, self._is_read_only = verify, is_read_only
    # By step, of all that were evaluated; saved with every later step.
    self._accuracies: dict[int, float] = {}
    self._saving = None  # the step that is being saved, until it is on disk
    self._wait, self._retry_at = _FIRST_WAIT, None
    self._manager = self._open()

  def _open(self):
    if self._is_read_only:
      options = ocp.CheckpointManagerOptions(read_only=True)
      return _Manager(self._folder, options=options)
    policies = checkpoint_managers
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(
        [
          policies.LatestN(self._keep),
          _Best(self._accuracies),
        ]
      ),
      # What a save that was cut off has left.
      cleanup_tmp_directories=True,
    )
    return _Manager(self._folder, options=options)

  def all_steps(self) -> list[int]:
    """The complete steps that are kept, ascending."""
    return sorted(self._manager.all_steps())

  def is_due(self, step: int, *, every_steps: int) -> bool:
    """Whether to save: every so many steps, or later once a save has failed."""
    if not self._manager.is_saving_in_progress():
      self.wait()
    if self._retry_at is None:
      return step % every_steps == 0
    return time.monotonic() >= self._retry_at

  def rate(self, step: int, accuracy: float) -> None:
    """Step `step` was evaluated; it may be saved before or after."""
    self._accuracies[step] = accuracy

  def save(
    self,
    step: int,
    state: TrainState,
    position: dict,
    *,
    first: Callable[[], None] = lambda: None,
  ) -> None:
    """Saves without waiting for the disk, but for the save before.

    Args:
      step: updates done.
      state: the arrays.
      position: what JSON can hold.
      first: what has to be on disk before; where it fails nothing is saved.
    """
    self.wait()
    # Key arrays are saved as the integers they wrap.
    state = _with_key(state, jax.random.key_data)
    record = {
      'position': position,
      'checksums': checksums_of(state),
      'accuracies': sorted(self._accuracies.items()),
    }
    record = {'crc32': _crc32(record), **record}
    self._attempt(lambda: self._start(step, state, record, first))

  def save_now(
    self,
    step: int,
    state: TrainState,
    position: dict,
    *,
    first: Callable[[], None] = lambda: None,
    most_seconds: float,
  ) -> None:
    """Saves, and waits until it is on disk.

    Raises:
      UserError: it is not there after `most_seconds` of attempts.
    """
    end = time.monotonic() + most_seconds
    self._wait = _FIRST_WAIT  # the attempts before were those of a busy run
    while True:
      self.save(step, state, position, first=first)
      self.wait()
      if self._retry_at is None:
        return
      if self._retry_at > end:
        raise UserError(
          f'{self._folder}: step {step} cannot be saved; mend the disk and give'
          ' the same command, which continues from the last checkpoint'
        )
      time.sleep(max(self._retry_at - time.monotonic(), 0))

  def _attempt(self, action) -> None:
    try:
      action()
    except _DISK_ERRORS as error:
      is_of_device = isinstance(error, jax.errors.JaxRuntimeError)
      if jax.process_count() > 1 or is_of_device:
        raise
      reason, step = _shortened(error), self._saving
      self._saving = None
      if self._folder.is_dir():
        self._manager = self._open()
        if step in self._manager.all_steps():
          hosts.say(
            f'warning: {self._folder}: step {step} is saved, but an older one'
            f' may not have been removed ({reason})'
          )
          return
      hosts.say(
        f'warning: {self._folder}: step {step} was not saved ({reason}); the'
        f' next attempt is in {self._wait:.0f} s'
      )
      self._retry_at = time.monotonic() + self._wait
      self._wait = min(2 * self._wait, _LONGEST_WAIT)

  def _start(self, step, state, record, first):
    self._saving, self._retry_at = step, None
    first()
    if not self._folder.is_dir():
      raise OSError('the folder is gone')
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(record)
      ),
      force=True,
    )

  def restore_newest(
    self, state: TrainState
  ) -> tuple[int, TrainState, dict] | None:
    """(step, state, position) of the newest good step; None: there is no step.

    Where an older step is good, the damaged ones after it are moved to
    `FOLDER.damaged`, so that others can take their place.

    Raises:
      UserError: there are steps, and none of them is good.
    """
    steps, damaged = self.all_steps(), []
    for step in reversed(steps):
      try:
        found = step, *self._restore(step, state)
      except DamagedError as error:
        hosts.say(f'warning: {error}')
        damaged.append(step)
      else:
        self._move_away(damaged)
        return found
    if steps:
      raise UserError(
        f'{self._folder} has steps {", ".join(map(str, steps))}, and all are'
        ' damaged; bring one back, or start afresh in another workdir'
      )
    return None

  def _move_away(self, steps):
    if not steps:
      return
    target = self._folder.with_name(f'{self._folder.name}.damaged')
    hosts.say(f'warning: steps {steps} are moved to {target}')
    if hosts.is_first():
      target.mkdir(exist_ok=True)
      for step in steps:
        name = f'{step}-{time.time_ns()}'
        os.replace(self._folder / str(step), target / name)
    hosts.largest(0)  # all wait for it
    self._manager.reload()

  def restore(self, step: int, state: TrainState) -> tuple[TrainState, dict]:
    """Step `step` in the structure, shardings and dtypes of `state`.

    Raises:
      UserError: it is damaged.
    """
    try:
      return self._restore(step, state)
    except DamagedError as error:
      raise UserError(f'{error}; choose another step') from error

  def _restore(self, step, state):
    restored, record, reason = self._read(step, state)
    # Before the checksums, which all hosts compute together.
    if hosts.largest(bool(reason))[0]:
      reason = reason or 'to another host'
    elif self._verify:
      found, checksums = checksums_of(restored), record['checksums']
      wrong = [name for name in checksums if found.get(name) != checksums[name]]
      if wrong or len(found) != len(checksums):
        reason = f'checksum of {", ".join(wrong)[:200]}'
    if reason:
      raise DamagedError(
        f'the checkpoint {self._folder / str(step)} is damaged ({reason})'
      )
    self._accuracies.update(record['accuracies'])
    state = _with_key(restored, jax.random.wrap_key_data)
    return state, record['position']

  def _read(self, step, state):
    """(arrays, record, what is wrong with them as this host sees it)."""
    like = _with_key(state, jax.random.key_data)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract),
          position=ocp.args.JsonRestore(),
        ),
      )
      record = dict(restored.position)
      is_same = record.pop('crc32') == _crc32(record)
    except (jax.errors.JaxRuntimeError, MemoryError, PermissionError):
      raise  # of this machine, such as too little memory; the step may be good
    except Exception as error:  # noqa: BLE001 - what damage does is open
      return None, None, f'{type(error).__name__}: {_shortened(error)}'
    return restored.state, record, '' if is_same else 'its JSON record'

  def wait(self) -> None:
    """Until everything is on disk, or has failed."""
    self._attempt(self._manager.wait_until_finished)
    if self._saving is not None and self._retry_at is None:
      self._saving, self._wait = None, _FIRST_WAIT

  def close(self) -> None:
    """Waits until everything is on disk."""
    self.wait()
    self._manager.close()


def _shortened(error: Exception) -> str:
  text = ' '.join(str(error).split())
  # What the system says comes last.
  return text if len(text) < 200 else f'{text[:60]} ... {text[-130:]}'


def _crc32(record: dict) -> int:
  return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _with_key(state: TrainState, convert) -> TrainState:
  return TrainState(
    step=state.step,
    key=convert(state.key),
    params=state.params,
    opt_state=state.opt_state,
    ema_params=state.ema_params,
  )
