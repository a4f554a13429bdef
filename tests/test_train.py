import dataclasses
import json

import jax
import numpy as np
import pytest

from ogls_jax import (
  build,
  inputs,
  mesh,
  metrics,
  reporting,
  runs,
  train,
  warmup,
)
from ogls_jax.errors import UserError
from ogls_jax.tasks.grading import Grader, Grades
from tests.small import tree_max_difference
from tests.small_run import final_state, read_rows, small_config


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A whole run with the default method, and its workdir."""
  assert jax.device_count() == 8
  workdir = tmp_path_factory.mktemp('run') / 'whole'
  return train.train(small_config(), workdir), workdir


def test_a_run_leaves_what_the_docs_say(finished):
  summary, workdir = finished
  names = {path.name for path in workdir.iterdir()}
  assert names >= {
    'config.json', 'inputs.json', 'metrics.jsonl', 'samples.jsonl',
    'summary.json', 'tensorboard', 'checkpoints', 'warmup',
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
    return dataclasses.replace(
      made,
      distill=watched(made.distill, 'distill'),
      rollout=watched(made.rollout, 'sample'),
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


def test_other_questions_or_templates_at_the_same_paths_are_an_error(
  tmp_path, unevaluated
):
  rows, template = tmp_path / 'rows.jsonl', tmp_path / 'hinted.jinja'
  lines = [f'{{"question": "{i} + 1", "answer": "{i + 1}"}}' for i in range(20)]
  rows.write_text('\n'.join(lines))
  template.write_text('{{ question }} {{ hint }}')
  changes = {
    'data__path': str(rows), 'prompt__teacher_template': str(template),
    'data__task': 'math', 'warmup__num_steps': 0, 'eval__num_questions': 0,
    'method': 'grpo', 'num_steps': 2,
  }  # fmt: skip
  config, workdir = small_config(**changes), tmp_path / 'run'
  assert train.train(config, workdir, stop_after_steps=1) == {}
  for file, key, old, new in (
    (rows, 'questions', ' + ', ' - '),
    (template, 'teacher_template', '{{ hint', 'Hint: {{ hint'),
  ):
    before = file.read_text()
    file.write_text(before.replace(old, new))
    with pytest.raises(UserError, match=f'content of: {key} .*bring back'):
      train.train(config, workdir)
    file.write_text(before)
  assert train.train(config, workdir)['num_steps'] == 2
  before = rows.read_text()
  rows.write_text(before.replace(' + ', ' - '))
  with pytest.raises(UserError, match='content of: questions '):
    train.train(config, workdir)  # finished, but not with these
  # Stage 1, which runs share, has learned its questions, too.
  kept = unevaluated / 'inputs.json'
  before = kept.read_text()
  kept.write_text(before.replace('"questions": "', '"questions": "0'))
  config = small_config(
    warmup__workdir=str(unevaluated), eval__num_questions=0, num_steps=1
  )
  with pytest.raises(UserError, match='stage 1 in .*warmup .*of: questions '):
    train.train(config, tmp_path / 'other')
  kept.write_text(before)


def test_a_task_file_that_is_mended_is_told_of(tmp_path, caplog):
  task, rows = tmp_path / 'task.py', tmp_path / 'rows.jsonl'
  task.write_text('def reward(text, question):\n  return 0\n')
  lines = [f'{{"question": "{i} + 1", "answer": "{i + 1}"}}' for i in range(20)]
  rows.write_text('\n'.join(lines))
  config = small_config(
    data__path=str(rows), data__task=str(task), warmup__num_steps=0,
    eval__num_questions=0, method='grpo', num_steps=4,
  )  # fmt: skip
  for num in (1, 1):
    train.train(config, tmp_path / 'run', stop_after_steps=num)
    assert 'two graders' not in caplog.text
  task.write_text('def reward(text, question):\n  return 1\n')
  for num in (1, 1):  # what it began with is not replaced
    caplog.clear()
    train.train(config, tmp_path / 'run', stop_after_steps=num)
    assert f'--workdir={tmp_path}/run began with another content' in caplog.text
  rewards = [
    row['reward_mean'] for row in read_rows(tmp_path / 'run' / 'metrics.jsonl')
  ]
  assert rewards == [0, 0, 1, 1]
  task.write_text('def reward(text, question):\n  return 0.5\n')
  caplog.clear()
  train.train(config, tmp_path / 'run')  # finished: there are no more rewards
  assert 'two graders' not in caplog.text
  # Of an older version, which did not keep all: nothing to compare.
  kept = tmp_path / 'run' / 'inputs.json'
  old = json.loads(kept.read_text())
  kept.write_text(json.dumps({'questions': old['questions']}))
  now = dict.fromkeys(old, 'new') | {'questions': old['questions']}
  inputs.claim(tmp_path / 'run', now, flag='--workdir=run')
  assert 'two graders' not in caplog.text
  with pytest.raises(UserError, match='content of: questions '):
    inputs.claim(tmp_path / 'run', dict.fromkeys(old, ''), flag='--workdir=run')


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
