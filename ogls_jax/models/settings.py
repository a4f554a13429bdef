"""Sizes and traits of a decoder, from which all of its arrays follow."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotation of queries and keys by position (arXiv:2104.09864).

  Attributes:
    theta: base of the wavelengths.
    factor: stretches wavelengths, for contexts longer than trained on.
    low_factor, high_factor, original_tokens: as Llama 3.1 scales. Wavelengths
      below original_tokens / high_factor stay, those above original_tokens /
      low_factor are stretched in full, those between in part. All 0: every
      wavelength is stretched in full.
  """

  theta: float = 10_000.0
  factor: float = 1.0
  low_factor: float = 0.0
  high_factor: float = 0.0
  original_tokens: int = 0

  def frequencies(self, head_size: int) -> np.ndarray:
    """Radians per position of each rotated pair, float32 [head_size / 2]."""
    half = head_size // 2
    frequency = self.theta ** (-np.arange(half) / half)
    is_stretched = 1.0
    if self.original_tokens:
      turns = self.original_tokens * frequency / (2 * np.pi)
      span = self.high_factor - self.low_factor
      is_stretched = 1 - np.clip((turns - self.low_factor) / span, 0, 1)
    kept = frequency * (1 - is_stretched)
    return (kept + is_stretched * frequency / self.factor).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class DecoderSettings:
  """Sizes and traits of a pre-norm decoder (RMSNorm, RoPE, GQA, gated MLP).

  Attributes:
    family: whose names its files use: a key of `families.FAMILIES`.
    rope: rotation of all layers, but for those that `local_rope` covers.
    norm_offset: norms scale by this plus their weight.
    embedding_scale: multiplies the embeddings, not the output matrix.
    query_size: scores are divided by its root; 0 for head_size.
    activation: of the gate, `silu` or `gelu_tanh`.
    has_post_norms: attention and MLP outputs are normed too.
    windows: by layer, how many tokens it attends to, itself included; 0 for
      all. Empty: all layers attend to all.
    local_rope: rotation of layers with a window; None for `rope`.
    context_tokens: longest input the model was made for; 0 if not known.
  """

  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_size: int
  mlp_size: int
  rope: Rope = Rope()
  norm_eps: float = 1e-5
  is_tied: bool = True
  family: str = 'llama'
  norm_offset: float = 0.0
  embedding_scale: float = 1.0
  query_size: int = 0
  activation: str = 'silu'
  has_qkv_bias: bool = False
  has_qk_norm: bool = False
  has_post_norms: bool = False
  windows: tuple[int, ...] = ()
  local_rope: Rope | None = None
  context_tokens: int = 0


def layer_constants(
  settings: DecoderSettings,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """What differs between layers.

  Returns:
    (frequencies, rope_L, windows): the distinct rotations, as from
    `Rope.frequencies`, float32 [R, K / 2]; which of them each layer has, int32
    [L]; and int32 [L], None where no layer has a window.
  """
  s = settings
  windows = s.windows or (0,) * s.num_layers
  local = s.local_rope or s.rope
  ropes = list(dict.fromkeys(local if w else s.rope for w in windows))
  frequencies = np.stack([rope.frequencies(s.head_size) for rope in ropes])
  rope_L = np.array(
    [ropes.index(local if w else s.rope) for w in windows], np.int32
  )
  if not any(windows):
    return frequencies, rope_L, None
  everything = np.iinfo(np.int32).max
  reach = np.array([w or everything for w in windows], np.int32)
  return frequencies, rope_L, reach
