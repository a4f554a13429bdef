import numpy as np

from ogls_jax import loss_masks
from ogls_jax.batches import Hints, PromptBatch, Rollouts

PROMPTS = PromptBatch(
  tokens_BP=np.ones((2, 3), np.int32),
  length_B=np.array([3, 2], np.int32),
  uid_B=np.zeros(2, np.uint32),
)
ROLLOUTS = Rollouts(
  response_RT=np.arange(40, dtype=np.int32).reshape(4, 10),
  length_R=np.array([2, 5, 10, 7], np.int32),
  log_prob_RT=np.zeros((4, 10), np.float32),
  is_truncated_R=np.array([False, False, True, False]),
)


def make(**kwargs):
  settings = {
    'is_scored_R': np.array([True, False, True, False]),
    'is_correct_R': np.array([False, True, True, True]),
    'response_tokens': None,
    'tail_tokens': 0,
    'bucket_tokens': 1,
    'hints': None,
    'advantage_R': np.zeros(4, np.float32),
  }
  return loss_masks.make_loss_batch(
    prompts=PROMPTS, rollouts=ROLLOUTS, **(settings | kwargs)
  )


def test_only_scored_rollouts_and_their_own_tokens_carry_loss():
  batch = make()
  assert batch.token_mask_RT.sum(1).tolist() == [2, 10]
  assert batch.token_mask_RT[0].tolist() == [True] * 2 + [False] * 8
  assert not batch.tail_mask_RT.any()


def test_the_window_keeps_the_first_tokens_and_cuts_the_columns():
  batch = make(response_tokens=4)
  assert batch.token_mask_RT.sum(1).tolist() == [2, 4]
  np.testing.assert_array_equal(
    batch.response_RT, ROLLOUTS.response_RT[::2, :4]
  )
  assert make(response_tokens=4, bucket_tokens=8).response_RT.shape == (2, 8)
  assert make(response_tokens=4, bucket_tokens=16).response_RT.shape == (2, 10)


def test_rows_without_loss_are_cut_and_weights_follow():
  weights = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
  hints = Hints(
    context_BMC=np.ones((2, 2, 1), np.int32),
    length_BM=np.ones((2, 2), np.int32),
    anchor_BGM=weights,
    positive_BGM=weights + 10,
    negative_BGM=weights + 20,
  )
  advantage_R = np.arange(4, dtype=np.float32)
  batch = make(
    is_scored_R=np.array([False, True, True, False]),
    hints=hints,
    advantage_R=advantage_R,
  )
  np.testing.assert_array_equal(batch.response_RT, ROLLOUTS.response_RT[[1, 2]])
  assert batch.advantage_R.tolist() == [1, 2]
  kept = weights[[0, 1], [1, 0]][:, None]
  np.testing.assert_array_equal(batch.hints.anchor_BGM, kept)
  np.testing.assert_array_equal(batch.hints.positive_BGM, kept + 10)
  np.testing.assert_array_equal(batch.hints.negative_BGM, kept + 20)
  # One question needs both of its rows, so the other keeps both.
  batch = make(is_scored_R=np.array([True, True, False, True]))
  np.testing.assert_array_equal(
    batch.response_RT, ROLLOUTS.response_RT[[0, 1, 3, 2], :7]
  )


def test_the_tail_is_the_end_of_correct_rollouts_that_ended():
  batch = make(response_tokens=4, tail_tokens=3)
  # Rollout 2 is truncated: its end is not an end.
  assert batch.tail_mask_RT.sum(1).tolist() == [0, 3, 0, 3]
  assert np.flatnonzero(batch.tail_mask_RT[3]).tolist() == [4, 5, 6]
  assert batch.response_RT.shape == (4, 7)


def test_a_batch_without_loss_keeps_one_bucket():
  nobody = np.zeros(4, bool)
  batch = make(is_scored_R=nobody, bucket_tokens=4)
  assert batch.response_RT.shape == (2, 4)
  assert not batch.token_mask_RT.any()


def test_advantages_by_hand():
  reward = np.array([[1.0, 0, 0, 1], [1, 1, 1, 1]])
  got = loss_masks.advantages(reward)
  # mean 1/2, std 1/2; an equal group has no advantage.
  np.testing.assert_allclose(got, [1, -1, -1, 1, 0, 0, 0, 0], atol=1e-5)


def test_given_responses_are_rollouts_that_ended():
  rollouts = loss_masks.given_rollouts([[5, 6, 2], [7, 2]], bucket_tokens=4)
  assert rollouts.response_RT.tolist() == [[5, 6, 2, 0], [7, 2, 0, 0]]
  assert rollouts.length_R.tolist() == [3, 2]
  assert not rollouts.is_truncated_R.any()
