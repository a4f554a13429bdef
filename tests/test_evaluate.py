"""The evaluation command: what it asks, keeps, continues and says."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from ogls_jax import build, evaluate, export, hosts, notice, paired, train
from ogls_jax.errors import USER_ERROR_CODE, Preempted, UserError
from ogls_jax.prompts import PromptMaker
from ogls_jax.questions import load_questions
from ogls_jax.tasks.grading import Grader
from tests.small_run import read_rows, reward_texts, small_config

CHANGES = {'eval__num_questions': 20, 'hints__min_reward': 0.5}


@pytest.fixture(autouse=True)
def rewards(monkeypatch):
  reward_texts(monkeypatch)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  assert jax.device_count() == 8
  with pytest.MonkeyPatch.context() as patch:
    reward_texts(patch)
    workdir = tmp_path_factory.mktemp('run') / 'run'
    config = small_config(
      method='sft', num_steps=2, eval__num_questions=20, hints__min_reward=0.5
    )
    return config, workdir, train.train(config, workdir)


@pytest.fixture(scope='module')
def whole(run, tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    reward_texts(patch)
    out = tmp_path_factory.mktemp('out') / 'whole'
    config = small_config(**CHANGES, eval__has_greedy=True)
    return out, evaluate.evaluate(config, out, workdir=run[1])


def test_it_says_what_training_said_of_the_same_model(run, tmp_path):
  config, workdir, summary = run
  found = evaluate.evaluate(config, tmp_path / 'after', workdir=workdir)
  assert found['model']['workdir'] == str(workdir)
  assert found['model']['step'] == 2
  assert found['metrics']['avg@2'] == summary['accuracy_after']
  assert 0.2 < summary['accuracy_after']['mean'] < 0.9
  found = evaluate.evaluate(
    config, tmp_path / 'before', workdir=workdir, run_step=0
  )
  assert found['metrics']['avg@2'] == summary['accuracy_before']
  assert summary['accuracy_before'] != summary['accuracy_after']


def test_every_generation_is_kept_and_counted(whole):
  out, found = whole
  rows = read_rows(out / 'generations.jsonl')
  assert [row['kind'] for row in rows] == ['sample'] * 40 + ['greedy'] * 20
  assert len({row['id'] for row in rows}) == 20
  correct = [row['reward'] >= 0.5 for row in rows]
  metrics = found['metrics']
  np.testing.assert_allclose(metrics['avg@2']['mean'], np.mean(correct[:40]))
  np.testing.assert_allclose(metrics['greedy']['mean'], np.mean(correct[40:]))
  either = np.reshape(correct[:40], (20, 2)).any(1).mean()
  np.testing.assert_allclose(metrics['pass@2']['mean'], either)
  mean = np.mean([row['reward'] for row in rows[:40]])
  np.testing.assert_allclose(metrics['reward']['mean'], mean)
  for name, key in (
    ('response_tokens', 'response_tokens'),
    ('truncated_fraction', 'is_truncated'),
    ('repeated_fraction', 'repeated_fraction'),
  ):
    mean = np.mean([row[key] for row in rows[:40]])
    np.testing.assert_allclose(metrics[name]['mean'], mean, rtol=1e-6)
  is_cut = [row['is_truncated'] for row in rows]
  assert any(is_cut)
  # Those that end in time are shorter, but for an end at the last token.
  assert all(
    row['response_tokens'] == 16
    for row, cut in zip(rows, is_cut, strict=True)
    if cut
  )
  assert json.loads((out / 'results.json').read_text()) == found
  assert found['num_questions'] == 20 and len(found['questions_sha256']) == 64


def test_greedy_rollouts_are_not_drawn(run, whole, tmp_path):
  config = small_config(**CHANGES, eval__has_greedy=True, seed=5)
  evaluate.evaluate(config, tmp_path / 'out', workdir=run[1])
  texts = [
    [row['response'] for row in read_rows(out / 'generations.jsonl')]
    for out in (whole[0], tmp_path / 'out')
  ]
  assert texts[0][:40] != texts[1][:40]
  assert texts[0][40:] == texts[1][40:]


@pytest.mark.parametrize('num_rows', [0, 21, 50])
def test_it_continues_with_the_first_batch_that_is_missing(
  run, whole, num_rows, tmp_path, monkeypatch
):
  out = tmp_path / 'out'
  out.mkdir()
  for name in ('evaluation.json', 'generations.jsonl'):
    lines = (whole[0] / name).read_bytes().splitlines(keepends=True)
    if name == 'generations.jsonl':
      lines = [*lines[:num_rows], lines[num_rows][:30]]  # and a cut one
    (out / name).write_bytes(b''.join(lines))
  sampled = []
  original = Grader.submit

  def submit(self, texts, questions):
    sampled.extend(questions)
    return original(self, texts, questions)

  monkeypatch.setattr(Grader, 'submit', submit)
  config = small_config(**CHANGES, eval__has_greedy=True)
  found = evaluate.evaluate(config, out, workdir=run[1])
  assert found == whole[1]
  expected = (whole[0] / 'generations.jsonl').read_bytes()
  assert (out / 'generations.jsonl').read_bytes() == expected
  # Of batches of 8 questions, the last one filled up.
  assert len(sampled) == {0: 48 + 24, 21: 32 + 24, 50: 16}[num_rows]


def test_a_stop_keeps_whole_batches(run, whole, tmp_path, monkeypatch):
  config = small_config(**CHANGES, eval__has_greedy=True)
  stop = notice.StopNotice()
  checks = []

  def check():
    checks.append(1)
    if len(checks) == 3:
      raise Preempted('asked')

  monkeypatch.setattr(stop, 'check', check)
  with pytest.raises(Preempted):
    evaluate.evaluate(config, tmp_path, workdir=run[1], notice=stop)
  assert not (tmp_path / 'results.json').exists()
  # The second batch was being graded.
  assert len(read_rows(tmp_path / 'generations.jsonl')) == 16
  found = evaluate.evaluate(config, tmp_path, workdir=run[1])
  assert found == whole[1]


def test_an_exported_folder_says_the_same(run, whole, tmp_path):
  export.export(run[1], tmp_path / 'merged', export_format='merged')
  config = small_config(
    **CHANGES, eval__has_greedy=True,
    model__path=str(tmp_path / 'merged'), model__tokenizer_path='',
  )  # fmt: skip
  found = evaluate.evaluate(config, tmp_path / 'out')
  assert found['model']['path'] == str(tmp_path / 'merged')
  ours, theirs = (
    [
      # SentencePiece writes a token that is unknown, other tokenizers do not.
      (row['id'], row['response'].replace(' \u2047 ', ''))
      for row in read_rows(out / 'generations.jsonl')
    ]
    for out in (whole[0], tmp_path / 'out')
  )
  assert ours == theirs and len(ours) == 60
  # Other weights at the same place are another model.
  shutil.rmtree(tmp_path / 'merged')
  export.export(run[1], tmp_path / 'merged', step=0, export_format='merged')
  with pytest.raises(UserError, match=r'model\.checksum = '):
    evaluate.evaluate(config, tmp_path / 'out')


def test_logits_that_are_not_finite_end_it(run, tmp_path, monkeypatch):
  take_rows = hosts.take_rows

  def broken(rollouts):
    taken = take_rows(rollouts)
    log_prob_RT = np.full_like(taken.log_prob_RT, np.nan)
    return dataclasses.replace(taken, log_prob_RT=log_prob_RT)

  monkeypatch.setattr(hosts, 'take_rows', broken)
  with pytest.raises(FloatingPointError, match='sampled token is not finite'):
    evaluate.evaluate(small_config(**CHANGES), tmp_path / 'a', workdir=run[1])


def test_what_files_hold_is_part_of_the_results(run, tmp_path, monkeypatch):
  task, rows, template = (
    tmp_path / name for name in ('task.py', 'rows.jsonl', 'asked.jinja')
  )
  task.write_text('def reward(text, question):\n  return 0\n')
  template.write_text('Question: {{ question }}\nAnswer: ')
  questions = [
    {'id': str(i), 'question': f'{i} + 1', 'answer': str(i + 1)}
    for i in range(8)
  ]
  rows.write_text(''.join(json.dumps(row) + '\n' for row in questions))
  changes = {
    'data__task': str(task), 'data__eval_path': str(rows), 'eval__samples': 3,
    'prompt__student_template': str(template), 'eval__num_questions': 8,
  }  # fmt: skip
  config = small_config(**CHANGES | changes)
  found = evaluate.evaluate(config, tmp_path / 'out', workdir=run[1])
  # What a task of one's own takes for an answer is not known.
  assert 'pass@3' in found['metrics'] and 'maj@3' not in found['metrics']
  assert 'answered_fraction' not in found['metrics']
  digest = hashlib.sha256(rows.read_bytes()).hexdigest()
  assert found['data_sha256'] == digest
  for file in (task, template):
    before = file.read_text()
    file.write_text(before + ' ')
    with pytest.raises(UserError, match=f'files_sha256.{file}'):
      evaluate.evaluate(config, tmp_path / 'out', workdir=run[1])
    file.write_text(before)
  ids = PromptMaker.student_ids
  with monkeypatch.context() as patch:
    patch.setattr(
      PromptMaker, 'student_ids', lambda self, question: ids(self, question)[1:]
    )
    with pytest.raises(UserError, match='prompts_sha256 = .* delete that one'):
      evaluate.evaluate(config, tmp_path / 'out', workdir=run[1])
  # What it was of is not known.
  (tmp_path / 'out' / 'evaluation.json').unlink()
  with pytest.raises(UserError, match='no evaluation.json to say of what'):
    evaluate.evaluate(config, tmp_path / 'out', workdir=run[1])


def test_questions_that_a_run_trains_on_are_counted(
  run, tmp_path, caplog, capsys
):
  """More of generated ones: the first 20 are held out, 64 train."""
  config = small_config(**CHANGES | {'eval__num_questions': 40})
  found = evaluate.evaluate(config, tmp_path / 'more', workdir=run[1])
  assert found['num_trained_on'] == 20
  assert '20 of 40 questions are among those that --workdir=' in caplog.text
  paired.compare(tmp_path / 'more', tmp_path / 'more')
  told = f'{tmp_path}/more: 20 of the questions are among those of its training'
  assert told in capsys.readouterr().out
  rows = tmp_path / 'rows.jsonl'
  asked = [f'{{"question": "{i} + 1", "answer": "{i + 1}"}}' for i in range(9)]
  rows.write_text('\n'.join(asked))
  config = small_config(
    **CHANGES | {'data__eval_path': str(rows), 'eval__num_questions': 9}
  )
  found = evaluate.evaluate(config, tmp_path / 'others', workdir=run[1])
  known = {question.question for question in load_training(run[0])}
  num = sum(f'{i} + 1' in known for i in range(9))
  assert found['num_trained_on'] == num > 0
  told = f"was trained: data.eval_path = '{rows}', not ''"
  assert told in capsys.readouterr().out
  # What the run was fed is not what its config gives today.
  workdir = tmp_path / 'run'
  shutil.copytree(run[1], workdir)
  fed = json.loads((workdir / 'inputs.json').read_text())
  (workdir / 'inputs.json').write_text(json.dumps(fed | {'questions': '0'}))
  found = evaluate.evaluate(config, tmp_path / 'unknown', workdir=workdir)
  assert found['num_trained_on'] is None
  assert 'is not known: its data file is another now' in caplog.text


def load_training(config):
  return load_questions(config, build.load_maker(config))[0]


def test_likelihoods_are_kept_and_continued(run, tmp_path):
  rows = tmp_path / 'cb.jsonl'
  labels = ('yes', 'no', 'maybe')
  rows.write_text(
    ''.join(
      json.dumps(
        {
          'id': f'cb-{n}', 'question': f'{n} + 1', 'answer': labels[n % 3],
          'choices': labels,
        }
      )
      + '\n'
      for n in range(12)
    )
  )  # fmt: skip
  config = small_config(
    **CHANGES
    | {
      'data__eval_path': str(rows), 'data__task': 'superglue',
      'eval__num_questions': 12, 'eval__has_likelihood': True,
      'eval__samples': 0,
    }
  )  # fmt: skip
  found = evaluate.evaluate(config, tmp_path / 'out', workdir=run[1])
  path = tmp_path / 'out' / 'generations.jsonl'
  lines = path.read_bytes()
  kept = read_rows(path)
  assert [row['kind'] for row in kept] == ['likelihood'] * 12
  best = [labels[int(np.argmax(row['log_prob']))] for row in kept]
  right = np.mean(
    [a == row['answer'] for a, row in zip(best, kept, strict=True)]
  )
  for name in ('likelihood_sum', 'likelihood_sum/cb/accuracy'):
    np.testing.assert_allclose(found['metrics'][name]['mean'], right)
  assert all(np.max(row['log_prob']) < 0 for row in kept)
  # Of two batches the second is scored again.
  path.write_bytes(b''.join(lines.splitlines(keepends=True)[:10]))
  (tmp_path / 'out' / 'results.json').unlink()
  assert evaluate.evaluate(config, tmp_path / 'out', workdir=run[1]) == found
  assert path.read_bytes() == lines


def test_pairs_of_two_evaluations(run, whole, tmp_path, capsys):
  config = small_config(**CHANGES, eval__has_before_after=False, seed=7)
  other = evaluate.evaluate(config, tmp_path / 'b', workdir=run[1], run_step=0)
  found = paired.compare(whole[0], tmp_path / 'b')
  told = capsys.readouterr().out.splitlines()[-1]
  assert told == (
    'they were asked differently: eval.has_greedy = True and False;'
    ' seed = 0 and 7'
  )
  assert list(found) == ['accuracy']  # the other has no greedy rollouts
  ours, theirs, pair = found['accuracy']
  assert ours == whole[1]['metrics']['avg@2']['mean']
  assert theirs == other['metrics']['avg@2']['mean']
  np.testing.assert_allclose(pair.difference.mean, ours - theirs)
  config = small_config(**CHANGES | {'eval__num_questions': 10})
  evaluate.evaluate(config, tmp_path / 'c', workdir=run[1])
  with pytest.raises(UserError, match='asked other questions'):
    paired.compare(whole[0], tmp_path / 'c')
  with pytest.raises(UserError, match='has no results.json'):
    paired.compare(whole[0], tmp_path)
  claim = json.loads((tmp_path / 'b' / 'results.json').read_text())
  for key, value in (('min_reward', 1.0), ('data', {'task': 'math'})):
    changed = claim | {'config': claim['config'] | {key: value}}
    (tmp_path / 'b' / 'results.json').write_text(json.dumps(changed))
    with pytest.raises(UserError, match=f'judged differently: .*{key}'):
      paired.compare(whole[0], tmp_path / 'b')
  # A task of one's own, mended in between.
  judged = claim | {'config': claim['config'] | {'data': {'task': 'a.py'}}}
  for n, folder in enumerate(('d', 'e')):
    shutil.copytree(tmp_path / 'b', tmp_path / folder)
    (tmp_path / folder / 'results.json').write_text(
      json.dumps(judged | {'files_sha256': {'a.py': str(n)}})
    )
  paired.compare(tmp_path / 'd', tmp_path / 'd')
  with pytest.raises(UserError, match="data.task = 'a.py' of another content"):
    paired.compare(tmp_path / 'd', tmp_path / 'e')
  (tmp_path / 'b' / 'results.json').write_text(json.dumps(claim))
  path = tmp_path / 'b' / 'generations.jsonl'
  lines = path.read_bytes().splitlines(keepends=True)
  for kept in (lines[1:], lines[:-2], []):
    path.write_bytes(b''.join(kept))
    with pytest.raises(UserError, match='has not 2 rollouts .sample. of each'):
      paired.compare(whole[0], tmp_path / 'b')
  for name in ('kind', 'reward'):
    path.write_bytes(b''.join(lines).replace(f'"{name}"'.encode(), b'"x"', 1))
    with pytest.raises(UserError, match=f"a line has no '{name}'"):
      paired.compare(whole[0], tmp_path / 'b')


def test_bad_input_is_one_line(run, whole, tmp_path):
  config = small_config(**CHANGES)
  with pytest.raises(UserError, match="model.path = '' must name a model"):
    evaluate.evaluate(config, tmp_path)
  for changes, match in (
    ({'eval__samples': 0}, 'eval.samples = 0: nothing to do'),
    ({'eval__num_questions': 0}, 'eval.num_questions = 0'),
    ({'eval__batch_questions': 3}, 'eval.batch_questions = 3 must be'),
    ({'eval__has_likelihood': True}, 'eval.has_likelihood = True'),
    ({'data__eval_path': 'none.jsonl'}, 'none.jsonl'),
    ({'data__path': 'a.jsonl', 'data__tfds_name': 'a'}, 'set one'),
    (
      {'data__eval_path': 'a.jsonl', 'data__tfds_eval_split': 'test'},
      'without data.eval_path',
    ),
  ):
    with pytest.raises(UserError, match=match):
      evaluate.evaluate(
        small_config(**CHANGES | changes), tmp_path, workdir=run[1]
      )
  assert not list(tmp_path.iterdir())
  config = small_config(**CHANGES, seed=5)
  with pytest.raises(UserError, match='seed = 0 there, 5 here'):
    evaluate.evaluate(config, whole[0], workdir=run[1])


def test_a_step_is_of_a_run(tmp_path):
  found = subprocess.run(
    [
      sys.executable, '-m', 'ogls_jax.evaluate', '--config=configs/tiny.py',
      f'--out={tmp_path / "out"}', '--step=3',
    ],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert found.returncode == USER_ERROR_CODE, found.stderr
  assert '--step=3 is of a run; give its --workdir' in found.stderr
