"""Exports against transformers and peft, which must compute what we do."""

import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers
from flax import nnx

from ogls_jax import export, runs, train
from ogls_jax.errors import UserError
from ogls_jax.mesh import single_device_mesh
from ogls_jax.models import shards, weights
from ogls_jax.tokenizer import load_tokenizer
from tests.small_run import small_config
from tests.test_families import CASES, SIZES, full_logits, make_reference
from tests.tokenizer_files import byte_level_gguf

TOKENS = np.random.default_rng(0).integers(0, SIZES['vocab_size'], (1, 20))


def train_run(workdir, source, **changes):
  """Two updates of a model in a folder, big enough to see."""
  config = small_config(
    warmup__num_steps=0, num_steps=2, method='opsd', eval__num_questions=0,
    checkpoint__every_steps=1, optimizer__learning_rate=0.05,
    optimizer__max_grad_norm=0.0, rollouts__max_tokens=6,
    model__path=str(source), model__tokenizer_path='', prompt__max_tokens=512,
    **{'lora__rank': 3, 'lora__alpha': 5.0} | changes,
  )  # fmt: skip
  train.train(config, workdir)
  return workdir


def write_source(folder, case, **options):
  kind, given = CASES[case]
  folder.mkdir()
  tokenizer = load_tokenizer(byte_level_gguf(folder / 'a.gguf', 'smollm'))
  tokenizer.save(folder)
  sizes = {'vocab_size': tokenizer.vocab_size + 3}
  model = make_reference(kind, **given | sizes | options)
  model.save_pretrained(folder)
  return folder


def our_logits(workdir, step=None):
  run = runs.load_run(workdir, single_device_mesh(), step=step, flag='f')
  student = run.student
  decoder = nnx.merge(student.graphdef, student.params, student.frozen)
  return np.asarray(full_logits(decoder, jnp.asarray(TOKENS)))


def their_logits(model):
  with torch.no_grad():
    return model.float().eval()(torch.tensor(TOKENS)).logits[0].numpy()


def assert_close(got, expected):
  atol = 1e-5 * np.abs(expected).max()
  np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.fixture(scope='module')
def adapter_run(tmp_path_factory):
  """(source folder, workdir) of a run with adapters."""
  folder = tmp_path_factory.mktemp('adapter')
  source = write_source(folder / 'source', 'smollm2')
  return source, train_run(folder / 'run', source)


@pytest.fixture(scope='module')
def full_run(tmp_path_factory):
  """(source folder, workdir) of a run that trains all weights."""
  folder = tmp_path_factory.mktemp('full')
  source = write_source(folder / 'source', 'smollm2')
  return source, train_run(folder / 'run', source, lora__rank=0)


@pytest.mark.parametrize('case', ['smollm2', 'qwen2_untied', 'gemma3'])
def test_round_trip(tmp_path, case, adapter_run):
  source, workdir = adapter_run
  if case != 'smollm2':
    source = write_source(tmp_path / 'source', case)
    workdir = train_run(tmp_path / 'run', source)
  expected = our_logits(workdir)
  assert np.abs(expected - our_logits(workdir, 1)).max() > 1e-2
  assert np.abs(expected - our_logits(workdir, 0)).max() > 1e-2
  for name in ('merged', 'adapter'):
    export.export(workdir, tmp_path / name, export_format=name)
    for file in (tmp_path / name).iterdir():
      assert file.stat().st_mode & 0o044 == 0o044, file  # others can read it
  load = transformers.AutoModelForCausalLM.from_pretrained
  assert_close(their_logits(load(tmp_path / 'merged')), expected)
  adapted = peft.PeftModel.from_pretrained(load(source), tmp_path / 'adapter')
  assert_close(their_logits(adapted), expected)
  # And back into our own loader.
  ours = weights.load_decoder(tmp_path / 'merged', mesh=single_device_mesh())
  assert_close(np.asarray(full_logits(ours, jnp.asarray(TOKENS))), expected)


def test_merged_in_shards_with_tokenizer_and_ends(tmp_path, full_run):
  source, workdir = full_run
  expected = our_logits(workdir)
  out = tmp_path / 'out'
  export.export(workdir, out, export_format='merged', max_shard_bytes=50_000)
  files = sorted(out.glob('*.safetensors'))
  config = json.loads((out / 'config.json').read_text())
  assert config['dtype'] == config['torch_dtype'] == 'float32'
  index = json.loads((out / shards.INDEX).read_text())
  assert len(files) > 2
  assert set(index['weight_map'].values()) == {file.name for file in files}
  model = transformers.AutoModelForCausalLM.from_pretrained(out)
  assert_close(their_logits(model), expected)
  tokenizer = load_tokenizer(source)
  theirs = transformers.AutoTokenizer.from_pretrained(out)
  assert theirs('ab 12')['input_ids'] == tokenizer.encode('ab 12')
  ends = model.generation_config.eos_token_id
  assert ends == list(tokenizer.eos_ids) and len(ends) > 1
  origin = json.loads((out / 'ogls_jax.json').read_text())
  assert (origin['step'], origin['base']) == (2, str(source))


def test_bfloat16_is_rounded_once(tmp_path, adapter_run):
  _, workdir = adapter_run
  for dtype in ('', 'bfloat16'):
    out = tmp_path / f'out{dtype}'
    export.export(workdir, out, export_format='merged', dtype=dtype)
  exact, rounded = (
    shards.open_shards(tmp_path / name) for name in ('out', 'outbfloat16')
  )
  assert exact.shapes == rounded.shapes
  for name, shape in exact.shapes.items():
    everything = (slice(None),) * len(shape)
    np.testing.assert_array_equal(
      rounded.read(name, everything),
      exact.read(name, everything).astype(jnp.bfloat16),
    )


def test_a_model_from_random_weights(tmp_path):
  """It began in no folder: its base is written first."""
  workdir = tmp_path / 'run'
  train.train(small_config(eval__num_questions=0, lora__rank=2), workdir)
  with pytest.raises(UserError, match='--step=0'):
    export.export(workdir, tmp_path / 'a', export_format='adapter')
  assert not (tmp_path / 'a').exists()
  export.export(workdir, tmp_path / 'b', export_format='merged', step=0)
  export.export(
    workdir, tmp_path / 'a', export_format='adapter', base=str(tmp_path / 'b')
  )
  model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / 'a')
  tokens = np.random.default_rng(0).integers(0, 60, (1, 20))
  run = runs.load_run(workdir, single_device_mesh(), step=None, flag='f')
  decoder = nnx.merge(
    run.student.graphdef, run.student.params, run.student.frozen
  )
  with torch.no_grad():
    got = model.eval()(torch.tensor(tokens)).logits[0].numpy()
  assert_close(got, np.asarray(full_logits(decoder, jnp.asarray(tokens))))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'b')
  ours = load_tokenizer('configs/arithmetic.model')
  ids = theirs('1+2=3', add_special_tokens=False)['input_ids']
  assert ids == ours.encode('1+2=3')


def test_quantized_base(tmp_path):
  pytest.importorskip('qwix')
  source = write_source(tmp_path / 'source', 'smollm2')
  workdir = train_run(
    tmp_path / 'run', source, model__quantize='int8', model__remat='full'
  )
  export.export(workdir, tmp_path / 'out', export_format='merged')
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  assert_close(their_logits(model), our_logits(workdir))


def test_a_base_that_stage_1_changed_is_not_the_folder(adapter_run):
  _, workdir = adapter_run
  run = runs.load_run(workdir, single_device_mesh(), step=0, flag='f')
  run.config.warmup.num_steps = 3
  with pytest.raises(UserError, match='warmup.num_steps = 3'):
    export._base_of(run)


def test_an_adapter_names_the_revision_of_its_base(
  tmp_path, adapter_run, monkeypatch
):
  source, workdir = adapter_run
  run = runs.load_run(workdir, single_device_mesh(), step=0, flag='f')
  run.config.model.path = 'hub:o/n@v1'
  monkeypatch.setattr(export, 'resolve_model_path', lambda path: source)
  assert export._base_of(run) == ('o/n', 'v1')
  run.config.model.path = 'hub:o/n'
  assert export._base_of(run) == ('o/n', None)
  assert export._named_base(str(source)) == (str(source), None)
  with pytest.raises(UserError, match='--base=o/n: no folder'):
    export._named_base('o/n')


def test_a_full_disk_is_one_line(tmp_path, adapter_run, monkeypatch):
  _, workdir = adapter_run

  def save(*_):
    raise safetensors.SafetensorError('no space left')

  monkeypatch.setattr(safetensors.numpy, 'save_file', save)
  for name in export.FORMATS:
    with pytest.raises(UserError, match='cannot be written .no space left'):
      export.export(workdir, tmp_path / 'out', export_format=name)
  assert not list(tmp_path.iterdir())


def test_a_run_of_an_older_version(tmp_path, adapter_run):
  _, workdir = adapter_run
  config = json.loads((workdir / 'config.json').read_text())
  max_tokens = config['eval'].pop('max_tokens')
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match='has no eval.max_tokens'):
    export.export(tmp_path, tmp_path / 'out', export_format='merged')
  config['eval']['max_tokens'] = max_tokens
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match='has no checkpoint yet'):
    export.export(tmp_path, tmp_path / 'out', export_format='merged')


def test_a_damaged_model_starts_no_run(tmp_path):
  source = write_source(tmp_path / 'source', 'smollm2')
  file = source / 'model.safetensors'
  tensors = safetensors.numpy.load_file(file)
  tensors['model.norm.weight'][3] = np.nan
  safetensors.numpy.save_file(tensors, file)
  with pytest.raises(UserError, match='model.norm.weight is not finite'):
    train_run(tmp_path / 'run', source)
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(UserError, match='model.safetensors: not a readable'):
    train_run(tmp_path / 'run', source)
  assert not (tmp_path / 'run').exists()


def test_what_cannot_be_exported(tmp_path, full_run):
  source, workdir = full_run

  def refuse(message, folder=workdir, out=tmp_path / 'out', **options):
    with pytest.raises(UserError, match=message) as caught:
      export.export(folder, out, **{'export_format': 'merged'} | options)
    assert '\n' not in str(caught.value)

  refuse('no adapter; use --format=merged', export_format='adapter')
  refuse("--format=gguf is none of: 'merged'", export_format='gguf')
  refuse('no checkpoint of step 9; it has 0, 1, 2', step=9)
  refuse('--dtype=int8 is none of', dtype='int8')
  refuse('--base=x is of --format=adapter', base='x')
  refuse('--dtype=float32 is of', export_format='adapter', dtype='float32')
  refuse('its config.json has no method', folder=source)
  refuse('has no config.json', folder=tmp_path)
  refuse('is there already', out=source)
  refuse('cannot be written', out=source / 'config.json' / 'x')
  assert not (tmp_path / 'out').exists()
  assert not list(tmp_path.glob('.export*'))


def test_command(tmp_path, adapter_run):
  source, workdir = adapter_run
  command = [sys.executable, '-m', 'ogls_jax.export', f'--workdir={workdir}']

  def run(*args):
    return subprocess.run(
      [*command, *args], capture_output=True, text=True, check=False,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )  # fmt: skip

  done = run('--step=1', '--format=adapter', f'--out={tmp_path / "a"}')
  assert done.returncode == 0, done.stderr
  assert f'wrote step 1 of {workdir} to' in done.stdout
  config = json.loads((tmp_path / 'a' / 'adapter_config.json').read_text())
  assert config['base_model_name_or_path'] == str(source)
  assert config['target_modules'] == [
    'down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj',
  ]  # fmt: skip
  done = run(f'--out={tmp_path / "a"}')
  assert done.returncode == 2 and 'is there already' in done.stderr
