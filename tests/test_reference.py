"""The whole OGLS-SD loss against a float64 NumPy reference.

The reference works on logits, not hidden states, one rollout and one hint at a
time: pools, anchor, strength, clip, masks and all three divergences.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ogls_jax import loss, step
from tests.small import make_batch, make_decoder, naive_hidden


def softmax64(logits):
  shifted = np.asarray(logits, np.float64)
  shifted = shifted - shifted.max(-1, keepdims=True)
  return np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)


def reference_loss(
  student, teacher, batch, *, strength, kl, beta, clip_mode, clip, temperature
):
  w_student = np.asarray(student.unembedding_VD, np.float64)
  w_teacher = np.asarray(teacher.unembedding_VD, np.float64)
  hints = batch.hints
  num_prompts, group, contexts = hints.anchor_BGM.shape
  total, count = 0.0, 0
  for b in range(num_prompts):
    for g in range(group):
      row = b * group + g
      response = batch.response_RT[row].tolist()
      prompt = batch.prompts.tokens_BP[b, : batch.prompts.length_B[b]]
      z_student = (
        np.asarray(naive_hidden(student, prompt.tolist(), response), np.float64)
        @ w_student.T
      )
      z = []
      for m in range(contexts):
        hint = hints.context_BMC[b, m, : hints.length_BM[b, m]].tolist()
        hidden = naive_hidden(teacher, hint, response)
        z.append(np.asarray(hidden, np.float64) @ w_teacher.T)
      z = np.stack(z)

      def pool(weights, z=z):
        return np.einsum('M,MTV->TV', weights.astype(np.float64), z)

      anchor = pool(hints.anchor_BGM[b, g])
      delta = pool(hints.positive_BGM[b, g]) - pool(hints.negative_BGM[b, g])
      steered = anchor + strength * delta
      p = softmax64(z_student / temperature)
      q = softmax64(steered / temperature)
      if kl == 'forward':
        terms = q * np.log(q / p)
      elif kl == 'reverse':
        terms = p * np.log(p / q)
      else:
        m = beta * q + (1 - beta) * p
        terms = beta * q * np.log(q / m) + (1 - beta) * p * np.log(p / m)
      if clip_mode != 'none':
        terms = np.minimum(terms, clip)
      if clip_mode == 'symmetric':
        terms = np.maximum(terms, -clip)
      mask = batch.token_mask_RT[row]
      total += terms[mask].sum()
      count += mask.sum()
  return total, count


@pytest.mark.parametrize('clip_mode', loss.CLIP_MODES)
@pytest.mark.parametrize('kl', loss.KLS)
def test_ogls_sd_loss_agrees_with_the_reference(kl, clip_mode):
  student, teacher = make_decoder(0), make_decoder(1)
  batch = make_batch(num_prompts=2, group=2)
  # Rollout 0 carries no loss, as if it were correct.
  batch.token_mask_RT[0] = False
  settings = {'kl': kl, 'clip_mode': clip_mode}
  objective = step.Objective(
    method='ogls_sd',
    block_tokens=4,
    jsd_beta=0.3,
    pointwise_clip=0.02,
    temperature=0.7,
    **settings,
  )
  sums = step.loss_sums(
    student, teacher, batch, objective=objective, strength=jnp.float32(2.5)
  )
  total, count = reference_loss(
    student,
    teacher,
    batch,
    strength=2.5,
    beta=0.3,
    clip=0.02,
    temperature=0.7,
    **settings,
  )
  got, got_count = jax.device_get(sums['loss'])
  assert got_count == count
  assert got == pytest.approx(total, rel=1e-5)


def test_pooling_states_equals_pooling_logits():
  teacher = make_decoder(1)
  batch = make_batch(num_prompts=1, group=1)
  hidden = step.steered_hidden(
    teacher, batch, strength=jnp.float32(3.0), variant='ogls_sd'
  )
  hints = batch.hints
  response = batch.response_RT[0].tolist()
  logits = [
    naive_hidden(
      teacher, hints.context_BMC[0, m, : hints.length_BM[0, m]].tolist(),
      response,
    )
    @ teacher.unembedding_VD.T
    for m in range(5)
  ]  # fmt: skip
  positive = (logits[1] + logits[2]) / 2
  negative = (logits[3] + logits[4]) / 2
  np.testing.assert_allclose(
    hidden[0] @ teacher.unembedding_VD.T,
    logits[0] + 3.0 * (positive - negative),
    rtol=1e-4,
    atol=1e-4,
  )
