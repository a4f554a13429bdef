import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ogls_jax import loss

# p = (3/4, 1/4) and q = (1/2, 1/2), as logits.
P = jnp.log(jnp.array([[[3.0, 1.0]]]))
Q = jnp.zeros((1, 1, 2))
ONE = jnp.ones((1, 1), bool)


def kl_of(student, steered, **kwargs):
  sums = loss.divergence_sums(
    student_logits_RTV=student,
    steered_logits_RTV=steered,
    token_mask_RT=ONE,
    **kwargs,
  )
  return float(sums['loss'][0])


def test_reverse_kl_by_hand():
  # 3/4 log(3/2) + 1/4 log(1/2)
  assert kl_of(P, Q, kl='reverse') == pytest.approx(0.1308120, abs=1e-6)
  # swapped: 1/2 log(2/3) + 1/2 log 2
  assert kl_of(Q, P, kl='reverse') == pytest.approx(0.1438410, abs=1e-6)


def test_forward_kl_is_reverse_with_roles_swapped():
  assert kl_of(P, Q, kl='forward') == pytest.approx(0.1438410, abs=1e-6)


def test_jsd_by_hand_and_its_weights():
  # beta = 1/4: m = q/4 + 3p/4 = (11/16, 5/16)
  q_part = 0.5 * np.log(0.5 / (11 / 16)) + 0.5 * np.log(0.5 / (5 / 16))
  p_part = 0.75 * np.log(0.75 / (11 / 16)) + 0.25 * np.log(0.25 / (5 / 16))
  expected = 0.25 * q_part + 0.75 * p_part
  got = kl_of(P, Q, kl='jsd', jsd_beta=0.25)
  assert got == pytest.approx(expected, abs=1e-6)


def test_clip_by_hand():
  # reverse terms: 3/4 log(3/2) = 0.3041, 1/4 log(1/2) = -0.1733
  clip = {'kl': 'reverse', 'pointwise_clip': 0.1}
  assert kl_of(P, Q, clip_mode='symmetric', **clip) == pytest.approx(0.0)
  assert kl_of(P, Q, clip_mode='upper', **clip) == pytest.approx(
    0.1 - 0.1732868, abs=1e-6
  )
  sums = loss.divergence_sums(
    student_logits_RTV=P,
    steered_logits_RTV=Q,
    token_mask_RT=ONE,
    clip_mode='symmetric',
    **clip,
  )
  assert sums['clip_fraction'] == (1, 1)
  assert float(sums['kl'][0]) == pytest.approx(0.1308120, abs=1e-6)


def test_temperature_divides_both_logits():
  # p^(1/2) and q^(1/2), normalised.
  student = jnp.log(jnp.sqrt(jnp.array([[[3.0, 1.0]]])))
  hot = kl_of(P, Q + jnp.array([[[1.0, 0]]]), temperature=2.0)
  by_hand = kl_of(student, Q + jnp.array([[[0.5, 0]]]))
  assert hot == pytest.approx(by_hand, abs=1e-6)


def random_logits(seed=0, shape=(3, 5, 7)):
  keys = jax.random.split(jax.random.key(seed), 2)
  mask = jnp.arange(shape[1])[None] < jnp.array([5, 2, 0])[:, None]
  student, steered = (3 * jax.random.normal(key, shape) for key in keys)
  return student, steered, mask


@pytest.mark.parametrize('kl', loss.KLS)
def test_constant_added_to_logits_changes_nothing(kl):
  student, steered, mask = random_logits()

  def total(shift):
    return loss.divergence_sums(
      student_logits_RTV=student + shift,
      steered_logits_RTV=steered - shift,
      token_mask_RT=mask,
      kl=kl,
    )['loss'][0]

  np.testing.assert_allclose(total(0.0), total(7.0), rtol=1e-4)


@pytest.mark.parametrize('kl', loss.KLS)
@pytest.mark.parametrize('clip_mode', loss.CLIP_MODES)
def test_nan_in_padding_reaches_neither_value_nor_gradient(kl, clip_mode):
  student, steered, mask = random_logits()

  def total(student, steered):
    return loss.divergence_sums(
      student_logits_RTV=student,
      steered_logits_RTV=steered,
      token_mask_RT=mask,
      kl=kl,
      clip_mode=clip_mode,
    )['loss'][0]

  clean, clean_grad = jax.value_and_grad(total)(student, steered)
  bad = jnp.where(mask[..., None], student, jnp.nan)
  bad_steered = jnp.where(mask[..., None], steered, jnp.inf)
  value, grad = jax.value_and_grad(total)(bad, bad_steered)
  np.testing.assert_array_equal(value, clean)
  np.testing.assert_array_equal(grad, clean_grad)
  np.testing.assert_array_equal(grad[~np.array(mask)], 0)


def test_no_gradient_into_the_steered_logits():
  student, steered, mask = random_logits()

  def total(student, steered):
    return loss.divergence_sums(
      student_logits_RTV=student, steered_logits_RTV=steered, token_mask_RT=mask
    )['loss'][0]

  to_student, to_steered = jax.grad(total, (0, 1))(student, steered)
  assert jnp.abs(to_student).max() > 0.01
  np.testing.assert_array_equal(to_steered, 0)


def merged_reference(student, steered, mask, *, ids, kl, clip):
  """Metrics' sums of distributions that are merged explicitly, in float64."""

  def merged(logits):
    p = np.exp(np.asarray(logits, np.float64)[mask] / 0.7)
    p /= p.sum(-1, keepdims=True)
    rest = np.delete(p, ids, axis=-1)
    return np.concatenate([p[:, ids].sum(-1, keepdims=True), rest], -1)

  p, q = merged(student), merged(steered)
  terms = {'forward': q * np.log(q / p), 'reverse': p * np.log(p / q)}
  m = 0.3 * q + 0.7 * p
  terms['jsd'] = 0.3 * q * np.log(q / m) + 0.7 * p * np.log(p / m)
  terms = terms[kl]
  clipped = terms
  if clip != 'none':
    clipped = np.clip(terms, None if clip == 'upper' else -0.02, 0.02)
  return {
    'loss': clipped.sum(),
    'kl': terms.sum(),
    'clip_fraction': (clipped != terms).any(-1).sum(),
    'entropy': -(p * np.log(p)).sum(),
  }


def merged_sums(student, steered, mask, *, ids, kl='forward', clip='none'):
  return loss.divergence_sums(
    student_logits_RTV=student,
    steered_logits_RTV=steered,
    token_mask_RT=mask,
    kl=kl,
    jsd_beta=0.3,
    clip_mode=clip,
    pointwise_clip=0.02,
    temperature=0.7,
    eos_ids=ids,
  )


@pytest.mark.parametrize('ids', [(1, 4), (0, 3, 6)])
@pytest.mark.parametrize('kl', loss.KLS)
@pytest.mark.parametrize('clip', loss.CLIP_MODES)
def test_merged_ids_are_one_entry_of_the_distribution(kl, clip, ids):
  student, steered, mask = random_logits()
  settings = {'ids': ids, 'kl': kl, 'clip': clip}

  def total(student):
    sums = merged_sums(student, steered, mask, **settings)
    return sums['loss'][0], sums

  (_, sums), gradient = jax.value_and_grad(total, has_aux=True)(student)
  mask = np.asarray(mask)
  expected = merged_reference(student, steered, mask, **settings)
  for name, value in expected.items():
    expected_sum = pytest.approx(value, rel=1e-5, abs=1e-6)
    assert sums[name] == (expected_sum, mask.sum()), name
  logits, slope = np.asarray(student, np.float64), np.zeros(student.shape)
  for index in np.ndindex(student.shape):
    up, down = logits.copy(), logits.copy()
    up[index] += 1e-5
    down[index] -= 1e-5
    ends = [
      merged_reference(end, steered, mask, **settings)['loss']
      for end in (up, down)
    ]
    slope[index] = (ends[0] - ends[1]) / 2e-5
  assert np.abs(slope).max() > 0.01
  np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('kl', loss.KLS)
def test_fewer_than_two_ids_merge_nothing(kl):
  arrays = random_logits()
  expected = merged_sums(*arrays, ids=(), kl=kl)
  assert merged_sums(*arrays, ids=(4,), kl=kl) == expected
  assert merged_sums(*arrays, ids=(2, 4), kl=kl) != expected


def test_mass_that_moves_between_merged_ids_is_no_difference():
  student, steered, mask = random_logits()
  log_prob = jax.nn.log_softmax(student / 0.7)
  mass = jnp.exp(log_prob[..., 1]) + jnp.exp(log_prob[..., 4])
  # 90% of their mass on one of the two, 90% on the other.
  one, other = (
    0.7
    * log_prob.at[..., 1].set(jnp.log(share * mass))
    .at[..., 4].set(jnp.log((1 - share) * mass))
    for share in (0.9, 0.1)
  )  # fmt: skip

  def totals(ids):
    return [
      float(merged_sums(logits, steered, mask, ids=ids)['loss'][0])
      for logits in (one, other)
    ]

  assert totals((1, 4))[0] == pytest.approx(totals((1, 4))[1], rel=1e-5)
  assert abs(totals(())[0] - totals(())[1]) > 0.1


@pytest.mark.parametrize('kl', loss.KLS)
def test_merged_ids_without_mass_give_finite_values_and_gradients(kl):
  student, steered, mask = random_logits()
  # exp underflows in float32: a sum of probabilities would be 0, its log -inf.
  student = student.at[:, :, jnp.array([1, 4])].add(-200)
  steered = steered.at[:, :, jnp.array([1, 4])].add(-300)

  def total(student):
    sums = merged_sums(student, steered, mask, ids=(1, 4), kl=kl)
    return sums['loss'][0], sums

  (_, sums), gradient = jax.value_and_grad(total, has_aux=True)(student)
  assert np.isfinite(jax.tree.leaves(sums)).all()
  assert np.isfinite(gradient).all()
  # The others are of no account: as if the vocabulary had five entries.
  kept = np.array([0, 2, 3, 5, 6])
  expected = merged_sums(
    student[..., kept], steered[..., kept], mask, ids=(), kl=kl
  )
  np.testing.assert_allclose(
    jax.tree.leaves(sums), jax.tree.leaves(expected), rtol=1e-5
  )


def grpo(log_prob, advantage, **kwargs):
  sums = loss.grpo_sums(
    log_prob_RT=jnp.array([[log_prob]]),
    sampled_log_prob_RT=jnp.zeros((1, 1)),
    base_log_prob_RT=kwargs.pop('base', None),
    advantage_R=jnp.array([advantage]),
    token_mask_RT=ONE,
    entropy_RT=jnp.zeros((1, 1)),
    clip_low=0.2,
    clip_high=0.3,
    kl_weight=kwargs.pop('kl_weight', 0.0),
  )
  return {name: float(total) for name, (total, _) in sums.items()}


def test_grpo_by_hand():
  # ratio 1.5: clipped to 1.3 for a good rollout, kept for a bad one.
  assert grpo(np.log(1.5), 2.0)['loss'] == pytest.approx(-2.6, rel=1e-5)
  assert grpo(np.log(1.5), -2.0)['loss'] == pytest.approx(3.0, rel=1e-5)
  # ratio 0.5: clipped to 0.8 for a bad rollout, kept for a good one.
  assert grpo(np.log(0.5), -1.0)['loss'] == pytest.approx(0.8, rel=1e-5)
  assert grpo(np.log(0.5), 1.0)['loss'] == pytest.approx(-0.5, rel=1e-5)
  assert grpo(np.log(0.5), -1.0)['clip_fraction'] == 1
  assert grpo(np.log(0.5), 1.0)['clip_fraction'] == 0


def test_grpo_kl_to_base_by_hand():
  # log base - log student = log 2: exp - d - 1 = 1 - log 2
  sums = grpo(0.0, 0.0, base=jnp.log(jnp.array([[2.0]])), kl_weight=0.5)
  assert sums['kl'] == pytest.approx(1 - np.log(2), abs=1e-6)
  assert sums['loss'] == pytest.approx(0.5 * (1 - np.log(2)), abs=1e-6)
