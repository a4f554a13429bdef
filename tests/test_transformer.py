import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ogls_jax.models.attention import attend, rms_norm, rotate, turns
from ogls_jax.models.settings import Rope
from ogls_jax.models.transformer import REMATS, project
from tests.small import SETTINGS, VOCAB, make_decoder, naive_hidden


def reference_forward(decoder, tokens):
  """The same decoder in float64 NumPy, one layer and one head at a time."""
  s = decoder.settings
  w = {
    '.'.join(map(str, path)): np.asarray(value[...], np.float64)
    for path, value in nnx.to_flat_state(nnx.state(decoder))
  }

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + s.norm_eps) * scale

  def rotate(x):
    half = s.head_size // 2
    angle = np.arange(len(x))[:, None] * s.rope.theta ** (
      -np.arange(half) / half
    )
    a, b = x[:, :half], x[:, half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

  def linear(name, layer, x):
    y = x @ w[f'layers.{name}.kernel'][layer]
    if f'layers.{name}.lora_a' in w:
      rank = w[f'layers.{name}.lora_a'].shape[-1]
      adapter = w[f'layers.{name}.lora_a'][layer]
      y += 8.0 / rank * x @ adapter @ w[f'layers.{name}.lora_b'][layer]
    return y

  x = w['embedding'][tokens]
  causal = np.tri(len(tokens), dtype=bool)
  for i in range(s.num_layers):
    y = norm(x, w['layers.attention_norm'][i])
    q, k, v = (linear(name, i, y) for name in 'qkv')
    heads = []
    for head in range(s.num_heads):
      kv = head // (s.num_heads // s.num_kv_heads)
      part = slice(head * s.head_size, (head + 1) * s.head_size)
      kv_part = slice(kv * s.head_size, (kv + 1) * s.head_size)
      score = rotate(q[:, part]) @ rotate(k[:, kv_part]).T
      score = np.where(causal, score / np.sqrt(s.head_size), -np.inf)
      weight = np.exp(score - score.max(-1, keepdims=True))
      weight /= weight.sum(-1, keepdims=True)
      heads.append(weight @ v[:, kv_part])
    x = x + linear('o', i, np.concatenate(heads, -1))
    y = norm(x, w['layers.mlp_norm'][i])
    gate = linear('gate', i, y)
    x = x + linear('down', i, gate / (1 + np.exp(-gate)) * linear('up', i, y))
  return norm(x, w['final_norm'])


def randomized(decoder):
  """Every parameter random, norms and the zero half of adapters included."""
  rng = np.random.default_rng(7)
  for path, value in nnx.to_flat_state(nnx.state(decoder)):
    center = 1.0 if path[-1].endswith('norm') else 0.0
    value[...] = center + 0.3 * rng.normal(size=value.shape).astype(np.float32)
  return decoder


@pytest.mark.parametrize('lora_rank', [0, 3])
def test_forward_agrees_with_a_float64_reference(lora_rank):
  decoder = randomized(make_decoder(lora_rank=lora_rank))
  tokens = np.random.default_rng(0).integers(0, VOCAB, 11)
  got = naive_hidden(decoder, tokens[:1].tolist(), [*tokens[1:].tolist(), 0])
  expected = reference_forward(decoder, tokens)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_states_align_with_an_unpadded_forward_for_every_context_length():
  decoder = randomized(make_decoder())
  rng = np.random.default_rng(1)
  lengths = np.arange(1, 8)
  context = rng.integers(0, VOCAB, (7, 7)).astype(np.int32)
  response = rng.integers(0, VOCAB, (7, 2, 5)).astype(np.int32)
  got = decoder.score(context, jnp.array(lengths), jnp.array(response))
  for b, length in enumerate(lengths):
    for g in range(2):
      expected = naive_hidden(
        decoder, context[b, :length].tolist(), response[b, g].tolist()
      )
      np.testing.assert_allclose(got[b, g], expected, rtol=1e-4, atol=1e-5)


def test_cached_decode_equals_a_full_forward():
  decoder = randomized(make_decoder())
  rng = np.random.default_rng(2)
  context = jnp.array(rng.integers(0, VOCAB, (2, 4)))
  tokens = jnp.array(rng.integers(0, VOCAB, (2, 3, 6)))
  prefix = decoder.read(context, jnp.array([4, 2]))
  whole, _ = decoder.continue_from(tokens, prefix)
  first, own = decoder.continue_from(tokens[..., :4], prefix)
  second, _ = decoder.continue_from(tokens[..., 4:], prefix, own)
  got = jnp.concatenate([first, second], axis=2)
  np.testing.assert_allclose(got, whole, rtol=1e-4, atol=1e-5)


def test_fresh_adapters_change_nothing_and_trained_ones_do():
  plain, adapted = make_decoder(), make_decoder(lora_rank=2)
  nnx.update(adapted, nnx.state(plain))
  before = naive_hidden(plain, [1, 2], [3, 4])
  np.testing.assert_array_equal(naive_hidden(adapted, [1, 2], [3, 4]), before)
  adapted.layers.q.lora_b[...] += 1.0
  changed = naive_hidden(adapted, [1, 2], [3, 4])
  assert jnp.abs(changed - before).max() > 1e-3


def test_remat_and_untied_head():
  settings = dataclasses.replace(SETTINGS, is_tied=False)
  decoder = make_decoder(settings=settings)
  assert decoder.unembedding_VD is not decoder.embedding[...]
  decoder.head[...] += 1.0
  assert jnp.abs(decoder.unembedding_VD - decoder.embedding[...]).max() > 0.5
  hidden = naive_hidden(decoder, [1, 2], [3, 4])
  for remat, is_scanned in (('full', True), ('dots', True), ('none', False)):
    decoder.remat, decoder.is_scanned = remat, is_scanned
    np.testing.assert_allclose(
      naive_hidden(decoder, [1, 2], [3, 4]), hidden, rtol=1e-5
    )


def gradient_of(decoder):
  """Of a sum over `score`, as a function of params; and the params."""
  graphdef, params = nnx.split(decoder)
  rng = np.random.default_rng(3)
  context = rng.integers(0, VOCAB, (2, 5)).astype(np.int32)
  response = rng.integers(0, VOCAB, (2, 2, 4)).astype(np.int32)

  def total(params):
    model = nnx.merge(graphdef, params)
    return jnp.sin(model.score(context, jnp.array([5, 2]), response)).sum()

  return jax.grad(total), params


def test_what_is_computed_again_changes_no_gradient():
  decoder = randomized(make_decoder())
  gradient, params = gradient_of(decoder)
  expected = jax.jit(gradient)(params)
  num_products = {}
  for remat in REMATS:
    decoder.remat, decoder.is_scanned = remat, remat != 'dots'
    gradient, params = gradient_of(decoder)
    if remat != 'none':
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.jit(gradient)(params),
        expected,
      )
    text = str(jax.make_jaxpr(gradient)(params))
    num_products[remat] = text.count('dot_general')
  # Nothing, the products within attention, and those with weights too.
  assert num_products['none'] < num_products['dots'] < num_products['full']


@pytest.mark.parametrize('is_scanned', [True, False])
def test_layers_are_a_loop_or_written_out(is_scanned):
  decoder = make_decoder()
  decoder.remat, decoder.is_scanned = 'full', is_scanned
  gradient, params = gradient_of(decoder)
  text = jax.jit(gradient).lower(params).as_text()
  assert ('stablehlo.while' in text) == is_scanned
  # Outside a loop, a barrier keeps what is computed again from being merged
  # with what was there.
  assert ('optimization_barrier' in text) == (not is_scanned)


def test_attention_over_parts_is_attention_over_their_union():
  keys = jax.random.split(jax.random.key(0), 5)
  query = jax.random.normal(keys[0], (1, 1, 2, 1, 1, 4))
  key = jax.random.normal(keys[1], (1, 1, 1, 4, 6))
  value = jax.random.normal(keys[2], (1, 1, 1, 6, 4))
  seen = jnp.ones((1, 1, 1, 1), bool)
  whole = attend(query, [(key, value, seen)], scale=0.5)
  split = attend(
    query,
    [
      (key[..., :2], value[..., :2, :], seen),
      (key[:, 0, ..., 2:], value[:, 0, :, 2:], seen),
    ],
    scale=0.5,
  )
  np.testing.assert_allclose(split, whole, rtol=1e-5, atol=1e-6)
  weight = jax.nn.softmax(query[0, 0, :, 0, 0] @ key[0, 0, 0] / 2)
  np.testing.assert_allclose(
    whole[0, 0, :, 0, 0], weight @ value[0, 0, 0], rtol=1e-5, atol=1e-6
  )


def test_rope_depends_on_the_distance_only():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 8))

  frequency = Rope().frequencies(8)

  def score(at_q, at_k):
    q_at, k_at = (
      rotate(x, turns(jnp.array([at]), frequency))
      for x, at in ((q, at_q), (k, at_k))
    )
    return float((q_at * k_at).sum())

  assert score(3, 1) == pytest.approx(score(103, 101), abs=1e-4)
  assert score(3, 1) != pytest.approx(score(4, 1), abs=1e-3)


def test_norm_and_projection_keep_float32_inside():
  x = jnp.full((1, 4), 300.0, jnp.bfloat16)
  assert rms_norm(x, jnp.ones(4), 1e-5).dtype == jnp.bfloat16
  np.testing.assert_allclose(rms_norm(x, jnp.ones(4), 1e-5), 1, rtol=1e-2)
  logits = project(
    jnp.ones((1, 1, 4), jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16)
  )
  assert logits.dtype == jnp.float32


@pytest.mark.parametrize('num_questions', [1, 2])
def test_bfloat16_runs_on_a_cpu_and_stays_close(num_questions):
  """Not every product of bfloat16 arrays can be compiled there."""
  exact = randomized(make_decoder())
  rounded = make_decoder(dtype=jnp.bfloat16)
  nnx.update(rounded, nnx.state(exact))
  rng = np.random.default_rng(0)
  context = jnp.array(rng.integers(0, VOCAB, (num_questions, 5)))
  response = jnp.array(rng.integers(0, VOCAB, (num_questions, 3, 4)))
  length = jnp.full(num_questions, 5)

  @nnx.jit
  def logits(decoder):
    hidden = decoder.score(context, length, response)
    rows = hidden.reshape(-1, *hidden.shape[2:])
    return project(rows, decoder.unembedding_VD)

  got, expected = logits(rounded), logits(exact)
  assert got.dtype == jnp.float32
  assert jnp.abs(got - expected).max() < 0.05 * jnp.abs(expected).max()
  grads = nnx.jit(nnx.grad(lambda decoder: logits(decoder).sum()))(rounded)
  assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
