"""What updates cost, and a notice that stops a run once a budget is spent.

Tokens: those that carry a response, so solutions where nothing is sampled.
Seconds: of training alone, without evaluations and saves. The first two updates
compile, and so do the first after a restart: the seconds of a run are so many
updates times their median, those two left out.
"""

import dataclasses
import json
import pathlib
import statistics

from ogls_jax import hosts
from ogls_jax.notice import StopNotice

BUDGETS = ('', 'seconds', 'tokens')
_STAGES = ('sampling', 'grading', 'hints', 'distill')
NUM_COMPILING = 2
# What a run has at least: only then it is known what an update costs.
LEAST_UPDATES = {'seconds': NUM_COMPILING + 2, 'tokens': 2}


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of some updates in order.

  Attributes:
    seconds: wall time of each.
    tokens: of responses, or solutions, of each.
  """

  seconds: list[float]
  tokens: list[int]

  @property
  def seconds_per_update(self) -> float:
    """The median without the updates that compile, where there are others."""
    return statistics.median(self.seconds[NUM_COMPILING:] or self.seconds)


def costs_of(rows: list[dict], rows_per_update: int) -> Costs:
  """Of lines of metrics.jsonl; `rows_per_update`: responses of an update."""
  return Costs(
    seconds=[
      sum(row[f'seconds_{stage}'] or 0.0 for stage in _STAGES) for row in rows
    ],
    tokens=[
      round(row['response_tokens_mean'] * rows_per_update) for row in rows
    ],
  )


@dataclasses.dataclass(frozen=True)
class Budget:
  """So many seconds or tokens of training.

  Attributes:
    kind: seconds or tokens.
    amount: of them.
    rows_per_update: responses, or solutions, of an update.
  """

  kind: str
  amount: float
  rows_per_update: int

  @classmethod
  def of(cls, kind: str, costs: Costs, rows_per_update: int) -> 'Budget':
    """As much as the updates of `costs` took."""
    if kind == 'tokens':
      amount = float(sum(costs.tokens))
    else:
      amount = len(costs.seconds) * costs.seconds_per_update
    return cls(kind, amount, rows_per_update)

  def is_last(self, costs: Costs) -> bool:
    """Whether the update after those of `costs` reaches the budget.

    It is taken to cost what the others do, so that a run need not wait for its
    own figures: the mean of tokens, the median of seconds.
    """
    num = len(costs.tokens)
    if num + 1 < LEAST_UPDATES[self.kind]:
      return False
    if self.kind == 'tokens':
      each = statistics.fmean(costs.tokens)
    else:
      each = costs.seconds_per_update
    return (num + 1) * each >= self.amount


class BudgetNotice(StopNotice):
  """Asks for a stop as another notice does, and once a budget is spent.

  The stop then comes as if a signal had asked for it: after an update, which is
  saved. All hosts agree on it, by the figures of the first.
  """

  def __init__(self, notice: StopNotice, budget: Budget, workdir: pathlib.Path):
    """`workdir`: of the run whose metrics.jsonl says what is spent."""
    self._notice, self._budget = notice, budget
    self._metrics, self._offset = workdir / 'metrics.jsonl', 0
    self._costs = Costs([], [])
    self.is_spent = False

  def is_asked(self) -> bool:
    """Whether to stop after the update that has just been dispatched.

    `is_spent` then says whether it is the budget that asks.
    """
    is_asked, is_last = self._notice.is_asked(), False
    if hosts.is_first():
      self._read()
      is_last = self._budget.is_last(self._costs)
    (is_last,) = hosts.largest(int(is_last))
    self.is_spent = bool(is_last) and not is_asked
    return is_asked or bool(is_last)

  def check(self) -> None:
    """As that of the other notice: a round under way is finished."""
    self._notice.check()

  def poll(self) -> None:
    """As that of the other notice."""
    self._notice.poll()

  def _read(self):
    """Adds the updates that the run has written about since."""
    if not self._metrics.exists():  # in stage 1
      return
    with self._metrics.open('rb') as file:
      file.seek(self._offset)
      text = file.read()
    whole = text[: text.rfind(b'\n') + 1]
    self._offset += len(whole)
    rows = [json.loads(line) for line in whole.splitlines()]
    found = costs_of(rows, self._budget.rows_per_update)
    self._costs.seconds.extend(found.seconds)
    self._costs.tokens.extend(found.tokens)
