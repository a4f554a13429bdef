"""What a run writes: metrics.jsonl, TensorBoard events, samples, progress."""

import json
import math
import os
import pathlib
import shutil
import time

import rich.console
import rich.progress
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from ogls_jax import hosts
from ogls_jax.errors import UserError
from ogls_jax.json_file import read_rows, replace_bytes


class Lines:
  """Rows of JSON in a file. What cannot be written is kept and tried again."""

  def __init__(self, path: pathlib.Path, *, last_step: int, key: str = 'step'):
    """Rows after `last_step` are dropped, and a last line cut by a crash.

    A run killed between checkpoints repeats the steps after the last one. Rows
    have their step under `key`.

    Raises:
      UserError: a line before the last is broken.
    """
    self._path, self._has_failed = path, False
    self.rows = read_rows(path, last_step, key)
    try:
      replace_bytes(path, b''.join(map(_line, self.rows)))
    except OSError as error:
      raise UserError(
        f'{path} cannot be written ({error.strerror}); mend the disk, or the'
        " file's permissions, and give the same command"
      ) from error
    # Bytes on disk; those after them, and how many of these are written.
    self._size, self._tail, self._num_written = path.stat().st_size, b'', 0

  def add(self, row: dict) -> None:
    """Appends an object; nan and infinities become null."""
    self._tail += _line(row)
    try:
      self._write()
    except OSError as error:
      if not self._has_failed:
        hosts.say(
          f'warning: {self._path} cannot be written ({error}); its lines are'
          ' kept and tried again'
        )
      self._has_failed = True

  def sync(self) -> None:
    """All lines on disk; OSError if they cannot be."""
    try:
      self._write()
      with self._path.open('rb') as file:
        os.fsync(file.fileno())
    except OSError:
      # Linux forgets pages that it could not write: the next fsync says
      # nothing of them.
      self._num_written = 0
      raise
    self._size += len(self._tail)
    self._tail, self._num_written = b'', 0

  def _write(self):
    size = self._size + self._num_written
    with self._path.open('r+b') as file:
      # An attempt that failed may have left a part of a line.
      file.truncate(size)
      file.seek(size)
      file.write(self._tail[self._num_written :])
    self._num_written, self._has_failed = len(self._tail), False


def _line(row: dict) -> bytes:
  clean = {
    key: None
    if isinstance(value, float) and not math.isfinite(value)
    else value
    for key, value in row.items()
  }
  return json.dumps(clean, ensure_ascii=False).encode() + b'\n'


class Writer:
  """Writes one run's metrics and samples under its workdir; the first host."""

  def __init__(self, workdir: pathlib.Path, *, start_step: int):
    self.rows: list[dict] = read_rows(workdir / 'metrics.jsonl', start_step)
    self._files = {}
    if not hosts.is_first():
      return
    self._files = {
      name: Lines(workdir / f'{name}.jsonl', last_step=start_step)
      for name in ('metrics', 'samples', 'inspect')
    }
    self._folder = workdir / 'tensorboard'
    self._events = self._rewritten(self._files['metrics'].rows)

  def metrics(self, step: int, values: dict[str, float]) -> None:
    """One line of metrics.jsonl and one point per curve."""
    if self._files:
      row = {'step': step, 'time': time.time(), **values}
      self._files['metrics'].add(row)
      self._add_events(row)

  def sample(self, step: int, row: dict) -> None:
    """One rollout, in full."""
    if self._files:
      self._files['samples'].add({'step': step, **row})

  def inspected(self, step: int, row: dict) -> None:
    """One rollout, token by token."""
    if self._files:
      self._files['inspect'].add({'step': step, **row})

  def sync(self) -> None:
    """All lines on disk; OSError if they cannot be."""
    for lines in self._files.values():
      lines.sync()

  def close(self) -> None:
    """Closes the events file."""
    if self._files and self._events:
      self._events.close()

  def _rewritten(self, rows):
    """Events are metrics.jsonl once more; a crash may have cut them short."""
    self._events = None
    try:
      shutil.rmtree(self._folder, ignore_errors=True)
      self._folder.mkdir()
      self._events = EventsWriter(str(self._folder / 'events'))
    except OSError as error:
      self._give_up(error)
    for row in rows:
      self._add_events(row)
    return self._events

  def _add_events(self, row):
    if self._events is None:
      return
    try:
      for name, value in row.items():
        if isinstance(value, float) and math.isfinite(value) and name != 'time':
          self._events.write_event(
            event_pb2.Event(
              summary=summary.scalar(name, value), step=row['step'],
              wall_time=row['time'],
            )
          )  # fmt: skip
      self._events.flush()
    except OSError as error:
      self._give_up(error)

  def _give_up(self, error):
    hosts.say(
      f'warning: {self._folder} cannot be written ({error}); its curves are'
      ' written again when the run continues'
    )
    self._events = None


class Progress:
  """One live line on a terminal, else plain lines; of the first host."""

  def __init__(self, stage: str, *, start: int, total: int):
    self._console = rich.console.Console(
      highlight=False, quiet=not hosts.is_first()
    )
    self._stage, self._total = stage, total
    self._start, self._began = start, time.monotonic()
    self._live = None
    if self._console.is_terminal and hosts.is_first():
      self._live = rich.progress.Progress(
        rich.progress.TextColumn('{task.description}'),
        rich.progress.BarColumn(bar_width=20),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn('{task.fields[text]}'),
        rich.progress.TimeRemainingColumn(),
        console=self._console,
      )
      self._task = self._live.add_task(
        stage, total=total, completed=start, text=''
      )
      self._live.start()

  def update(self, done: int, text: str, *, is_printed: bool) -> None:
    """Shows that `done` steps are finished; `is_printed` for plain output."""
    if self._live:
      self._live.update(self._task, completed=done, text=text)
    elif is_printed or done == self._total:
      pace = (time.monotonic() - self._began) / max(done - self._start, 1)
      left = pace * (self._total - done)
      hosts.say(f'{self._stage} {done}/{self._total} {text} eta {left:.0f}s')

  def close(self) -> None:
    """Leaves the terminal as it was."""
    if self._live:
      self._live.stop()


def check_finite(
  step: int, values: dict[str, float], names: tuple[str, ...]
) -> None:
  """Raises FloatingPointError naming the step and the metric.

  A loss over no tokens is nan by division and means nothing was learned, not
  that something broke: callers leave it out of `names`.
  """
  for name in names:
    if not math.isfinite(values[name]):
      raise FloatingPointError(
        f'step {step}: {name} = {values[name]}; the last checkpoint is from'
        ' before it'
      )
