"""95% intervals and paired tests over questions, by resampling.

The bootstrap draws questions with replacement (percentile intervals; Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13) and so covers chance
in which questions were asked and in their rollouts, not in training.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.stats

_LEVEL = 0.95
_NUM_RESAMPLES = 10_000
# Of statistics that are no means, and slower.
_NUM_SLOW_RESAMPLES = 1_000
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
    n_resamples=_NUM_RESAMPLES,
    batch=max(_BLOCK // num, 1),
    confidence_level=_LEVEL,
    method='percentile',
    rng=np.random.default_rng(0),
  )
  low, high = found.confidence_interval
  return Interval(mean, float(low), float(high))


def statistic_interval(
  statistic: Callable[[np.ndarray], float], groups_Q: np.ndarray
) -> Interval:
  """A figure that is no mean over questions, such as F1, and its interval.

  Args:
    statistic: of the questions at these indices, some more than once.
    groups_Q: what is drawn together, such as the questions on one text.
  """
  rows_of = [
    np.flatnonzero(groups_Q == group) for group in dict.fromkeys(groups_Q)
  ]
  rng, num = np.random.default_rng(0), len(rows_of)
  found = [
    statistic(np.concatenate([rows_of[i] for i in rng.integers(0, num, num)]))
    for _ in range(_NUM_SLOW_RESAMPLES)
  ]
  low, high = np.quantile(found, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
  value = statistic(np.arange(len(groups_Q)))
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
    n_resamples=_NUM_RESAMPLES,
    batch=max(_BLOCK // len(difference_Q), 1),
    rng=np.random.default_rng(0),
  )
  return Paired(mean_interval(difference_Q), float(found.pvalue))
