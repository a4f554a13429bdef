import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ogls_jax import teacher
from ogls_jax.batches import Hints
from tests.small import VOCAB, make_decoder, naive_hidden

LENGTHS = np.array([[12, 7, 2, 5], [9, 8, 4, 0]], np.int32)
WEIGHTS = np.array(
  [
    [[0.5, -1.0, 0, 0], [0, 2.0, 1.0, 0], [0, 0, 0, 0]],
    [[0, 1.5, 0, 0], [1.0, 0, 0.25, 0], [0, 0, 0, 0]],
  ],
  np.float32,
)


def pooled(weights=WEIGHTS):
  rng = np.random.default_rng(0)
  contexts = rng.integers(1, VOCAB, (2, 4, 12)).astype(np.int32)
  responses = rng.integers(1, VOCAB, (2, 3, 5)).astype(np.int32)
  none = np.zeros_like(WEIGHTS)
  hints = Hints(contexts, LENGTHS, none, none, none)
  decoder = make_decoder()
  got = jax.jit(lambda w: teacher.pooled_states(decoder, hints, w, responses))(
    weights
  )
  return decoder, contexts, responses, got


@pytest.mark.parametrize('width', [1, 2, 5, 64])
def test_states_are_the_weighted_sum_over_contexts(width, monkeypatch):
  monkeypatch.setattr(teacher, '_WIDTH', width)
  decoder, contexts, responses, got = pooled()
  for b, g in np.ndindex(2, 3):
    expected = jnp.zeros((5, decoder.settings.width))
    for m in np.flatnonzero(WEIGHTS[b, g]):
      context = contexts[b, m, : LENGTHS[b, m]]
      hidden = naive_hidden(decoder, context, responses[b, g])
      expected += WEIGHTS[b, g, m] * hidden
    np.testing.assert_allclose(got[b, g], expected, rtol=2e-4, atol=2e-5)


def test_what_nothing_weighs_is_not_read(monkeypatch):
  read = []
  decoder_type = type(make_decoder())
  score = decoder_type.score

  def watched(self, tokens_BP, *args):
    jax.debug.callback(lambda: read.append(tokens_BP.shape[1]))
    return score(self, tokens_BP, *args)

  monkeypatch.setattr(decoder_type, 'score', watched)
  monkeypatch.setattr(teacher, '_WIDTH', 1)
  pooled()
  jax.effects_barrier()
  # Slot by slot the longest weighed context, in quarters of 12; the last one
  # has no weight.
  assert read == [12, 9, 6]


@pytest.mark.parametrize(
  ('num_tokens', 'widths'),
  [(12, [12]), (64, [64]), (128, [64, 128]), (576, [192, 320, 448, 576])],
)
def test_widths(num_tokens, widths):
  assert teacher._widths(num_tokens) == widths
