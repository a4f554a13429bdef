"""Figures of a comparison, from its runs and their evaluations, and tables."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ogls_jax.intervals import Interval, paired, seed_interval
from ogls_jax.paired import Shares
from ogls_jax.spending import Costs

# (headings, rows of cells)
Table = tuple[list[str], list[list[str]]]
NOTES = (
  "[over seeds]: the 95% interval of a mean over training seeds (Student's t):"
  ' what another training would give, if seeds are normal. One seed has none.',
  '[over questions]: the 95% interval of the difference, of accuracies that are'
  ' means over the seeds (bootstrap over questions): what other questions would'
  ' give with these trainings; and p: how often a difference as large would'
  ' come up if there were none (flips of signs).',
  'Tokens and rollouts are those of training; solutions count as tokens where'
  ' nothing is sampled. Seconds are of updates alone: the median without the'
  ' first two, which compile, and all of them with those and later ones that'
  ' compile, as for a batch of another width. Answered (have a final answer'
  ' in a form that the grader reads), length, truncated and repeated are of'
  ' held-out responses at the end. All but accuracies by seed are means over'
  ' seeds.',
)


@dataclasses.dataclass(frozen=True)
class RunFigures:
  """Of one variant and seed.

  Attributes:
    shares: of correct rollouts of held-out questions.
    answered_fraction: share of these rollouts that have a final answer; None
      where it is not known.
    response_tokens: mean length of these rollouts.
    truncated_fraction: share of them that did not end.
    repeated_fraction: how much of them repeats itself.
    costs: of the updates; of none for the start.
    num_rollouts: sampled in training.
  """

  shares: Shares
  answered_fraction: float | None
  response_tokens: float
  truncated_fraction: float
  repeated_fraction: float
  costs: Costs
  num_rollouts: int

  @property
  def accuracy(self) -> float:
    """Mean share."""
    return float(np.mean(list(self.shares.of_id.values())))


def summarize(
  runs: dict[str, Sequence[RunFigures]], reference: str
) -> dict[str, dict]:
  """What compare.json holds of each variant.

  Args:
    runs: of each label, in the same order of seeds.
    reference: the label that differences are to.
  """
  return {
    label: _summary(of_seeds, None if label == reference else runs[reference])
    for label, of_seeds in runs.items()
  }


def _summary(runs, others):
  names = ('response_tokens', 'truncated_fraction', 'repeated_fraction')
  found = {'accuracy': _over_seeds([run.accuracy for run in runs])}
  if all(run.answered_fraction is not None for run in runs):
    names += ('answered_fraction',)
  found |= {name: [getattr(run, name) for run in runs] for name in names}
  if others:
    found['difference'] = _over_seeds(
      [a.accuracy - b.accuracy for a, b in zip(runs, others, strict=True)]
    )
    groups = runs[0].shares.group_of
    names = sorted(groups)
    pair = paired(
      *(_shares_Q(of, names) for of in (runs, others)),
      [groups[name] for name in names],
    )
    found['difference_over_questions'] = dataclasses.asdict(pair)
  if runs[0].costs.seconds:
    found |= {
      'updates': [len(run.costs.seconds) for run in runs],
      'rollouts': [run.num_rollouts for run in runs],
      'training_tokens': [sum(run.costs.tokens) for run in runs],
      'seconds': [sum(run.costs.seconds) for run in runs],
      'seconds_per_update': [run.costs.seconds_per_update for run in runs],
    }
    if others:
      found['overhead'] = [
        a.costs.seconds_per_update / b.costs.seconds_per_update
        for a, b in zip(runs, others, strict=True)
      ]
  return found


def _over_seeds(values):
  interval = seed_interval(np.array(values))
  return {
    'by_seed': values,
    'mean': float(np.mean(values)),
    'interval': interval and [interval.low, interval.high],
  }


def _shares_Q(runs, names):
  """Means over seeds, of the questions `names`."""
  return np.mean(
    [[run.shares.of_id[name] for name in names] for run in runs], 0
  )


def accuracy_table(variants: dict[str, dict], reference: str) -> Table:
  """Accuracy and its difference to the reference."""
  headings = [
    'method', 'accuracy by seed', 'mean [over seeds]',
    f'to {reference}, points [over seeds]', '[over questions]', 'p',
  ]  # fmt: skip
  rows = []
  for label, found in variants.items():
    accuracy = found['accuracy']
    cells = [
      label,
      ' '.join(f'{x:.1%}' for x in accuracy['by_seed']),
      _shown(accuracy, '{:.1f}', '%'),
    ]
    if 'difference' in found:
      pair = found['difference_over_questions']
      interval = Interval(**pair['difference'])
      cells += [
        _shown(found['difference'], '{:+.1f}', ''),
        f'[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]',
        f'{pair["p_value"]:.4f}',
      ]
    rows.append(cells + [''] * (len(headings) - len(cells)))
  return headings, rows


def cost_table(variants: dict[str, dict], reference: str) -> Table:
  """What training cost, and what its responses are like at the end."""
  headings = [
    'method', 'updates', 'rollouts', 'tokens', 's per update', 's in all',
    f's per update, to {reference}', 'answered', 'length', 'truncated',
    'repeated',
  ]  # fmt: skip
  columns = [
    ('updates', '{:.0f}'),
    ('rollouts', '{:.0f}'),
    ('training_tokens', '{:.0f}'),
    ('seconds_per_update', '{:.3g}'),
    ('seconds', '{:.1f}'),
    ('overhead', '{:.2f}x'),
    ('answered_fraction', '{:.1%}'),
    ('response_tokens', '{:.1f}'),
    ('truncated_fraction', '{:.1%}'),
    ('repeated_fraction', '{:.1%}'),
  ]
  rows = [
    [
      label,
      *(
        form.format(np.mean(found[name])) if name in found else ''
        for name, form in columns
      ),
    ]
    for label, found in variants.items()
  ]
  return headings, rows


def _shown(figure, form, unit):
  """In percent or points, with the interval if there is one."""
  text = form.format(100 * figure['mean']) + unit
  if figure['interval'] is None:
    return text
  low, high = (form.format(100 * x) + unit for x in figure['interval'])
  return f'{text} [{low}, {high}]'


def markdown(table: Table) -> str:
  """A table of Markdown; labels as code."""
  headings, rows = table
  lines = [f'| {" | ".join(headings)} |', '|---' * len(headings) + '|']
  for label, *cells in rows:
    escaped = label.replace('|', '\\|')
    lines.append(f'| `{escaped}` | {" | ".join(cells)} |')
  return '\n'.join(lines)


def report(content: dict) -> str:
  """compare.md: both tables, and what their intervals are."""
  variants, reference = content['variants'], content['reference']
  tables = (make(variants, reference) for make in (accuracy_table, cost_table))
  parts = [title(content), *map(markdown, tables)]
  return '\n\n'.join([*parts, *NOTES]) + '\n'


def title(content: dict) -> str:
  """One line: what was compared."""
  seeds = ', '.join(map(str, content['seeds']))
  text = (
    f'{content["num_questions"]} held-out questions, {content["samples"]}'
    f' samples each; seeds {seeds}'
  )
  if content['budget']:
    text += f'; as many {content["budget"]} as {content["reference"]}'
  return text + '.'
