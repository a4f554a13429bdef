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
from ogls_jax.models.lora import Linear

LORA_TARGETS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')


@dataclasses.dataclass(frozen=True)
class DecoderSettings:
  """Sizes of a Llama-like decoder (RMSNorm, RoPE, GQA, SwiGLU)."""

  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_size: int
  mlp_size: int
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-5
  is_tied: bool = True


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


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """Root-mean-square norm over the last axis, computed in float32."""
  x32 = x.astype(jnp.float32)
  x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
  return (x32 * jax.lax.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


def rope(x: jax.Array, position: jax.Array, theta: float) -> jax.Array:
  """Rotates the two halves of the last axis (arXiv:2104.09864).

  Args:
    x: [..., heads (any number of axes), K]; leading axes as `position`.
    position: int32, the absolute position of each token.
    theta: the base of the rotation's wavelengths.
  """
  half = x.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  frequency = jnp.expand_dims(frequency, range(position.ndim))
  angle = position.astype(jnp.float32)[..., None] * frequency
  angle = jnp.expand_dims(angle, tuple(range(position.ndim, x.ndim - 1)))
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = [left * cos - right * sin, right * cos + left * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def attend(query_BGTHQK: jax.Array, parts) -> jax.Array:
  """Attention over the union of `parts`, one float32 softmax.

  Args:
    query_BGTHQK: Q queries share each of H key-value heads.
    parts: (key, value, mask) triples. Keys and values are [B, H, S, K] where
      all G continuations share them and [B, G, H, S, K] where each has its own;
      masks broadcast to [B, G, H, Q, T, S].

  Returns:
    [B, G, T, H, Q, K] in the query's dtype.
  """
  scores, values = [], []
  for key, value, mask in parts:
    own = 'G' if key.ndim == 5 else ''
    score = jnp.einsum(
      f'BGTHQK,B{own}HSK->BGHQTS',
      query_BGTHQK,
      key,
      preferred_element_type=jnp.float32,
    )
    score *= query_BGTHQK.shape[-1] ** -0.5
    scores.append(jnp.where(mask, score, -jnp.inf))
    values.append((value, f'BGHQTS,B{own}HSK->BGTHQK'))
  # The top score only keeps exp in range: the result does not depend on it.
  tops = [
    jax.lax.stop_gradient(score).max(-1, keepdims=True, initial=-jnp.inf)
    for score in scores
  ]
  top = functools.reduce(jnp.maximum, tops)
  weights = [jnp.exp(score - top) for score in scores]
  total_BGHQT = sum(weight.sum(-1) for weight in weights)
  mixed = sum(
    jnp.einsum(
      equation,
      weight.astype(value.dtype),
      value,
      preferred_element_type=jnp.float32,
    )
    for weight, (value, equation) in zip(weights, values, strict=True)
  )
  total_BGTHQ1 = jnp.moveaxis(total_BGHQT, 4, 2)[..., None]
  return (mixed / total_BGTHQ1).astype(query_BGTHQK.dtype)


def last_tokens(tokens_BP: jax.Array, length_B: jax.Array) -> jax.Array:
  """Token at length_B - 1 of each row; the first one where length_B is 0."""
  index_B1 = jnp.maximum(length_B - 1, 0)[:, None]
  return jnp.take_along_axis(tokens_BP, index_B1, axis=1)[:, 0]


def project(hidden_RTD: jax.Array, unembedding_VD: jax.Array) -> jax.Array:
  """Logits in float32 (or wider) of states given in any dtype."""
  dtype = jnp.promote_types(unembedding_VD.dtype, jnp.float32)
  logits_RTV = jnp.einsum(
    'RTD,VD->RTV',
    hidden_RTD.astype(unembedding_VD.dtype),
    unembedding_VD,
    preferred_element_type=dtype,
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

    def norm():
      # An array each: two parameters in one buffer cannot be donated.
      return nnx.Param(
        jnp.ones((s.num_layers, s.width), param_dtype), dims='LD'
      )

    self.attention_norm, self.mlp_norm = norm(), norm()

    def linear(name, in_size, out_size, dims, init_scale=1.0):
      rank = lora_rank if name in lora_targets else 0
      return Linear(
        s.num_layers,
        in_size,
        out_size,
        dims=dims,
        rank=rank,
        alpha=lora_alpha,
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

  def __call__(self, x_BGTD, position_BT, make_parts):
    """One layer. `make_parts(key, value)` adds what else can be attended to.

    Returns:
      (x_BGTD, (key_BGHTK, value_BGHTK)): output, own keys and values.
    """
    s = self.settings
    y_BGTD = rms_norm(x_BGTD, self.attention_norm[...], s.norm_eps)
    batch = y_BGTD.shape[:-1]
    query = self.q(y_BGTD).reshape(*batch, s.num_kv_heads, -1, s.head_size)
    key = self.k(y_BGTD).reshape(*batch, s.num_kv_heads, s.head_size)
    value = self.v(y_BGTD).reshape(*batch, s.num_kv_heads, s.head_size)
    position_BGT = jnp.broadcast_to(position_BT[:, None], batch)
    query = rope(query, position_BGT, s.rope_theta)
    key_BGHTK = rope(key, position_BGT, s.rope_theta).swapaxes(2, 3)
    value_BGHTK = value.swapaxes(2, 3)
    mixed = attend(query, make_parts(key_BGHTK, value_BGHTK))
    x_BGTD += self.o(mixed.reshape(*batch, -1))
    y_BGTD = rms_norm(x_BGTD, self.mlp_norm[...], s.norm_eps)
    gated_BGTF = jax.nn.silu(self.gate(y_BGTD)) * self.up(y_BGTD)
    return x_BGTD + self.down(gated_BGTF), (key_BGHTK, value_BGHTK)


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
      jnp.ones((settings.width,), param_dtype), dims='D'
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
    num_tokens = tokens_BGT.shape[2]
    start_B = jnp.zeros(tokens_BGT.shape[0], jnp.int32)
    if prefix is not None:
      start_B += prefix.length_B
    if own is not None:
      start_B += own.length
    position_BT = start_B[:, None] + jnp.arange(num_tokens)[None]
    is_causal = jnp.expand_dims(jnp.tri(num_tokens, dtype=bool), range(4))
    graphdef, stack = nnx.split(self.layers)

    def layer(x_BGTD, inputs):
      weights, prefix_kv, own_kv = inputs

      def make_parts(key_BGHTK, value_BGHTK):
        parts = [(key_BGHTK, value_BGHTK, is_causal)]
        if prefix is not None:
          is_read_BP = (
            jnp.arange(prefix_kv[0].shape[-2])[None] < prefix.length_B[:, None]
          )
          mask = jnp.expand_dims(is_read_BP, (1, 2, 3, 4))
          parts.append((*prefix_kv, mask))
        if own is not None:
          is_own_S = jnp.arange(own_kv[0].shape[-2]) < own.length
          parts.append((*own_kv, jnp.expand_dims(is_own_S, range(5))))
        return parts

      x_BGTD, kv = nnx.merge(graphdef, weights)(x_BGTD, position_BT, make_parts)
      return shard(x_BGTD, 'BGTD'), kv

    if self.is_remat:
      layer = jax.checkpoint(layer)
    x_BGTD = shard(self.embedding[...][tokens_BGT].astype(self.dtype), 'BGTD')
    prefix_kv = prefix and (prefix.key_LBHPK, prefix.value_LBHPK)
    own_kv = own and (own.key_LBGHTK, own.value_LBGHTK)
    x_BGTD, (key, value) = jax.lax.scan(
      layer, x_BGTD, (stack, prefix_kv, own_kv)
    )
    hidden_BGTD = rms_norm(x_BGTD, self.final_norm[...], self.settings.norm_eps)
    return hidden_BGTD, OwnCache(key, value, jnp.int32(num_tokens))
