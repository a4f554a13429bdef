"""Writes what each update did, while the device goes on with the next."""

import pathlib
import time

import jax
from ml_collections import config_dict

from ogls_jax import metrics
from ogls_jax.numerics import divide_metrics
from ogls_jax.rounds import Round

# One object a step in metrics.jsonl; null where a method does not have it.
METRICS = (
  'loss', 'tail_loss', 'kl', 'clip_fraction', 'entropy', 'reward_mean',
  'mixed_group_fraction', 'steered_rollout_fraction', 'strength',
  'response_tokens_mean', 'truncated_fraction', 'hints_cut', 'grader_timeouts',
  'rows_skipped',
  'grad_norm', 'learning_rate', 'seconds_sampling', 'seconds_grading',
  'seconds_hints', 'seconds_distill', 'tokens_per_second',
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
  ):
    """Goes on after update `start`; `num_skipped` rows of the data are out."""
    self._config, self._num_skipped = config, num_skipped
    self._writer = metrics.Writer(workdir, start_step=start)
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

  def wait(self) -> None:
    """Waits for the held update; what the device has next can be dispatched."""
    if self._held and not self._done:
      jax.block_until_ready(self._held[1])
      self._done = time.monotonic()

  def flush(self) -> None:
    """Writes about the held update, if there is one.

    Raises:
      FloatingPointError: its loss or gradient is not finite.
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
      self._write(number, values, round_.samples)

  def _write(self, number, values, samples):
    row = {name: values.get(name, float('nan')) for name in METRICS}
    self._writer.metrics(number, row)
    # A loss over no tokens is no number; a gradient always is one.
    has_loss = values.get('steered_rollout_fraction', 1.0) > 0
    metrics.check_finite(
      number, values, ('loss', 'grad_norm') if has_loss else ('grad_norm',)
    )
    log, num_steps = self._config.log, self._config.num_steps
    every = log.samples_every_steps
    if every and (number == 1 or number % every == 0):
      for sample in samples[: log.samples_rollouts]:
        self._writer.sample(number, sample)
    text = ' '.join(
      f'{label} {values[name]:.3f}'
      for label, name in (('reward', 'reward_mean'), ('loss', 'loss'))
      if name in values and (has_loss or name != 'loss')
    )
    self._progress.update(
      number,
      f'{text} {values["tokens_per_second"]:.0f} tokens/s',
      is_printed=number % max(num_steps // 10, 1) == 0 or number < 4,
    )

  def close(self) -> None:
    """Ends the progress line and the events file."""
    self._progress.close()
    self._writer.close()
