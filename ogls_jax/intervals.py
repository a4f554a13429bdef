"""95% intervals over questions and seeds, and paired tests.

Over training seeds, of which there are few: Student's t, for values that are
normal. It covers chance in the weights, the order of the data and the rollouts.

Over questions: the bootstrap, which draws them with replacement (percentile
intervals; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13)
and so covers chance in which questions were asked and in their rollouts, not in
training. Questions of one group, such as those on one text, are drawn together.
"""

import dataclasses
from collections.abc import Sequence

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


def mean_interval(
  values_Q: Sequence[float], groups: Sequence[str] | None = None
) -> Interval:
  """The mean of one value per question, finite, and its interval.

  Args:
    values_Q: of Q questions.
    groups: of each question; None: each is one of its own.

  Raises:
    ValueError: there is no value.
  """
  values_Q = np.asarray(values_Q, np.float64)
  if not len(values_Q):
    raise ValueError('no questions')
  mean = float(values_Q.mean())
  sums_P = group_sums(np.stack([values_Q, np.ones_like(values_Q)], 1), groups)
  shares_P = sums_P[:, 0] / sums_P[:, 1]
  if (shares_P == shares_P[0]).all():  # also where there is one
    return Interval(mean, mean, mean)
  found = scipy.stats.bootstrap(
    tuple(sums_P.T),
    lambda totals, nums, axis: totals.sum(axis) / nums.sum(axis),
    paired=True,
    vectorized=True,
    n_resamples=_NUM_OF_MEANS,
    batch=max(_BLOCK // len(sums_P), 1),
    confidence_level=_LEVEL,
    method='percentile',
    rng=np.random.default_rng(0),
  )
  low, high = found.confidence_interval
  return Interval(mean, float(low), float(high))


def group_sums(
  values_QX: np.ndarray, groups: Sequence[str] | None
) -> np.ndarray:
  """Sums over the questions of each group, float64; of None, what came in."""
  values_QX = np.asarray(values_QX, np.float64)
  if groups is None:
    return values_QX
  names, group_Q = np.unique(np.asarray(groups), return_inverse=True)
  sums_PX = np.zeros((len(names), *values_QX.shape[1:]))
  np.add.at(sums_PX, group_Q, values_QX)
  return sums_PX


def draw_weights(num: int, *, seed: int) -> np.ndarray:
  """How often each of `num` groups is drawn, float64 [NUM_RESAMPLES, num].

  For figures that are no means, such as F1.
  """
  rng = np.random.default_rng(seed)
  drawn = rng.multinomial(num, np.full(num, 1 / num), NUM_RESAMPLES)
  return drawn.astype(np.float64)


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


def paired(
  values_Q: np.ndarray,
  others_Q: np.ndarray,
  groups: Sequence[str] | None = None,
) -> Paired:
  """`values_Q` less `others_Q`, of the same questions in the same order.

  `groups` as for `mean_interval`; the signs of one group are flipped together.
  """
  difference_Q = np.asarray(values_Q, np.float64) - others_Q
  interval = mean_interval(difference_Q, groups)
  sums_P = group_sums(difference_Q, groups)
  if not difference_Q.any() or len(sums_P) == 1:
    return Paired(interval, 1.0)
  found = scipy.stats.permutation_test(
    (sums_P,),
    np.mean,
    permutation_type='samples',
    n_resamples=_NUM_OF_MEANS,
    batch=max(_BLOCK // len(sums_P), 1),
    rng=np.random.default_rng(0),
  )
  return Paired(interval, float(found.pvalue))
