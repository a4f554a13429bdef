"""What a run writes: metrics.jsonl, TensorBoard events, samples, progress."""

import json
import math
import os
import pathlib
import time

import rich.console
import rich.progress
import tensorboardX

from ogls_jax import hosts
from ogls_jax.errors import UserError


def append_json(path: pathlib.Path, row: dict) -> None:
  """Appends one JSON object as a line; nan and infinities become null."""
  clean = {
    key: None
    if isinstance(value, float) and not math.isfinite(value)
    else value
    for key, value in row.items()
  }
  with path.open('a', encoding='utf-8') as file:
    file.write(json.dumps(clean, ensure_ascii=False) + '\n')


def keep_lines_up_to(path: pathlib.Path, step: int) -> None:
  """Drops lines of steps after `step`, and a last line cut by a crash.

  A run killed between checkpoints repeats the steps after the last one; this
  keeps the file free of repeats.

  Raises:
    UserError: a line before the last is broken.
  """
  if not path.exists():
    return
  kept = []
  # Bytes, as text lines also end where JSON strings may hold U+2028. What
  # follows the last newline was cut.
  for number, line in enumerate(path.read_bytes().split(b'\n')[:-1], start=1):
    try:
      row_step = json.loads(line)['step']
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(
        f'{path}:{number}: not a line of a run ({error}); mend it, or move the'
        ' file away'
      ) from error
    if row_step <= step:
      kept.append(line + b'\n')
  partial = path.with_suffix('.partial')
  partial.write_bytes(b''.join(kept))
  os.replace(partial, path)


class Writer:
  """Writes one run's metrics and samples under its workdir; the first host."""

  def __init__(self, workdir: pathlib.Path, *, start_step: int):
    self._events = None
    if not hosts.is_first():
      return
    self._metrics = workdir / 'metrics.jsonl'
    self._samples = workdir / 'samples.jsonl'
    for path in (self._metrics, self._samples):
      keep_lines_up_to(path, start_step)
    self._events = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=start_step + 1
    )

  def metrics(self, step: int, values: dict[str, float]) -> None:
    """One line of metrics.jsonl and one point per curve."""
    if self._events is None:
      return
    append_json(self._metrics, {'step': step, **values})
    for name, value in values.items():
      if math.isfinite(value):
        self._events.add_scalar(name, value, step)

  def sample(self, step: int, row: dict) -> None:
    """One rollout, in full."""
    if self._events is None:
      return
    append_json(self._samples, {'step': step, **row})

  def close(self) -> None:
    """Flushes the events file."""
    if self._events is not None:
      self._events.close()


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
      self._console.print(
        f'{self._stage} {done}/{self._total} {text} eta {left:.0f}s',
        soft_wrap=True,
      )

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
      raise FloatingPointError(f'step {step}: {name} = {values[name]}')
