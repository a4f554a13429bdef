"""Stage 1: SFT on worked solutions, part of them shown after a hint.

A corpus of worked solutions with slips in it, as found texts have: the model
learns the arithmetic and the slips. A small model cannot read a hint by itself
either, so part of the examples follow one, right or wrong. Where they leave it
by a slip the slip carries no loss: the model learns to go on from a prefix that
its hint does not share, not to leave the hint
(`arithmetic.sample_solution` is the whole process).
"""

import dataclasses
import pathlib
import time

import jax
import numpy as np
from ml_collections import config_dict

from ogls_jax import build, data, metrics, step
from ogls_jax.batches import LossBatch, PromptBatch, pad_rows
from ogls_jax.checkpoint import Checkpointer
from ogls_jax.loss_masks import given_rollouts, make_loss_batch
from ogls_jax.mesh import put_batch
from ogls_jax.numerics import divide_metrics, round_up
from ogls_jax.optimizer import make_optimizer, make_schedule
from ogls_jax.prompts import PromptMaker
from ogls_jax.tasks import arithmetic
from ogls_jax.tasks.question import Question

_PRINT_EVERY = 100


def make_warmup_batch(
  questions: list[Question],
  maker: PromptMaker,
  rng: np.random.Generator,
  *,
  hint_fraction: float,
  wrong_hint_fraction: float,
  slip_rate: float,
  hinted_slip_rate: float,
  bucket_tokens: int,
) -> LossBatch:
  """Prompts with no hint, a right or a wrong one, and solutions that follow."""
  prompts, responses, masks = [], [], []
  tokenizer = maker.tokenizer
  # All or none, so that plain prompts are not padded to the length of hinted.
  is_hinted = rng.random() < hint_fraction
  for question in questions:
    hint, rate = None, slip_rate
    if is_hinted:
      hint, rate = question.solution, hinted_slip_rate
      if rng.random() < wrong_hint_fraction:
        hint = arithmetic.wrong_solution(
          question, rng=rng, step_error_rate=slip_rate
        )
    prompts.append(
      maker.student_ids(question)
      if hint is None
      else maker.teacher_ids(question, hint)
    )
    response, mask = [], []
    for text, is_slip in arithmetic.sample_solution(
      question, rng=rng, slip_rate=rate, hint=hint
    ):
      ids = tokenizer.encode(text)
      response += ids
      mask += [not (is_slip and is_hinted)] * len(ids)
    responses.append([*response, tokenizer.eos_id])
    masks.append([*mask, True])
  width = round_up(max(map(len, prompts)), bucket_tokens)
  num_rows = len(questions)
  batch = make_loss_batch(
    prompts=PromptBatch(
      tokens_BP=pad_rows(prompts, width),
      length_B=np.array([len(prompt) for prompt in prompts], np.int32),
      uid_B=np.zeros(num_rows, np.uint32),
    ),
    rollouts=given_rollouts(responses, bucket_tokens=bucket_tokens),
    hints=None,
    is_scored_R=np.ones(num_rows, bool),
    is_correct_R=np.zeros(num_rows, bool),
    advantage_R=np.zeros(num_rows, np.float32),
    response_tokens=None,
    tail_tokens=0,
    bucket_tokens=bucket_tokens,
  )
  mask_RT = pad_rows(masks, batch.token_mask_RT.shape[1]).astype(bool)
  return dataclasses.replace(batch, token_mask_RT=mask_RT)


def warm_up(
  config: config_dict.ConfigDict,
  base: build.Model,
  questions: list[Question],
  maker: PromptMaker,
  mesh,
  folder: pathlib.Path,
) -> build.Model:
  """Trains all of `base`, from the checkpoint in `folder` if there is one."""
  w = config.warmup
  schedule = make_schedule(
    learning_rate=w.learning_rate,
    warmup_steps=w.num_steps // 20,
    num_steps=w.num_steps,
    schedule='cosine',
  )
  transformation = make_optimizer(
    b1=0.9, b2=0.98, weight_decay=0.01, max_grad_norm=1.0
  )
  state = build.init_state(
    config, base.params, transformation, mesh, has_ema=False
  )
  sft_step = step.make_distill_step(
    base.graphdef,
    None,
    transformation,
    schedule,
    objective=step.Objective(
      method='sft', block_tokens=config.loss.block_tokens
    ),
  )
  checkpointer = Checkpointer(folder, keep=1)
  iterator = data.question_iterator(
    questions, batch_questions=w.batch_questions, seed=config.seed
  )
  start = checkpointer.latest_step() or 0
  if start:
    state, position = checkpointer.restore(start, state)
    iterator.set_state(position['data'])
  progress = metrics.Progress('warmup', start=start, total=w.num_steps)
  began, pending = time.monotonic(), None
  for number in range(start + 1, w.num_steps + 1):
    # Its own stream per step, so that a resumed stage draws the same hints.
    rng = np.random.default_rng([config.seed, number])
    batch = make_warmup_batch(
      next(iterator),
      maker,
      rng,
      hint_fraction=w.hint_fraction,
      wrong_hint_fraction=w.wrong_hint_fraction,
      slip_rate=w.slip_rate,
      hinted_slip_rate=w.hinted_slip_rate,
      bucket_tokens=config.prompt.bucket_tokens,
    )
    state, sums = sft_step(state, base.frozen, None, put_batch(batch, mesh))
    if pending is not None:
      _report(progress, number - 1, pending, began, start)
    pending = sums
    # Four saves bound what a preemption costs.
    if number % max(w.num_steps // 4, 1) == 0 or number == w.num_steps:
      _report(progress, number, pending, began, start)
      pending = None
      checkpointer.save(number, state, {'data': iterator.get_state()})
  checkpointer.close()
  progress.close()
  return build.Model(base.graphdef, state.params, base.frozen)


def _report(progress, number, sums, began, start):
  values = divide_metrics(jax.device_get(sums))
  metrics.check_finite(number, values, ('loss', 'grad_norm'))
  pace = (number - start) / (time.monotonic() - began)
  progress.update(
    number,
    f'loss {values["loss"]:.3f} {pace:.1f} steps/s',
    is_printed=number % _PRINT_EVERY == 0,
  )
