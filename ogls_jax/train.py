"""Trains a model: `python -m ogls_jax.train --config=FILE --workdir=FOLDER`.

1. warm up by SFT (stage 1, if the config has one)
2. evaluate on held-out questions
3. loop: sample, grade, build hints, distill (stage 2)
4. evaluate again and write summary.json

The same command again continues from the last checkpoint.
"""

import contextlib
import dataclasses
import json
import pathlib
import time

import jax
import numpy as np
from absl import flags
from ml_collections import config_dict

from ogls_jax import (
  build,
  cli,
  data,
  evaluation,
  metrics,
  rounds,
  step,
  warmup,
)
from ogls_jax.batches import PromptBatch, TrainState
from ogls_jax.checkpoint import Checkpointer
from ogls_jax.errors import UserError
from ogls_jax.json_file import write_json
from ogls_jax.mesh import make_mesh
from ogls_jax.numerics import divide_metrics
from ogls_jax.questions import load_questions
from ogls_jax.runs import load_kd_teacher
from ogls_jax.validate import (
  Sizes,
  check_questions,
  check_vocabulary,
  validate,
  warn_of_length,
)
from ogls_jax.workdir import check_same

# One object a step in metrics.jsonl; null where a method does not have it.
METRICS = (
  'loss', 'tail_loss', 'kl', 'clip_fraction', 'entropy', 'reward_mean',
  'mixed_group_fraction', 'steered_rollout_fraction', 'strength',
  'response_tokens_mean', 'truncated_fraction', 'hints_cut', 'rows_skipped',
  'grad_norm', 'learning_rate', 'seconds_sampling', 'seconds_grading',
  'seconds_hints', 'seconds_distill', 'tokens_per_second',
)  # fmt: skip


@dataclasses.dataclass
class Counters:
  """Host-side facts of a run that its checkpoints carry along."""

  before: list[float]  # share of correct answers per question at the start
  seconds: dict[str, float]  # wall time by stage


def round_rules(
  config: config_dict.ConfigDict, sizes: Sizes, objective: step.Objective
) -> rounds.RoundRules:
  """What a round needs to know of the config."""
  return rounds.RoundRules(
    method=config.method,
    task=config.data.task,
    group_size=sizes.group_size,
    is_distilled=objective.is_distilled,
    response_tokens=config.distill.response_tokens,
    tail_tokens=config.tail.tokens if config.tail.weight else 0,
    bucket_tokens=config.prompt.bucket_tokens,
    answer_as_solution=config.hints.answer_as_solution,
    hints=build.hint_rules(config),
  )


def train(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  *,
  stop_after_steps: int = 0,
) -> dict:
  """Runs both stages; returns what summary.json holds.

  Args:
    config: as from configs/default.py.
    workdir: config, metrics, samples, checkpoints and summary go there.
    stop_after_steps: stop, with a checkpoint, after so many more updates; 0
      for none. The same command then continues.

  Raises:
    UserError: bad input, before anything compiles.
    FloatingPointError: a non-finite loss; the last checkpoint is intact.
  """
  sizes = validate(config, jax.device_count())
  maker = build.load_maker(config)
  num_ids = maker.tokenizer.vocab_size
  settings = build.decoder_settings(config, num_ids)
  check_vocabulary(config, num_ids=num_ids, num_rows=settings.vocab_size)
  warn_of_length(config, settings.context_tokens)
  questions, held_out, num_skipped = load_questions(config, maker)
  check_questions(config, questions, held_out, sizes)
  flag = f'--workdir={workdir}'
  values = json.loads(config.to_json())
  is_claimed = check_same(workdir / 'config.json', values, flag=flag)
  if is_claimed and (workdir / 'summary.json').is_file():
    print(f'{workdir} is finished; its summary.json has the result', flush=True)
    return json.loads((workdir / 'summary.json').read_text())
  mesh = make_mesh(dict(config.mesh))
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    base = build.base_model(config, settings, mesh)
    teacher = None
    if config.method == 'kd':
      teacher = load_kd_teacher(config, maker.tokenizer, mesh)
    # Only now: what failed before leaves the workdir to a corrected command.
    write_json(workdir / 'config.json', values, flag=flag)
    base, seconds = _warmed(config, base, questions, maker, mesh, workdir)
    base = build.quantized(config, base, mesh)
    student = build.student_model(config, base, mesh)
    teacher = teacher or base
    transformation = build.make_optimizer(config)
    objective = build.objective(config, eos_ids=maker.tokenizer.eos_ids)
    state = build.init_state(
      config,
      student.params,
      transformation,
      mesh,
      has_ema=config.teacher == 'ema',
    )
    distill_step = step.make_distill_step(
      student.graphdef,
      teacher.graphdef,
      transformation,
      build.make_schedule(config),
      objective=objective,
      teacher_kind=config.teacher,
      ema_decay=config.ema_decay,
      num_microbatches=config.optimizer.num_microbatches,
    )
    rollout_step = step.make_rollout_step(
      student.graphdef,
      group_size=sizes.group_size,
      temperature=config.rollouts.temperature,
      top_k=config.rollouts.top_k,
      top_p=config.rollouts.top_p,
      min_p=config.rollouts.min_p,
      max_tokens=config.rollouts.max_tokens,
      eos_ids=maker.tokenizer.eos_ids,
    )
    eval_step = step.make_rollout_step(
      student.graphdef,
      group_size=config.eval.samples,
      temperature=config.eval.temperature,
      max_tokens=config.eval.max_tokens or config.rollouts.max_tokens,
      eos_ids=maker.tokenizer.eos_ids,
    )
    # Before and after draw from the same keys, whatever the step.
    eval_key = jax.random.key(config.seed + 1)
    eval_zero = jax.device_put(np.int32(0))

    def accuracy(state: TrainState) -> list[float]:
      if not held_out:
        return []
      fixed = dataclasses.replace(state, key=eval_key, step=eval_zero)

      def sample(prompts: PromptBatch):
        return eval_step(fixed, student.frozen, prompts)

      return evaluation.evaluate(
        sample,
        held_out,
        maker,
        mesh,
        task=config.data.task,
        batch_questions=config.eval.batch_questions,
        bucket_tokens=config.prompt.bucket_tokens,
      ).tolist()

    # Closed on errors too: what was saved last must reach the disk.
    checkpointer = stack.enter_context(
      contextlib.closing(
        Checkpointer(workdir / 'checkpoints', keep=config.checkpoint.keep)
      )
    )
    iterator = data.question_iterator(
      questions, batch_questions=config.rollouts.batch_questions,
      seed=config.data.seed + config.seed,
    )  # fmt: skip
    start = checkpointer.latest_step() or 0
    if start:
      state, position = checkpointer.restore(start, state)
      iterator.set_state(position['data'])
      counters = Counters(position['before'], position['seconds'])
      print(f'resuming at step {start} of {workdir}', flush=True)
    else:
      began = time.monotonic()
      counters = Counters(accuracy(state), seconds)
      counters.seconds['evaluation'] = time.monotonic() - began
      _print_accuracy('before', counters.before)
    rules = round_rules(config, sizes, objective)
    writer = stack.enter_context(
      contextlib.closing(metrics.Writer(workdir, start_step=start))
    )
    progress = stack.enter_context(
      contextlib.closing(
        metrics.Progress(config.method, start=start, total=config.num_steps)
      )
    )
    last = config.num_steps
    if stop_after_steps:
      last = min(last, start + stop_after_steps)
    began = time.monotonic()

    with jax.transfer_guard('disallow'):
      for number in range(start + 1, last + 1):
        batch_questions = next(iterator)
        if sizes.is_sampled:
          round_ = rounds.sampled_round(
            batch_questions,
            lambda prompts, state=state: rollout_step(
              state, student.frozen, prompts
            ),
            maker,
            rules,
            mesh,
          )
        else:
          round_ = rounds.solution_round(batch_questions, maker, rules, mesh)
        distilling = time.monotonic()
        state, sums = distill_step(
          state,
          student.frozen,
          (teacher.params, teacher.frozen),
          round_.batch,
        )
        values = divide_metrics(jax.device_get(sums))
        values |= round_.values
        values['seconds_distill'] = time.monotonic() - distilling
        values['rows_skipped'] = float(num_skipped)
        _finish_step(number, values, round_.samples, config, writer, progress)
        if number % config.checkpoint.every_steps == 0 or number == last:
          counters.seconds[config.method] = counters.seconds.get(
            config.method, 0.0
          ) + (time.monotonic() - began)
          began = time.monotonic()
          position = {'data': iterator.get_state()}
          position |= dataclasses.asdict(counters)
          checkpointer.save(number, state, position)
    progress.close()
    if last < config.num_steps:
      print(f'stopped at step {last}; the same command continues', flush=True)
      return {}
    began = time.monotonic()
    after = accuracy(state)
    counters.seconds['evaluation'] += time.monotonic() - began
    _print_accuracy('after', after)
    return _write_summary(workdir, config, counters, after)


def _warmed(config, base, questions, maker, mesh, workdir):
  """(the starting model after stage 1, seconds by stage)."""
  began = time.monotonic()
  if config.warmup.num_steps:
    folder = warmup.folder_of(config, workdir)
    base = warmup.warm_up(config, base, questions, maker, mesh, folder)
  return base, {'warmup': time.monotonic() - began}


def _finish_step(number, values, samples, config, writer, progress):
  total = sum(values[name] for name in values if name.startswith('seconds_'))
  values['tokens_per_second'] = values['response_tokens'] / total
  row = {name: values.get(name, float('nan')) for name in METRICS}
  writer.metrics(number, row)
  # A loss over no tokens is no number; a gradient always is one.
  has_loss = values.get('steered_rollout_fraction', 1.0) > 0
  metrics.check_finite(
    number, values, ('loss', 'grad_norm') if has_loss else ('grad_norm',)
  )
  every = config.log.samples_every_steps
  if every and (number == 1 or number % every == 0):
    for sample in samples[: config.log.samples_rollouts]:
      writer.sample(number, sample)
  text = ' '.join(
    f'{label} {values[name]:.3f}'
    for label, name in (('reward', 'reward_mean'), ('loss', 'loss'))
    if name in values and (has_loss or name != 'loss')
  )
  progress.update(
    number,
    f'{text} {values["tokens_per_second"]:.0f} tokens/s',
    is_printed=number % max(config.num_steps // 10, 1) == 0 or number < 4,
  )


def _print_accuracy(when: str, shares: list[float]) -> None:
  if shares:
    interval = evaluation.mean_interval(np.array(shares))
    print(f'accuracy {when}: {interval}, {len(shares)} questions', flush=True)


def _write_summary(workdir, config, counters, after) -> dict:
  summary = {
    'method': config.method,
    'seed': config.seed,
    'num_steps': config.num_steps,
    'eval_questions': len(after),
    'seconds': counters.seconds,
  }
  if after:
    before_Q, after_Q = np.array(counters.before), np.array(after)
    for name, values in (
      ('before', before_Q),
      ('after', after_Q),
      ('gain', after_Q - before_Q),
    ):
      interval = evaluation.mean_interval(values)
      summary[f'accuracy_{name}'] = dataclasses.asdict(interval)
  path = workdir / 'summary.json'
  write_json(path, summary, flag=f'--workdir={workdir}')
  print(f'wrote {path}', flush=True)
  return summary


def main() -> None:
  """Reads the flags and trains."""
  config = cli.read_config()
  if not flags.FLAGS.workdir:
    raise UserError('--workdir= must name a folder')
  train(
    config,
    pathlib.Path(flags.FLAGS.workdir),
    stop_after_steps=flags.FLAGS.stop_after_steps,
  )


if __name__ == '__main__':
  cli.define_config()
  flags.DEFINE_string('workdir', None, 'Where the run is kept.', required=True)
  flags.DEFINE_integer(
    'stop_after_steps', 0, 'Stop after so many updates; 0 for none.', 0
  )
  cli.run(main)
