"""launch/tpu_vm.sh, with stand-ins for gcloud and git."""

import os
import shlex
import shutil
import signal
import subprocess
import time

import pytest

from tests.launch_stage import GIVEN, LAUNCH, ODD, ZONE, Stage

WARNING = '*** the slice job in us-west4-a may still run, and bills'


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
