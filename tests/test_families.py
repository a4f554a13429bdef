"""Every family against transformers: random checkpoints that it wrote."""

import functools
import json

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ogls_jax.errors import UserError
from ogls_jax.gguf_file import GgufHeader
from ogls_jax.mesh import make_mesh
from ogls_jax.models import hf_config, weights
from ogls_jax.models.cache import OwnCache
from ogls_jax.models.gguf_config import settings_from_gguf
from ogls_jax.models.settings import Rope
from ogls_jax.models.transformer import project

NUM_TOKENS = 48
SIZES = {
  'vocab_size': 96, 'hidden_size': 32, 'intermediate_size': 48,
  'num_hidden_layers': 3, 'num_attention_heads': 4, 'num_key_value_heads': 2,
  'head_dim': 16, 'max_position_embeddings': 128,
}  # fmt: skip
LLAMA3 = {
  'rope_type': 'llama3', 'rope_theta': 50.0, 'factor': 4.0,
  'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
}  # fmt: skip
GEMMA_ROPE = {
  'full_attention': {
    'rope_type': 'linear', 'rope_theta': 1000.0, 'factor': 2.0
  },
  'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
}  # fmt: skip
GEMMA = {
  'sliding_window': 8, 'rope_parameters': GEMMA_ROPE,
  'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention'],
  'query_pre_attn_scalar': 24,
}  # fmt: skip
CASES = {
  'llama': ('llama', {'tie_word_embeddings': False}),
  'smollm2': ('llama', {'tie_word_embeddings': True, 'rms_norm_eps': 1e-5}),
  'llama3': ('llama', {'rope_parameters': LLAMA3}),
  'llama_linear': (
    'llama',
    {
      'rope_parameters': {
        'rope_type': 'linear', 'rope_theta': 100.0, 'factor': 3.0
      }
    },
  ),
  'qwen2': ('qwen2', {'tie_word_embeddings': True}),
  'qwen2_untied': ('qwen2', {'tie_word_embeddings': False}),
  'qwen2_sliding': (
    'qwen2',
    {'use_sliding_window': True, 'sliding_window': 8, 'max_window_layers': 1},
  ),
  'qwen3': ('qwen3', {'tie_word_embeddings': True}),
  'qwen3_untied': ('qwen3', {'tie_word_embeddings': False}),
  'gemma3': ('gemma3_text', GEMMA | {'tie_word_embeddings': True}),
  'gemma3_untied': ('gemma3_text', GEMMA | {'tie_word_embeddings': False}),
}  # fmt: skip


def make_reference(kind, **options):
  """A transformers model in float32, every parameter of it random."""
  config = transformers.AutoConfig.for_model(
    kind, **SIZES | {'pad_token_id': 0} | options
  )
  model = transformers.AutoModelForCausalLM.from_config(config)
  return randomized(model)


def randomized(model):
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      is_scale = name.endswith('norm.weight')
      parameter.copy_(0.2 * noise + (0.9 if is_scale else 0))
  return model.to(torch.float32).eval()


def load(folder, **options):
  mesh = make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  return weights.load_decoder(folder, mesh=mesh, **options)


@jax.jit
def full_logits(decoder, tokens_1T):
  empty = decoder.read(jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32))
  hidden, _ = decoder.continue_from(tokens_1T[None], empty)
  return project(hidden[0], decoder.unembedding_VD)[0]


@functools.partial(jax.jit, static_argnames='is_unstacked')
def cached_logits(decoder, tokens_1T, is_unstacked=False):
  """Half as a padded prefix, the rest one by one from a cache with room."""
  half = NUM_TOKENS // 2
  padded = jnp.pad(tokens_1T[:, :half], ((0, 0), (0, 7)), constant_values=3)
  prefix = decoder.read(padded, jnp.array([half]))
  s = decoder.settings
  lead = (s.num_layers, 1, s.num_kv_heads, 1)

  def step(own, token):
    hidden, own = decoder.append(token[None, None, None], prefix, own, layers)
    return own, project(hidden[0], decoder.unembedding_VD)[0, 0]

  own = OwnCache(
    jnp.zeros((*lead, s.head_size, NUM_TOKENS)),
    jnp.zeros((*lead, NUM_TOKENS, s.head_size)),
    jnp.int32(0),
  )
  layers = None
  if is_unstacked:
    layers = decoder.unstacked().layers
    prefix, own = prefix.unstacked(), own.unstacked()
  return jax.lax.scan(step, own, tokens_1T[0, half:])[1]


def assert_parity(model, decoder, num_tokens=NUM_TOKENS):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, decoder.settings.vocab_size, (1, num_tokens))
  with torch.no_grad():
    expected = model(torch.tensor(tokens)).logits[0].numpy()
  scale = np.abs(expected).max()
  tokens = jnp.asarray(tokens, jnp.int32)
  unstacked_logits = functools.partial(cached_logits, is_unstacked=True)
  for run in (full_logits, cached_logits, unstacked_logits):
    got = np.asarray(run(decoder, tokens))
    wanted = expected[-len(got) :]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * scale)
    np.testing.assert_array_equal(got.argmax(-1), wanted.argmax(-1))


@pytest.mark.parametrize('case', CASES)
def test_logits_are_those_of_transformers(tmp_path, case):
  kind, options = CASES[case]
  model = make_reference(kind, **options)
  shard = {'max_shard_size': '30KB'} if case in ('llama', 'gemma3') else {}
  model.save_pretrained(tmp_path, **shard)
  assert len(list(tmp_path.glob('*.safetensors'))) > 1 or not shard
  assert_parity(model, load(tmp_path))


def test_a_trait_that_is_left_out_is_seen(tmp_path):
  """What the parity test would say of a decoder without windows."""
  model = make_reference('gemma3_text', **GEMMA)
  model.save_pretrained(tmp_path)
  config = json.loads((tmp_path / 'config.json').read_text())
  config['layer_types'] = ['full_attention'] * 3
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(AssertionError):
    assert_parity(model, load(tmp_path))


def test_text_model_of_a_gemma_that_sees(tmp_path, caplog):
  config = transformers.Gemma3Config(
    text_config=SIZES | GEMMA,
    vision_config={
      'hidden_size': 8, 'intermediate_size': 8, 'num_hidden_layers': 1,
      'num_attention_heads': 1, 'image_size': 28, 'patch_size': 14,
    },
    mm_tokens_per_image=4,
  )  # fmt: skip
  model = randomized(transformers.Gemma3ForConditionalGeneration(config))
  model.save_pretrained(tmp_path)
  assert_parity(model, load(tmp_path))
  assert 'its image encoder is not' in caplog.text
  # As later files name them, beside a tensor of integers that nobody reads.
  file = tmp_path / 'model.safetensors'
  tensors = {
    name.replace('language_model.model.', 'model.language_model.')
    .replace('language_model.lm_head', 'lm_head'): tensor
    for name, tensor in safetensors.torch.load_file(file).items()
  }  # fmt: skip
  tensors['vision_tower.position_ids'] = torch.arange(3)
  safetensors.torch.save_file(tensors, file)
  assert_parity(model, load(tmp_path))


@pytest.mark.parametrize('case', CASES)
def test_a_config_that_we_write_gives_the_same_model(tmp_path, case):
  kind, options = CASES[case]
  model = make_reference(kind, **options)
  model.save_pretrained(tmp_path)
  settings = weights.read_settings(tmp_path)
  written = hf_config.config_from_settings(settings)
  assert hf_config.settings_from_config(written, 'f') == settings
  # What transformers 4 and most other tools read says the same.
  old = {key: v for key, v in written.items() if key != 'rope_parameters'}
  assert hf_config.settings_from_config(old, 'f') == settings
  (tmp_path / 'config.json').write_text(json.dumps(written))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  assert type(theirs) is type(model)
  tokens = torch.arange(NUM_TOKENS)[None]
  with torch.no_grad():
    torch.testing.assert_close(
      theirs.float()(tokens).logits, model(tokens).logits
    )


def write_gguf(file, model, arch, fields):
  """A GGUF file of a transformers model, with the names that `gguf` gives."""
  config = model.config
  writer = gguf.GGUFWriter(file, arch)
  writer.add_vocab_size(config.vocab_size)
  writer.add_embedding_length(config.hidden_size)
  writer.add_block_count(config.num_hidden_layers)
  writer.add_head_count(config.num_attention_heads)
  writer.add_head_count_kv(config.num_key_value_heads)
  writer.add_key_length(config.head_dim)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  for name, value in fields.items():
    getattr(writer, f'add_{name}')(value)
  kind = gguf.MODEL_ARCH[arch.upper()]
  table = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
  for name, array in model.state_dict().items():
    if name == 'lm_head.weight' and config.tie_word_embeddings:
      continue
    array = array.numpy()
    if arch == 'gemma3' and name.endswith('norm.weight'):
      array = array + 1
    writer.add_tensor(table.get_name(name, ('.weight', '.bias')), array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


@pytest.mark.parametrize(
  ('case', 'arch', 'fields'),
  [
    ('qwen2', 'qwen2', {'rope_freq_base': 10_000.0}),
    ('qwen3_untied', 'qwen3', {'rope_freq_base': 10_000.0}),
    ('gemma3', 'gemma3', {'rope_freq_base': 1e6, 'sliding_window': 8}),
  ],
)
def test_gguf_of_a_family(tmp_path, monkeypatch, case, arch, fields):
  monkeypatch.setenv('OGLS_CACHE_DIR', str(tmp_path / 'cache'))
  kind, options = CASES[case][0], dict(CASES[case][1])
  if arch == 'gemma3':  # what the format leaves to the reader
    del options['rope_parameters'], options['layer_types']
    options |= {'query_pre_attn_scalar': 16, 'num_hidden_layers': 7}
  model = make_reference(kind, **options)
  write_gguf(tmp_path / 'a.gguf', model, arch, fields)
  decoder = load(tmp_path / 'a.gguf')
  assert_parity(model, decoder)
  written = hf_config.config_from_settings(decoder.settings)
  # transformers would take 256 for Gemma.
  scalar = model.config.to_dict().get('query_pre_attn_scalar')
  assert written.get('query_pre_attn_scalar') == scalar


def test_llama3_scaling_of_a_gguf():
  scaled = Rope(500_000.0, 8.0, 1.0, 4.0, 8192)
  config = transformers.LlamaConfig(
    head_dim=64, max_position_embeddings=131_072,
    rope_parameters={
      'rope_type': 'llama3', 'rope_theta': 500_000.0, 'factor': 8.0,
      'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
      'original_max_position_embeddings': 8192,
    },
  )  # fmt: skip
  theirs, _ = ROPE_INIT_FUNCTIONS['llama3'](config, 'cpu')
  np.testing.assert_allclose(scaled.frequencies(64), theirs, rtol=1e-5)
  divisors = Rope(500_000.0).frequencies(64) / theirs.numpy()
  fields = {
    'general.architecture': 'llama', 'llama.embedding_length': 256,
    'llama.block_count': 1, 'llama.attention.head_count': 4,
    'llama.feed_forward_length': 8, 'llama.vocab_size': 8,
    'llama.rope.freq_base': 500_000.0,
    'llama.attention.layer_norm_rms_epsilon': 1e-5,
  }  # fmt: skip
  header = GgufHeader(fields, {'rope_freqs.weight': (32,)})
  settings = settings_from_gguf(header, lambda name: divisors, 'f')
  assert settings.rope.frequencies(64) == pytest.approx(
    scaled.frequencies(64), rel=1e-5
  )


OLD_GEMMA = {
  'model_type': 'gemma3',
  'text_config': {
    'model_type': 'gemma3_text', 'hidden_size': 2560,
    'intermediate_size': 10240, 'num_hidden_layers': 34,
    'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
    'sliding_window': 1024,
  },
}  # fmt: skip


def test_old_configs_leave_out_what_transformers_knows():
  theirs = transformers.Gemma3Config(**OLD_GEMMA).text_config
  settings = hf_config.settings_from_config(OLD_GEMMA, 'f')
  assert settings == hf_config.settings_from_config(theirs.to_dict(), 'f')
  assert settings.rope.factor == 8 and settings.local_rope.factor == 1
  assert settings.windows[4:7] == (1024, 0, 1024)
  text = OLD_GEMMA['text_config'] | {'sliding_window': None}
  assert hf_config.settings_from_config(text, 'f').windows[:2] == (4096, 4096)
  old = {
    'model_type': 'qwen2', **SIZES, 'rms_norm_eps': 1e-6, 'rope_theta': 1e6,
    'sliding_window': 32_768, 'use_sliding_window': False,
    'max_window_layers': 2,
  }  # fmt: skip
  assert hf_config.settings_from_config(old, 'f').windows == ()
  del old['use_sliding_window']
  assert transformers.Qwen2Config(**old).layer_types == ['full_attention'] * 3
  assert hf_config.settings_from_config(old, 'f').windows == ()
  old['use_sliding_window'] = True
  assert hf_config.settings_from_config(old, 'f').windows == (0, 0, 32_768)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'final_logit_softcapping': 30.0}, 'final_logit_softcapping = 30.0'),
    ({'use_bidirectional_attention': True}, 'use_bidirectional_attention'),
    ({'hidden_activation': 'silu'}, 'hidden_activation = silu'),
    ({'layer_types': ['chunked_attention'] * 34}, 'layer_types'),
    ({'layer_types': ['full_attention']}, 'layer_types'),
    ({'num_hidden_layers': None}, 'num_hidden_layers is missing'),
    ({'hidden_size': 32.7}, 'hidden_size = 32.7.*without a fraction'),
    ({'rms_norm_eps': float('nan')}, 'rms_norm_eps = nan'),
    ({'rope_scaling': 'linear'}, 'rope_scaling = linear'),
    ({'rope_scaling': {'type': 'linear', 'factor': 0}}, 'no rotation is'),
    ({'rope_scaling': {'partial_rotary_factor': 0.5}}, 'partial_rotary'),
    ({'model_type': ['llama']}, 'model_type'),
  ],
)
def test_what_our_decoder_has_not_is_refused(change, message):
  config = OLD_GEMMA['text_config'] | change
  with pytest.raises(UserError, match=message):
    hf_config.settings_from_config(config, 'f')
