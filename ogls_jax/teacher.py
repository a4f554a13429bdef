"""One read per hint, many rollouts per read, pooled as they come."""

import functools

import jax
import jax.numpy as jnp

from ogls_jax.batches import Hints
from ogls_jax.mesh import shard
from ogls_jax.models.transformer import Decoder
from ogls_jax.numerics import round_up

# Narrower programs than this are not worth compiling.
_WIDTH = 64


def pooled_states(
  decoder: Decoder,
  hints: Hints,
  weights_BGM: jax.Array,
  response_BGT: jax.Array,
) -> jax.Array:
  """Weighted sum over contexts of the teacher's states along each response.

  One context per question is read at a time and scores all G responses, so
  that memory holds one context's keys and one running sum. What no response
  weighs is not read, and what is short is read at a smaller width: contexts
  come longest first, so that those of all questions get short together.

  Args:
    decoder: the teacher; its head must be linear in the state.
    hints: contexts; their weights are given separately.
    weights_BGM: float32, as from `steering.steering_weights`.
    response_BGT: token ids.

  Returns:
    hidden_BGTD float32: state t predicts response token t. States of weight 0
    are left out, not multiplied by 0, so padding cannot bring in a nan.
  """
  shape = (*response_BGT.shape, decoder.settings.width)
  widths = _widths(hints.context_BMC.shape[-1])

  def share(width, tokens_BC, length_B, weight_BG):
    hidden_BGTD = decoder.score(
      tokens_BC[:, :width], jnp.minimum(length_B, width), response_BGT
    )
    weight_BG11 = weight_BG[..., None, None]
    share_BGTD = weight_BG11 * hidden_BGTD.astype(jnp.float32)
    return jnp.where(weight_BG11 == 0, 0.0, share_BGTD)

  def nothing(*_):
    return jnp.zeros(shape, jnp.float32)

  branches = [nothing, *(functools.partial(share, width) for width in widths)]

  def add(total_BGTD, context):
    _, length_B, weight_BG = context
    needed = jnp.where((weight_BG != 0).any(-1), length_B, 0).max()
    branch = jnp.sum(needed > jnp.array([0, *widths[:-1]]))
    return total_BGTD + jax.lax.switch(branch, branches, *context), None

  contexts = (
    hints.context_BMC.swapaxes(0, 1),
    hints.length_BM.swapaxes(0, 1),
    jnp.moveaxis(weights_BGM, 2, 0),
  )
  total_BGTD, _ = jax.lax.scan(add, jnp.zeros(shape, jnp.float32), contexts)
  return shard(total_BGTD, 'BGTD')


def _widths(num_tokens: int) -> list[int]:
  """Quarters of C that a context is read at, in multiples of `_WIDTH`."""
  quarters = {round_up(num_tokens * n // 4, _WIDTH) for n in (1, 2, 3, 4)}
  return sorted({min(width, num_tokens) for width in quarters})
