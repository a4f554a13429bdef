"""Warnings of a run that goes wrong: figures that leave the band of late.

The band is the median of the last 50 updates, give or take five times the
robust standard deviation, a fourth of the median, or what is listed here,
whichever is largest. All numbers are our choice.
"""

import collections
import dataclasses
import math

import numpy as np

NUM_UPDATES, _FEWEST = 50, 20
_DEVIATIONS, _SHARE = 5.0, 0.25
# The median absolute deviation of a normal distribution is that of one.
_NORMAL = 1.4826


@dataclasses.dataclass(frozen=True)
class _Watch:
  least: float  # half of the narrowest band
  is_low: bool = True  # whether it warns below the band
  is_high: bool = True  # and above it


_WATCHED = {
  'loss': _Watch(0.0, is_low=False),
  'reward_mean': _Watch(0.1, is_high=False),
  'entropy': _Watch(0.05),
  'response_tokens_mean': _Watch(4.0),
  'repeated_fraction': _Watch(0.05, is_low=False),
}


class Health:
  """Looks at the metrics of each update, in order."""

  def __init__(self, rows: list[dict]):
    """`rows` of the updates so far, as in metrics.jsonl."""
    self._last = {
      name: collections.deque(maxlen=NUM_UPDATES) for name in _WATCHED
    }
    # By name: for how many updates it has been outside.
    self.num_outside = dict.fromkeys(_WATCHED, 0)
    for row in rows:
      self.look(row)

  def look(self, values: dict[str, float | None]) -> list[str]:
    """What has just left its band, as texts; then takes the values in.

    What is missing, None or not finite is passed over.
    """
    texts = []
    for name, watch in _WATCHED.items():
      value = values.get(name)
      if value is None or not math.isfinite(value):
        continue
      low, high = self._band(name, watch)
      is_outside = value < low or value > high
      if is_outside and not self.num_outside[name]:
        texts.append(
          f'{name} = {value:.3g} is outside of {low:.3g} to {high:.3g}, the'
          f' band of the last {len(self._last[name])} updates'
        )
      self.num_outside[name] = (self.num_outside[name] + 1) * is_outside
      self._last[name].append(value)
    return texts

  def _band(self, name, watch):
    values = np.array(self._last[name])
    if len(values) < _FEWEST:
      return -math.inf, math.inf
    median = np.median(values)
    deviation = _NORMAL * np.median(np.abs(values - median))
    half = max(
      _DEVIATIONS * deviation, _SHARE * abs(median), watch.least
    )  # fmt: skip
    return (
      median - half if watch.is_low else -math.inf,
      median + half if watch.is_high else math.inf,
    )
