"""Weights & Biases, of which a stand-in keeps what it is told."""

import sys
import types

import pytest

from ogls_jax import train
from ogls_jax.errors import UserError
from tests.small_run import read_rows, small_config

CHANGES = dict(
  warmup__num_steps=0, method='sft', eval__num_questions=0, num_steps=3,
  checkpoint__every_steps=1, log__wandb_project='mine',
)  # fmt: skip


class Service:
  """What W&B keeps of each run, by id; and where it fails."""

  def __init__(self):
    self.begun, self.rows, self.codes = [], {}, []
    self.fails_at = None

  def init(self, **arguments):
    self._fail('init')
    self.begun.append(arguments)
    return Run(self, self.rows.setdefault(arguments['id'], {}))

  def _fail(self, name):
    if self.fails_at == name:
      raise ConnectionResetError('the service is gone')


class Run:
  def __init__(self, service, rows):
    self.service, self.rows = service, rows
    self.step = max(rows, default=-1) + 1

  def log(self, row, step):
    self.service._fail(f'log {step}')
    if step in self.rows or step < max(self.rows, default=0):
      raise AssertionError(f'step {step} a second time')
    self.rows[step] = row

  def finish(self, exit_code):
    self.service._fail('finish')
    self.service.codes.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
  service = Service()
  module = types.ModuleType('wandb')
  module.init = service.init
  module.Settings = types.SimpleNamespace
  module.__spec__ = types.SimpleNamespace(name='wandb', origin='here')
  monkeypatch.setitem(sys.modules, 'wandb', module)
  return service


def test_it_gets_the_metrics_and_goes_on_after_a_stop(wandb, tmp_path):
  workdir, config = tmp_path / 'run', small_config(**CHANGES)
  train.train(config, workdir, stop_after_steps=2)
  train.train(config, workdir)
  first, second = wandb.begun
  assert first == second and first['resume'] == 'allow'
  assert first['project'] == 'mine' and first['name'] == 'run'
  assert first['config']['num_steps'] == 3
  assert wandb.codes == [0, 0]
  kept = wandb.rows[first['id']]
  rows = read_rows(workdir / 'metrics.jsonl')
  assert list(kept) == [row['step'] for row in rows] == [1, 2, 3]
  for row in rows:
    # Without what has no number, which W&B would draw as a gap.
    known = {k: v for k, v in row.items() if v is not None}
    assert known == kept[row['step']] | {
      'step': row['step'],
      'time': row['time'],
    }
  # Another workdir is another run, at the same place, too.
  workdir.rename(tmp_path / 'old')
  train.train(config, workdir)
  assert wandb.begun[2]['id'] != first['id']


@pytest.mark.parametrize('where', ['init', 'log 2', 'finish'])
def test_where_it_fails_training_goes_on(wandb, tmp_path, capsys, where):
  config, workdir = small_config(**CHANGES), tmp_path / 'run'
  wandb.fails_at = where
  assert train.train(config, workdir, stop_after_steps=2) == {}
  assert (
    'W&B gets no more of this run (ConnectionReset' in capsys.readouterr().out
  )
  # What it missed is sent once it is back.
  wandb.fails_at = None
  assert train.train(config, workdir)['num_steps'] == 3
  (rows,) = wandb.rows.values()
  assert list(rows) == [1, 2, 3]


def test_a_run_that_failed_is_shown_as_failed(wandb, tmp_path):
  config = small_config(
    **CHANGES, optimizer__max_skipped_steps=0, optimizer__learning_rate=1e38
  )
  with pytest.raises(FloatingPointError):
    train.train(config, tmp_path)
  assert wandb.codes == [1]


def test_it_is_not_asked_where_the_config_does_not(wandb, tmp_path):
  config = small_config(**CHANGES | {'log__wandb_project': '', 'num_steps': 1})
  train.train(config, tmp_path)
  assert wandb.begun == []


def test_without_it_there_is_one_line(monkeypatch, tmp_path):
  config = small_config(**CHANGES, grading__symbolic_seconds=0)
  # A folder that W&B left is no package.
  folder = types.SimpleNamespace(origin=None)
  for found in (None, folder):
    monkeypatch.setattr('importlib.util.find_spec', lambda name, _=found: _)
    with pytest.raises(UserError, match="log.wandb_project = 'mine' needs W&B"):
      train.train(config, tmp_path)
