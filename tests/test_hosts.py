"""Several processes on one machine, as several hosts of a pod."""

import json
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ogls_jax import cli, evaluate, hosts, train
from ogls_jax.errors import USER_ERROR_CODE, UserError
from tests.on_meshes import SHAPES
from tests.small import tree_max_difference
from tests.small_run import final_state, read_rows, small_config

WAIT_SECONDS = 480


def free_port():
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def launch(module, *arguments, num_devices=4):
  flags = os.environ['XLA_FLAGS']
  flags += f' --xla_force_host_platform_device_count={num_devices}'
  return subprocess.Popen(
    [sys.executable, '-m', module, *arguments],
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags},
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def train_by_two(workdir, config, *flags, of_second=(), module='train'):
  """Two processes of 4 devices each that train `config`, or another command.

  A flag in `of_second` counts, where it is given twice. A comparison is kept in
  `workdir`.
  """
  overrides = [
    f'--config.{key}={value}'
    for key, value in changed_from('configs/tiny.py', config)
  ]
  where = f'--coordinator=127.0.0.1:{free_port()}'
  folder = 'out' if module == 'compare' else 'workdir'
  return [
    launch(
      f'ogls_jax.{module}', '--config=configs/tiny.py', f'--{folder}={workdir}',
      where, '--num_processes=2', f'--process_id={n}', *overrides, *flags,
      *(of_second if n else ()),
    )
    for n in range(2)
  ]  # fmt: skip


def changed_from(path, config):
  def flat(tree, prefix=''):
    for key, value in tree.items():
      if isinstance(value, dict):
        yield from flat(value, f'{prefix}{key}.')
      else:
        yield prefix + key, value

  before = dict(flat(runpy.run_path(path)['get_config']().to_dict()))
  after = dict(flat(config.to_dict()))
  return [pair for pair in after.items() if before[pair[0]] != pair[1]]


def ends(processes):
  """(exit code, stderr) of each; none outlives the test."""
  try:
    texts = [each.communicate(timeout=WAIT_SECONDS)[1] for each in processes]
  finally:
    for each in processes:
      each.kill()
  return [
    (each.returncode, text) for each, text in zip(processes, texts, strict=True)
  ]


def wait_for(path, processes):
  for _ in range(WAIT_SECONDS * 50):
    if path.exists():
      return
    codes = [each.poll() for each in processes]
    assert codes == [None, None], (codes, ends(processes))
    time.sleep(0.02)
  raise TimeoutError(path)


def test_two_processes_agree_with_one_on_every_mesh(tmp_path):
  one, two = tmp_path / 'one.npz', tmp_path / 'two.npz'
  alone = launch('tests.on_meshes', str(one), num_devices=8)
  address = f'127.0.0.1:{free_port()}'
  pair = [
    launch('tests.on_meshes', str(two), address, '2', str(n)) for n in range(2)
  ]
  for code, text in ends([alone, *pair]):
    assert code == 0, text[-2000:]
  one, two = np.load(one), np.load(two)
  assert set(one) == set(two) and len(one.files) > 25 * len(SHAPES)
  for name in one:
    np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-4)
  # And every mesh with every other.
  for n in range(len(one.files) // len(SHAPES)):
    first, *others = (one[f'{shape}/{n}'] for shape in SHAPES)
    for other in others:
      np.testing.assert_allclose(other, first, rtol=1e-3, atol=1e-3)


def test_a_run_survives_a_notice_and_a_death(tmp_path):
  """Two processes, a SIGTERM, a SIGKILL, and one process that goes on."""
  assert jax.device_count() == 8
  config = small_config(
    num_steps=8, checkpoint__every_steps=1, mesh__fsdp=2,
    log__inspect_every_steps=4, log__inspect_rollouts=16,
  )  # fmt: skip
  train.train(config, tmp_path / 'whole')

  workdir = tmp_path / 'run'
  checkpoints = workdir / 'checkpoints'
  pair = train_by_two(workdir, config)
  wait_for(checkpoints / '1', pair)
  pair[1].send_signal(signal.SIGTERM)
  for code, text in ends(pair):
    assert code == cli.PREEMPTED_CODE, text[-2000:]
  saved = max(int(path.name) for path in checkpoints.iterdir())
  assert saved < 7

  pair = train_by_two(workdir, config)
  wait_for(checkpoints / str(saved + 1), pair)
  pair[1].kill()
  died = time.monotonic()
  (code, text), _ = ends(pair)
  assert code not in (0, cli.PREEMPTED_CODE), text[-2000:]
  assert time.monotonic() - died < 60
  assert not (workdir / 'summary.json').exists()

  summary = train.train(config, workdir)
  assert summary['num_steps'] == 8
  whole, got = final_state(tmp_path / 'whole'), final_state(workdir)
  assert tree_max_difference(whole, got) < 1e-3
  rows = [read_rows(x / 'metrics.jsonl') for x in (tmp_path / 'whole', workdir)]
  assert [row['step'] for row in rows[1]] == list(range(1, 9))
  for row, other in zip(*rows, strict=True):
    for name in ('loss', 'kl', 'response_tokens_mean', 'reward_mean'):
      assert other[name] == pytest.approx(row[name], rel=1e-3, abs=1e-4), name
  samples = [
    read_rows(x / 'samples.jsonl') for x in (tmp_path / 'whole', workdir)
  ]
  assert samples[0] == samples[1]
  # Of two processes the first looks at rollouts of its own.
  all_rows, rows = (
    read_rows(x / 'inspect.jsonl') for x in (tmp_path / 'whole', workdir)
  )
  assert {row['step'] for row in rows} == {1, 4, 8}
  known = {(row['step'], row['id'], row['response']): row for row in all_rows}
  for row in rows:
    other = known[row['step'], row['id'], row['response']]
    assert row['token_ids'] == other['token_ids']
    assert row['divergence'] == pytest.approx(
      other['divergence'], rel=0.01, abs=1e-4
    )
  # And evaluated by two as by one, with the texts of both.
  folders = [tmp_path / name for name in ('by_one', 'by_two')]
  evaluate.evaluate(config, folders[0], workdir=workdir)
  for code, text in ends(
    train_by_two(workdir, config, f'--out={folders[1]}', module='evaluate')
  ):
    assert code == 0, text[-2000:]
  by_one, by_two = (read_rows(x / 'generations.jsonl') for x in folders)
  assert by_one == by_two and len(by_one) == 18
  assert len({row['response'] for row in by_one}) > 9


def test_a_comparison_by_two_is_that_of_one(tmp_path):
  """With a budget, whose end the hosts have to agree on; and once more."""
  config = small_config(num_steps=2, mesh__fsdp=2)
  flags = ['--methods=base,sft,grpo', '--reference=sft', '--seeds=1']
  flags += ['--budget=tokens']
  found = []
  for _ in range(2):  # trained, then read
    pair = train_by_two(tmp_path, config, *flags, module='compare')
    for code, text in ends(pair):
      assert code == 0, text[-2000:]
    found.append((tmp_path / 'compare.json').read_bytes())
  assert found[0] == found[1]
  variants = json.loads(found[0])['variants']
  tokens = [variants[name]['training_tokens'][0] for name in ('sft', 'grpo')]
  assert variants['sft']['updates'] == [2] and tokens[1] >= 0.5 * tokens[0]
  for name in ('sft', 'grpo'):
    (workdir,) = variants[name]['runs']
    assert (
      len(read_rows(pathlib.Path(workdir) / 'metrics.jsonl'))
      == (variants[name]['updates'][0])
    )


def test_hosts_with_different_configs_stop(tmp_path):
  pair = train_by_two(
    tmp_path, small_config(), of_second=['--config.num_steps=5']
  )
  for code, text in ends(pair):
    assert code == USER_ERROR_CODE
    assert 'different configs or flags' in text
  assert not (tmp_path / 'config.json').exists()


def test_a_workdir_that_is_not_shared_is_seen(tmp_path):
  pair = train_by_two(
    tmp_path / 'one', small_config(warmup__num_steps=0),
    of_second=[f'--workdir={tmp_path / "other"}'],
  )  # fmt: skip
  for code, text in ends(pair):
    assert code == USER_ERROR_CODE, text[-2000:]
    assert 'one folder that all hosts share' in text


def test_a_missing_host_is_one_line():
  process = launch(
    'ogls_jax.train', '--config=configs/tiny.py', '--workdir=unused',
    f'--coordinator=127.0.0.1:{free_port()}', '--num_processes=2',
    '--process_id=0', '--wait_seconds=3',
  )  # fmt: skip
  began = time.monotonic()
  ((code, text),) = ends([process])
  assert time.monotonic() - began < 60
  assert code == 1, text[-2000:]
  assert 'not all hosts were there after 3 s' in text
  assert not pathlib.Path('unused').exists()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('', 2, -1), '--num_processes and --process_id need --coordinator'),
    (('', 0, 0), '--num_processes and --process_id need --coordinator'),
    (('here:1', 0, -1), 'give each of N processes'),
    (('here:1', 2, 2), 'give each of N processes'),
    (('here', 2, 0), 'is not HOST:PORT'),
    (('here:x', 2, 0), 'is not HOST:PORT'),
  ],
)
def test_flags_that_do_not_go_together(arguments, message):
  with pytest.raises(UserError, match=message):
    hosts.start(*arguments)
