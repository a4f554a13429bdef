import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ogls_jax import loss, loss_blocks

MASK = jnp.arange(5)[None] < jnp.array([[5], [2], [0]])


@pytest.mark.parametrize('block_tokens', [1, 2, 5, 64])
def test_blocks_add_up_to_the_whole_and_so_do_gradients(block_tokens):
  keys = jax.random.split(jax.random.key(1), 4)
  hidden, steered = (jax.random.normal(k, (3, 5, 4)) for k in keys[:2])
  student_w, teacher_w = (jax.random.normal(k, (7, 4)) for k in keys[2:])

  def blockwise(hidden, student_w):
    return loss_blocks.blockwise_divergence(
      student_hidden_RTD=hidden,
      student_unembedding_VD=student_w,
      steered_hidden_RTD=steered,
      teacher_unembedding_VD=teacher_w,
      token_mask_RT=MASK,
      block_tokens=block_tokens,
    )['loss'][0]

  def whole(hidden, student_w):
    return loss.divergence_sums(
      student_logits_RTV=hidden @ student_w.T,
      steered_logits_RTV=steered @ teacher_w.T,
      token_mask_RT=MASK,
    )['loss'][0]

  got = jax.value_and_grad(blockwise, (0, 1))(hidden, student_w)
  expected = jax.value_and_grad(whole, (0, 1))(hidden, student_w)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    got,
    expected,
  )


@pytest.mark.parametrize('block_tokens', [2, 64])
def test_token_log_probs_gather_the_given_token(block_tokens):
  hidden = jax.random.normal(jax.random.key(0), (2, 3, 4))
  matrix = jax.random.normal(jax.random.key(1), (7, 4))
  tokens = jnp.array([[0, 6, 3], [2, 2, 5]])
  got, entropy = loss_blocks.token_log_probs(
    hidden_RTD=hidden,
    unembedding_VD=matrix,
    token_RT=tokens,
    block_tokens=block_tokens,
    temperature=2.0,
  )
  logits = np.asarray(hidden @ matrix.T, np.float64) / 2
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = np.take_along_axis(logp, np.array(tokens)[..., None], -1)[..., 0]
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(entropy, -(np.exp(logp) * logp).sum(-1), rtol=1e-5)


def arguments(dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(1), 4)
  hidden, steered = (jax.random.normal(k, (3, 5, 4), dtype) for k in keys[:2])
  matrices = (jax.random.normal(k, (7, 4), dtype) for k in keys[2:])
  return hidden, *matrices, steered


def divergence(hidden, student_w, teacher_w, steered, name='loss'):
  return loss_blocks.blockwise_divergence(
    student_hidden_RTD=hidden,
    student_unembedding_VD=student_w,
    steered_hidden_RTD=steered,
    teacher_unembedding_VD=teacher_w,
    token_mask_RT=MASK,
    block_tokens=2,
  )[name][0]


def test_only_the_student_and_only_the_loss_have_a_gradient():
  grads = jax.grad(divergence, (0, 1, 2, 3))(*arguments())
  is_zero = [not np.any(grad) for grad in grads]
  assert is_zero == [False, False, True, True]
  for name in ('kl', 'entropy'):
    grads = jax.grad(divergence, (0, 1))(*arguments(), name=name)
    assert not np.any(grads[0]) and not np.any(grads[1])


def test_the_gradient_is_scaled_by_what_follows():
  once = jax.grad(divergence)(*arguments())
  scaled = jax.grad(lambda *args: -3 * divergence(*args))(*arguments())
  np.testing.assert_allclose(scaled, -3 * once, rtol=1e-6)


def num_products(argnums):
  """Matrix products in the program that computes these gradients."""
  text = str(jax.make_jaxpr(jax.grad(divergence, argnums))(*arguments()))
  return text.count('dot_general[')


def test_no_logits_are_computed_twice():
  # The student's and the teacher's logits and the gradient of the states; then
  # that of the matrix too, if it is trained.
  assert num_products((0,)) == 3
  assert num_products((0, 1)) == 4


def test_gradients_keep_the_dtype_of_their_arrays():
  grads = jax.grad(divergence, (0, 1))(*arguments(jnp.bfloat16))
  assert [grad.dtype for grad in grads] == [jnp.bfloat16] * 2
  exact = jax.grad(divergence, (0, 1))(
    *(x.astype(jnp.float32) for x in arguments(jnp.bfloat16))
  )
  for got, expected in zip(grads, exact, strict=True):
    np.testing.assert_allclose(
      got.astype(jnp.float32), expected, rtol=0.05, atol=0.05
    )
