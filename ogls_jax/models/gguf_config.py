"""Decoder settings from the metadata of a GGUF file."""

from collections.abc import Callable

import numpy as np

from ogls_jax.gguf_file import GgufHeader
from ogls_jax.models.config_checks import (
  check_family,
  checked,
  number_getter,
  unsupported,
)
from ogls_jax.models.families import FAMILIES, traits_of
from ogls_jax.models.settings import DecoderSettings, Rope

_BY_GGUF_NAME = {family.gguf_name: name for name, family in FAMILIES.items()}
# What the format does not hold about Gemma 3.
_GEMMA_LOCAL_THETA = 10_000.0
_GEMMA_PATTERN = 6
# Llama 3.1 and 3.2; the file has their effect, `rope_freqs.weight`, instead.
_LLAMA3 = {'low_factor': 1.0, 'high_factor': 4.0, 'original_tokens': 8192}


def settings_from_gguf(
  header: GgufHeader, read_tensor: Callable[[str], np.ndarray], file
) -> DecoderSettings:
  """Settings from a GGUF file.

  Args:
    header: of the file.
    read_tensor: reads one of its tensors.
    file: for messages.

  Raises:
    UserError: the architecture, a trait or a size is not supported.
  """
  fields = header.fields
  arch = fields.get('general.architecture')
  check_family('general.architecture', arch, _BY_GGUF_NAME, file)
  name = _BY_GGUF_NAME[arch]
  _check_traits(fields, arch, file)
  get = number_getter(fields, file)
  num_heads = get(f'{arch}.attention.head_count', int)
  width = get(f'{arch}.embedding_length', int)
  num_layers = get(f'{arch}.block_count', int)
  head_size = get(
    f'{arch}.attention.key_length', int, width // max(num_heads, 1)
  )
  for key in ('attention.value_length', 'rope.dimension_count'):
    if fields.get(f'{arch}.{key}', head_size) != head_size:
      raise unsupported(f'{arch}.{key}', fields[f'{arch}.{key}'], file)
  # Llama's own default; other families have none.
  theta = 10_000.0 if name == 'llama' else None
  rope = Rope(
    get(f'{arch}.rope.freq_base', float, theta),
    get(f'{arch}.rope.scaling.factor', float, 1.0) or 1.0,
  )
  if 'rope_freqs.weight' in header.tensors:
    rope = _llama3(rope, head_size, read_tensor('rope_freqs.weight'), file)
  is_gemma = name == 'gemma3_text'
  local_theta = get(f'{arch}.rope.freq_base_swa', float, _GEMMA_LOCAL_THETA)
  num_tokens = len(fields.get('tokenizer.ggml.tokens', ()))
  return checked(
    DecoderSettings(
      vocab_size=get(f'{arch}.vocab_size', int, num_tokens),
      width=width,
      num_layers=num_layers,
      num_heads=num_heads,
      num_kv_heads=get(f'{arch}.attention.head_count_kv', int, num_heads),
      head_size=head_size,
      mlp_size=get(f'{arch}.feed_forward_length', int),
      rope=rope,
      norm_eps=get(f'{arch}.attention.layer_norm_rms_epsilon', float),
      is_tied=FAMILIES[name].weights['head'].gguf not in header.tensors,
      windows=_windows(fields, arch, num_layers, file),
      local_rope=Rope(local_theta) if is_gemma else None,
      context_tokens=get(f'{arch}.context_length', int, 0),
      **traits_of(name, width),
    ),
    file,
  )


def _check_traits(fields, arch, file):
  supported = {
    f'{arch}.rope.scaling.type': ('none', 'linear'),
    f'{arch}.rope.scale_linear': (0.0, 1.0),
    f'{arch}.expert_count': (0,),
    f'{arch}.attn_logit_softcapping': (0.0,),
    f'{arch}.final_logit_softcapping': (0.0,),
  }
  for key, allowed in supported.items():
    if fields.get(key, allowed[0]) not in allowed:
      raise unsupported(key, fields[key], file)
  if arch == 'gemma3' and fields.get('gemma3.block_count') == 62:
    # Its scores are scaled by another size, which the file does not hold.
    raise unsupported('gemma3.block_count', '62 (Gemma 3 27B)', file)


def _llama3(rope, head_size, divisors, file):
  """Llama 3's scaling from the divisors of its frequencies."""
  scaled = Rope(rope.theta, float(divisors.max()), **_LLAMA3)
  plain = Rope(rope.theta).frequencies(head_size)
  if divisors.shape != plain.shape or not np.allclose(
    plain / divisors, scaled.frequencies(head_size), rtol=1e-4
  ):
    raise unsupported('rope_freqs.weight', "not of Llama 3's form", file)
  return scaled


def _windows(fields, arch, num_layers, file):
  is_gemma = arch == 'gemma3'
  size = number_getter(fields, file)(
    f'{arch}.attention.sliding_window', int, None if is_gemma else 0
  )
  if not size:
    return ()
  key = f'{arch}.attention.sliding_window_pattern'
  pattern = fields.get(key, _GEMMA_PATTERN if is_gemma else None)
  if isinstance(pattern, list) and len(pattern) == num_layers:
    return tuple(size if local else 0 for local in pattern)
  if isinstance(pattern, int) and pattern > 0:
    return tuple(size if (i + 1) % pattern else 0 for i in range(num_layers))
  raise unsupported(key, pattern, file)
