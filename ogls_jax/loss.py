"""What the losses are: divergences, likelihoods and the GRPO loss.

All return sums; the caller divides once.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ogls_jax.numerics import Metric, log_probs, masked_metric

KLS = ('forward', 'reverse', 'jsd')
CLIP_MODES = ('none', 'upper', 'symmetric')


def divergence_terms(
  *,
  student_RTV: jax.Array,
  steered_RTV: jax.Array,
  kl: str,
  jsd_beta: float,
) -> jax.Array:
  """Each vocabulary entry's contribution to the divergence, in nats.

  With p the student and q the steered teacher, given as log-probabilities:
  forward KL(q || p): q (log q - log p); reverse KL(p || q): p (log p - log q);
  jsd: beta q (log q - log m) + (1 - beta) p (log p - log m) with
  m = beta q + (1 - beta) p, as in generalised JSD (arXiv:2306.13649).
  """
  p, q = jnp.exp(student_RTV), jnp.exp(steered_RTV)
  if kl == 'forward':
    return q * (steered_RTV - student_RTV)
  if kl == 'reverse':
    return p * (student_RTV - steered_RTV)
  if kl == 'jsd':
    mixed_RTV = jnp.logaddexp(
      steered_RTV + jnp.log(jsd_beta), student_RTV + jnp.log1p(-jsd_beta)
    )
    return jsd_beta * q * (steered_RTV - mixed_RTV) + (1 - jsd_beta) * p * (
      student_RTV - mixed_RTV
    )
  raise ValueError(f'unknown kl {kl!r}; one of {KLS}')


def clip_terms(terms: jax.Array, *, clip_mode: str, pointwise_clip: float):
  """Clamps each vocabulary entry's contribution (nats).

  `symmetric` to [-c, c] (the paper's, v1 App. B.1; per vocabulary entry is our
  reading), `upper` to at most c (OPSD's). A clipped sum is no longer a
  divergence: it can be negative.
  """
  if clip_mode == 'none':
    return terms
  if clip_mode == 'upper':
    return jnp.minimum(terms, pointwise_clip)
  if clip_mode == 'symmetric':
    return jnp.clip(terms, -pointwise_clip, pointwise_clip)
  raise ValueError(f'unknown clip mode {clip_mode!r}; one of {CLIP_MODES}')


def merge_entries(log_prob_RTV: jax.Array, ids: tuple[int, ...]) -> jax.Array:
  """Makes one vocabulary entry of those at `ids`: their sum, at ids[0].

  The others keep no mass: a finite floor whose exp is 0, where -inf would give
  nan terms. By masks, which the TPU compiler fuses into the passes there are: a
  gather made it hold two more blocks of logits.

  Args:
    log_prob_RTV: normalised; so is the result.
    ids: distinct; fewer than two change nothing.
  """
  if len(ids) < 2:
    return log_prob_RTV
  id_V = np.arange(log_prob_RTV.shape[-1])
  is_first_11V = (id_V == ids[0])[None, None]
  is_merged_11V = np.isin(id_V, ids)[None, None]
  merged_RT1 = jax.nn.logsumexp(
    log_prob_RTV, axis=-1, keepdims=True, where=is_merged_11V
  )
  floor = jnp.finfo(log_prob_RTV.dtype).min
  rest_RTV = jnp.where(is_merged_11V, floor, log_prob_RTV)
  return jnp.where(is_first_11V, merged_RT1, rest_RTV)


def divergence_sums(
  *,
  student_logits_RTV: jax.Array,
  steered_logits_RTV: jax.Array,
  token_mask_RT: jax.Array,
  kl: str = 'forward',
  jsd_beta: float = 0.5,
  clip_mode: str = 'none',
  pointwise_clip: float = 0.05,
  temperature: float = 1.0,
  eos_ids: tuple[int, ...] = (),
) -> dict[str, Metric]:
  """Divergence of student and steered teacher, summed over the mask.

  Args:
    student_logits_RTV: any float dtype; the only argument with a gradient.
    steered_logits_RTV: z^T of v1 Eq. 13, taken as a constant.
    token_mask_RT: bool. Logits where it is False are never read, nan included.
    kl: `forward`, `reverse` or `jsd`; see `divergence_terms`.
    jsd_beta: weight of the teacher in the mixture, in (0, 1).
    clip_mode: `none`, `upper` or `symmetric`; see `clip_terms`.
    pointwise_clip: bound on each vocabulary entry's term, in nats.
    temperature: divides both logits, and so changes the effective strength.
    eos_ids: vocabulary entries that count as one, as in arXiv:2609.20511.

  Returns:
    (sum, count) pairs, float32: `loss` (clipped, the one to differentiate),
    `kl` (unclipped), `clip_fraction` (tokens with a clipped entry), `entropy`
    (the student's, nats).
  """

  def masked_log_probs(logits_RTV):
    # Masked positions become uniform on both sides and add exactly 0.
    kept_RTV = jnp.where(token_mask_RT[..., None], logits_RTV, 0)
    return merge_entries(log_probs(kept_RTV / temperature), eos_ids)

  student_RTV = masked_log_probs(student_logits_RTV)
  steered_RTV = masked_log_probs(jax.lax.stop_gradient(steered_logits_RTV))
  terms_RTV = divergence_terms(
    student_RTV=student_RTV, steered_RTV=steered_RTV, kl=kl, jsd_beta=jsd_beta
  )
  clipped_RTV = clip_terms(
    terms_RTV, clip_mode=clip_mode, pointwise_clip=pointwise_clip
  )
  is_clipped_RT = (clipped_RTV != terms_RTV).any(-1)
  entropy_RT = -(jnp.exp(student_RTV) * student_RTV).sum(-1)
  values = {
    'loss': clipped_RTV.sum(-1),
    'kl': terms_RTV.sum(-1),
    'clip_fraction': is_clipped_RT,
    'entropy': entropy_RT,
  }
  return {
    name: masked_metric(value, token_mask_RT) for name, value in values.items()
  }


def nll_sums(
  log_prob_RT: jax.Array, token_mask_RT: jax.Array, entropy_RT: jax.Array
) -> dict[str, Metric]:
  """Negative log-likelihood of the masked tokens (SFT)."""
  return {
    'loss': masked_metric(-log_prob_RT, token_mask_RT),
    'entropy': masked_metric(entropy_RT, token_mask_RT),
  }


def grpo_sums(
  *,
  log_prob_RT: jax.Array,
  sampled_log_prob_RT: jax.Array,
  base_log_prob_RT: jax.Array | None,
  advantage_R: jax.Array,
  token_mask_RT: jax.Array,
  entropy_RT: jax.Array,
  clip_low: float,
  clip_high: float,
  kl_weight: float,
) -> dict[str, Metric]:
  """Clipped policy-gradient loss with a group-normalised advantage.

  arXiv:2402.03300, Eq. 3, averaged over all tokens of the batch:
  -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), plus
  kl_weight times the estimate exp(d) - d - 1 of KL(student || base), where
  d = log base - log student. All log-probabilities are taken at the sampling
  temperature.
  """
  # Selected before exp: an overflow in the padding would poison the gradient.
  shift_RT = jnp.where(token_mask_RT, log_prob_RT - sampled_log_prob_RT, 0)
  ratio_RT = jnp.exp(shift_RT)
  clipped_RT = jnp.clip(ratio_RT, 1 - clip_low, 1 + clip_high)
  advantage_R1 = advantage_R[:, None]
  gain_RT = jnp.minimum(ratio_RT * advantage_R1, clipped_RT * advantage_R1)
  sums = {
    'entropy': masked_metric(entropy_RT, token_mask_RT),
    'clip_fraction': masked_metric(
      gain_RT < ratio_RT * advantage_R1, token_mask_RT
    ),
  }
  loss_RT = -gain_RT
  if base_log_prob_RT is not None:
    gap_RT = jnp.where(token_mask_RT, base_log_prob_RT - log_prob_RT, 0)
    kl_RT = jnp.exp(gap_RT) - gap_RT - 1
    sums['kl'] = masked_metric(kl_RT, token_mask_RT)
    loss_RT += kl_weight * kl_RT
  sums['loss'] = masked_metric(loss_RT, token_mask_RT)
  return sums
