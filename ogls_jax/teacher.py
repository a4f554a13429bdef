"""One read per hint, many rollouts per read, pooled as they come."""

import jax
import jax.numpy as jnp

from ogls_jax.batches import Hints
from ogls_jax.mesh import shard
from ogls_jax.models.transformer import Decoder


def pooled_states(
  decoder: Decoder,
  hints: Hints,
  weights_BGM: jax.Array,
  response_BGT: jax.Array,
) -> jax.Array:
  """Weighted sum over contexts of the teacher's states along each response.

  One context per question is read at a time and scores all G responses, so
  that memory holds one context's keys and one running sum.

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

  def add(total_BGTD, context):
    tokens_BC, length_B, weight_BG = context
    hidden_BGTD = decoder.score(tokens_BC, length_B, response_BGT)
    weight_BG11 = weight_BG[..., None, None]
    share_BGTD = weight_BG11 * hidden_BGTD.astype(jnp.float32)
    return total_BGTD + jnp.where(weight_BG11 == 0, 0.0, share_BGTD), None

  contexts = (
    hints.context_BMC.swapaxes(0, 1),
    hints.length_BM.swapaxes(0, 1),
    jnp.moveaxis(weights_BGM, 2, 0),
  )
  total_BGTD, _ = jax.lax.scan(add, jnp.zeros(shape, jnp.float32), contexts)
  return shard(total_BGTD, 'BGTD')
