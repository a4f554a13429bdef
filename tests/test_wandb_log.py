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


class Run:
  def __init__(self, calls):
    self.calls = calls

  def log(self, row, step):
    self.calls.append((step, row))

  def finish(self):
    self.calls.append('finished')


@pytest.fixture
def wandb(monkeypatch):
  calls = []

  def init(**arguments):
    calls.append(arguments)
    return Run(calls)

  module = types.ModuleType('wandb')
  module.init = init
  module.__spec__ = types.SimpleNamespace(name='wandb')
  monkeypatch.setitem(sys.modules, 'wandb', module)
  return calls


def test_it_gets_the_metrics_and_goes_on_after_a_stop(wandb, tmp_path):
  workdir, config = tmp_path / 'run', small_config(**CHANGES)
  train.train(config, workdir, stop_after_steps=2)
  train.train(config, workdir)
  begun = [call for call in wandb if isinstance(call, dict)]
  assert len(begun) == wandb.count('finished') == 2
  assert begun[0] == begun[1] and begun[0]['resume'] == 'allow'
  assert begun[0]['project'] == 'mine' and begun[0]['name'] == 'run'
  assert begun[0]['config']['num_steps'] == 3
  logged = [call for call in wandb if isinstance(call, tuple)]
  rows = read_rows(workdir / 'metrics.jsonl')
  assert [step for step, _ in logged] == [1, 2, 3]
  for row, (_, values) in zip(rows, logged, strict=True):
    # Without what has no number, which W&B would draw as a gap.
    kept = {k: v for k, v in row.items() if v is not None}
    assert kept == values | {'step': row['step'], 'time': row['time']}
  # Another workdir is another run.
  train.train(config, tmp_path / 'other')
  ids = [call['id'] for call in wandb if isinstance(call, dict)]
  assert ids[0] == ids[1] != ids[2]


def test_it_is_not_asked_where_the_config_does_not(wandb, tmp_path):
  config = small_config(**CHANGES | {'log__wandb_project': '', 'num_steps': 1})
  train.train(config, tmp_path)
  assert wandb == []


def test_without_it_there_is_one_line(monkeypatch, tmp_path):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  config = small_config(**CHANGES, grading__symbolic_seconds=0)
  with pytest.raises(UserError, match="log.wandb_project = 'mine' needs W&B"):
    train.train(config, tmp_path)
