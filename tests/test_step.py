import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import default
from ogls_jax import build, hosts, mesh, step
from ogls_jax.batches import TrainState
from ogls_jax.optimizer import make_optimizer, make_schedule
from tests.small import (
  SETTINGS,
  VOCAB,
  make_batch,
  make_decoder,
  tree_max_difference,
)


def setup(method='ogls_sd', lora_rank=0, teacher_kind='base', **kwargs):
  """(step, state, frozen, teacher params) of a fresh student and teacher."""
  num_microbatches = kwargs.pop('num_microbatches', 1)
  settings = kwargs.pop('settings', SETTINGS)
  optimizer = make_optimizer(
    b1=0.9, b2=0.99, weight_decay=0.1, max_grad_norm=1.0
  )
  trained = nnx.LoRAParam if lora_rank else nnx.Param
  graphdef, params, frozen = nnx.split(
    make_decoder(0, lora_rank=lora_rank, settings=settings), trained, ...
  )
  teacher_graphdef, teacher_params = nnx.split(
    make_decoder(1, settings=settings), nnx.Param
  )
  state = TrainState(
    step=jnp.int32(0),
    key=jax.random.key(0),
    params=params,
    opt_state=jax.jit(optimizer.init)(params),
    ema_params=jax.tree.map(jnp.copy, params)
    if teacher_kind == 'ema'
    else None,
  )
  distill_step = step.make_distill_step(
    graphdef,
    teacher_graphdef,
    optimizer,
    make_schedule(
      learning_rate=0.1, warmup_steps=0, num_steps=9, schedule='constant'
    ),
    objective=step.Objective(method=method, **({'block_tokens': 4} | kwargs)),
    teacher_kind=teacher_kind,
    ema_decay=0.5,
    num_microbatches=num_microbatches,
  )
  return distill_step, state, frozen, (teacher_params,)


def with_mask(batch, mask):
  return dataclasses.replace(
    batch, token_mask_RT=np.broadcast_to(mask, batch.token_mask_RT.shape)
  )


def gradient(batch, objective, student=None, teacher=None):
  graphdef, params = nnx.split(student or make_decoder(0), nnx.Param)

  def total(params, teacher):
    return step.loss_sums(
      nnx.merge(graphdef, params),
      teacher,
      batch,
      objective=objective,
      strength=jnp.float32(2.0),
    )['loss'][0]

  teacher = teacher or make_decoder(1)
  teacher_graphdef, teacher_params = nnx.split(teacher, nnx.Param)
  return jax.jit(
    jax.grad(lambda p, q: total(p, nnx.merge(teacher_graphdef, q)), (0, 1))
  )(params, teacher_params)


OGLS = step.Objective(method='ogls_sd', block_tokens=4)


def test_gradient_reaches_the_student_and_never_the_teacher():
  to_student, to_teacher = gradient(make_batch(), OGLS)
  assert optax.tree.norm(to_student) > 1e-3
  assert optax.tree.norm(to_teacher) == 0


def test_unscored_rollouts_carry_exactly_zero_gradient():
  batch = make_batch()
  mask = np.array(batch.token_mask_RT)
  mask[3:] = False
  masked, _ = gradient(with_mask(batch, mask), OGLS)
  # The same, with other tokens in the rollouts that carry no loss.
  response = np.array(batch.response_RT)
  response[3:] = (response[3:] + 5) % VOCAB
  changed = dataclasses.replace(with_mask(batch, mask), response_RT=response)
  other, _ = gradient(changed, OGLS)
  assert tree_max_difference(masked, other) == 0
  none, _ = gradient(with_mask(batch, False), OGLS)
  assert optax.tree.norm(none) == 0


def test_end_of_sequence_ids_are_merged_where_the_config_says_so():
  config = default.get_config()
  assert build.objective(config, eos_ids=(2, 5)).eos_ids == ()
  config.loss.merge_eos = True
  assert build.objective(config, eos_ids=(2, 5)).eos_ids == (2, 5)
  merged = dataclasses.replace(OGLS, eos_ids=(2, 5))
  both = [gradient(make_batch(), objective)[0] for objective in (OGLS, merged)]
  assert tree_max_difference(*both) > 1e-3


def test_nan_in_an_unweighed_context_does_not_spread():
  batch = make_batch()
  teacher = make_decoder(1)
  # Token 22 is read in context 4 of the first question only, at weight 0.
  clean = batch.hints.context_BMC.copy() % 22
  dirty = clean.copy()
  dirty[0, 4] = 22
  teacher.embedding[...] = teacher.embedding[...].at[22].set(jnp.nan)
  negative = batch.hints.negative_BGM.copy()
  negative[0] = [0, 0, 0, 1, 0]
  hidden = []
  for context in (clean, dirty):
    hints = dataclasses.replace(
      batch.hints, context_BMC=context, negative_BGM=negative
    )
    # The response must not hold the poisoned token either.
    changed = dataclasses.replace(
      batch, hints=hints, response_RT=batch.response_RT % 22
    )
    hidden.append(
      step.steered_hidden(
        teacher, changed, strength=jnp.float32(2.0), variant='ogls_sd'
      )
    )
  assert np.isfinite(hidden[1]).all()
  np.testing.assert_array_equal(hidden[0], hidden[1])


def test_a_batch_without_loss_changes_nothing():
  distill_step, state, frozen, teacher = setup()
  before = jax.tree.map(np.array, (state.params, state.opt_state))
  state, sums = distill_step(
    state, frozen, teacher, with_mask(make_batch(), False)
  )
  assert tree_max_difference(before, (state.params, state.opt_state)) == 0
  assert int(state.step) == 1
  assert float(sums['loss'][1]) == 0


def test_a_gradient_that_is_not_finite_changes_no_weights():
  distill_step, state, frozen, teacher = setup(method='grpo')
  before = jax.tree.map(np.array, state.params)
  batch = make_batch()
  batch.advantage_R[0] = np.nan
  state, sums = distill_step(state, frozen, teacher, batch)
  assert not np.isfinite(sums['grad_norm'][0])
  assert tree_max_difference(before, state.params) == 0


def test_distillation_towards_the_teacher_lowers_the_divergence():
  distill_step, state, frozen, teacher = setup('kd')
  batch = make_batch()
  kl = []
  for _ in range(30):
    state, sums = distill_step(state, frozen, teacher, batch)
    kl.append(float(sums['kl'][0] / sums['kl'][1]))
  assert kl[-1] < 0.5 * kl[0]


@pytest.mark.parametrize('method', ['ogls_sd', 'grpo'])
def test_microbatches_equal_one_batch(method):
  results = []
  for num_microbatches in (1, 4):
    distill_step, state, frozen, teacher = setup(
      method, num_microbatches=num_microbatches, kl_weight=0.1
    )
    state, sums = distill_step(state, frozen, teacher, make_batch())
    results.append((state.params, sums))
  assert tree_max_difference(*results) < 2e-4
  moved = setup(method)[1].params
  assert tree_max_difference(results[0][0], moved) > 1e-3


def test_lora_trains_adapters_and_leaves_the_base_alone():
  distill_step, state, frozen, teacher = setup(lora_rank=2)
  names = {path[-1] for path, _ in nnx.to_flat_state(state.params)}
  assert names == {'lora_a', 'lora_b'}
  before = jax.tree.map(np.array, state.params)
  state, _ = distill_step(state, frozen, teacher, make_batch())
  assert tree_max_difference(before, state.params) > 1e-3


def test_teacher_base_is_the_student_with_adapters_off():
  # The frozen part of a LoRA student is a whole base model.
  student = make_decoder(0, lora_rank=2)
  prompt = (jnp.array([[1, 2]]), jnp.array([2]), jnp.array([[[3, 4]]]))
  plain = student.score(*prompt)
  student.layers.q.lora_b[...] += 1.0
  _, _, frozen = nnx.split(student, nnx.LoRAParam, ...)
  base_graphdef, _ = nnx.split(make_decoder(0), nnx.Param)
  base = nnx.merge(base_graphdef, frozen)
  np.testing.assert_array_equal(base.score(*prompt), plain)
  assert jnp.abs(student.score(*prompt) - plain).max() > 1e-2


def test_live_and_ema_teachers_follow_the_student():
  # The teacher reads the student's own prompts, so that equal weights give a
  # divergence of 0.
  batch = make_batch(contexts=5)
  hints = dataclasses.replace(
    batch.hints,
    context_BMC=batch.prompts.tokens_BP[:, None],
    length_BM=batch.prompts.length_B[:, None],
    anchor_BGM=batch.hints.anchor_BGM[..., :1],
    positive_BGM=batch.hints.positive_BGM[..., :1],
    negative_BGM=batch.hints.negative_BGM[..., :1],
  )
  batch = dataclasses.replace(batch, hints=hints)

  def kl(kind, teacher_seed=None):
    distill_step, state, frozen, teacher = setup('kd', teacher_kind=kind)
    # Moved away from its average, as after some updates.
    moved = jax.tree.map(lambda x: 1.1 * x, state.params)
    state = dataclasses.replace(state, params=moved)
    if teacher_seed is not None:
      teacher = nnx.split(make_decoder(teacher_seed), nnx.Param)[1:]
    _, sums = distill_step(state, frozen, teacher, batch)
    return float(sums['kl'][0] / sums['kl'][1])

  assert abs(kl('live')) < 1e-6
  assert kl('ema') == pytest.approx(kl('base', teacher_seed=0), rel=1e-5)
  assert kl('ema') > 1e-4
  assert kl('base', teacher_seed=1) > 2 * kl('ema')


def test_ema_moves_by_its_decay():
  distill_step, state, frozen, teacher = setup(teacher_kind='ema')
  before = jax.tree.map(np.array, state.ema_params)
  state, _ = distill_step(state, frozen, teacher, make_batch())
  expected = jax.tree.map(
    lambda old, new: 0.5 * old + 0.5 * np.array(new), before, state.params
  )
  assert tree_max_difference(expected, state.ema_params) < 1e-6


def test_tail_loss_reaches_the_gradient():
  batch = make_batch()
  tail = np.zeros_like(batch.token_mask_RT)
  tail[0, 0] = True
  batch = dataclasses.replace(with_mask(batch, False), tail_mask_RT=tail)
  for weight, moves in ((0.0, False), (1.0, True)):
    distill_step, state, frozen, teacher = setup(tail_weight=weight)
    before = jax.tree.map(np.array, state.params)
    state, sums = distill_step(state, frozen, teacher, batch)
    assert (tree_max_difference(before, state.params) > 1e-3) == moves
  assert float(sums['tail_loss'][1]) == 1


@pytest.mark.parametrize(
  ('shape', 'method', 'lora_rank'),
  [
    ((1, 1, 1), 'ogls_sd', 0),
    ((8, 1, 1), 'ogls_sd', 0),
    ((2, 2, 2), 'ogls_sd', 0),
    ((1, 8, 1), 'ogls_sd', 0),
    ((1, 1, 8), 'ogls_sd', 0),
    ((2, 2, 2), 'ogls_sd', 2),
    ((2, 2, 2), 'grpo', 0),
  ],
)
def test_the_step_agrees_on_every_mesh(shape, method, lora_rank):
  assert jax.device_count() == 8
  distill_step, state, frozen, teacher = setup(method, lora_rank)
  batch = make_batch(num_prompts=8)
  expected, sums = distill_step(state, frozen, teacher, batch)
  devices = jax.devices()[: int(np.prod(shape))]
  grid = jax.make_mesh(
    shape, mesh.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3,
    devices=devices,
  )  # fmt: skip
  distill_step, state, frozen, teacher = setup(method, lora_rank)
  with jax.set_mesh(grid):
    shardings = mesh.shardings_of((state, frozen, teacher), grid)
    state, frozen, teacher = jax.device_put((state, frozen, teacher), shardings)
    got, got_sums = distill_step(
      state, frozen, teacher, hosts.put_rows(batch, grid)
    )
  assert tree_max_difference(expected.params, got.params) < 1e-4
  assert tree_max_difference(sums, got_sums) < 1e-3
  # Outputs keep the input's shardings.
  wanted = jax.tree.leaves(mesh.shardings_of(got.params, grid))
  for array, sharding in zip(jax.tree.leaves(got.params), wanted, strict=True):
    assert array.sharding.is_equivalent_to(sharding, array.ndim)
