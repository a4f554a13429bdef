"""Figures, budgets, curves and variants of a comparison, without a run."""

import numpy as np

from ogls_jax import (
  comparison,
  comparison_plots,
  paired,
  spending,
  variants,
)
from tests.small_run import small_config

METHODS = 'base,sft,opsd:distill.response_tokens=8'
REFERENCE = 'opsd:distill.response_tokens=8'


def figures(shares, seconds=(), tokens=(), num_rollouts=0, answered=None):
  names = 'abcdefgh'[: len(shares)]
  return comparison.RunFigures(
    shares=paired.Shares(
      dict(zip(names, shares, strict=True)), {name: name for name in names}
    ),
    answered_fraction=answered,
    response_tokens=4.0,
    truncated_fraction=0.5,
    repeated_fraction=0.25,
    costs=spending.Costs(list(seconds), list(tokens)),
    num_rollouts=num_rollouts,
  )


def test_differences_and_intervals_are_those_of_arithmetic():
  runs = {
    'base': [
      figures([0.0, 0.5], answered=0.25),
      figures([0.5, 0.5], answered=0.75),
    ],
    'opsd': [
      figures([0.0, 1.0], [9, 9, 2, 2, 4], [5] * 5, 10),
      figures([0.5, 0.5], [9, 9, 4, 4, 4], [5] * 5, 10),
    ],
    'sft': [
      figures([0.5, 1.0], [9, 9, 1, 1, 7], [7] * 5, 0),
      figures([1.0, 1.0], [9, 9, 3, 3, 3], [7] * 5, 0),
    ],
  }
  found = comparison.summarize(runs, 'opsd')
  sft = found['sft']
  assert sft['accuracy']['by_seed'] == [0.75, 1.0]
  # By seed 0.25 and 0.5: mean 0.375, s / sqrt(2) = 0.125, t(0.975; 1) = 12.706.
  assert sft['difference']['by_seed'] == [0.25, 0.5]
  half = 12.7062 * 0.125
  np.testing.assert_allclose(
    sft['difference']['interval'], [0.375 - half, 0.375 + half], rtol=1e-5
  )
  # By question, means over seeds: 0.75 - 0.25 and 1 - 0.75. Of two questions a
  # resample holds one twice with chance 1/4, so the interval is both.
  pair = sft['difference_over_questions']
  assert pair['difference'] == {'mean': 0.375, 'low': 0.25, 'high': 0.5}
  # All four flips of signs: half of them are as far from 0.
  assert pair['p_value'] == 0.5
  # Medians 1 and 3 over 2 and 4.
  assert sft['seconds_per_update'] == [1, 3]
  assert sft['overhead'] == [0.5, 0.75]
  assert (sft['seconds'], sft['training_tokens']) == ([27, 27], [35, 35])
  assert found['opsd']['seconds_per_update'] == [2, 4]
  assert 'difference' not in found['opsd'] and 'overhead' not in found['opsd']
  assert 'updates' not in found['base']
  assert found['base']['difference']['by_seed'] == [-0.25, 0.0]
  _, (base, opsd, _) = comparison.accuracy_table(found, 'opsd')
  assert base[:2] == ['base', '25.0% 50.0%']
  assert opsd[3:] == ['', '', '']
  _, (base, _, row) = comparison.cost_table(found, 'opsd')
  assert base == ['base', *[''] * 6, '50.0%', '4.0', '50.0%', '25.0%']
  assert row[:8] == ['sft', '5', '0', '35', '2', '27.0', '0.62x', '']


def test_questions_are_paired_by_id():
  one, two = (
    comparison.RunFigures(
      paired.Shares(shares, {'a': 'a', 'b': 'b'}),
      None, 0, 0, 0, figures([]).costs, 0,
    )
    for shares in ({'a': 1.0, 'b': 0.0}, {'b': 0.0, 'a': 1.0})
  )  # fmt: skip
  found = comparison.summarize({'x': [one], 'opsd': [two]}, 'opsd')['x']
  assert found['difference_over_questions']['p_value'] == 1.0
  assert found['difference_over_questions']['difference']['high'] == 0.0


def test_a_budget_is_reached_by_the_update_that_says_so():
  costs = spending.Costs([50, 50, 1, 1, 3], [10, 20, 30, 20, 20])
  # Five updates at a median of 1 s, without those that compile.
  seconds = spending.Budget.of('seconds', costs, 1)
  assert seconds.amount == 5
  tokens = spending.Budget.of('tokens', costs, 1)
  assert tokens.amount == 100

  def last(budget, seconds, tokens):
    for number in range(1, 100):
      done = spending.Costs(seconds[: number - 1], tokens[: number - 1])
      if budget.is_last(done):
        return number
    return None

  # At 2 s each the third would reach 5, but only it tells what one costs.
  assert last(seconds, [50, 50] + [2] * 50, [9] * 52) == 4
  assert last(seconds, [50, 50] + [0.5] * 50, [9] * 52) == 10
  assert last(seconds, [50, 50] + [1] * 50, [9] * 52) == 5
  assert last(tokens, [1] * 60, [20] * 60) == 5
  assert last(tokens, [1] * 60, [30] * 60) == 4
  assert last(tokens, [1] * 60, [2] * 60) == 50
  rows = [
    {
      'seconds_sampling': None, 'seconds_grading': None,
      'seconds_hints': 1.0, 'seconds_distill': 0.5,
      'response_tokens_mean': 2.25,
    }
  ]  # fmt: skip
  assert spending.costs_of(rows, 8) == spending.Costs([1.5], [18])


def test_curves_have_what_all_seeds_have():
  def row(step, kl, accuracy=None):
    return {'step': step, 'kl': kl, 'eval_accuracy': accuracy}

  rows_S = [
    [row(1, 1.0), row(2, None), row(3, 3.0, 0.5)],
    [row(1, 2.0), row(2, 2.0), row(3, 5.0, 0.7), row(4, 9.0)],
  ]
  steps, values_SX = comparison_plots.curve(rows_S, 'kl')
  assert (steps, values_SX.tolist()) == ([1, 3], [[1, 3], [2, 5]])
  # Of the model before the update, the start and the end, of both.
  args = rows_S[:1] * 2, [0.1, 0.2], [0.8, 0.9]
  steps, values_SX = comparison_plots.accuracy_curve(*args)
  assert steps == [0, 2, 3]
  assert values_SX.tolist() == [[0.1, 0.5, 0.8], [0.2, 0.5, 0.9]]
  # Seeds that end at other updates, as of a budget, end in one place.
  args = rows_S, [0.1, 0.2], [0.8, 0.9]
  steps, values_SX = comparison_plots.accuracy_curve(*args)
  assert steps == [0, 2, 4]
  assert values_SX.tolist() == [[0.1, 0.5, 0.8], [0.2, 0.7, 0.9]]
  nothing = [[row(1, None)]] * 2
  assert comparison_plots.curve(nothing, 'kl') is None


def test_what_a_page_shows_is_escaped():
  label = '<b>&"|'
  found = comparison.summarize({label: [figures([1], [1], [1])]}, label)
  content = {
    'variants': found, 'reference': label, 'seeds': [0], 'budget': '',
    'config': {'x': '<script>'}, 'versions': {}, 'num_questions': 1,
    'samples': 1,
  }  # fmt: skip
  page = comparison_plots.page(content, b'')
  assert '<script' not in page and '<b>' not in page
  assert '&lt;script&gt;' in page and '&lt;b&gt;' in page
  assert '<b>&"\\|' in comparison.report(content)


def test_methods_with_changes_and_seeds():
  config = small_config()
  text = (
    'base,ogls_sd:steering.max_strength=1:hints.exclude_self=true,'
    'kd:kd.teacher_path=hub:a/b,pos_only'
  )
  base, steered, kd, _ = found = variants.parse_variants(text, config)
  assert [v.label for v in found] == text.split(',') and not base.is_trained
  assert steered.changes == {
    'method': 'ogls_sd', 'steering.max_strength': 1.0,
    'hints.exclude_self': True,
  }  # fmt: skip
  assert kd.changes['kd.teacher_path'] == 'hub:a/b'
  assert steered.folder == 'ogls_sd_steering.max_strength=1_' + (
    'hints.exclude_self=true'
  )
  assert variants.parse_seeds('3') == [0, 1, 2]
  assert variants.parse_seeds('4,') == [4]
  assert variants.parse_seeds('0,3,5') == [0, 3, 5]
  # opsd, or the first that is trained.
  assert variants.reference_of(found, '') is steered
  opsd = variants.parse_variants('sft,opsd', config)
  assert variants.reference_of(opsd, '').label == 'opsd'
  assert variants.reference_of(opsd, 'sft').label == 'sft'
