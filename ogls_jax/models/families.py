"""Model families: their traits, and where files keep their parameters.

A family is a few fields of `DecoderSettings` and a table of names. Sizes come
from a file's own description: `hf_config.py`, `gguf_config.py`.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Weight:
  """Where a file keeps one of our parameters.

  Attributes:
    hf, gguf: tensor names; {} is the layer's number where there is one.
    is_kernel: stored [out, in], where ours is [in, out].
    gguf_heads: the settings' field with the number of heads whose rows GGUF
      stores for an interleaved rotation; '' if it keeps their order.
    gguf_offset: what GGUF adds to the values that Hugging Face stores.
  """

  hf: str
  gguf: str
  is_kernel: bool = False
  gguf_heads: str = ''
  gguf_offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class Family:
  """What sets a family apart from the others.

  Attributes:
    weights: by the name of our parameter.
    hf_class: of `architectures` in config.json.
    gguf_name: its `general.architecture`.
    traits: fields of `DecoderSettings` that all its members share.
    defaults: values of config.json keys that its files may leave out.
    scales_embedding: by the root of the width.
  """

  weights: dict[str, Weight]
  hf_class: str
  gguf_name: str
  traits: dict[str, object] = dataclasses.field(default_factory=dict)
  defaults: dict[str, object] = dataclasses.field(default_factory=dict)
  scales_embedding: bool = False


def _layer(hf, gguf, suffix='weight', **fields):
  return Weight(
    f'model.layers.{{}}.{hf}.{suffix}', f'blk.{{}}.{gguf}.{suffix}', **fields
  )


def _kernels(q_heads, kv_heads):
  names = {
    'q': ('self_attn.q_proj', 'attn_q', q_heads),
    'k': ('self_attn.k_proj', 'attn_k', kv_heads),
    'v': ('self_attn.v_proj', 'attn_v', ''),
    'o': ('self_attn.o_proj', 'attn_output', ''),
    'gate': ('mlp.gate_proj', 'ffn_gate', ''),
    'up': ('mlp.up_proj', 'ffn_up', ''),
    'down': ('mlp.down_proj', 'ffn_down', ''),
  }
  return {
    f'layers.{name}.kernel': _layer(hf, gguf, is_kernel=True, gguf_heads=heads)
    for name, (hf, gguf, heads) in names.items()
  }


def _norms(names, gguf_offset=0.0):
  """Norms of a layer by our name, and the final one."""
  norms = {
    f'layers.{name}': _layer(hf, gguf, gguf_offset=gguf_offset)
    for name, (hf, gguf) in names.items()
  }
  final = Weight(
    'model.norm.weight', 'output_norm.weight', gguf_offset=gguf_offset
  )
  return norms | {'final_norm': final}


_MATRICES = {
  'embedding': Weight('model.embed_tokens.weight', 'token_embd.weight'),
  'head': Weight('lm_head.weight', 'output.weight'),
}
_PRE_NORMS = {
  'attention_norm': ('input_layernorm', 'attn_norm'),
  'mlp_norm': ('post_attention_layernorm', 'ffn_norm'),
}
_QK_NORMS = {
  'q_norm': ('self_attn.q_norm', 'attn_q_norm'),
  'k_norm': ('self_attn.k_norm', 'attn_k_norm'),
}
_GEMMA_NORMS = {
  'attention_norm': ('input_layernorm', 'attn_norm'),
  'post_attention_norm': ('post_attention_layernorm', 'post_attention_norm'),
  'mlp_norm': ('pre_feedforward_layernorm', 'ffn_norm'),
  'post_mlp_norm': ('post_feedforward_layernorm', 'post_ffw_norm'),
}
_QKV_BIASES = {
  f'layers.{name}.bias': _layer(
    f'self_attn.{name}_proj', f'attn_{name}', 'bias'
  )
  for name in ('q', 'k', 'v')
}

# By `model_type` of config.json.
FAMILIES = {
  'llama': Family(
    _MATRICES | _norms(_PRE_NORMS) | _kernels('num_heads', 'num_kv_heads'),
    hf_class='LlamaForCausalLM',
    gguf_name='llama',
  ),
  'qwen2': Family(
    _MATRICES | _norms(_PRE_NORMS) | _kernels('', '') | _QKV_BIASES,
    hf_class='Qwen2ForCausalLM',
    gguf_name='qwen2',
    traits={'has_qkv_bias': True},
    defaults={'use_sliding_window': False},
  ),
  'qwen3': Family(
    _MATRICES | _norms(_PRE_NORMS | _QK_NORMS) | _kernels('', ''),
    hf_class='Qwen3ForCausalLM',
    gguf_name='qwen3',
    traits={'has_qk_norm': True},
    defaults={'head_dim': 128, 'use_sliding_window': False},
  ),
  'gemma3_text': Family(
    _MATRICES
    | _norms(_GEMMA_NORMS | _QK_NORMS, gguf_offset=1.0)
    | _kernels('', ''),
    hf_class='Gemma3ForCausalLM',
    gguf_name='gemma3',
    traits={
      'has_qk_norm': True,
      'has_post_norms': True,
      'norm_offset': 1.0,
      'activation': 'gelu_tanh',
    },
    # google/gemma-3-4b leaves these out of its text_config.
    defaults={
      'vocab_size': 262_208,
      'max_position_embeddings': 131_072,
      'num_attention_heads': 8,
      'num_key_value_heads': 4,
      'head_dim': 256,
      'rms_norm_eps': 1e-6,
      'rope_theta': 1_000_000.0,
      'rope_local_base_freq': 10_000.0,
      'sliding_window': 4096,
      'sliding_window_pattern': 6,
      'query_pre_attn_scalar': 256,
      'hidden_activation': 'gelu_pytorch_tanh',
      'tie_word_embeddings': True,
    },
    scales_embedding=True,
  ),
}


def traits_of(name: str, width: int) -> dict[str, object]:
  """Fields of `DecoderSettings` that follow from the family."""
  family = FAMILIES[name]
  scale = width**0.5 if family.scales_embedding else 1.0
  return {'family': name, 'embedding_scale': scale, **family.traits}


def unpermute_heads(rows: np.ndarray, num_heads: int) -> np.ndarray:
  """Rows of a GGUF q or k matrix [out, in] in the order of rotated halves.

  GGUF puts row i of a head's first half beside row i of its second half, so
  that a rotation of neighbours does what ours does to halves.
  """
  pairs = rows.reshape(num_heads, -1, 2, rows.shape[-1])
  return pairs.swapaxes(1, 2).reshape(rows.shape)
