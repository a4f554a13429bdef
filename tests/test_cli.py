"""What a command prints, and its exit code, when it cannot go on."""

import os
import subprocess
import sys

import pytest


def command(*args):
  return subprocess.run(
    [sys.executable, '-m', 'ogls_jax.train', *args],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(
  ('args', 'text'),
  [
    (['--config.metod=opsd'], 'Did you mean "method"'),
    (['--config.rollouts.group_size=8.5'], 'rollouts.group_size=8.5'),
    (['--config.rollouts.group_size=0'], 'rollouts.group_size = 0'),
    (['--config.model.tokenizer_path=absent.model'], 'absent.model'),
    (['--config=configs/absent.py'], 'configs/absent.py'),
    (
      [
        '--config.data.task=math',
        '--config.warmup.num_steps=0',
        '--config.data.path=absent.jsonl',
      ],
      'absent.jsonl',
    ),
    (['--config.model.path=absent.gguf'], 'absent.gguf'),
  ],
  ids=lambda value: value[-1] if isinstance(value, list) else '',
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, args, text):
  done = command(
    '--config=configs/tiny.py', f'--workdir={tmp_path / "run"}', *args
  )
  assert done.returncode == 2, done.stderr
  lines = done.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: '), done.stderr
  assert text in lines[0]
  assert not (tmp_path / 'run' / 'checkpoints').exists()


@pytest.mark.parametrize('text', ['def get_config(:\n  pass\n', '{"a": true}'])
def test_a_config_that_is_no_python_is_one_line(text, tmp_path):
  (tmp_path / 'mine.py').write_text(text)
  done = command(f'--config={tmp_path}/mine.py', f'--workdir={tmp_path}/run')
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  assert f'{tmp_path}/mine.py:1: ' in line


def test_ctrl_c_is_one_line_and_exit_code_130():
  code = (
    'from ogls_jax import cli\n'
    'def main():\n  raise KeyboardInterrupt\n'
    'cli.run(main)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 130
  assert done.stderr.count('\n') == 1 and 'interrupted' in done.stderr


def test_compiled_programs_are_kept(tmp_path):
  program = """
import jax, jax.numpy as jnp
from ogls_jax.cache_dir import keep_programs
keep_programs()
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.jit(lambda x: x + 1)(jnp.zeros(3)).block_until_ready()
"""
  folder = tmp_path / 'cache'
  environment = os.environ | {'OGLS_CACHE_DIR': str(folder)}
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  for _ in range(2):
    subprocess.run([sys.executable, '-c', program], env=environment, check=True)
    files = [p for p in folder.rglob('*-cache') if 'lambda' in p.name]
    assert len(files) == 1, list(folder.rglob('*'))


def test_help_lists_the_flags_that_commands_share():
  found = command('--help')
  for name in ('config', 'workdir', 'coordinator', 'num_processes'):
    assert f'\n  --{name}: ' in found.stdout
