"""Decoder settings from a Hugging Face config.json, and back.

Reads what transformers 4 wrote (rope_theta, rope_scaling) and what transformers
5 writes (rope_parameters, layer_types).
"""

import pathlib

from ogls_jax.errors import UserError
from ogls_jax.json_file import read_json
from ogls_jax.models.config_checks import (
  check_family,
  checked,
  number_getter,
  unsupported,
)
from ogls_jax.models.families import FAMILIES, traits_of
from ogls_jax.models.settings import DecoderSettings, Rope

_ACTIVATIONS = {'silu': 'silu', 'gelu_tanh': 'gelu_pytorch_tanh'}
_FULL, _SLIDING = 'full_attention', 'sliding_attention'


def read_config(folder: pathlib.Path) -> dict:
  """The config.json of a model's folder; UserError if there is none."""
  config = read_json(folder / 'config.json', flag=f'model.path = {folder}')
  if config is None:
    raise UserError(
      f'model.path = {folder}: it holds no config.json; give the folder of a'
      ' Hugging Face model, or a .gguf file'
    )
  return config


def settings_from_config(config: dict, file) -> DecoderSettings:
  """Settings from a config.json; `file` is for messages.

  Of a Gemma 3 that also sees images, the text model's.

  Raises:
    UserError: the family, a trait or a size is not supported; names the key.
  """
  if config.get('model_type') == 'gemma3':
    config = config.get('text_config') or {}
  name = config.get('model_type')
  check_family('model_type', name, (*FAMILIES, 'gemma3'), file)
  given = {key: value for key, value in config.items() if value is not None}
  config = FAMILIES[name].defaults | given
  _check_traits(config, name, file)
  get = number_getter(config, file)
  num_heads, width = get('num_attention_heads', int), get('hidden_size', int)
  num_layers = get('num_hidden_layers', int)
  rope, local_rope = _ropes(config, name, file)
  windows = _windows(config, num_layers, file)
  return checked(
    DecoderSettings(
      vocab_size=get('vocab_size', int),
      width=width,
      num_layers=num_layers,
      num_heads=num_heads,
      num_kv_heads=get('num_key_value_heads', int, num_heads),
      head_size=get('head_dim', int, width // max(num_heads, 1)),
      mlp_size=get('intermediate_size', int),
      rope=rope,
      norm_eps=get('rms_norm_eps', float),
      is_tied=bool(config.get('tie_word_embeddings', False)),
      query_size=get('query_pre_attn_scalar', int, 0),
      windows=windows,
      local_rope=local_rope,
      context_tokens=get('max_position_embeddings', int, 0),
      **traits_of(name, width),
    ),
    file,
  )


def _check_traits(config, name, file):
  """Rejects what the family's members may have and our decoder has not."""
  activation = FAMILIES[name].traits.get('activation', 'silu')
  hidden = _ACTIVATIONS[activation]
  supported = {
    'hidden_act': hidden,
    'hidden_activation': hidden,
    'attention_bias': False,
    'mlp_bias': False,
    'partial_rotary_factor': 1,
    'use_bidirectional_attention': False,
  }
  for key, allowed in supported.items():
    if config.get(key, allowed) != allowed:
      raise unsupported(key, config[key], file)
  # A soft cap would make logits no longer linear in the hidden state.
  for key in (
    'quantization_config', 'attn_logit_softcapping',
    'final_logit_softcapping',
  ):  # fmt: skip
    if key in config:
      raise unsupported(key, config[key], file)


def _ropes(config, name, file):
  """(rope, local rope or None)."""
  parameters = config.get('rope_parameters') or {}
  scaling = config.get('rope_scaling') or parameters
  for key, value in (
    ('rope_parameters', parameters), ('rope_scaling', scaling),
  ):  # fmt: skip
    if not isinstance(value, dict):
      raise unsupported(key, value, file)
  if name != 'gemma3_text':
    return _rope(scaling, config, file), None
  local = config | {'rope_theta': config['rope_local_base_freq']}
  if _FULL not in parameters:
    return _rope(scaling, config, file), _rope({}, local, file)
  return (
    _rope(parameters[_FULL] or {}, config, file),
    _rope(parameters.get(_SLIDING) or {}, local, file),
  )


def _rope(parameters, config, file):
  kind = parameters.get('rope_type', parameters.get('type', 'default'))
  if parameters.get('partial_rotary_factor', 1) != 1:
    raise unsupported('partial_rotary_factor', parameters, file)
  # Absent, it has the default that the format gives it for Llama.
  theta = parameters.get('rope_theta', config.get('rope_theta', 10_000.0))
  get = number_getter(parameters | {'rope_theta': theta}, file)
  theta = get('rope_theta', float)
  if kind == 'default':
    return Rope(theta)
  if kind == 'linear':
    return Rope(theta, get('factor', float))
  if kind == 'llama3':
    return Rope(
      theta,
      get('factor', float),
      get('low_freq_factor', float),
      get('high_freq_factor', float),
      get('original_max_position_embeddings', int),
    )
  raise unsupported('rope_scaling', kind, file)


def _windows(config, num_layers, file):
  if (
    not config.get('use_sliding_window', True) or 'sliding_window' not in config
  ):
    return ()
  size = number_getter(config, file)('sliding_window', int)
  kinds = config.get('layer_types')
  if kinds is None:
    pattern = config.get(
      '_sliding_window_pattern', config.get('sliding_window_pattern')
    )
    if pattern is not None:
      is_local = [(i + 1) % pattern != 0 for i in range(num_layers)]
    else:  # Qwen: the first layers attend to all
      full = config.get('max_window_layers', num_layers)
      is_local = [i >= full for i in range(num_layers)]
    kinds = [_SLIDING if local else _FULL for local in is_local]
  is_known = isinstance(kinds, list) and all(
    kind in (_FULL, _SLIDING) for kind in kinds
  )
  if not is_known or len(kinds) != num_layers:
    raise unsupported('layer_types', kinds, file)
  if _SLIDING not in kinds:
    return ()
  return tuple(size if kind == _SLIDING else 0 for kind in kinds)


def config_from_settings(settings: DecoderSettings) -> dict:
  """What transformers needs in config.json to rebuild the decoder.

  Rotations and windows are said twice, as transformers 5 writes them and as
  transformers 4 and most other tools read them.
  """
  s = settings
  family = FAMILIES[s.family]
  config = {
    'architectures': [family.hf_class],
    'model_type': s.family,
    'vocab_size': s.vocab_size,
    'hidden_size': s.width,
    'num_hidden_layers': s.num_layers,
    'num_attention_heads': s.num_heads,
    'num_key_value_heads': s.num_kv_heads,
    'head_dim': s.head_size,
    'intermediate_size': s.mlp_size,
    'rms_norm_eps': s.norm_eps,
    'tie_word_embeddings': s.is_tied,
  }
  activation = (
    'hidden_activation' if s.family == 'gemma3_text' else 'hidden_act'
  )
  config[activation] = _ACTIVATIONS[s.activation]
  if s.context_tokens:
    config['max_position_embeddings'] = s.context_tokens
  if s.family == 'gemma3_text':
    config['query_pre_attn_scalar'] = s.query_size or s.head_size
  rope = _rope_parameters(s.rope)
  config['rope_parameters'] = rope
  config['rope_theta'] = s.rope.theta
  config['rope_scaling'] = None
  if rope['rope_type'] != 'default':
    config['rope_scaling'] = {
      key: value for key, value in rope.items() if key != 'rope_theta'
    }
  if s.local_rope is not None:
    config['rope_parameters'] = {
      _FULL: rope, _SLIDING: _rope_parameters(s.local_rope)
    }  # fmt: skip
    config['rope_local_base_freq'] = s.local_rope.theta
  if s.windows:
    config['sliding_window'] = max(s.windows)
    config['layer_types'] = [_SLIDING if w else _FULL for w in s.windows]
    if s.family.startswith('qwen'):
      config['use_sliding_window'] = True
  return config


def _rope_parameters(rope):
  if rope.original_tokens:
    return {
      'rope_type': 'llama3',
      'rope_theta': rope.theta,
      'factor': rope.factor,
      'low_freq_factor': rope.low_factor,
      'high_freq_factor': rope.high_factor,
      'original_max_position_embeddings': rope.original_tokens,
    }
  if rope.factor != 1:
    return {
      'rope_type': 'linear', 'rope_theta': rope.theta, 'factor': rope.factor
    }  # fmt: skip
  return {'rope_type': 'default', 'rope_theta': rope.theta}
