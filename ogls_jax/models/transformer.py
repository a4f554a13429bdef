"""One pre-norm decoder: attention over [shared prefix | own tokens].

Sampling and teacher scoring have one shape: G continuations share a prefix (G
rollouts share a prompt, or a hint). The prefix is read once, its keys and
values are kept once per question, and every continuation attends to both parts
under one softmax. Three uses:

  read(tokens, lengths)              -> Prefix
  continue_from(tokens, prefix)      -> hidden states of whole continuations
  continue_from(tokens, prefix, own) -> the same, a few tokens at a time
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from ogls_jax.mesh import shard
from ogls_jax.models.attention import (
  attend,
  distances,
  einsum_float32,
  in_reach,
  rms_norm,
  rotate,
)
from ogls_jax.models.lora import Linear
from ogls_jax.models.settings import DecoderSettings, layer_constants

_ACTIVATIONS = {
  'silu': jax.nn.silu,
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
}
LORA_TARGETS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['key_LBHPK', 'value_LBHPK', 'length_B'],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Prefix:
  """Keys and values of B prefixes; entries at or past length_B are ignored."""

  key_LBHPK: jax.Array
  value_LBHPK: jax.Array
  length_B: jax.Array


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['key_LBGHTK', 'value_LBGHTK', 'length'],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class OwnCache:
  """Keys and values of each continuation's own first `length` tokens."""

  key_LBGHTK: jax.Array
  value_LBGHTK: jax.Array
  length: jax.Array


def last_tokens(tokens_BP: jax.Array, length_B: jax.Array) -> jax.Array:
  """Token at length_B - 1 of each row; the first one where length_B is 0."""
  index_B1 = jnp.maximum(length_B - 1, 0)[:, None]
  return jnp.take_along_axis(tokens_BP, index_B1, axis=1)[:, 0]


def project(hidden_RTD: jax.Array, unembedding_VD: jax.Array) -> jax.Array:
  """Logits in float32 (or wider) of states given in any dtype."""
  logits_RTV = einsum_float32(
    'RTD,VD->RTV', hidden_RTD.astype(unembedding_VD.dtype), unembedding_VD
  )
  return shard(logits_RTV, 'RTV')


class Layer(nnx.Module):
  """Attention and MLP. Holds the stack of all layers; applied to one slice."""

  def __init__(
    self,
    settings: DecoderSettings,
    *,
    lora_rank: int,
    lora_alpha: float,
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

  def __call__(self, x_BGTD, position_BT, frequency, make_parts):
    """One layer.

    Args:
      x_BGTD: its input.
      position_BT: absolute position of each token.
      frequency: of this layer's rotation, as from `Rope.frequencies`.
      make_parts: (key, value) to all that can be attended to.

    Returns:
      (x_BGTD, (key_BGHTK, value_BGHTK)): output, own keys and values.
    """
    s = self.settings
    y_BGTD = self._norm(x_BGTD, self.attention_norm)
    batch = y_BGTD.shape[:-1]
    query = self.q(y_BGTD).reshape(*batch, s.num_kv_heads, -1, s.head_size)
    key = self.k(y_BGTD).reshape(*batch, s.num_kv_heads, s.head_size)
    value = self.v(y_BGTD).reshape(*batch, s.num_kv_heads, s.head_size)
    if s.has_qk_norm:
      query, key = self._norm(query, self.q_norm), self._norm(key, self.k_norm)
    position_BGT = jnp.broadcast_to(position_BT[:, None], batch)
    query = rotate(query, position_BGT, frequency)
    key_BGHTK = rotate(key, position_BGT, frequency).swapaxes(2, 3)
    value_BGHTK = value.swapaxes(2, 3)
    mixed = attend(
      query,
      make_parts(key_BGHTK, value_BGHTK),
      scale=(s.query_size or s.head_size) ** -0.5,
    )
    y_BGTD = self.o(mixed.reshape(*batch, -1))
    if s.has_post_norms:
      y_BGTD = self._norm(y_BGTD, self.post_attention_norm)
    x_BGTD += y_BGTD
    y_BGTD = self._norm(x_BGTD, self.mlp_norm)
    gated_BGTF = _ACTIVATIONS[s.activation](self.gate(y_BGTD)) * self.up(y_BGTD)
    y_BGTD = self.down(gated_BGTF)
    if s.has_post_norms:
      y_BGTD = self._norm(y_BGTD, self.post_mlp_norm)
    return x_BGTD + y_BGTD, (key_BGHTK, value_BGHTK)


class Decoder(nnx.Module):
  """Token ids to final hidden states; logits are hidden @ unembedding_VD.T."""

  def __init__(
    self,
    settings: DecoderSettings,
    *,
    lora_rank: int = 0,
    lora_alpha: float = 1.0,
    lora_targets: tuple[str, ...] = LORA_TARGETS,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
    is_remat: bool = False,
    rngs: nnx.Rngs,
  ):
    """`dtype` is that of activations, `is_remat` recomputes them per layer."""
    self.settings = settings
    self.dtype = dtype
    self.is_remat = is_remat
    init = jax.nn.initializers.normal(settings.width**-0.5)
    shape = (settings.vocab_size, settings.width)
    self.embedding = nnx.Param(
      init(rngs.params(), shape, param_dtype), dims='VD'
    )
    self.layers = Layer(
      settings,
      lora_rank=lora_rank,
      lora_alpha=lora_alpha,
      lora_targets=lora_targets,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    self.final_norm = nnx.Param(
      jnp.full((settings.width,), 1 - settings.norm_offset, param_dtype),
      dims='D',
    )
    if not settings.is_tied:
      self.head = nnx.Param(init(rngs.params(), shape, param_dtype), dims='VD')

  @property
  def unembedding_VD(self) -> jax.Array:
    """The output matrix, in the activations' dtype."""
    matrix = self.embedding if self.settings.is_tied else self.head
    return matrix[...].astype(self.dtype)

  def read(self, tokens_BP: jax.Array, length_B: jax.Array) -> Prefix:
    """Keys and values of right-padded prefixes, for `continue_from`."""
    _, own = self._run(tokens_BP[:, None], None, None)
    return Prefix(own.key_LBGHTK[:, :, 0], own.value_LBGHTK[:, :, 0], length_B)

  def continue_from(
    self, tokens_BGT: jax.Array, prefix: Prefix, own: OwnCache | None = None
  ) -> tuple[jax.Array, OwnCache]:
    """Runs G continuations of each of B prefixes.

    Args:
      tokens_BGT: the next T tokens of each continuation, right-padded.
      prefix: what all G continuations of a question share.
      own: each continuation's earlier tokens, if any.

    Returns:
      (hidden_BGTD, new): states after the final norm, in the activations'
      dtype, and the new tokens' keys and values (these T tokens only).
    """
    return self._run(tokens_BGT, prefix, own)

  def score(
    self, tokens_BP: jax.Array, length_B: jax.Array, response_BGT: jax.Array
  ) -> jax.Array:
    """States that predict each token of G responses to each of B contexts.

    The last context token opens every continuation instead of closing the
    prefix, so state t predicts response token t and nothing is gathered at
    the seam, whatever the context's length.

    Args:
      tokens_BP: right-padded contexts; a context of length 0 is an unused slot
        and gives states without meaning.
      length_B: int32.
      response_BGT: token ids; those past a response's end are never attended
        to by earlier ones.

    Returns:
      hidden_BGTD in the activations' dtype.
    """
    prefix = self.read(tokens_BP, jnp.maximum(length_B - 1, 0))
    inputs_BGT = jnp.concatenate(
      [
        jnp.broadcast_to(
          last_tokens(tokens_BP, length_B)[:, None, None],
          (*response_BGT.shape[:2], 1),
        ),
        response_BGT[..., :-1],
      ],
      axis=-1,
    )
    hidden_BGTD, _ = self.continue_from(inputs_BGT, prefix)
    return hidden_BGTD

  def _run(self, tokens_BGT, prefix, own):
    s = self.settings
    num_tokens = tokens_BGT.shape[2]
    start_B = jnp.zeros(tokens_BGT.shape[0], jnp.int32)
    if prefix is not None:
      start_B += prefix.length_B
    own_length = 0
    if own is not None:
      own_length = own.length
      start_B += own_length
    position_BT = start_B[:, None] + jnp.arange(num_tokens)[None]
    graphdef, stack = nnx.split(self.layers)

    def layer(x_BGTD, inputs):
      weights, prefix_kv, own_kv, frequency, window = inputs

      def make_parts(key_BGHTK, value_BGHTK):
        after_TT = distances(num_tokens, num_tokens, 0)
        parts = [(key_BGHTK, value_BGHTK, in_reach(after_TT[None], window))]
        if prefix is not None:
          size = prefix_kv[0].shape[-2]
          is_read_BP = jnp.arange(size)[None] < prefix.length_B[:, None]
          mask = is_read_BP[:, None]
          if window is not None:
            after_BTP = position_BT[..., None] - jnp.arange(size)[None, None]
            mask = mask & (after_BTP < window)
          parts.append((*prefix_kv, mask))
        if own is not None:
          after_TS = distances(num_tokens, own_kv[0].shape[-2], own_length)
          # Slots that are not filled yet come after every new token.
          is_own_S = jnp.arange(own_kv[0].shape[-2]) < own_length
          mask = in_reach(after_TS, window) & is_own_S[None]
          parts.append((*own_kv, mask[None]))
        return [
          (key, value, jnp.expand_dims(mask_BTS, (1, 2, 3)))
          for key, value, mask_BTS in parts
        ]

      x_BGTD, kv = nnx.merge(graphdef, weights)(
        x_BGTD, position_BT, frequency, make_parts
      )
      return shard(x_BGTD, 'BGTD'), kv

    if self.is_remat:
      layer = jax.checkpoint(layer)
    x_BGTD = self.embedding[...][tokens_BGT].astype(self.dtype)
    # Rounded to the dtype first, as the models were trained.
    x_BGTD *= jnp.asarray(s.embedding_scale, self.dtype)
    prefix_kv = prefix and (prefix.key_LBHPK, prefix.value_LBHPK)
    own_kv = own and (own.key_LBGHTK, own.value_LBGHTK)
    x_BGTD, (key, value) = jax.lax.scan(
      layer,
      shard(x_BGTD, 'BGTD'),
      (stack, prefix_kv, own_kv, *layer_constants(s)),
    )
    hidden_BGTD = rms_norm(
      x_BGTD, self.final_norm[...], s.norm_eps, s.norm_offset
    )
    return hidden_BGTD, OwnCache(key, value, jnp.int32(num_tokens))
