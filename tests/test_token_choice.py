import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ogls_jax.token_choice import choose_tokens, largest

# More than one block of 128, of which the last is not full.
NUM_ENTRIES = 300
LOGITS = 2.5 * jax.random.normal(jax.random.key(5), (NUM_ENTRIES,))


def choose(logits, num, seed=0, **kwargs):
  keys = jax.random.split(jax.random.key(seed), num)
  settings = {'temperature': 1.0} | kwargs
  return jax.jit(
    lambda keys: choose_tokens(
      jnp.broadcast_to(logits, (num, logits.size)), keys, **settings
    )
  )(keys)


def expected_shares(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
  """The distribution to sample from, by sorting, in float64."""
  scaled = np.asarray(logits, np.float64) / temperature
  prob = np.exp(scaled - scaled.max())
  order = np.argsort(-prob, kind='stable')
  if top_k:
    prob[order[top_k:]] = 0
  prob /= prob.sum()
  before = np.cumsum(prob[order]) - prob[order]
  prob[order[before >= top_p]] = 0
  prob[prob < min_p * prob.max()] = 0
  return prob / prob.sum()


@pytest.mark.parametrize(
  'kwargs',
  [
    {},
    {'temperature': 0.6},
    {'temperature': 1.7},
    {'top_k': 2},
    {'top_k': 40},
    {'top_p': 0.3},
    {'top_p': 0.9},
    {'min_p': 0.05},
    {'temperature': 1.1, 'top_k': 30, 'top_p': 0.8, 'min_p': 0.02},
    {'temperature': 1.3, 'top_p': 0.7, 'min_p': 0.1},
  ],
)
def test_frequencies_pass_a_chi_square_test(kwargs):
  num = 40_000
  tokens, _ = choose(LOGITS, num, **kwargs)
  counts = np.bincount(np.asarray(tokens), minlength=NUM_ENTRIES)
  expected = num * expected_shares(LOGITS, **kwargs)
  assert counts[expected == 0].sum() == 0
  # Cells of fewer than five expected draws are counted as one.
  is_small = (expected < 5) & (expected > 0)
  cells = [*counts[expected >= 5], counts[is_small].sum()]
  shares = [*expected[expected >= 5], expected[is_small].sum()]
  if shares[-1] < 5:
    cells[0] += cells.pop()
    shares[0] += shares.pop()
  _, p_value = scipy.stats.chisquare(cells, shares)
  assert p_value > 1e-4, p_value


def test_a_chi_square_test_sees_a_wrong_temperature():
  tokens, _ = choose(LOGITS, 40_000)
  counts = np.bincount(np.asarray(tokens), minlength=NUM_ENTRIES)
  expected = 40_000 * expected_shares(LOGITS, temperature=1.05)
  assert scipy.stats.chisquare(counts, expected).pvalue < 1e-6


def test_the_log_probability_is_that_of_all_entries():
  kwargs = {'temperature': 0.7, 'top_k': 3, 'top_p': 0.5, 'min_p': 0.1}
  tokens, log_prob = choose(LOGITS, 10, **kwargs)
  expected = jax.nn.log_softmax(LOGITS / 0.7)[tokens]
  np.testing.assert_allclose(log_prob, expected, rtol=1e-5)


def test_temperature_zero_takes_the_largest_at_temperature_one():
  tokens, log_prob = choose(LOGITS, 3, temperature=0.0)
  assert (tokens == LOGITS.argmax()).all()
  np.testing.assert_allclose(
    log_prob, jax.nn.log_softmax(LOGITS).max(), rtol=1e-5
  )


@pytest.mark.parametrize('size', [1, 100, 128, 300, 5000])
@pytest.mark.parametrize('k', [1, 2, 20])
def test_largest_equals_a_stable_sort(size, k):
  k = min(k, size)
  # Few values, so that many are equal.
  rows = jax.random.randint(jax.random.key(size), (4, size), 0, 9) * 1.0
  values, ids = largest(rows, k)
  order = np.argsort(-np.asarray(rows), axis=1, kind='stable')[:, :k]
  np.testing.assert_array_equal(ids, order)
  np.testing.assert_array_equal(
    values, np.take_along_axis(np.asarray(rows), order, axis=1)
  )


def test_entries_that_tie_with_the_last_of_top_p_are_kept():
  tokens, _ = choose(jnp.log(jnp.array([0.4, 0.3, 0.3])), 2000, top_p=0.6)
  assert set(np.asarray(tokens).tolist()) == {0, 1, 2}


@pytest.mark.parametrize('bad', [jnp.nan, jnp.inf])
@pytest.mark.parametrize('rest', [{'top_p': 0.9}, {}, {'top_k': 5}])
def test_logits_that_are_no_numbers_end_with_a_nan(bad, rest):
  _, log_prob = choose(LOGITS.at[7].set(bad), 2, **rest)
  assert np.isnan(log_prob).all()


def test_a_row_depends_on_its_own_key_and_logits_only():
  many, _ = choose(LOGITS, 6, top_p=0.4)
  keys = jax.random.split(jax.random.key(0), 6)
  one, _ = choose_tokens(LOGITS[None], keys[4:5], temperature=1.0, top_p=0.4)
  assert one[0] == many[4]
