import json
import runpy

import jax
import numpy as np
import pytest

from ogls_jax import (
  build,
  checkpoint,
  loop,
  mesh,
  metrics,
  programs,
  reporting,
  rounds,
  runs,
  train,
  warmup,
)
from ogls_jax.errors import UserError
from ogls_jax.tasks.grading import Grader, Grades
from tests.small import tree_max_difference


def small_config(**changes):
  config = runpy.run_path('configs/tiny.py')['get_config']()
  config.update_from_flattened_dict(
    {
      'model.width': 32,
      'model.num_layers': 2,
      'model.mlp_size': 48,
      'data.num_questions': 64,
      'data.arithmetic.num_terms': 2,
      'data.arithmetic.max_number': 9,
      'warmup.num_steps': 6,
      'warmup.batch_questions': 8,
      'num_steps': 4,
      'rollouts.batch_questions': 8,
      'rollouts.group_size': 2,
      'rollouts.max_tokens': 16,
      'optimizer.learning_rate': 1e-3,
      'hints.exclude_self': False,
      'steering.max_strength': 1.0,
      'eval.num_questions': 9,
      'eval.samples': 2,
      'eval.batch_questions': 8,
      'checkpoint.every_steps': 2,
      'log.samples_every_steps': 2,
      'log.samples_rollouts': 3,
    }
    | {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return config


def read_rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def final_state(workdir, step=None):
  """What the newest checkpoint, or one, holds, as numpy arrays by path."""
  folder = sorted(
    (workdir / 'checkpoints').glob('[0-9]*'), key=lambda path: int(path.name)
  )[-1]
  folder = folder if step is None else workdir / 'checkpoints' / str(step)
  restored = checkpoint.ocp.StandardCheckpointer().restore(
    (folder / 'state').absolute()
  )
  return jax.tree.map(np.asarray, restored)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A whole run with the default method, and its workdir."""
  assert jax.device_count() == 8
  workdir = tmp_path_factory.mktemp('run') / 'whole'
  return train.train(small_config(), workdir), workdir


@pytest.fixture(scope='module')
def unevaluated(tmp_path_factory):
  """The workdir of a short run that other runs share stage 1 with."""
  workdir = tmp_path_factory.mktemp('run') / 'unevaluated'
  config = small_config(eval__num_questions=0, method='opsd', num_steps=1)
  train.train(config, workdir)
  return workdir


def test_a_run_leaves_what_the_docs_say(finished):
  summary, workdir = finished
  names = {path.name for path in workdir.iterdir()}
  assert names >= {
    'config.json', 'metrics.jsonl', 'samples.jsonl', 'summary.json',
    'tensorboard', 'checkpoints', 'warmup',
  }  # fmt: skip
  rows = read_rows(workdir / 'metrics.jsonl')
  assert [row['step'] for row in rows] == [1, 2, 3, 4]
  assert all(set(row) == {'step', 'time', *reporting.METRICS} for row in rows)
  assert all(row['strength'] == 1.0 for row in rows)
  assert {row['step'] for row in read_rows(workdir / 'samples.jsonl')} == {
    1, 2, 4,
  }  # fmt: skip
  assert summary == json.loads((workdir / 'summary.json').read_text())
  assert summary['eval_questions'] == 9
  gain = summary['accuracy_gain']['mean']
  change = (
    summary['accuracy_after']['mean'] - summary['accuracy_before']['mean']
  )
  assert gain == pytest.approx(change)
  assert any((workdir / 'tensorboard').iterdir())


def test_four_steps_equal_two_steps_stop_two_steps(finished, tmp_path):
  _, whole = finished
  workdir = tmp_path / 'halves'
  assert train.train(small_config(), workdir, stop_after_steps=2) == {}
  # A step that was written and then lost with the process is not repeated;
  # the last line is cut inside a character.
  with (workdir / 'metrics.jsonl').open('ab') as file:
    file.write('{"step": 3, "loss": 1}\n{"step": 4, "x": "é'.encode()[:-1])
  train.train(small_config(), workdir)
  expected, got = final_state(whole), final_state(workdir)
  assert tree_max_difference(expected, got) == 0
  timeless = [name for name in reporting.METRICS if 'second' not in name]
  for row, other in zip(
    read_rows(whole / 'metrics.jsonl'),
    read_rows(workdir / 'metrics.jsonl'),
    strict=True,
  ):
    assert {k: row[k] for k in timeless} == {k: other[k] for k in timeless}
  samples = [read_rows(x / 'samples.jsonl') for x in (whole, workdir)]
  assert samples[0] == samples[1]


def test_a_finished_run_has_nothing_left_to_do(finished):
  summary, workdir = finished
  assert train.train(small_config(), workdir) == summary
  assert len(read_rows(workdir / 'metrics.jsonl')) == 4


def test_another_config_in_the_same_workdir_is_an_error(finished):
  _, workdir = finished
  with pytest.raises(UserError, match='steering.max_strength = 1.0 there, 2.0'):
    train.train(small_config(steering__max_strength=2.0), workdir)


@pytest.mark.parametrize(
  'changes',
  [
    {'method': 'opsd'},
    {'method': 'pos_mean', 'teacher': 'live'},
    {'method': 'pos_only', 'teacher': 'ema', 'loss__kl': 'reverse'},
    {'method': 'sft'},
    {'method': 'grpo', 'grpo__kl_weight': 0.1, 'mesh__fsdp': 2},
    {'method': 'kd', 'kd__source': 'rollouts'},
    {'method': 'kd', 'kd__source': 'solutions'},
    {
      'lora__rank': 2,
      'loss__kl': 'jsd',
      'loss__clip_mode': 'upper',
      'tail__weight': 0.1,
    },
  ],
  ids=lambda changes: '-'.join(map(str, changes.values())),
)
def test_every_method_trains(unevaluated, tmp_path, changes, monkeypatch):
  # A model this small answers nothing; every other rollout counts as right.
  def every_other(_, texts, questions):
    reward_R = (np.arange(len(texts)) % 2).astype(np.float32)
    return lambda poll: Grades(reward_R, np.zeros(len(texts), bool))

  monkeypatch.setattr(Grader, 'submit', every_other)
  config = small_config(
    num_steps=2,
    eval__num_questions=0,
    warmup__workdir=str(unevaluated),
    kd__teacher_workdir=str(unevaluated),
    **changes,
  )
  train.train(config, tmp_path)
  rows = read_rows(tmp_path / 'metrics.jsonl')
  assert all(row['loss'] is not None and row['grad_norm'] > 0 for row in rows)
  state = final_state(tmp_path)
  assert state['step'] == 2


@pytest.mark.parametrize('method', ['opsd', 'sft'])
def test_the_device_does_not_wait_for_metrics(
  method, unevaluated, tmp_path, monkeypatch
):
  """What comes next is dispatched before an update is written about."""
  events, original = [], train.make_programs

  def watched(function, name):
    def run(*args, **kwargs):
      events.append(name)
      return function(*args, **kwargs)

    return run

  def make(*args, **kwargs):
    made = original(*args, **kwargs)
    return programs.Programs(
      watched(made.distill, 'distill'),
      watched(made.rollout, 'sample'),
      made.evaluate,
    )

  monkeypatch.setattr(train, 'make_programs', make)
  monkeypatch.setattr(
    metrics.Writer, 'metrics', watched(metrics.Writer.metrics, 'write')
  )
  config = small_config(
    method=method,
    num_steps=3,
    checkpoint__every_steps=2,
    eval__num_questions=0,
    warmup__workdir=str(unevaluated),
  )
  train.train(config, tmp_path)
  # Before a checkpoint all is written.
  expected = {
    'opsd': 'sample distill sample write distill write sample distill write',
    'sft': 'distill distill write write distill write',
  }
  assert events == expected[method].split()


def test_profile_traces_the_updates_asked_for(unevaluated, tmp_path):
  config = small_config(
    method='sft', eval__num_questions=0, warmup__workdir=str(unevaluated)
  )
  train.train(config, tmp_path, profile_steps=1)
  (file,) = (tmp_path / 'profile').rglob('*.xplane.pb')
  trace = jax.profiler.ProfileData.from_file(str(file))
  names = [
    event.name
    for plane in trace.planes
    for line in plane.lines
    for event in line.events
  ]
  assert names.count('update') == 1


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


def test_a_shared_warmup_of_other_settings_is_an_error(tmp_path, unevaluated):
  config = small_config(
    warmup__workdir=str(unevaluated),
    warmup__slip_rate=0.5,
    eval__num_questions=0,
  )
  with pytest.raises(UserError, match='warmup.slip_rate = 0.2 there, 0.5 here'):
    train.train(config, tmp_path)


def test_kd_from_a_lora_run_is_taught_by_its_warmed_up_base(
  tmp_path, unevaluated
):
  lora = small_config(
    warmup__workdir=str(unevaluated), eval__num_questions=0, lora__rank=2,
    method='opsd', num_steps=2,
  )  # fmt: skip
  config = small_config(method='kd', kd__teacher_workdir=str(tmp_path / 'lora'))
  grid = mesh.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  maker = build.load_maker(config)
  with pytest.raises(UserError, match='kd.teacher_workdir.*config.json'):
    runs.load_kd_teacher(config, maker.tokenizer, grid)
  train.train(lora, tmp_path / 'lora', stop_after_steps=1)
  with pytest.raises(UserError, match='not finished'):
    runs.load_kd_teacher(config, maker.tokenizer, grid)
  train.train(lora, tmp_path / 'lora')
  with jax.set_mesh(grid):
    teacher = runs.load_kd_teacher(config, maker.tokenizer, grid)
    settings = build.decoder_settings(config, maker.tokenizer.vocab_size)
    base = build.base_model(config, settings, grid)
    warm = warmup.load_warm(lora, base, grid, unevaluated / 'warmup')
  kernels = [
    jax.tree.leaves(model)[-1] for model in (teacher.frozen, warm.params)
  ]
  np.testing.assert_array_equal(*kernels)
  assert tree_max_difference(base.params, warm.params) > 0


@pytest.mark.parametrize('content', ['{"a": 1', '[]', '\udcff'])
def test_a_broken_config_in_the_workdir_is_one_line(tmp_path, content):
  path = tmp_path / 'config.json'
  path.write_text(content, errors='surrogateescape')
  with pytest.raises(UserError, match='config.json .*; mend or replace it'):
    train.train(small_config(), tmp_path)


def test_a_start_that_fails_leaves_the_workdir_free(tmp_path):
  config = small_config(mesh__model=2)
  with pytest.raises(UserError, match='does not divide the vocabulary'):
    train.train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_bad_row_is_named_with_file_and_line(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"question": "1 + 1", "answer": "2"}\n{"question": "2"}\n')
  config = small_config(
    data__task='math', warmup__num_steps=0, data__path=str(path)
  )
  with pytest.raises(UserError, match='rows.jsonl:2.*answer'):
    train.train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_skipped_rows_are_counted_in_the_metrics(tmp_path):
  path = tmp_path / 'rows.jsonl'
  rows = [f'{{"question": "{i} + 1", "answer": "{i + 1}"}}' for i in range(20)]
  path.write_text('\n'.join([*rows, 'broken', '']))
  config = small_config(
    data__task='math', warmup__num_steps=0, data__path=str(path), num_steps=1,
    data__on_bad_row='skip', method='grpo', eval__num_questions=1,
  )  # fmt: skip
  train.train(config, tmp_path / 'run')
  row = read_rows(tmp_path / 'run' / 'metrics.jsonl')[0]
  assert row['rows_skipped'] == 1


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
