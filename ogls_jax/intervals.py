"""95% intervals over questions and seeds, and paired tests.

Over training seeds, of which there are few: Student's t, for values that are
normal. It covers chance in the weights, the order of the data and the rollouts.

Over questions: the bootstrap, which draws them with replacement (percentile
intervals; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13)
and so covers chance in which questions were asked and in their rollouts, not in
training.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.stats

_LEVEL = 0.95
_NUM_OF_MEANS = 10_000
# Of figures that are no means, and slower.
NUM_RESAMPLES = 1_000
# Entries of a block of resamples.
_BLOCK = 2**22


@dataclasses.dataclass(frozen=True)
class Interval:
  """A figure and its 95% interval; shares are in [0, 1]."""

  mean: float
  low: float
  high: float

  def __str__(self):
    return f'{self.mean:.1%} [{self.low:.1%}, {self.high:.1%}]'


@dataclasses.dataclass(frozen=True)
class Paired:
  """How much more one side has than another on the same questions.

  Attributes:
    difference: of the means.
    p_value: of no difference, two-sided, by random flips of signs.
  """

  difference: Interval
  p_value: float


def mean_interval(values_Q: np.ndarray) -> Interval:
  """The mean of one value per question, finite, and its interval.

  Raises:
    ValueError: there is no value.
  """
  values_Q = np.asarray(values_Q, np.float64)
  mean, num = float(values_Q.mean()), len(values_Q)
  if not num:
    raise ValueError('no questions')
  if (values_Q == values_Q[0]).all():  # also where there is one
    return Interval(mean, mean, mean)
  found = scipy.stats.bootstrap(
    (values_Q,),
    np.mean,
    n_resamples=_NUM_OF_MEANS,
    batch=max(_BLOCK // num, 1),
    confidence_level=_LEVEL,
    method='percentile',
    rng=np.random.default_rng(0),
  )
  low, high = found.confidence_interval
  return Interval(mean, float(low), float(high))


def draw_places(groups: Sequence, *, seed: int) -> Iterator[list[int]]:
  """Places of questions, `NUM_RESAMPLES` times, some more than once.

  For figures that are no means, such as F1.

  Args:
    groups: of each question; what shares one, such as a text, is drawn
      together.
    seed: of the draws.
  """
  places = {}
  for place, group in enumerate(groups):
    places.setdefault(group, []).append(place)
  places, rng = list(places.values()), np.random.default_rng(seed)
  for draw in rng.integers(0, len(places), (NUM_RESAMPLES, len(places))):
    yield [place for i in draw for place in places[i]]


def seed_interval(values_S: np.ndarray) -> Interval | None:
  """The mean over seeds and its t interval; None for one seed, which has none.

  mean +- t(0.975; S - 1) s / sqrt(S), with s the sample's standard deviation.
  """
  values_S = np.asarray(values_S, np.float64)
  mean, num = float(values_S.mean()), len(values_S)
  if num < 2:
    return None
  error = values_S.std(ddof=1) / num**0.5
  half = float(scipy.stats.t.ppf((1 + _LEVEL) / 2, num - 1) * error)
  return Interval(mean, mean - half, mean + half)


def interval_of(value: float, resampled_N: Sequence[float]) -> Interval:
  """The interval of a figure from its values for draws."""
  levels = [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]
  low, high = np.quantile(resampled_N, levels)
  return Interval(float(value), float(low), float(high))


def paired(values_Q: np.ndarray, others_Q: np.ndarray) -> Paired:
  """`values_Q` less `others_Q`, of the same questions in the same order."""
  difference_Q = np.asarray(values_Q, np.float64) - others_Q
  if not difference_Q.any():
    return Paired(Interval(0.0, 0.0, 0.0), 1.0)
  found = scipy.stats.permutation_test(
    (difference_Q,),
    np.mean,
    permutation_type='samples',
    n_resamples=_NUM_OF_MEANS,
    batch=max(_BLOCK // len(difference_Q), 1),
    rng=np.random.default_rng(0),
  )
  return Paired(mean_interval(difference_Q), float(found.pvalue))
