"""One pre-norm decoder: attention over [shared prefix | own tokens].

Sampling and teacher scoring have one shape: G continuations share a prefix (G
rollouts share a prompt, or a hint). The prefix is read once, its keys and
values are there once per question, and every continuation attends to both parts
under one softmax. Three uses:

  score(prefixes, continuations)     -> hidden states of the continuations
  read(tokens, lengths)              -> Prefix
  append(tokens, prefix, own)        -> the same states, a few tokens at a time

Layers are stacked and run by a scan. On CPUs that copies each layer's weights
and cache out of their stacks for every token, so decoding there has them as
tuples of L entries (`unstacked`) and runs them one after another.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from ogls_jax.mesh import shard, shard_looked_up
from ogls_jax.models import splash
from ogls_jax.models.attention import (
  attend,
  distances,
  einsum_float32,
  in_reach,
  rms_norm,
  turns,
)
from ogls_jax.models.cache import OwnCache, Prefix, Unstacked, write
from ogls_jax.models.layer import Layer
from ogls_jax.models.settings import DecoderSettings, layer_constants

ATTENTIONS = ('plain', 'splash')
# What the backward pass finds: all, nothing but each layer's input, or the
# results of products with weights too.
REMATS = {
  'none': None,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
LORA_TARGETS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')


def _by_layer(tree, num_layers):
  """A tuple of L trees of a tree of arrays [L, ...]."""

  def take(layer):
    return jax.tree.map(lambda array: array[layer], tree)

  return tuple(map(take, range(num_layers)))


def last_tokens(tokens_BP: jax.Array, length_B: jax.Array) -> jax.Array:
  """Token at length_B - 1 of each row; the first one where length_B is 0."""
  index_B1 = jnp.maximum(length_B - 1, 0)[:, None]
  return jnp.take_along_axis(tokens_BP, index_B1, axis=1)[:, 0]


def project(
  hidden_RTD: jax.Array,
  unembedding_VD: jax.Array,
  *,
  is_decoding: bool = False,
) -> jax.Array:
  """Logits in float32 (or wider) of states given in any dtype.

  `is_decoding`: the matrix is as `mesh.place_for_decoding` leaves it.
  """
  hidden_RTD = hidden_RTD.astype(unembedding_VD.dtype)
  if is_decoding:
    hidden_RTD = shard(hidden_RTD, 'RTD', is_decoding=True)
  logits_RTV = einsum_float32('RTD,VD->RTV', hidden_RTD, unembedding_VD)
  if is_decoding:
    logits_RTV = shard(logits_RTV, 'RTV', is_decoding=True)
  return shard(logits_RTV, 'RTV')


class Decoder(nnx.Module):
  """Token ids to final hidden states; logits are hidden @ unembedding_VD.T."""

  def __init__(
    self,
    settings: DecoderSettings,
    *,
    lora_rank: int = 0,
    lora_alpha: float = 1.0,
    lora_init_variance: float = 1 / 3,
    lora_targets: tuple[str, ...] = LORA_TARGETS,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
    remat: str = 'none',
    is_scanned: bool = True,
    attention: str = 'plain',
    rngs: nnx.Rngs,
  ):
    """`dtype` is that of activations.

    Args:
      settings: sizes.
      lora_rank: 0 for none.
      lora_alpha: as for `Linear`.
      lora_init_variance: of lora_a, times its inputs.
      lora_targets: which layers have adapters.
      dtype: of activations.
      param_dtype: of all but the adapters.
      remat: a key of `REMATS`: what the backward pass computes again.
      is_scanned: layers are run by a loop, or written out one by one.
      attention: of `ATTENTIONS`, in `score`; `splash` is for TPUs.
      rngs: of the random weights.
    """
    self.settings = settings
    self.dtype = dtype
    self.remat = remat
    self.is_scanned = is_scanned
    self.attention = attention
    init = jax.nn.initializers.normal(settings.width**-0.5)
    shape = (settings.vocab_size, settings.width)
    self.embedding = nnx.Param(
      init(rngs.params(), shape, param_dtype), dims='VD'
    )
    self.layers = Layer(
      settings,
      lora_rank=lora_rank,
      lora_alpha=lora_alpha,
      lora_init_variance=lora_init_variance,
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
    """Keys and values of right-padded prefixes, for `append`."""
    with jax.named_scope('read'):
      _, own = self._run(tokens_BP[:, None], None, None)
    return Prefix(
      own.key_LBHGKT[:, :, :, 0], own.value_LBHGTK[:, :, :, 0], length_B
    )

  def continue_from(
    self, tokens_BGT: jax.Array, prefix: Prefix, own: OwnCache | None = None
  ) -> tuple[jax.Array, OwnCache]:
    """Runs G continuations of each of B prefixes; what tests compare with.

    Args:
      tokens_BGT: the next T tokens of each continuation, right-padded.
      prefix: what all G continuations of a question share.
      own: each continuation's earlier tokens, if any.

    Returns:
      (hidden_BGTD, new): states after the final norm, in the activations'
      dtype, and the new tokens' keys and values (these T tokens only).
    """
    return self._run(tokens_BGT, prefix, own)

  def append(
    self,
    tokens_BGT: jax.Array,
    prefix: Prefix,
    own: OwnCache,
    layers: tuple | None = None,
    turns_NB1TK: tuple | None = None,
  ) -> tuple[jax.Array, OwnCache]:
    """`continue_from` that also writes the tokens into a cache with room.

    For decoding: few tokens, weights as `mesh.place_for_decoding` leaves them.

    Args:
      tokens_BGT: the next T tokens of each continuation.
      prefix: as for `continue_from`.
      own: each continuation's earlier tokens, and room for these.
      layers: the states of the layers, as in `Unstacked`; prefix and own are
        then tuples, too.
      turns_NB1TK: of the tokens, if the caller has them, as from `turns`.

    Returns:
      (hidden_BGTD, own).
    """
    if layers is None:
      hidden_BGTD, new = self._run(
        tokens_BGT, prefix, own, turns_NB1TK=turns_NB1TK, is_decoding=True
      )
      key, value = write(
        (own.key_LBHGKT, own.value_LBHGTK),
        (new.key_LBHGKT, new.value_LBHGTK),
        own.length - own.starts[-1],
      )
    else:
      hidden_BGTD, new = self._run(
        tokens_BGT, prefix, own, layers, turns_NB1TK, is_decoding=True
      )
      key, value = new.key_LBHGKT, new.value_LBHGTK
    length = own.length + new.length
    return hidden_BGTD, OwnCache(key, value, length, own.earlier)

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
    first_BG1 = jnp.broadcast_to(
      last_tokens(tokens_BP, length_B)[:, None, None],
      (*response_BGT.shape[:2], 1),
    )
    inputs_BGT = jnp.concatenate([first_BG1, response_BGT[..., :-1]], axis=-1)
    num_slots, num_tokens = tokens_BP.shape[1], response_BGT.shape[2]
    start_B = jnp.maximum(length_B - 1, 0)
    place_1P = jnp.arange(num_slots)[None]
    position_BT = start_B[:, None] + jnp.arange(num_tokens)[None]
    within_context = _causal_span(num_slots, num_slots, 0)
    within_response = _causal_span(num_tokens, num_tokens, 0)
    to_context = _prefix_span(position_BT, num_slots, start_B)
    both_turns = self.turns(place_1P), self.turns(position_BT)
    is_read_long = self._is_long(num_slots)
    is_scored_long = self._is_long(num_tokens)
    graphdef, stack = nnx.split(self.layers)

    # Both in one scan: keys and values of a context are there for one layer at
    # a time, and weights get one gradient, not one for each of two scans.
    def layer(both, inputs):
      context_B1PD, x_BGTD = both
      weights, rope, window = inputs
      of_layer = nnx.merge(graphdef, weights)
      context_turn, turn = jax.tree.map(lambda array: array[rope], both_turns)

      def part(key, value, span):
        return key, value, in_reach(*span, window)[:, None]

      def read(*kv):
        parts = [part(*kv, within_context)]
        if is_read_long:
          return splash.causal(*kv), kv
        return functools.partial(attend, parts=parts), kv

      def score(*kv):
        parts = [part(*kv, within_response), part(*shared, to_context)]
        if is_scored_long:
          return splash.causal(*kv, shared, start_B), ()
        return functools.partial(attend, parts=parts), ()

      with jax.named_scope('read'):
        context_B1PD, (key, value) = of_layer(context_B1PD, context_turn, read)
      shared = key[:, :, 0], value[:, :, 0]
      with jax.named_scope('score'):
        x_BGTD, _ = of_layer(x_BGTD, turn, score)
      return (shard(context_B1PD, 'BGTD'), shard(x_BGTD, 'BGTD')), None

    both = self._embed(tokens_BP[:, None]), self._embed(inputs_BGT)
    constants = layer_constants(self.settings)[1:]
    (_, x_BGTD), _ = self._over_layers(layer, both, (stack, *constants))
    return self._normed(x_BGTD)

  def _is_long(self, num_tokens):
    """Whether the kernel is used, and worth it."""
    is_kernel = self.attention == 'splash'
    return is_kernel and num_tokens >= splash.MIN_TOKENS

  def _over_layers(self, layer, carry, inputs):
    if self.remat != 'none':
      # In a loop nothing can be merged with the forward pass anyway.
      layer = jax.checkpoint(
        layer, policy=REMATS[self.remat], prevent_cse=not self.is_scanned
      )
    unroll = 1 if self.is_scanned else self.settings.num_layers
    return jax.lax.scan(layer, carry, inputs, unroll=unroll)

  def turns(self, position_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`attention.turns` of tokens at these positions, by each of N rotations.

    [N, B, 1, T, K / 2], for `append`.
    """
    frequencies, *_ = layer_constants(self.settings)
    each = [turns(position_BT[:, None], frequency) for frequency in frequencies]
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *each)

  def unstacked(self) -> Unstacked:
    """The weights for decoding on a CPU."""
    layers = _by_layer(nnx.state(self.layers), self.settings.num_layers)
    return Unstacked(layers, self.unembedding_VD.T)

  def _run(
    self, tokens_BGT, prefix, own, layers=None, turns_NB1TK=None,
    is_decoding=False,
  ):  # fmt: skip
    """(states, keys and values): those of the new tokens, or all with `layers`.

    A cache of one layer can be written before it is read, so that attention has
    one part less; writing to a stack would copy it.
    """
    s = self.settings
    num_tokens = tokens_BGT.shape[2]
    start_B = jnp.zeros(tokens_BGT.shape[0], jnp.int32)
    if prefix is not None:
      start_B += prefix.length_B
    if own is not None:
      start_B += own.length
    position_BT = start_B[:, None] + jnp.arange(num_tokens)[None]
    is_written = layers is not None
    if is_written:
      spans = [_causal_span(num_tokens, own.num_slots, own.length)]
    else:
      spans = [_causal_span(num_tokens, num_tokens, 0)]
    if prefix is not None:
      spans.append(_prefix_span(position_BT, prefix.num_slots, prefix.length_B))
    if own is not None and not is_written:
      spans += _earlier_spans(num_tokens, own)
    _, *constants = layer_constants(s)
    if turns_NB1TK is None:
      turns_NB1TK = self.turns(position_BT)
    graphdef, stack = nnx.split(self.layers)

    def layer(x_BGTD, inputs):
      weights, prefix_kv, own_kv, rope, window = inputs

      def make_attention(key_BHGKT, value_BHGTK):
        kept, earlier = (key_BHGKT, value_BHGTK), own_kv or ()
        if is_written:
          kept, earlier = write(own_kv[0], kept, own.length), ()
        pairs = [kept, *([prefix_kv] if prefix_kv else []), *earlier]
        masks = [in_reach(*span, window)[:, None] for span in spans]
        parts = [(*pair, mask) for pair, mask in zip(pairs, masks, strict=True)]
        return functools.partial(attend, parts=parts), kept

      x_BGTD, kv = nnx.merge(graphdef, weights)(
        x_BGTD,
        jax.tree.map(lambda array: array[rope], turns_NB1TK),
        make_attention,
        is_decoding=is_decoding,
      )
      return shard(x_BGTD, 'BGTD'), kv

    x_BGTD = self._embed(tokens_BGT, is_decoding=is_decoding)
    prefix_kv = prefix and (prefix.key_LBHKP, prefix.value_LBHPK)
    own_kv = own and (*own.earlier, (own.key_LBHGKT, own.value_LBHGTK))
    if layers is None:
      inputs = (stack, prefix_kv, own_kv, *constants)
      x_BGTD, (key, value) = self._over_layers(layer, x_BGTD, inputs)
    else:
      pairs = []
      for weights, prefix_pair, own_pair, of_layer in zip(
        layers,
        zip(*prefix_kv, strict=True),
        zip(*own_kv[-1], strict=True),
        _by_layer(constants, s.num_layers),
        strict=True,
      ):
        inputs = (weights, prefix_pair, (own_pair,), *of_layer)
        x_BGTD, pair = layer(x_BGTD, inputs)
        pairs.append(pair)
      key, value = zip(*pairs, strict=True)
    new = OwnCache(key, value, jnp.int32(num_tokens))
    return self._normed(x_BGTD), new

  def _embed(self, tokens_BGT, *, is_decoding=False):
    x_BGTD = self.embedding[...][tokens_BGT].astype(self.dtype)
    if not is_decoding:
      x_BGTD = shard_looked_up(x_BGTD)
    # Rounded to the dtype first, as the models were trained.
    x_BGTD *= jnp.asarray(self.settings.embedding_scale, self.dtype)
    return shard(x_BGTD, 'BGTD')

  def _normed(self, x_BGTD):
    s = self.settings
    return rms_norm(x_BGTD, self.final_norm[...], s.norm_eps, s.norm_offset)


# A span is (distance_BTS, is_there_BTS) of queries and keys: how far a key lies
# before a query, and whether there is one.


def _causal_span(num_tokens, num_slots, start):
  """To the tokens up to a query's own; query t is in slot start + t."""
  distance_1TS = distances(num_tokens, num_slots, start)[None]
  return distance_1TS, distance_1TS >= 0


def _prefix_span(position_BT, num_slots, length_B):
  place_11P = jnp.arange(num_slots)[None, None]
  is_there_B1P = place_11P < length_B[:, None, None]
  return position_BT[..., None] - place_11P, is_there_B1P


def _earlier_spans(num_tokens, own):
  """To what each part of a cache has so far."""
  spans = []
  ends = [*own.starts[1:], own.num_slots]
  for start, end in zip(own.starts, ends, strict=True):
    distance_1TS = distances(num_tokens, end - start, own.length - start)[None]
    is_there_S = start + jnp.arange(end - start) < own.length
    spans.append((distance_1TS, is_there_S[None, None]))
  return spans
