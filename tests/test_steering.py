import jax.numpy as jnp
import numpy as np
import pytest

from ogls_jax import steering

ANCHOR = jnp.array([[[1.0, 0, 0, 0]]])
POSITIVE = jnp.array([[[0, 0.5, 0.5, 0]]])
NEGATIVE = jnp.array([[[0, 0, 0, 1.0]]])


def weights(variant, strength, negative=NEGATIVE):
  return steering.steering_weights(
    anchor_BGM=ANCHOR,
    positive_BGM=POSITIVE,
    negative_BGM=negative,
    strength=jnp.float32(strength),
    variant=variant,
  )[0, 0].tolist()


def test_weights_by_hand():
  assert weights('ogls_sd', 3) == [1, 1.5, 1.5, -3]
  assert weights('pos_only', 3) == [-2, 1.5, 1.5, 0]
  assert weights('pos_mean', 3) == [0, 0.5, 0.5, 0]
  assert weights('opsd', 3) == [0, 0.5, 0.5, 0]
  assert weights('kd', 3) == [1, 0, 0, 0]


def test_strength_0_and_equal_pools_give_the_anchor():
  assert weights('ogls_sd', 0) == [1, 0, 0, 0]
  assert weights('pos_only', 0) == [1, 0, 0, 0]
  assert weights('ogls_sd', 3, negative=POSITIVE) == [1, 0, 0, 0]


def test_unknown_variant_is_an_error():
  with pytest.raises(ValueError, match='median'):
    weights('median', 1)


def test_strength_ramps_linearly_to_its_maximum():
  steps = jnp.arange(6)
  got = steering.strength_at(steps, max_strength=3.0, ramp_steps=4)
  np.testing.assert_allclose(got, [0.75, 1.5, 2.25, 3, 3, 3])
  constant = steering.strength_at(steps, max_strength=3.0, ramp_steps=0)
  np.testing.assert_allclose(constant, 3)
