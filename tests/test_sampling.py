import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ogls_jax import loss, sampling
from ogls_jax.batches import PromptBatch, unflatten_rows
from tests.small import VOCAB, make_decoder

PROMPTS = PromptBatch(
  tokens_BP=np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]], np.int32),
  length_B=np.array([3, 5], np.int32),
  uid_B=np.array([11, 12], np.uint32),
)


def sample(prompts=PROMPTS, seed=0, decoder=None, **kwargs):
  settings = {
    'group_size': 3,
    'max_tokens': 8,
    'eos_ids': (0, 9),
    'temperature': 1.3,
  } | kwargs
  decoder = decoder or make_decoder()
  return jax.jit(
    lambda prompts: sampling.sample(
      decoder, prompts, jax.random.key(seed), **settings
    )
  )(prompts)


def test_sampled_log_probs_equal_scoring_log_probs():
  decoder = make_decoder()
  rollouts = sample(decoder=decoder)
  hidden = decoder.score(
    PROMPTS.tokens_BP, PROMPTS.length_B, unflatten_rows(rollouts.response_RT, 2)
  )
  scored, _ = loss.token_log_probs(
    hidden_RTD=hidden.reshape(6, 8, -1),
    unembedding_VD=decoder.unembedding_VD,
    token_RT=rollouts.response_RT,
    block_tokens=4,
    temperature=1.3,
  )
  mask = np.arange(8)[None] < np.array(rollouts.length_R)[:, None]
  np.testing.assert_allclose(
    np.array(rollouts.log_prob_RT)[mask], np.array(scored)[mask], atol=1e-5
  )
  assert (np.array(rollouts.log_prob_RT)[~mask] == 0).all()


def test_greedy_equals_the_argmax_of_a_full_forward():
  decoder = make_decoder()
  rollouts = sample(decoder=decoder, temperature=0.0, eos_ids=(VOCAB,))
  hidden = decoder.score(
    PROMPTS.tokens_BP, PROMPTS.length_B, unflatten_rows(rollouts.response_RT, 2)
  )
  best = (hidden @ decoder.unembedding_VD.T).argmax(-1).reshape(6, 8)
  np.testing.assert_array_equal(rollouts.response_RT, best)
  assert np.array(rollouts.is_truncated_R).all()


def test_rows_end_at_the_first_end_of_sequence_token():
  seen = set()
  for seed in range(6):
    rollouts = jax.device_get(sample(seed=seed))
    for tokens, length, is_truncated in zip(
      rollouts.response_RT,
      rollouts.length_R,
      rollouts.is_truncated_R,
      strict=True,
    ):
      is_eos = np.isin(tokens[:length], (0, 9))
      assert is_eos[:-1].sum() == 0
      assert is_eos[-1] == (not is_truncated)
      assert length == 8 or not is_truncated
      assert (tokens[length:] == 0).all()
      seen.add(bool(is_truncated))
  assert seen == {True, False}


def test_tokens_do_not_depend_on_the_batch_or_its_padding():
  together = sample()
  alone = sample(
    PromptBatch(
      tokens_BP=np.pad(PROMPTS.tokens_BP[:1, :3], ((0, 0), (0, 9))),
      length_B=PROMPTS.length_B[:1],
      uid_B=PROMPTS.uid_B[:1],
    ),
    group_size=2,
  )
  np.testing.assert_array_equal(alone.response_RT, together.response_RT[:2])


def test_rollouts_of_a_group_and_keys_differ():
  rows = np.array(sample(eos_ids=(VOCAB,)).response_RT)
  assert len({tuple(row) for row in rows}) == 6
  other = np.array(sample(eos_ids=(VOCAB,), seed=1).response_RT)
  assert (rows != other).any(axis=1).all()


def draws(logits, num=20_000, **kwargs):
  settings = {'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'min_p': 0.0}
  keys = jax.random.split(jax.random.key(0), num)
  tokens, _ = jax.vmap(
    lambda key: sampling.choose_token(logits, key, **(settings | kwargs))
  )(keys)
  return np.bincount(np.array(tokens), minlength=len(logits)) / num


@pytest.mark.parametrize(
  ('kwargs', 'expected'),
  [
    ({}, [0.5, 0.3, 0.15, 0.05]),
    ({'top_k': 2}, [0.625, 0.375, 0, 0]),
    ({'top_p': 0.7}, [0.625, 0.375, 0, 0]),
    ({'top_p': 0.81}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
    ({'min_p': 0.5}, [0.625, 0.375, 0, 0]),
    ({'min_p': 0.2, 'top_k': 3}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
    ({'temperature': 0.5}, np.square([0.5, 0.3, 0.15, 0.05]) / 0.365),
  ],
)
def test_sampling_frequencies(kwargs, expected):
  logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])) + 3.0
  expected = np.asarray(expected, np.float64)
  got = draws(logits, **kwargs)
  # Four standard deviations of a binomial share, 0 where nothing may be drawn.
  bound = 4 * np.sqrt(expected * (1 - expected) / 20_000)
  assert (np.abs(got - expected) <= bound + 1e-9).all(), (got, expected)


@pytest.mark.parametrize('top_p', [0.1, 0.5, 0.9, 0.999])
def test_top_p_threshold_equals_sorting(top_p):
  logits = 4 * jax.random.normal(jax.random.key(3), (1000,))
  kept = sampling.filter_logits(logits, top_k=0, top_p=top_p, min_p=0.0)
  prob = np.asarray(jax.nn.softmax(logits), np.float64)
  order = np.argsort(-prob)
  num = int(np.searchsorted(np.cumsum(prob[order]), top_p)) + 1
  expected = np.zeros(1000, bool)
  expected[order[:num]] = True
  np.testing.assert_array_equal(np.isfinite(kept), expected)
