"""launch/worker.sh, where `python` is a stand-in that trains."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

import pytest

from tests.launch_stage import LAUNCH, ODD, ZONE, Stage


class Worker:
  """A worker's home folder, where `python` trains until it is told a code."""

  def __init__(self, folder):
    self.folder = folder
    (folder / 'ogls/launch').mkdir(parents=True)
    text = (LAUNCH / 'worker.sh').read_text()
    assert 'flock -w 120' in text
    text = text.replace('flock -w 120', 'flock -w 1')
    (folder / 'ogls/launch/worker.sh').write_text(text)
    (folder / 'ogls/.venv/bin').mkdir(parents=True)
    (folder / 'ogls/.venv/bin/activate').write_text(f'PATH={folder}:$PATH')
    (folder / 'python').write_text(WORKER_TRAINING)
    (folder / 'python').chmod(0o755)
    self.groups = []

  def commands(self, *flags):
    """What setup, a new start and a poll run here."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
    stage = Stage(folder, states=['ACTIVE'], answers=['lost', '0'])
    result = stage.run('tpu_vm.sh', 'resume', *ZONE, *flags, '--', *ODD)
    assert result.returncode == 0, result.stderr
    parts = ['pip install', '/worker.sh', 'exit_code 2>']
    return [stage.commands(part)[0] for part in parts]

  def run(self, command):
    """As sshd does: until the command and all that has its pipes is gone."""
    path = f'{self.folder}{os.pathsep}{os.environ["PATH"]}'
    process = subprocess.Popen(
      ['bash', '-c', command.replace('flock -w 120', 'flock -w 1')],
      cwd=self.folder,
      env=os.environ | {'HOME': str(self.folder), 'PATH': path},
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      start_new_session=True,
    )  # fmt: skip
    self.groups.append(process.pid)
    text, errors = process.communicate(timeout=30)
    return process.returncode, text.strip(), errors

  def signal(self, number):
    for group in self.groups:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)

  def ends(self, poll):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
      answer = self.run(poll)[1]
      if answer != 'running':
        return answer
      time.sleep(0.05)
    return 'running'

  def wait_for_starts(self, number):
    deadline = time.monotonic() + 30
    while len(self.starts()) < number and time.monotonic() < deadline:
      time.sleep(0.05)
    return self.starts()

  def starts(self):
    path = self.folder / 'starts.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


WORKER_TRAINING = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
home = pathlib.Path(os.environ['HOME'])
with open(home / 'starts.jsonl', 'a') as file:
  file.write(json.dumps(sys.argv[1:]) + '\\n')
deadline = time.monotonic() + 60
while not (home / 'code').exists() and time.monotonic() < deadline:
  time.sleep(0.05)
sys.exit(int((home / 'code').read_text()))
"""


@pytest.fixture
def worker(tmp_path):
  if shutil.which('flock') is None:
    pytest.skip('needs flock, which workers have')
  worker = Worker(tmp_path)
  yield worker
  worker.signal(signal.SIGKILL)


def test_a_worker_trains_once_at_a_time(worker):
  setup, start, poll = worker.commands()
  assert worker.run(poll)[1] == 'lost'
  assert worker.run(start)[0] == 0
  assert worker.run(poll)[1] == 'running'
  # Again, as it failed on another worker.
  assert worker.run(start)[0] == 0
  _, other, _ = worker.commands()
  for command in (other, setup):
    code, _, errors = worker.run(command)
    assert code == 1 and 'is training' in errors
  assert worker.run(poll)[1] == 'running'
  given = worker.wait_for_starts(1)
  assert given == [['-m', 'ogls_jax.train', '--coordinator=auto', *ODD]]
  (worker.folder / 'code').write_text('3')
  assert worker.ends(poll) == '3'
  # The code of the one before is no answer any more.
  (worker.folder / 'code').unlink()
  assert worker.run(other)[0] == 0
  assert (
    worker.run(poll)[1] == 'running' and len(worker.wait_for_starts(2)) == 2
  )


def test_a_mounted_bucket_does_not_hold_the_lock(worker):
  setup, _, poll = worker.commands('--bucket=b')
  for name, text in {
    'sudo': '', 'python3.11': '', 'ogls/.venv/bin/pip': '',
    'mountpoint': 'exit 1',
    'gcsfuse': 'echo "$@" >mounted; sleep 60 </dev/null >/dev/null 2>&1 &',
  }.items():  # fmt: skip
    (worker.folder / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
    (worker.folder / name).chmod(0o755)
  (worker.folder / 'new').touch()
  with tarfile.open(worker.folder / 'ogls.tar.gz', 'w:gz') as archive:
    archive.add(worker.folder / 'new', 'new')
  code, _, errors = worker.run(setup)
  assert code == 0, errors
  assert (worker.folder / 'ogls/new').exists()
  mounted = (worker.folder / 'ogls/mounted').read_text()
  assert mounted == '--implicit-dirs b /mnt/ogls\n'
  assert worker.run(poll)[1] == 'lost'


def test_a_start_waits_for_the_end_of_the_one_before(worker):
  _, start, poll = worker.commands()
  _, other, _ = worker.commands()
  assert worker.run(start)[0] == 0 and worker.wait_for_starts(1)
  script = worker.folder / 'ogls/launch/worker.sh'
  script.write_text(script.read_text().replace('flock -w 1', 'flock -w 20'))
  timer = threading.Timer(1, (worker.folder / 'code').write_text, ['1'])
  timer.start()
  assert worker.run(other)[0] == 0
  timer.join()
  assert worker.ends(poll) == '1' and len(worker.starts()) == 2


def test_a_worker_that_dies_is_lost(worker):
  _, start, poll = worker.commands()
  assert worker.run(start)[0] == 0 and worker.wait_for_starts(1)
  worker.signal(signal.SIGKILL)
  assert worker.ends(poll) == 'lost'


def test_a_worker_keeps_the_code_after_a_notice(worker):
  _, start, poll = worker.commands()
  assert worker.run(start)[0] == 0 and worker.wait_for_starts(1)
  worker.signal(signal.SIGHUP)
  assert worker.run(poll)[1] == 'running'
  worker.signal(signal.SIGTERM)
  assert worker.ends(poll) == '75'
