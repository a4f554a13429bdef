import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from ogls_jax import hosts, loss_blocks, mesh, rollout, sampling
from ogls_jax.batches import PromptBatch, unflatten_rows
from tests.small import SETTINGS, VOCAB, make_decoder

PROMPTS = PromptBatch(
  tokens_BP=np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]], np.int32),
  length_B=np.array([3, 5], np.int32),
  uid_B=np.array([11, 12], np.uint32),
)


WINDOWED = make_decoder(settings=dataclasses.replace(SETTINGS, windows=(6, 0)))


def sample(
  prompts=PROMPTS, seed=0, decoder=None, limit_BG=None, meanwhile=None, **kwargs
):
  settings = {
    'group_size': 3,
    'max_tokens': 8,
    'eos_ids': (0, 9),
    'temperature': 1.3,
  } | kwargs
  graphdef, params, frozen = nnx.split(
    decoder or make_decoder(), nnx.Param, ...
  )
  sampler = rollout.make_sampler(graphdef, **settings)
  key = jax.random.key(seed)
  return sampler(params, frozen, prompts, key, limit_BG, meanwhile)


def test_sampled_log_probs_equal_scoring_log_probs():
  decoder = make_decoder()
  rollouts = sample(decoder=decoder)
  hidden = decoder.score(
    PROMPTS.tokens_BP, PROMPTS.length_B, unflatten_rows(rollouts.response_RT, 2)
  )
  scored, _ = loss_blocks.token_log_probs(
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


def test_the_host_sees_what_has_ended_while_the_device_goes_on():
  limit_BG = np.array([[2, 30, 3, 5], [1, 4, 2, 2]], np.int32)
  graphdef, params, frozen = nnx.split(make_decoder(), nnx.Param, ...)
  sampler = rollout.make_sampler(
    graphdef, group_size=4, max_tokens=32, eos_ids=(0, 9), temperature=1.3,
    cache_tokens=4, min_rows=1,
  )  # fmt: skip
  seen = []
  rollouts = sampler(
    params, frozen, PROMPTS, jax.random.key(0), limit_BG, seen.append
  )
  rollouts = jax.device_get(rollouts)
  assert seen[0] is None and len(seen) > 3
  for so_far in seen[1:]:
    assert isinstance(so_far.length_R, np.ndarray)
    for row, length in enumerate(so_far.length_R):
      np.testing.assert_array_equal(
        so_far.response_RT[row, :length], rollouts.response_RT[row, :length]
      )
    ended_R = ~so_far.is_truncated_R
    np.testing.assert_array_equal(
      so_far.length_R[ended_R], rollouts.length_R[ended_R]
    )
  assert (~seen[-1].is_truncated_R).any() and (seen[-1].length_R > 0).all()


def test_rollouts_of_a_group_and_keys_differ():
  rows = np.array(sample(eos_ids=(VOCAB,)).response_RT)
  assert len({tuple(row) for row in rows}) == 6
  other = np.array(sample(eos_ids=(VOCAB,), seed=1).response_RT)
  assert (rows != other).any(axis=1).all()


@pytest.mark.parametrize(
  'choice',
  [
    {'is_unstacked': True},
    {'is_unstacked': False, 'top_k': 5, 'top_p': 0.9},
    {'is_unstacked': False, 'decoder': WINDOWED},
  ],
)
def test_tokens_do_not_depend_on_the_sizes_of_programs(choice, monkeypatch):
  # Limits like a long tail, so that rows of both prompts are dropped early.
  limit_BG = np.array([[2, 30, 3, 5], [1, 4, 2, 2]], np.int32)
  kwargs = {
    'group_size': 4, 'max_tokens': 30, 'eos_ids': (VOCAB,), 'limit_BG': limit_BG
  } | choice  # fmt: skip
  stacked = kwargs | {'is_unstacked': False}
  plain = jax.device_get(sample(cache_tokens=30, min_rows=8, **stacked))
  shapes = []
  compact = sampling.compact

  def watched(tree, *args, **sizes):
    if isinstance(tree, sampling.Rows):
      shapes.append((sizes['num_prompts'], sizes['group_size']))
    return compact(tree, *args, **sizes)

  monkeypatch.setattr(sampling, 'compact', watched)
  fitted = jax.device_get(sample(cache_tokens=2, min_rows=1, **kwargs))
  assert shapes == [(2, 2), (1, 2), (1, 1)]
  np.testing.assert_array_equal(plain.length_R, limit_BG.reshape(-1))
  np.testing.assert_array_equal(fitted.length_R, plain.length_R)
  np.testing.assert_array_equal(fitted.response_RT, plain.response_RT)
  np.testing.assert_array_equal(fitted.is_truncated_R, plain.is_truncated_R)
  np.testing.assert_allclose(
    fitted.log_prob_RT, plain.log_prob_RT, rtol=1e-5, atol=1e-6
  )
  past = np.arange(30)[None] >= limit_BG.reshape(-1, 1)
  assert (fitted.response_RT[past] == 0).all()
  # Token 0 may be drawn as well, but nothing is certain.
  assert (fitted.log_prob_RT[~past] < 0).all()


@pytest.mark.parametrize(
  ('shape', 'is_unstacked'),
  [
    ((8, 1, 1), False),
    ((2, 2, 2), False),
    ((2, 2, 2), True),
    ((1, 8, 1), False),
    ((1, 1, 8), False),
  ],
)
def test_tokens_are_the_same_on_every_mesh(shape, is_unstacked):
  assert jax.device_count() == 8
  rng = np.random.default_rng(0)
  prompts = PromptBatch(
    tokens_BP=rng.integers(1, VOCAB, (16, 5)).astype(np.int32),
    length_B=rng.integers(1, 6, 16).astype(np.int32),
    uid_B=np.arange(16, dtype=np.uint32),
  )
  # Every other prompt goes on, so that each shard drops one of its two.
  limit_BG = np.where(np.arange(16) % 2, 2, 12)[:, None] + np.arange(2)[None]
  graphdef, params = nnx.split(make_decoder(), nnx.Param)
  options = dict(
    group_size=2, max_tokens=13, eos_ids=(VOCAB,), temperature=1.3,
    cache_tokens=4, min_rows=1, is_unstacked=is_unstacked,
  )  # fmt: skip
  key = jax.random.key(3)
  plain = rollout.make_sampler(graphdef, **options)(
    params, nnx.State({}), prompts, key, limit_BG
  )
  grid = mesh.make_mesh(dict(zip(mesh.AXES, shape, strict=True)))
  with jax.set_mesh(grid):
    params = jax.device_put(params, mesh.shardings_of(params, grid))
    got = rollout.make_sampler(graphdef, **options)(
      params, nnx.State({}), hosts.put_rows(prompts, grid), key, limit_BG
    )
  np.testing.assert_array_equal(got.length_R, limit_BG.reshape(-1))
  np.testing.assert_array_equal(got.response_RT, plain.response_RT)
  np.testing.assert_allclose(
    got.log_prob_RT, plain.log_prob_RT, rtol=1e-4, atol=1e-5
  )


def test_weights_stay_in_place_while_tokens_are_decoded():
  assert jax.device_count() == 8
  grid = mesh.make_mesh({'data': 1, 'fsdp': 8, 'model': 1})
  decoder = make_decoder(lora_rank=2)
  with jax.set_mesh(grid):
    state = nnx.state(decoder)
    state = jax.device_put(state, mesh.shardings_of(state, grid))
    placed = jax.jit(mesh.place_for_decoding)(state)
  kernel, o = placed.layers.gate.kernel, placed.layers.o.kernel
  sizes = [w.sharding.shard_shape(w.shape) for w in (kernel, o)]
  assert sizes == [(2, 16, 3), (2, 2, 16)]
  assert placed.layers.gate.lora_a.is_fully_replicated
  np.testing.assert_array_equal(kernel[...], decoder.layers.gate.kernel[...])


def test_rows_are_dropped_in_one_step_where_that_is_enough(monkeypatch):
  shapes, compact = [], sampling.compact

  def watched(tree, *args, **sizes):
    if isinstance(tree, sampling.Rows):
      shapes.append((sizes['num_prompts'], sizes['group_size']))
    return compact(tree, *args, **sizes)

  monkeypatch.setattr(sampling, 'compact', watched)
  limit_BG = np.full((2, 4), 2, np.int32)
  limit_BG[0, 0] = 7
  rollouts = sample(
    limit_BG=limit_BG, group_size=4, min_rows=1, is_unstacked=False,
    has_single=False, eos_ids=(VOCAB,),
  )  # fmt: skip
  assert shapes == [(1, 1)]
  np.testing.assert_array_equal(rollouts.length_R, limit_BG.reshape(-1))


@pytest.mark.parametrize(
  ('first', 'most', 'expected'),
  [
    (64, 600, [64, 128, 192, 320, 512, 600]),
    (2, 9, [2, 4, 6, 9]),
    (1, 4, [1, 2, 3, 4]),
  ],
)
def test_a_cache_grows_by_half(first, most, expected):
  sizes = [first]
  while sizes[-1] < most:
    sizes.append(
      rollout.more_slots(sizes[-1], first_slots=first, max_tokens=most)
    )
  assert sizes == expected


def test_limits_beyond_the_rollouts_are_an_error():
  for limit in (0, 9):
    with pytest.raises(ValueError, match='limit_BG must be in 1 to 8'):
      sample(limit_BG=np.full((2, 3), limit, np.int32))


def test_every_row_may_end_at_once():
  limit_BG = np.ones((2, 3), np.int32)
  rollouts = sample(limit_BG=limit_BG, min_rows=1, cache_tokens=1)
  np.testing.assert_array_equal(rollouts.length_R, 1)


@pytest.mark.parametrize(
  ('shape', 'min_rows', 'num_shards', 'has_single', 'expected'),
  [
    ((4, 8), 8, 1, False, [(4, 4), (2, 8)]),
    ((4, 3), 1, 1, False, [(4, 2), (2, 3)]),
    ((4, 8), 8, 4, False, [(4, 4)]),
    ((3, 1), 1, 1, False, []),
    ((1, 8), 8, 1, False, []),
    ((4, 8), 8, 1, True, [(1, 1), (4, 4), (2, 8)]),
    ((1, 8), 8, 1, True, [(1, 1)]),
    ((2, 1), 1, 1, True, [(1, 1)]),
    ((1, 1), 1, 1, True, []),
    ((4, 8), 8, 4, True, [(4, 4)]),
  ],
)
def test_smaller_shapes(shape, min_rows, num_shards, has_single, expected):
  shapes = sampling.smaller_shapes(
    *shape, min_rows=min_rows, num_shards=num_shards, has_single=has_single
  )
  assert shapes == expected


def test_the_host_is_asked_every_few_tokens(monkeypatch):
  plain = jax.device_get(sample(max_tokens=30, cache_tokens=30))
  monkeypatch.setattr(rollout, 'MOST_TOKENS', 4)
  asked = []
  asking = jax.device_get(
    sample(max_tokens=30, cache_tokens=30, meanwhile=asked.append)
  )
  jax.tree.map(np.testing.assert_array_equal, plain, asking)
  assert len(asked) == -(-plain.length_R.max() // 4) > 2


def test_what_is_raised_meanwhile_ends_sampling():
  def stop(_):
    raise KeyError('stop')

  with pytest.raises(KeyError):
    sample(meanwhile=stop)
