"""Writes what each update did, while the device goes on with the next."""

import math
import pathlib
import time
from collections.abc import Callable

import jax
from ml_collections import config_dict

from ogls_jax import hosts, metrics
from ogls_jax.errors import UserError
from ogls_jax.health import Health
from ogls_jax.numerics import divide_metrics
from ogls_jax.rounds import Round

# One object a step in metrics.jsonl; null where a method does not have it.
METRICS = (
  'loss', 'tail_loss', 'kl', 'clip_fraction', 'entropy', 'reward_mean',
  'correct_fraction', 'eval_accuracy', 'mixed_group_fraction',
  'steered_rollout_fraction', 'strength', 'response_tokens_mean',
  'truncated_fraction', 'repeated_fraction', 'hints_cut', 'grader_timeouts',
  'rows_skipped', 'updates_skipped', 'warnings', 'grad_norm', 'learning_rate',
  'seconds_sampling', 'seconds_grading', 'seconds_hints', 'seconds_inspection',
  'seconds_distill', 'tokens_per_second',
)  # fmt: skip


class Reporter:
  """Reports updates in order, each once `hold`, `wait` and `flush` have run."""

  def __init__(
    self,
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    *,
    start: int,
    num_skipped: int,
    updates_skipped: float,
    log_also: Callable[[int, dict], None],
  ):
    """Goes on after update `start`.

    Args:
      config: of the run.
      workdir: with what was reported until then.
      start: the update.
      num_skipped: rows of the data that are out.
      updates_skipped: those of a non-finite loss or gradient so far.
      log_also: gets the number of each update and its metrics.
    """
    self._config, self._num_skipped = config, num_skipped
    self._log_also = log_also
    self._writer = metrics.Writer(workdir, start_step=start)
    rows = self._writer.rows
    self._health, self._workdir = Health(rows), workdir
    self.updates_skipped = updates_skipped
    if [row['step'] for row in rows] != list(range(1, start + 1)):
      hosts.say(
        f'warning: {workdir}/metrics.jsonl has lines of {len(rows)} updates,'
        f' and not once each of updates 1 to {start}; the run goes on, and what'
        ' is missing stays so'
      )
    self._progress = metrics.Progress(
      config.method, start=start, total=config.num_steps
    )
    self._held = self._done = None
    self.start_clock()

  def start_clock(self) -> None:
    """The next step's time counts from here, not from the end of the last."""
    self._since = time.monotonic()

  def hold(self, number: int, sums: dict, round_: Round) -> None:
    """Update `number` has been dispatched; `sums` are its metrics to be."""
    self._held = number, sums, round_

  def sync(self) -> None:
    """All that was written is on disk; OSError if it cannot be."""
    self._writer.sync()

  def wait(self) -> None:
    """Waits for the held update; what the device has next can be dispatched."""
    if self._held and not self._done:
      jax.block_until_ready(self._held[1])
      self._done = time.monotonic()

  def flush(self) -> None:
    """Writes about the held update, if there is one.

    Raises:
      FloatingPointError: its loss or gradient is not finite, and so were those
        of too many before.
      UserError: the run has collapsed, and the config says to stop then.
    """
    self.wait()
    if self._held:
      (number, sums, round_), done = self._held, self._done
      self._held = self._done = None
      values = divide_metrics(jax.device_get(sums)) | round_.values
      values['rows_skipped'] = float(self._num_skipped)
      began = self._since
      values['tokens_per_second'] = values['response_tokens'] / (done - began)
      for stage, end in (*round_.ends.items(), ('distill', done)):
        values[f'seconds_{stage}'] = end - began
        began = end
      self._since = done
      self._write(number, values, round_)

  def _write(self, number, values, round_):
    self.updates_skipped += values['is_skipped']
    values['updates_skipped'] = self.updates_skipped
    warnings = self._health.look(values)
    outside = self._health.num_outside
    values['warnings'] = float(sum(num > 0 for num in outside.values()))
    row = {name: values.get(name, float('nan')) for name in METRICS}
    self._writer.metrics(number, row)
    self._log_also(number, row)
    for text in warnings:
      hosts.say(f'warning: step {number}: {text}')
    # A loss over no tokens is no number.
    has_loss = values.get('steered_rollout_fraction', 1.0) > 0
    log, num_steps = self._config.log, self._config.num_steps
    every = log.samples_every_steps
    if every and (number == 1 or number % every == 0):
      for sample in round_.samples[: log.samples_rollouts]:
        self._writer.sample(number, sample)
    for row in round_.make_rows() if round_.make_rows else ():
      self._writer.inspected(number, row)
    self._stop_if_broken(number, values)
    text = ' '.join(
      f'{label} {values[name]:.3f}'
      for label, name in (('reward', 'reward_mean'), ('loss', 'loss'))
      if name in values and (has_loss or name != 'loss')
    )
    # By doubling, too: with a budget num_steps is far beyond the end.
    is_power_of_2 = number & (number - 1) == 0
    is_tenth = number % max(num_steps // 10, 1) == 0
    self._progress.update(
      number,
      f'{text} {values["tokens_per_second"]:.0f} tokens/s',
      is_printed=is_tenth or is_power_of_2 or number == 3,
    )

  def _stop_if_broken(self, number, values):
    if values['is_skipped']:
      most = self._config.optimizer.max_skipped_steps
      names = ('loss', 'tail_loss', 'grad_norm')
      text = ', '.join(
        f'{name} = {values[name]}'
        for name in names
        if name in values and not math.isfinite(values[name])
      )
      text = f'step {number}: {text}'
      if self.updates_skipped > most:
        raise FloatingPointError(
          f'{text}, and optimizer.max_skipped_steps = {most}; the last'
          ' checkpoint is from before it'
        )
      hosts.say(
        f'warning: {text}; the update is skipped,'
        f' {self.updates_skipped:.0f} of at most {most}'
      )
    stop = self._config.stop
    for name, num in self._health.num_outside.items():
      if stop.on_collapse and num >= stop.patience_steps:
        raise UserError(
          f'step {number}: {name} = {values[name]:.3g} has been out of its band'
          f' for {num} updates, and stop.on_collapse = True;'
          f' {self._workdir}/checkpoints has the last steps, and the best by'
          ' eval.every_steps; another config needs another workdir'
        )

  def close(self) -> None:
    """Ends the progress line and the events file."""
    self._progress.close()
    self._writer.close()
