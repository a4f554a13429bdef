"""Stops that are asked for, by signals that a process sends to itself."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import time

import pytest

from ogls_jax import notice, rollout, rounds, train
from ogls_jax.errors import Preempted
from ogls_jax.tasks import grading
from tests.small import tree_max_difference
from tests.small_run import final_state, read_rows, small_config

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_asks_and_handlers_come_back(number, capfd):
  before = [signal.getsignal(each) for each in SIGNALS]
  with notice.StopNotice() as stop:
    assert not stop.is_asked()
    stop.check()
    os.kill(os.getpid(), number)
    for _ in range(500):
      if stop.is_asked():
        break
      time.sleep(0.01)
    with pytest.raises(Preempted):
      stop.check()
  assert [signal.getsignal(each) for each in SIGNALS] == before
  assert signal.set_wakeup_fd(-1) == -1
  assert 'a second signal stops at once' in capfd.readouterr().err


# Says that it is ready, then never comes to a check.
BUSY = """
import sys, time
from ogls_jax import notice
notice._MOST_SECONDS = {most_seconds}
with notice.StopNotice(75) as stop:
  {first}
  print('ready', flush=True)
  while True:
    time.sleep(60)
"""


def busy(most_seconds, first='pass'):
  return subprocess.Popen(
    [sys.executable, '-c', BUSY.format(most_seconds=most_seconds, first=first)],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


@pytest.mark.parametrize('number', SIGNALS)
def test_a_second_signal_ends_at_once(number):
  process = busy(100)
  try:
    process.stdout.readline()
    process.send_signal(number)
    assert 'stopping' in process.stderr.readline()
    process.send_signal(number)
    text = process.communicate(timeout=20)[1]
    assert process.returncode == 128 + number
    assert 'the last checkpoint is whole' in text
  finally:
    process.kill()


def test_a_terminal_that_is_gone_changes_nothing():
  """As behind `| tee`, which Ctrl-C ends, too."""
  process = busy(1)
  try:
    process.stdout.readline()
    process.stderr.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
  finally:
    process.kill()


def test_where_nothing_checks_the_process_ends_by_itself():
  process = busy(1)
  try:
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=20)[1]
    assert process.returncode == 75
    assert 'no point to stop at within 1 s' in text
  finally:
    process.kill()


@pytest.fixture(scope='module')
def config():
  return small_config(
    eval__num_questions=0, warmup__num_steps=0, checkpoint__every_steps=3
  )


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run') / 'whole'
  train.train(config, workdir)
  return workdir


@pytest.mark.parametrize(
  ('place', 'saved'), [('after sampling', 2), ('while sampling', 1)]
)
def test_a_stopped_run_goes_on_as_if_nothing_was(
  place, saved, config, whole, tmp_path, monkeypatch
):
  original, calls = rounds.sampled_round, []

  def noticed(questions, sample, *rest, poll):
    calls.append(1)

    def stopped(prompts, meanwhile):
      def asked(so_far):
        if len(calls) == 2 and place == 'while sampling':
          os.kill(os.getpid(), signal.SIGTERM)
          time.sleep(0.2)
        meanwhile(so_far)

      rollouts = sample(prompts, asked)
      if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
      return rollouts

    return original(questions, stopped, *rest, poll=poll)

  monkeypatch.setattr(rounds, 'sampled_round', noticed)
  monkeypatch.setattr(rollout, 'MOST_TOKENS', 4)
  with (
    notice.StopNotice(exit_code=9) as stop,
    pytest.raises(Preempted, match=f'step {saved} is saved'),
  ):
    train.train(config, tmp_path, notice=stop)
  assert final_state(tmp_path)['step'] == saved
  assert train.train(config, tmp_path)['num_steps'] == 4
  assert tree_max_difference(final_state(whole), final_state(tmp_path)) == 0
  samples = [read_rows(x / 'samples.jsonl') for x in (whole, tmp_path)]
  assert samples[0] == samples[1]
  steps = [row['step'] for row in read_rows(tmp_path / 'metrics.jsonl')]
  assert steps == [1, 2, 3, 4]


def test_a_stop_comes_while_answers_are_graded(
  config, whole, tmp_path, monkeypatch
):
  """Grading goes on for as long as its limits allow; the run does not wait."""
  original = grading.Grader.submit
  calls = []

  def submit(self, texts, questions):
    wait = original(self, texts, questions)

    def waits(poll):
      calls.append(1)
      if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        never = concurrent.futures.Future()
        self._threads.submit = lambda *_: never
        return original(self, texts, questions)(poll)
      return wait(poll)

    return waits

  with monkeypatch.context() as patch:
    patch.setattr(grading.Grader, 'submit', submit)
    with (
      notice.StopNotice(exit_code=9) as stop,
      pytest.raises(Preempted, match='is saved'),
    ):
      train.train(config, tmp_path, notice=stop)
  train.train(config, tmp_path)
  assert tree_max_difference(final_state(whole), final_state(tmp_path)) == 0
