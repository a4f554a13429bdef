"""One layer of the decoder: attention and MLP, with norms around them."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from ogls_jax.mesh import shard
from ogls_jax.models.attention import rms_norm, rotate
from ogls_jax.models.lora import Linear
from ogls_jax.models.settings import DecoderSettings

_ACTIVATIONS = {
  'silu': jax.nn.silu,
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
}


class Layer(nnx.Module):
  """Attention and MLP. Holds the stack of all layers; applied to one slice."""

  def __init__(
    self,
    settings: DecoderSettings,
    *,
    lora_rank: int,
    lora_alpha: float,
    lora_init_variance: float,
    lora_targets: tuple[str, ...],
    param_dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    s = settings
    self.settings = s

    def norm(size=s.width, dim='D'):
      # An array each: two parameters in one buffer cannot be donated. With its
      # offset a norm starts as a scale of 1.
      shape = (s.num_layers, size)
      return nnx.Param(
        jnp.full(shape, 1 - s.norm_offset, param_dtype), dims='L' + dim
      )

    self.attention_norm, self.mlp_norm = norm(), norm()
    if s.has_post_norms:
      self.post_attention_norm, self.post_mlp_norm = norm(), norm()
    if s.has_qk_norm:
      self.q_norm, self.k_norm = norm(s.head_size, 'K'), norm(s.head_size, 'K')

    def linear(name, in_size, out_size, dims, init_scale=1.0):
      rank = lora_rank if name in lora_targets else 0
      return Linear(
        s.num_layers,
        in_size,
        out_size,
        dims=dims,
        rank=rank,
        alpha=lora_alpha,
        init_variance=lora_init_variance,
        has_bias=s.has_qkv_bias and name in ('q', 'k', 'v'),
        param_dtype=param_dtype,
        rngs=rngs,
        init_scale=init_scale,
      )

    # Residual branches start small, so that depth does not grow the variance.
    residual = (2 * s.num_layers) ** -0.5
    heads = s.num_heads * s.head_size
    kv_heads = s.num_kv_heads * s.head_size
    self.q = linear('q', s.width, heads, 'DH')
    self.k = linear('k', s.width, kv_heads, 'DH')
    self.v = linear('v', s.width, kv_heads, 'DH')
    self.o = linear('o', heads, s.width, 'HD', residual)
    self.gate = linear('gate', s.width, s.mlp_size, 'DF')
    self.up = linear('up', s.width, s.mlp_size, 'DF')
    self.down = linear('down', s.mlp_size, s.width, 'FD', residual)

  def _norm(self, x, weight):
    s = self.settings
    return rms_norm(x, weight[...], s.norm_eps, s.norm_offset)

  def __call__(self, x_BGTD, turn, make_attention, *, is_decoding=False):
    """One layer.

    Args:
      x_BGTD: its input.
      turn: of each token, from `turns`, [B, 1, T, K / 2] each.
      make_attention: (key_BHGKT, value_BHGTK) of these tokens to a function
        (query_BGTHQK, scale=) that attends to all there is, as
        `attention.attend`, and to what the caller keeps.
      is_decoding: weights are as `mesh.place_for_decoding` leaves them.

    Returns:
      (x_BGTD, kept): output, and what `make_attention` said.
    """
    s = self.settings

    def to_columns(array, dims):
      return shard(array, dims, is_decoding=True) if is_decoding else array

    def to_rows(array, dims):
      return shard(array, dims) if is_decoding else array

    y_BGTD = to_columns(self._norm(x_BGTD, self.attention_norm), 'BGTD')
    batch = y_BGTD.shape[:-1]
    query, key, value = (
      # Both are said where columns become rows and back: left to choose, the
      # compiler gathers the weights, or all rows' keys.
      to_rows(to_columns(linear(y_BGTD), 'BGTH'), 'BGTH').reshape(
        *batch, *heads, s.head_size
      )
      for linear, heads in (
        (self.q, (s.num_kv_heads, -1)),
        (self.k, (s.num_kv_heads,)),
        (self.v, (s.num_kv_heads,)),
      )
    )
    if s.has_qk_norm:
      query, key = self._norm(query, self.q_norm), self._norm(key, self.k_norm)
    query, key = rotate(query, turn), rotate(key, turn)
    key_BHGKT = jnp.transpose(key, (0, 3, 1, 4, 2))
    value_BHGTK = jnp.transpose(value, (0, 3, 1, 2, 4))
    attention, kept = make_attention(key_BHGKT, value_BHGTK)
    mixed = attention(query, scale=(s.query_size or s.head_size) ** -0.5)
    mixed_BGTH = to_rows(mixed.reshape(*batch, -1), 'BGTH')
    mixed_BGTH = to_columns(mixed_BGTH, 'BGTH')
    y_BGTD = to_rows(self.o(mixed_BGTH), 'BGTD')
    if s.has_post_norms:
      y_BGTD = self._norm(y_BGTD, self.post_attention_norm)
    x_BGTD += y_BGTD
    y_BGTD = to_columns(self._norm(x_BGTD, self.mlp_norm), 'BGTD')
    gated_BGTF = _ACTIVATIONS[s.activation](self.gate(y_BGTD)) * self.up(y_BGTD)
    y_BGTD = to_rows(self.down(to_columns(gated_BGTF, 'BGTF')), 'BGTD')
    if s.has_post_norms:
      y_BGTD = self._norm(y_BGTD, self.post_mlp_norm)
    return x_BGTD + y_BGTD, kept
