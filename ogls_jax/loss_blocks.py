"""Losses of hidden states, a block of tokens at a time.

Logits exist for one block only: the float32 logits of a single 1,024-token
rollout at V = 151,936 are 0.58 GiB.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ogls_jax.loss import divergence_sums
from ogls_jax.mesh import shard
from ogls_jax.models.transformer import project
from ogls_jax.numerics import Metric, log_probs


def over_blocks(of_block: Callable, arrays_RT: tuple, block_tokens: int):
  """Runs `of_block` on blocks of axis 1, padded with 0 (False in a mask).

  It returns a pair: what is added up over the blocks, and what is joined to
  [R, T, ...] again.
  """
  num_rows, num_tokens = arrays_RT[0].shape[:2]
  num_blocks = -(-num_tokens // block_tokens)
  padding = num_blocks * block_tokens - num_tokens

  def split(array):
    widths = [(0, 0), (0, padding)] + [(0, 0)] * (array.ndim - 2)
    blocks = jnp.pad(array, widths).reshape(
      num_rows, num_blocks, block_tokens, *array.shape[2:]
    )
    return blocks.swapaxes(0, 1)

  def join(blocks):
    array = blocks.swapaxes(0, 1)
    return array.reshape(num_rows, -1, *array.shape[3:])[:, :num_tokens]

  def step(total, block):
    added, kept = of_block(*block)
    return jax.tree.map(jnp.add, total, added), kept

  blocks = tuple(map(split, arrays_RT))
  shapes, _ = jax.eval_shape(of_block, *(block[0] for block in blocks))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  total, kept = jax.lax.scan(step, zeros, blocks)
  return total, jax.tree.map(join, kept)


def blockwise_divergence(
  *,
  student_hidden_RTD: jax.Array,
  student_unembedding_VD: jax.Array,
  steered_hidden_RTD: jax.Array,
  teacher_unembedding_VD: jax.Array,
  token_mask_RT: jax.Array,
  block_tokens: int,
  **divergence,
) -> dict[str, Metric]:
  """`divergence_sums` of projected states, `block_tokens` columns at a time.

  The gradient comes out of the same pass as the value: no logits are kept or
  computed again. That of the student's output matrix is computed only where it
  is trained. It is the gradient of `loss`; the other sums have none.

  Args:
    student_hidden_RTD: carries the gradient, as does its unembedding.
    student_unembedding_VD: the student's output matrix.
    steered_hidden_RTD: h0 + strength * (pool means), float32, constant;
      `project` rounds it to its matrix's dtype, as it does the student's.
    teacher_unembedding_VD: the teacher's output matrix, constant.
    token_mask_RT: bool.
    block_tokens: columns of T per block; R * block_tokens * V logits are held.
    **divergence: keyword arguments of `divergence_sums`.
  """

  def block_sums(student, matrix_VD, teacher_VD, steered, mask):
    # Before the product: 0 times a nan of the padding is a nan in the gradient
    # of the matrix.
    student, steered = (
      jnp.where(mask[..., None], hidden, 0) for hidden in (student, steered)
    )
    return divergence_sums(
      student_logits_RTV=project(student, matrix_VD),
      steered_logits_RTV=project(steered, teacher_VD),
      token_mask_RT=mask,
      **divergence,
    )

  with jax.named_scope('loss'):
    # Gathered over `fsdp` once, not for every block.
    loss, sums = _divergence(
      block_sums,
      block_tokens,
      student_hidden_RTD,
      shard(student_unembedding_VD, 'VD'),
      jax.lax.stop_gradient(shard(teacher_unembedding_VD, 'VD')),
      jax.lax.stop_gradient(steered_hidden_RTD),
      token_mask_RT,
    )
  sums = jax.lax.stop_gradient(sums)
  return sums | {'loss': (loss, sums['loss'][1])}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _divergence(
  block_sums, block_tokens, student, matrix_VD, teacher_VD, steered, mask
):
  """(the loss, all sums); the first of them has a gradient."""

  def of_block(student, steered, mask):
    return block_sums(student, matrix_VD, teacher_VD, steered, mask), ()

  sums, _ = over_blocks(of_block, (student, steered, mask), block_tokens)
  return sums['loss'][0], sums


def _divergence_forward(
  block_sums, block_tokens, student, matrix_VD, teacher_VD, steered, mask
):
  is_matrix_trained = matrix_VD.perturbed
  matrix_VD = matrix_VD.value

  def of_block(student, steered, mask):
    def loss_of(student, matrix_VD):
      sums = block_sums(student, matrix_VD, teacher_VD.value, steered, mask)
      return sums['loss'][0], sums

    argnums = (0, 1) if is_matrix_trained else (0,)
    grads, sums = jax.grad(loss_of, argnums, has_aux=True)(student, matrix_VD)
    # Over the blocks in float32, whatever the matrix is stored in.
    added = [grad.astype(jnp.float32) for grad in grads[1:]]
    return (sums, added), grads[0]

  (sums, matrix_grad), student_grad = over_blocks(
    of_block, (student.value, steered.value, mask.value), block_tokens
  )
  return (sums['loss'][0], sums), (student_grad, matrix_grad, matrix_VD)


def _divergence_backward(block_sums, block_tokens, residuals, cotangents):
  del block_sums, block_tokens  # the forward pass has used them
  student_grad, matrix_grad, matrix_VD = residuals
  scale = cotangents[0]
  matrix_grad = [(scale * grad).astype(matrix_VD.dtype) for grad in matrix_grad]
  student_grad = (scale * student_grad).astype(student_grad.dtype)
  return student_grad, (matrix_grad or [None])[0], None, None, None


_divergence.defvjp(
  _divergence_forward, _divergence_backward, symbolic_zeros=True
)


def token_log_probs(
  *,
  hidden_RTD: jax.Array,
  unembedding_VD: jax.Array,
  token_RT: jax.Array,
  block_tokens: int,
  temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each given token, and entropy of its distribution.

  Logits are computed again, block by block, in the backward pass.

  Returns:
    (log_prob_RT, entropy_RT), float32, nats, of softmax(logits / temperature).
  """

  with jax.named_scope('loss'):
    unembedding_VD = shard(unembedding_VD, 'VD')  # gathered over `fsdp` once

  @jax.checkpoint
  def of_block(hidden, token):
    log_prob_RTV = log_probs(project(hidden, unembedding_VD) / temperature)
    chosen_RT1 = jnp.take_along_axis(log_prob_RTV, token[..., None], axis=-1)
    entropy_RT = -(jnp.exp(log_prob_RTV) * log_prob_RTV).sum(-1)
    return (), (chosen_RT1[..., 0], entropy_RT)

  with jax.named_scope('loss'):
    _, (log_prob_RT, entropy_RT) = over_blocks(
      of_block, (hidden_RTD, token_RT), block_tokens
    )
  return log_prob_RT, jax.lax.stop_gradient(entropy_RT)
