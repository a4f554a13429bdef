"""Runs in which numbers, checkpoints or lines go wrong."""

import json

import jax
import numpy as np
import pytest

from ogls_jax import (
  build,
  loop,
  reporting,
  rounds,
  train,
)
from ogls_jax.errors import UserError
from tests.small import tree_max_difference
from tests.small_run import final_state, read_rows, small_config


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, unevaluated):
  config = small_config(
    warmup__workdir=str(unevaluated),
    eval__num_questions=0,
    method='opsd',
    optimizer__max_skipped_steps=0,
  )
  train.train(config, tmp_path, stop_after_steps=2)
  good = final_state(tmp_path)
  original = build.objective

  def broken(config, *, eos_ids):
    assert eos_ids == build.load_maker(config).tokenizer.eos_ids
    objective = original(config, eos_ids=eos_ids)
    return train.dataclasses.replace(objective, temperature=float('nan'))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, 'objective', broken)
    with pytest.raises(FloatingPointError, match='step 3: loss = nan'):
      train.train(config, tmp_path)
  assert tree_max_difference(good, final_state(tmp_path)) == 0
  assert read_rows(tmp_path / 'metrics.jsonl')[-1]['loss'] is None
  train.train(config, tmp_path)
  assert len(read_rows(tmp_path / 'metrics.jsonl')) == 4


def test_an_error_leaves_the_checkpoint_before_it(tmp_path, unevaluated):
  """Saving goes on in the background when the next step fails."""
  config = small_config(
    warmup__workdir=str(unevaluated), eval__num_questions=0, method='opsd'
  )
  original, calls = rounds.sampled_round, []

  def failing(*args, **kwargs):
    calls.append(1)
    if len(calls) == 3:
      raise FloatingPointError('step 3')
    return original(*args, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(rounds, 'sampled_round', failing)
    with pytest.raises(FloatingPointError):
      train.train(config, tmp_path)
  assert final_state(tmp_path)['step'] == 2


def test_updates_that_are_not_finite_are_skipped_up_to_a_number(
  tmp_path, unevaluated, capsys
):
  config = small_config(
    warmup__workdir=str(unevaluated), eval__num_questions=0, method='sft',
    num_steps=6, optimizer__max_skipped_steps=2,
    checkpoint__every_steps=1, checkpoint__keep=9,
  )  # fmt: skip
  original = rounds.solution_round
  broken, calls = {2, 3, 5}, []

  def spoiled(*args):
    calls.append(1)
    round_ = original(*args)
    if len(calls) not in broken:
      return round_
    ids_RT = round_.batch.response_RT
    # Past the vocabulary: the log-probability of such a token is nan.
    batch = train.dataclasses.replace(
      round_.batch, response_RT=jax.device_put(
        np.full(ids_RT.shape, 2**30, np.int32), ids_RT.sharding
      )
    )  # fmt: skip
    return train.dataclasses.replace(round_, batch=batch)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(rounds, 'solution_round', spoiled)
    with pytest.raises(FloatingPointError, match='step 5: .*max_skipped_steps'):
      train.train(config, tmp_path)
  rows = read_rows(tmp_path / 'metrics.jsonl')
  assert [row['updates_skipped'] for row in rows] == [0, 1, 2, 2, 3]
  assert [row['loss'] is None for row in rows] == [
    False, True, True, False, True,
  ]  # fmt: skip
  assert '2 of at most 2' in capsys.readouterr().out
  assert final_state(tmp_path)['step'] == 4
  one, two, three, four = (
    final_state(tmp_path, step)['params'] for step in (1, 2, 3, 4)
  )
  assert tree_max_difference(one, two) == tree_max_difference(one, three) == 0
  assert tree_max_difference(three, four) > 0
  # The count goes on after a restart, whatever became of the lines.
  path = tmp_path / 'metrics.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[:2]))
  train.train(config, tmp_path)
  assert 'not once each of updates 1 to 4' in capsys.readouterr().out
  rows = read_rows(path)
  assert [(row['step'], row['updates_skipped']) for row in rows] == [
    (1, 0), (2, 1), (5, 2), (6, 2),
  ]  # fmt: skip


def test_the_best_by_evaluation_is_kept_and_a_restart_changes_nothing(
  tmp_path,
):
  config = small_config(
    warmup__num_steps=0, method='sft', num_steps=5,
    eval__every_steps=1, checkpoint__keep=1, checkpoint__every_steps=5,
  )  # fmt: skip
  original, shares = loop.evaluation.accuracy, iter([9, 1, 6, 3, 2, 1])

  def evaluate(*args, **kwargs):
    shares_Q, num_timeouts = original(*args, **kwargs)
    return np.full_like(shares_Q, next(shares) / 10), num_timeouts

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop.evaluation, 'accuracy', evaluate)
    train.train(config, tmp_path)
  rows = read_rows(tmp_path / 'metrics.jsonl')
  found = [row['eval_accuracy'] for row in rows]
  assert found == [None, *(pytest.approx(x) for x in (0.1, 0.6, 0.3, 0.2))]
  steps = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert steps == {'2', '5'}


def test_a_collapse_stops_the_run_if_the_config_says_so(tmp_path, unevaluated):
  config = small_config(
    warmup__workdir=str(unevaluated), eval__num_questions=0, method='sft',
    num_steps=40, stop__on_collapse=True, stop__patience_steps=2,
  )  # fmt: skip
  original, calls = reporting.divide_metrics, []

  def collapsing(sums):
    calls.append(1)
    values = original(sums)
    return values | {'entropy': 0.7 if len(calls) < 30 else 0.0}

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(reporting, 'divide_metrics', collapsing)
    with pytest.raises(UserError, match='step 31: entropy = 0 .*2 updates'):
      train.train(config, tmp_path)
  rows = read_rows(tmp_path / 'metrics.jsonl')
  assert [row['warnings'] for row in rows[27:]] == [0, 0, 1, 1]


def test_a_run_that_lost_its_checkpoints_does_not_start_afresh(tmp_path):
  config = small_config(
    warmup__num_steps=0, method='sft', eval__num_questions=0,
    checkpoint__every_steps=2,
  )  # fmt: skip
  path = tmp_path / 'metrics.jsonl'
  lines = ''.join(json.dumps({'step': step}) + '\n' for step in range(1, 6))
  path.write_text(lines)
  with pytest.raises(UserError, match='lines up to update 5, and there is no'):
    train.train(config, tmp_path)
  assert path.read_text() == lines
  # Killed before the first save has ended, as it may be.
  path.write_text(''.join(lines.splitlines(keepends=True)[:4]))
  train.train(config, tmp_path)
  assert [row['step'] for row in read_rows(path)] == [1, 2, 3, 4]
