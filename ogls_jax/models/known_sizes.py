"""Sizes of models on the hub whose weights nobody needs to fetch for them.

As their config.json has them; source: huggingface.co/OWNER/NAME, 2025.
"""

import pathlib

from ogls_jax.models.hf_config import settings_from_config
from ogls_jax.models.settings import DecoderSettings

_QWEN3 = {
  'model_type': 'qwen3', 'hidden_act': 'silu', 'vocab_size': 151_936,
  'num_key_value_heads': 8, 'head_dim': 128, 'rms_norm_eps': 1e-6,
  'rope_theta': 1e6, 'max_position_embeddings': 40_960,
  'tie_word_embeddings': True, 'attention_bias': False,
}  # fmt: skip
_CONFIGS = {
  'Qwen/Qwen3-0.6B': _QWEN3 | {
    'hidden_size': 1024, 'num_hidden_layers': 28, 'num_attention_heads': 16,
    'intermediate_size': 3072,
  },
  'Qwen/Qwen3-1.7B': _QWEN3 | {
    'hidden_size': 2048, 'num_hidden_layers': 28, 'num_attention_heads': 16,
    'intermediate_size': 6144,
  },
  'Qwen/Qwen3-4B': _QWEN3 | {
    'hidden_size': 2560, 'num_hidden_layers': 36, 'num_attention_heads': 32,
    'intermediate_size': 9728,
  },
}  # fmt: skip


def known_settings(path: str) -> DecoderSettings | None:
  """Of `hub:OWNER/NAME[@REVISION]`; None where it is not one of these."""
  name = path.removeprefix('hub:').partition('@')[0]
  if not path.startswith('hub:') or name not in _CONFIGS:
    return None
  return settings_from_config(_CONFIGS[name], pathlib.Path(name))
