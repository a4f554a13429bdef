"""One command at a time in a workdir."""

import subprocess
import sys
import threading
import time

import pytest

from ogls_jax import train
from ogls_jax.errors import UserError
from ogls_jax.workdir import locked
from tests.small_run import read_rows, small_config

HOLD = """
import pathlib, sys, time
from ogls_jax.workdir import locked
with locked(pathlib.Path(sys.argv[1]), flag='--workdir=x'):
  print('held', flush=True)
  time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path / 'lock')],
    stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.wait()


def test_a_second_command_in_a_workdir_is_an_error(holder, tmp_path):
  config = small_config(
    warmup__num_steps=0, eval__num_questions=0, method='sft', num_steps=1
  )
  with pytest.raises(UserError, match=f'{tmp_path}: another process is at'):
    train.train(config, tmp_path)
  # As after SIGKILL: nothing is left to clear up.
  holder.kill()
  holder.wait()
  train.train(config, tmp_path)
  assert len(read_rows(tmp_path / 'metrics.jsonl')) == 1


def test_a_stage_that_another_trains_is_waited_for(holder, tmp_path, capsys):
  seconds = []

  def wait():
    began = time.monotonic()
    with locked(tmp_path / 'lock', flag='stage 1', is_waited_for=True):
      seconds.append(time.monotonic() - began)

  thread = threading.Thread(target=wait)
  thread.start()
  time.sleep(0.5)
  assert not seconds
  holder.kill()
  thread.join(timeout=20)
  assert seconds[0] >= 0.4
  assert 'waiting for another process' in capsys.readouterr().out


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path):
  with (
    pytest.raises(UserError, match='--workdir=x: .*lock cannot be written'),
    locked(tmp_path / 'none' / 'lock', flag='--workdir=x'),
  ):
    pass
