"""Model families: settings and weight names, from GGUF and Hugging Face files.

A family is an entry of `FAMILIES` and what its settings need beyond Llama's.
"""

import dataclasses
from collections.abc import Collection

import numpy as np

from ogls_jax.errors import UserError
from ogls_jax.models.transformer import DecoderSettings


@dataclasses.dataclass(frozen=True)
class Weight:
  """Where a file keeps one of our parameters.

  Attributes:
    hf, gguf: tensor names; {} is the layer's number where there is one.
    is_kernel: stored [out, in], where ours is [in, out].
    gguf_heads: the settings' field with the number of heads whose rows GGUF
      stores for an interleaved rotation; '' if it keeps their order.
  """

  hf: str
  gguf: str
  is_kernel: bool = False
  gguf_heads: str = ''


def _linear(hf, gguf, gguf_heads=''):
  return Weight(
    f'model.layers.{{}}.{hf}.weight',
    f'blk.{{}}.{gguf}.weight',
    True,
    gguf_heads,
  )


_LLAMA = {
  'embedding': Weight('model.embed_tokens.weight', 'token_embd.weight'),
  'head': Weight('lm_head.weight', 'output.weight'),
  'final_norm': Weight('model.norm.weight', 'output_norm.weight'),
  'layers.attention_norm': Weight(
    'model.layers.{}.input_layernorm.weight', 'blk.{}.attn_norm.weight'
  ),
  'layers.mlp_norm': Weight(
    'model.layers.{}.post_attention_layernorm.weight', 'blk.{}.ffn_norm.weight'
  ),
  'layers.q.kernel': _linear('self_attn.q_proj', 'attn_q', 'num_heads'),
  'layers.k.kernel': _linear('self_attn.k_proj', 'attn_k', 'num_kv_heads'),
  'layers.v.kernel': _linear('self_attn.v_proj', 'attn_v'),
  'layers.o.kernel': _linear('self_attn.o_proj', 'attn_output'),
  'layers.gate.kernel': _linear('mlp.gate_proj', 'ffn_gate'),
  'layers.up.kernel': _linear('mlp.up_proj', 'ffn_up'),
  'layers.down.kernel': _linear('mlp.down_proj', 'ffn_down'),
}

# By `model_type` of config.json and `general.architecture` of GGUF.
FAMILIES = {'llama': _LLAMA}


def unpermute_heads(rows: np.ndarray, num_heads: int) -> np.ndarray:
  """Rows of a GGUF q or k matrix [out, in] in the order of rotated halves.

  GGUF puts row i of a head's first half beside row i of its second half, so
  that a rotation of neighbours does what ours does to halves.
  """
  pairs = rows.reshape(num_heads, -1, 2, rows.shape[-1])
  return pairs.swapaxes(1, 2).reshape(rows.shape)


def settings_from_config(config: dict, file) -> DecoderSettings:
  """Settings from a Hugging Face config.json; `file` is for messages."""
  _check_family('model_type', config.get('model_type'), file)
  rope = config.get('rope_parameters') or {}
  scaling = config.get('rope_scaling') or rope
  supported = {
    'hidden_act': ('silu',),
    'attention_bias': (False,),
    'mlp_bias': (False,),
    'partial_rotary_factor': (1, 1.0),
    'quantization_config': (None,),
  }
  for key, allowed in supported.items():
    if config.get(key, allowed[0]) not in allowed:
      raise _unsupported(key, config[key], file)
  rope_type = scaling.get('rope_type', scaling.get('type', 'default'))
  if rope_type != 'default':
    raise _unsupported('rope_scaling', rope_type, file)
  get = _getter(config, file)
  num_heads, width = get('num_attention_heads', int), get('hidden_size', int)
  # Absent keys have the defaults that the format gives them for Llama.
  theta = rope.get('rope_theta', config.get('rope_theta', 10_000.0))
  return _checked(
    DecoderSettings(
      vocab_size=get('vocab_size', int),
      width=width,
      num_layers=get('num_hidden_layers', int),
      num_heads=num_heads,
      num_kv_heads=get('num_key_value_heads', int, num_heads),
      head_size=get('head_dim', int, width // max(num_heads, 1)),
      mlp_size=get('intermediate_size', int),
      rope_theta=float(theta),
      norm_eps=get('rms_norm_eps', float),
      is_tied=bool(config.get('tie_word_embeddings', False)),
    ),
    file,
  )


def settings_from_gguf(
  fields: dict[str, object], tensors: Collection[str], file
) -> DecoderSettings:
  """Settings from a GGUF file's metadata and tensor names."""
  name = fields.get('general.architecture')
  _check_family('general.architecture', name, file)
  supported = {
    f'{name}.rope.scaling.type': ('none',),
    f'{name}.rope.scaling.factor': (0.0, 1.0),
    f'{name}.rope.scale_linear': (0.0, 1.0),
    f'{name}.expert_count': (0,),
  }
  for key, allowed in supported.items():
    if fields.get(key, allowed[0]) not in allowed:
      raise _unsupported(key, fields[key], file)
  if 'rope_freqs.weight' in tensors:
    raise _unsupported('tensor', 'rope_freqs.weight (scaled rope)', file)
  get = _getter(fields, file)
  num_heads = get(f'{name}.attention.head_count', int)
  width = get(f'{name}.embedding_length', int)
  head_size = get(
    f'{name}.attention.key_length', int, width // max(num_heads, 1)
  )
  for key in ('attention.value_length', 'rope.dimension_count'):
    if fields.get(f'{name}.{key}', head_size) != head_size:
      raise _unsupported(f'{name}.{key}', fields[f'{name}.{key}'], file)
  num_tokens = len(fields.get('tokenizer.ggml.tokens', ()))
  return _checked(
    DecoderSettings(
      vocab_size=get(f'{name}.vocab_size', int, num_tokens),
      width=width,
      num_layers=get(f'{name}.block_count', int),
      num_heads=num_heads,
      num_kv_heads=get(f'{name}.attention.head_count_kv', int, num_heads),
      head_size=head_size,
      mlp_size=get(f'{name}.feed_forward_length', int),
      rope_theta=get(f'{name}.rope.freq_base', float, 10_000.0),
      norm_eps=get(f'{name}.attention.layer_norm_rms_epsilon', float),
      is_tied=FAMILIES[name]['head'].gguf not in tensors,
    ),
    file,
  )


def _check_family(key, name, file):
  if name not in FAMILIES:
    raise UserError(
      f'model.path = {file}: {key} = {name} is not supported; these are:'
      f' {", ".join(FAMILIES)}'
    )


def _unsupported(key, value, file):
  return UserError(
    f'model.path = {file}: {key} = {value} is not supported yet; use a model'
    ' without it'
  )


def _getter(fields, file):
  """Typed look-up; a key without a default must be there."""

  def get(key, kind, default=None):
    value = fields.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      raise UserError(
        f'model.path = {file}: {key} = {value}, expected one number'
      )
    return kind(value)

  return get


def _checked(settings, file):
  """The settings, if a decoder of these sizes exists."""
  s = settings
  sizes = (s.vocab_size, s.width, s.num_layers, s.num_heads, s.num_kv_heads,
           s.head_size, s.mlp_size)  # fmt: skip
  if min(sizes) < 1 or s.num_heads % s.num_kv_heads or s.head_size % 2:
    raise UserError(
      f'model.path = {file}: no decoder has these sizes: {s}; heads must be a'
      ' multiple of key-value heads and the head size even'
    )
  return s
