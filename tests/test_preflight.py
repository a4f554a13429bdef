"""The TPU compiler, where libtpu is installed, on topologies of no machine."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from configs import tiny
from ogls_jax import chips, preflight, shapes
from ogls_jax.collectives import Collective
from ogls_jax.compiled import has_same_sizes
from ogls_jax.errors import UserError
from ogls_jax.mesh import single_device_mesh
from ogls_jax.models.known_sizes import known_settings
from ogls_jax.program_cost import Cost

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='needs the TPU compiler: pip install libtpu',
)


# Its programs would only take time.
NOT_EVALUATED = '--config.eval.num_questions=0'


def run(*flags, topology='v5e:2x2'):
  # A process of its own: libtpu keeps what it was started with.
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  return subprocess.run(
    [
      sys.executable, '-m', 'ogls_jax.preflight', '--config=configs/tiny.py',
      f'--topology={topology}', *flags,
    ],
    capture_output=True, text=True, env=environment, check=False,
  )  # fmt: skip


@needs_libtpu
def test_a_small_run_fits():
  found = run('--json', '--config.mesh.fsdp=4', NOT_EVALUATED)
  assert found.returncode == 0, found.stderr[-2000:]
  report = json.loads(found.stdout)
  assert report['fits'] and report['num_chips'] == 4
  assert report['mesh'] == {'data': 1, 'fsdp': 4, 'model': 1}
  names = [program['name'] for program in report['programs']]
  assert names == ['begin', 'place', 'decode', 'compact', 'distill']
  parts = report['programs'][-1]['parts']
  assert {'scoring', 'hint reading', 'student forward', 'update'} <= set(parts)
  # Weights are shared out: an update gathers them, decoding does not.
  decode = report['programs'][2]['parts']['decode']
  weights = 4 * report['held_bytes']['weights']
  assert parts['student forward']['collectives']['all-gather'][1] > weights / 4
  assert 0 < sum(size for _, size in decode['collectives'].values()) < weights
  # Only the loop over tokens depends on data, and one inside top-p's search.
  assert len(decode['unknown']) <= 2, decode['unknown']


@needs_libtpu
def test_a_chip_of_two_devices():
  # Its compiler's programs cannot be read back the usual way.
  found = run('--json', NOT_EVALUATED, topology='TPU7x:2x2x1')
  assert found.returncode == 0, found.stderr[-2000:]
  report = json.loads(found.stdout)
  assert report['num_chips'] == 4 and report['mesh']['data'] == 8
  parts = report['programs'][-1]['parts']
  assert parts['student forward']['flops'] > 0


@needs_libtpu
def test_two_slices_share_no_layer():
  found = run('--json', '--num_slices=2', '--config.mesh.fsdp=3')
  assert found.returncode == 2 and 'mesh.fsdp = 3' in found.stderr
  found = run(
    '--json', '--num_slices=2', '--config.mesh.data=1', '--config.mesh.fsdp=8'
  )
  assert found.returncode == 2
  assert 'mesh.data = 1 must be a multiple of the 2 slices' in found.stderr


@needs_libtpu
def test_two_slices_exchange_a_gradient():
  found = run('--json', '--num_slices=2', '--config.mesh.fsdp=4', NOT_EVALUATED)
  assert found.returncode == 0, found.stderr[-2000:]
  report = json.loads(found.stdout)
  assert report['num_chips'] == 8
  assert report['mesh'] == {'data': 2, 'fsdp': 4, 'model': 1}
  parts = report['programs'][-1]['parts'].values()
  sent = sum(
    num_bytes
    for part in parts
    for kind, (_, num_bytes) in part['collectives'].items()
    if kind.endswith(' between slices')
  )
  # Each chip's quarter of the gradient, as large as its quarter of the weights.
  assert 1.0 < sent / report['held_bytes']['weights'] < 1.2
  seconds = sum(part['seconds']['links'] for part in parts)
  assert seconds > sent / chips.CHIPS['v5e'].network_rate


@needs_libtpu
def test_a_large_run_does_not_fit():
  found = run('--config.rollouts.max_tokens=400000')
  assert found.returncode == preflight.DOES_NOT_FIT_CODE, found.stderr[-2000:]
  assert found.stdout.splitlines()[-1] == 'does not fit'
  assert 'links ms is an estimate' in found.stdout


@needs_libtpu
def test_an_evaluation_of_other_sizes_is_compiled_too():
  flags = (
    '--json', '--config.method=sft', '--config.eval.num_questions=8',
    '--config.eval.batch_questions=16', '--config.eval.samples=8',
  )  # fmt: skip
  found = run(*flags, '--config.eval.max_tokens=400000')
  assert found.returncode == preflight.DOES_NOT_FIT_CODE, found.stderr[-2000:]
  report = json.loads(found.stdout)
  assert {p['name']: p['fits'] for p in report['programs']} == {
    'distill': True, 'eval begin': True, 'eval decode': False,
  }  # fmt: skip
  assert report['held_bytes']['cache'] > 2**34
  found = run(*flags, '--config.eval.max_tokens=96')
  assert found.returncode == 0, found.stderr[-2000:]
  report = json.loads(found.stdout)
  names = [
    'distill',
    'eval begin',
    'eval decode',
    'eval decode',
    'eval compact',
  ]
  assert [p['name'] for p in report['programs']] == names
  assert [p['slots'] for p in report['programs'][1:]] == [64, 64, 96, 96]
  assert report['step_seconds']['sampling'] == 0
  # 5 layers, 4 heads of 32, keys and values, float32: prompts of 64 for 4
  # questions a chip, and 96 tokens for 32 rollouts.
  token = 5 * 4 * 32 * 2 * 4
  cache = token * (4 * 64 + 32 * 96)
  assert cache <= report['held_bytes']['cache'] < 1.01 * cache


def test_an_evaluation_of_the_same_sizes_is_not():
  rollouts = {'group_size': 8, 'max_tokens': 48}
  training = (16, rollouts | {'temperature': 1.0})
  assert has_same_sizes(training, (16, rollouts | {'temperature': 0.0}))
  assert not has_same_sizes(training, (32, rollouts))
  assert not has_same_sizes(training, (16, rollouts | {'group_size': 4}))
  assert not has_same_sizes(training, (16, rollouts | {'max_tokens': 64}))
  assert not has_same_sizes(None, (16, rollouts))


def teaching_run(folder, **sizes):
  """A workdir with the config of a model of these sizes, not trained yet."""
  config = tiny.get_config()
  config.model.update(sizes)
  (folder / 'config.json').write_text(config.to_json())
  return f'--config.kd.teacher_workdir={folder}'


KD = ('--config.method=kd', '--config.kd.source=solutions', NOT_EVALUATED)


@needs_libtpu
def test_the_teacher_of_kd_is_the_model_that_teaches(tmp_path):
  size = {'width': 256, 'num_layers': 7, 'mlp_size': 512}
  found = run('--json', *KD, teaching_run(tmp_path, **size))
  assert found.returncode == 0, found.stderr[-2000:]
  report = json.loads(found.stdout)
  held, (distill,) = report['held_bytes'], report['programs']
  layer = 4 * 256 * 256 + 3 * 256 * 512
  assert 4 * 7 * layer < held['teacher'] < 1.1 * 4 * 7 * layer
  given = held['teacher'] + held['weights'] + held['optimizer']
  assert given < distill['argument_bytes'] < 1.2 * given
  # What trains has the starting model beside it.
  assert distill['other_bytes'] == held['weights']
  # Its layers are 4.3 times ours; the starting model would need 1.7 times as
  # much as the student, for as many more tokens of prompt.
  parts = distill['parts']
  assert parts['hint reading']['flops'] > 4 * parts['student forward']['flops']


@pytest.mark.parametrize(
  ('key', 'value', 'problem'),
  [
    ('teacher_path', 'nowhere', 'its sizes are not known: .*no such file'),
    ('teacher_workdir', 'nowhere', 'no config.json'),
    ('teacher_path', 'hub:Qwen/Qwen3-0.6B', '151936 rows in its output'),
  ],
)
def test_a_teacher_that_cannot_be_is_one_line(key, value, problem):
  config = tiny.get_config()
  config.method, config.kd[key] = 'kd', value
  settings = shapes.decoder_settings(config)
  with pytest.raises(UserError, match=f"kd.{key} = '{value}'.*{problem}"):
    shapes.load_kd_teacher(config, settings, single_device_mesh())


@needs_libtpu
def test_a_suggestion_is_confirmed_by_a_compile():
  flags = ['--config.mesh.fsdp=4', NOT_EVALUATED]
  size = '--config.rollouts.max_tokens={}'
  found = run('--suggest', size.format(80_000), *flags)
  assert found.returncode == preflight.DOES_NOT_FIT_CODE, found.stderr[-2000:]
  advice, verdict = found.stdout.splitlines()[-2:]
  assert verdict == 'does not fit'
  found = advice.removeprefix('fits with ').split()
  assert found[0].startswith('--config.') and found != advice.split()
  found = run(size.format(80_000), *flags, *found)
  assert found.returncode == 0, found.stdout[-2000:]


def test_without_the_compiler_is_one_line(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='pip install libtpu'):
    preflight.find_slice('v5e:2x2', 1)


@pytest.mark.parametrize(
  'topology',
  [
    'v5e', 'h100:2x2', 'v5e:', 'v5e:32x32', 'v5e:4', 'v5p:4x4', 'v5e:4by4',
    'v5litepod-16', 'v5e:0x4',
  ],
)  # fmt: skip
def test_no_such_topology(topology):
  with pytest.raises(
    UserError, match=f'--topology={topology} is no kind.*v5e:4x4'
  ):
    preflight.find_slice(topology, 1)


def test_sizes_known_without_weights():
  # 1.7 and 4.0 billion, embeddings included (huggingface.co/Qwen).
  def num_weights(path):
    s = known_settings(path)
    layer = 2 * s.width * s.head_size * (s.num_heads + s.num_kv_heads)
    layer += 3 * s.width * s.mlp_size
    return s.num_layers * layer + s.vocab_size * s.width

  assert num_weights('hub:Qwen/Qwen3-1.7B') == pytest.approx(1.72e9, rel=0.01)
  assert num_weights('hub:Qwen/Qwen3-4B@main') == pytest.approx(
    4.02e9, rel=0.01
  )
  assert known_settings('hub:someone/else') is None
  assert known_settings('folder/Qwen/Qwen3-4B') is None


def test_times_by_hand():
  cost = Cost(
    flops=197e12,
    num_bytes=819e9 / 2,
    collectives={
      Collective('all-gather', 16, False): (3, 100e9),
      Collective('all-reduce', 2, True): (1, 3.1e9),
    },
  )
  # Two links of one dim, one way each: a quarter of 400 GB/s.
  least = chips.times(cost, chips.CHIPS['v5e'], is_ring=True)
  assert least == chips.Times(compute=1.0, memory=0.5, links=2.0)
  assert least.seconds == 2.0 and least.bound == 'links'
  line = chips.times(cost, chips.CHIPS['v5e'], is_ring=False)
  assert line.links == 3.0
