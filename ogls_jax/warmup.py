"""Stage 1: SFT on worked solutions, part of them shown after a hint.

A corpus of worked solutions with slips in it, as found texts have: the model
learns the arithmetic and the slips. A small model cannot read a hint by itself
either, so part of the examples follow one, right or wrong. Where they leave it
by a slip the slip carries no loss: the model learns to go on from a prefix that
its hint does not share, not to leave the hint
(`arithmetic.sample_solution` is the whole process).
"""

import contextlib
import dataclasses
import json
import pathlib
import time

import jax
import numpy as np
from ml_collections import config_dict

from ogls_jax import build, data, hosts, metrics, step
from ogls_jax.batches import LossBatch, PromptBatch, pad_rows
from ogls_jax.checkpoint import Checkpointer
from ogls_jax.errors import Preempted, UserError
from ogls_jax.json_file import write_json
from ogls_jax.loss_masks import given_rollouts, make_loss_batch
from ogls_jax.notice import StopNotice
from ogls_jax.numerics import divide_metrics, round_up
from ogls_jax.optimizer import make_optimizer, make_schedule
from ogls_jax.prompts import PromptMaker
from ogls_jax.tasks import arithmetic
from ogls_jax.tasks.question import Question
from ogls_jax.workdir import check_same, locked

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


def folder_of(
  config: config_dict.ConfigDict, workdir: pathlib.Path
) -> pathlib.Path:
  """Where stage 1 of a run in `workdir` is kept."""
  return pathlib.Path(config.warmup.workdir or workdir) / 'warmup'


def _settings_of(config) -> dict:
  """What stage 1 depends on; runs that share one must agree on it."""
  values = json.loads(config.to_json())
  kept = {name: values[name] for name in ('seed', 'data', 'prompt', 'model')}
  kept['warmup'] = values['warmup']
  kept['eval'] = {'num_questions': values['eval']['num_questions']}
  # Places, not settings.
  del kept['warmup']['workdir'], kept['model']['tokenizer_path']
  return kept


def is_claimed(config: config_dict.ConfigDict, folder: pathlib.Path) -> bool:
  """Whether `folder` holds this stage 1; UserError if it holds another."""
  flag = f'stage 1 in {folder}'
  return check_same(_claim(folder), _settings_of(config), flag=flag)


def _claim(folder):
  return folder.parent / 'warmup.json'


def _checkpointer(config, folder, *, is_read_only=False):
  return Checkpointer(
    folder,
    keep=2,
    verify=config.checkpoint.verify,
    is_read_only=is_read_only,
  )


def _schedule(config):
  return make_schedule(
    learning_rate=config.warmup.learning_rate,
    warmup_steps=config.warmup.num_steps // 20,
    num_steps=config.warmup.num_steps,
    schedule='cosine',
  )


def _init(config, base, mesh):
  transformation = make_optimizer(
    b1=0.9, b2=0.98, weight_decay=0.01, max_grad_norm=1.0
  )
  state = build.init_state(
    config, base.params, transformation, mesh, has_ema=False
  )
  return transformation, state


def load_warm(
  config: config_dict.ConfigDict,
  base: build.Model,
  mesh,
  folder: pathlib.Path,
) -> build.Model:
  """The finished stage 1 in `folder`.

  Raises:
    UserError: it is not there, not finished, or of other settings.
  """
  if not is_claimed(config, folder):
    raise UserError(f'there is no stage 1 in {folder}')
  _, state = _init(config, base, mesh)
  with contextlib.closing(
    _checkpointer(config, folder, is_read_only=True)
  ) as checkpointer:
    if config.warmup.num_steps not in checkpointer.all_steps():
      raise UserError(f'{folder} does not hold a finished stage 1')
    state, _ = checkpointer.restore(config.warmup.num_steps, state)
  return build.Model(base.graphdef, state.params, base.frozen)


def warm_up(
  config: config_dict.ConfigDict,
  base: build.Model,
  questions: list[Question],
  maker: PromptMaker,
  mesh,
  folder: pathlib.Path,
  notice: StopNotice,
) -> build.Model:
  """Trains all of `base`, from the checkpoint in `folder` if there is one.

  Raises:
    UserError: `folder` holds the stage 1 of other settings.
    FloatingPointError: a non-finite loss.
    Preempted: `notice` came; all is saved.
  """
  w = config.warmup
  flag = f'stage 1 in {folder}'
  is_there = is_claimed(config, folder)
  hosts.check_agree(is_there, f'{flag}: {hosts.NOT_SHARED}')
  if not is_there and hosts.is_first():
    write_json(_claim(folder), _settings_of(config), flag=flag)
  hosts.check_shared(_claim(folder), f'{flag}: {hosts.NOT_SHARED}')
  transformation, state = _init(config, base, mesh)
  sft_step = step.make_distill_step(
    base.graphdef,
    None,
    transformation,
    _schedule(config),
    objective=step.Objective(
      method='sft', block_tokens=config.loss.block_tokens
    ),
  )
  iterator = data.question_iterator(
    questions, batch_questions=w.batch_questions, seed=config.seed
  )
  with contextlib.ExitStack() as stack:
    # Runs that share it may be started at once.
    lock = folder.with_name('warmup.lock')
    stack.enter_context(locked(lock, flag=flag, is_waited_for=True))
    checkpointer = stack.enter_context(
      contextlib.closing(_checkpointer(config, folder))
    )
    start, found = 0, checkpointer.restore_newest(state)
    if found:
      start, state, position = found
      iterator.set_state(position['data'])
    elif w.workdir:
      hosts.say(f'no stage 1 in {folder}; training it there')
    progress = stack.enter_context(
      contextlib.closing(
        metrics.Progress('warmup', start=start, total=w.num_steps)
      )
    )
    began, pending = time.monotonic(), None
    for number in range(start + 1, w.num_steps + 1):
      batch = _numbered_batch(number, next(iterator), maker, config, mesh)
      state, sums = sft_step(state, base.frozen, None, batch)
      if pending is not None:
        _report(progress, number - 1, pending, began, start)
      pending = sums
      is_asked = notice.is_asked()
      # Four saves bound what a crash costs.
      every_steps = max(w.num_steps // 4, 1)
      is_last = number == w.num_steps
      is_due = checkpointer.is_due(number, every_steps=every_steps)
      if is_due or is_last or is_asked:
        _report(progress, number, pending, began, start)
        pending = None
        place = {'data': iterator.get_state()}
        if is_asked or is_last:
          most_seconds = 10.0 if is_asked else 3600.0
          checkpointer.save_now(number, state, place, most_seconds=most_seconds)
        else:
          checkpointer.save(number, state, place)
      if is_asked:
        raise Preempted(f'warmup step {number} is saved')
  return build.Model(base.graphdef, state.params, base.frozen)


def _numbered_batch(number, questions, maker, config, mesh):
  w = config.warmup
  batch = make_warmup_batch(
    questions,
    maker,
    # Its own stream per step, so that a resumed stage draws the same hints.
    np.random.default_rng([config.seed, number]),
    hint_fraction=w.hint_fraction,
    wrong_hint_fraction=w.wrong_hint_fraction,
    slip_rate=w.slip_rate,
    hinted_slip_rate=w.hinted_slip_rate,
    bucket_tokens=config.prompt.bucket_tokens,
  )
  own_B = hosts.own_rows(len(questions), mesh)
  batch = jax.tree.map(lambda array: array[own_B], batch)
  return hosts.put_rows(batch, mesh)


def _report(progress, number, sums, began, start):
  values = divide_metrics(jax.device_get(sums))
  metrics.check_finite(number, values, ('loss', 'grad_norm'))
  pace = (number - start) / (time.monotonic() - began)
  progress.update(
    number,
    f'loss {values["loss"]:.3f} {pace:.1f} steps/s',
    is_printed=number % _PRINT_EVERY == 0,
  )
