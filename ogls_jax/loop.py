"""Stage 2: sample, grade, distill, report and save, over and over."""

import contextlib
import dataclasses
import pathlib
import time

import grain
import jax
import numpy as np
from ml_collections import config_dict

from ogls_jax import build, evaluation, hosts, rounds, wandb_log
from ogls_jax.batches import PromptBatch, TrainState
from ogls_jax.checkpoint import Checkpointer
from ogls_jax.errors import Preempted, UserError
from ogls_jax.inspection import Inspector
from ogls_jax.intervals import mean_interval
from ogls_jax.json_file import read_rows
from ogls_jax.notice import StopNotice
from ogls_jax.profile import Profile
from ogls_jax.programs import Programs
from ogls_jax.prompts import PromptMaker
from ogls_jax.reporting import Reporter
from ogls_jax.saver import Counters, Saver
from ogls_jax.tasks import superglue
from ogls_jax.tasks.grading import Grader
from ogls_jax.tasks.question import Question


@dataclasses.dataclass(frozen=True)
class Parts:
  """What the loop needs and does not change."""

  config: config_dict.ConfigDict
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  maker: PromptMaker
  held_out: list[Question]
  num_skipped: int
  student: build.Model
  teacher: build.Model
  programs: Programs
  rules: rounds.RoundRules
  is_sampled: bool
  grader: Grader
  notice: StopNotice


def closed_after(stack: contextlib.ExitStack, closable):
  """`closable`, to be closed with the stack."""
  stack.enter_context(contextlib.closing(closable))
  return closable


def begin_or_resume(
  parts: Parts,
  checkpointer: Checkpointer,
  iterator: grain.DatasetIterator,
  seconds: dict[str, float],
) -> tuple[TrainState, Counters, int]:
  """(state, counters, updates done), from the newest checkpoint if any.

  `seconds` are those of the stages before; what begins is evaluated.
  """
  config, start = parts.config, 0
  state = build.init_state(
    config,
    parts.student.params,
    build.make_optimizer(config),
    parts.mesh,
    has_ema=config.teacher == 'ema',
  )
  found = checkpointer.restore_newest(state)
  hosts.check_agree(
    found[0] if found else 0, f'{parts.workdir}: {hosts.NOT_SHARED}'
  )
  if found:
    start, state, position = found
    iterator.set_state(position.pop('data'))
    counters = Counters(**position)
    hosts.say(f'resuming at step {start} of {parts.workdir}')
  else:
    _check_nothing_is_lost(config, parts.workdir)
    began, before = time.monotonic(), []
    if config.eval.has_before_after:
      before = accuracy(parts, state, 'before')
    counters = Counters(before, seconds)
    counters.seconds['evaluation'] = time.monotonic() - began
  return state, counters, start


def _check_nothing_is_lost(config, workdir):
  """UserError where a run has come past its first checkpoints, and has none."""
  rows = read_rows(workdir / 'metrics.jsonl')
  last = max((row['step'] for row in rows), default=0)
  # Of the first, the save may not have ended.
  if last > 2 * config.checkpoint.every_steps:
    raise UserError(
      f'{workdir}: metrics.jsonl has lines up to update {last}, and there is no'
      ' checkpoint; bring the folder checkpoints back, or start afresh in'
      ' another workdir'
    )


def accuracy(parts: Parts, state: TrainState, when: str) -> list[float]:
  """Of each held-out question; one line says the mean, if there are any."""
  if not parts.held_out:
    return []
  config = parts.config
  # Before and after draw from the same keys, whatever the step.
  fixed = dataclasses.replace(
    state,
    key=build.make_key(parts.mesh, config.seed + 1),
    step=build.first_step(parts.mesh),
  )

  def sample(prompts: PromptBatch):
    return parts.programs.evaluate(
      fixed,
      parts.student.frozen,
      prompts,
      meanwhile=lambda _: parts.notice.check(),
    )

  batches = evaluation.graded_batches(
    sample,
    parts.held_out,
    parts.maker,
    parts.mesh,
    grader=parts.grader,
    batch_questions=config.eval.batch_questions,
    bucket_tokens=config.prompt.bucket_tokens,
    poll=parts.notice.poll,
  )
  shares_Q, num_timeouts = evaluation.accuracy(batches, config.hints.min_reward)
  groups = superglue.groups_of(parts.held_out)
  interval = mean_interval(shares_Q, groups)
  text = f', {num_timeouts} grader_timeouts' if num_timeouts else ''
  hosts.say(f'accuracy {when}: {interval}, {len(shares_Q)} questions{text}')
  return shares_Q.tolist()


def run_steps(
  parts: Parts,
  state: TrainState,
  counters: Counters,
  checkpointer: Checkpointer,
  iterator: grain.DatasetIterator,
  numbers: range,
  *,
  profile_steps: int,
) -> TrainState:
  """Updates `numbers`, their reports and checkpoints; returns the last state.

  The device has the next round to sample before the host writes about the last
  update.

  Raises:
    FloatingPointError: a non-finite loss; the last checkpoint is intact.
    Preempted: a stop is asked for; all but a round under way is saved.
    UserError: what has to be saved cannot be.
  """
  config = parts.config
  with contextlib.ExitStack() as stack:
    log_also = stack.enter_context(
      wandb_log.logged(
        config.log.wandb_project,
        parts.workdir,
        config.to_dict(),
        last_step=numbers.start - 1,
      )
    )
    reporter = closed_after(
      stack,
      Reporter(
        config,
        parts.workdir,
        start=numbers.start - 1,
        num_skipped=parts.num_skipped,
        updates_skipped=counters.updates_skipped,
        log_also=log_also,
      ),
    )
    saver = Saver(config, counters, checkpointer, reporter)
    inspector = Inspector(
      config, parts.programs, student=parts.student, teacher=parts.teacher,
      maker=parts.maker, rules=parts.rules, mesh=parts.mesh,
    )  # fmt: skip
    profile = closed_after(
      stack, Profile(parts.workdir, first=numbers.start + 2, num=profile_steps)
    )

    stack.enter_context(jax.transfer_guard('disallow'))
    for number in numbers:
      # The profiler was seen to crash as a save's threads started beside it.
      profile.before(number, saver.settle)
      place = iterator.get_state()
      with jax.profiler.StepTraceAnnotation('update', step_num=number):
        try:
          values = _evaluated(parts, state, number - 1, place, saver)
          questions = next(iterator)
          round_ = _next_round(parts, state, questions, reporter)
        except Preempted:
          saver.stop(number - 1, state, place)
        round_.values.update(values)
        round_ = inspector.look(number, state, round_, questions)
        state, sums = parts.programs.distill(
          state,
          parts.student.frozen,
          (parts.teacher.params, parts.teacher.frozen),
          round_.batch,
        )
      reporter.flush()  # where nothing was sampled: about the update before
      reporter.hold(number, sums, round_)
      place = iterator.get_state()
      is_asked = parts.notice.is_asked()
      if is_asked and number < config.num_steps:
        saver.stop(number, state, place)
      if number == numbers[-1]:
        saver.save_now(number, state, place, is_asked=is_asked)
      elif saver.is_due(number) and not _is_evaluated(config, number):
        saver.save(number, state, place)
  return state


def _is_evaluated(config, number):
  every = config.eval.every_steps
  return every > 0 and number % every == 0


def _evaluated(parts, state, number, place, saver):
  """Metrics of the model after update `number`, which is saved with them.

  They belong to the next update, so that a run that stops in here does it
  again.
  """
  if not number or not _is_evaluated(parts.config, number):
    return {}
  saver.settle()
  share = float(np.mean(accuracy(parts, state, f'at step {number}')))
  saver.save(number, state, place, share)
  return {'eval_accuracy': share}


def _next_round(parts, state, questions, reporter):
  if not parts.is_sampled:
    return rounds.solution_round(
      questions, parts.maker, parts.rules, parts.mesh
    )

  def rollout(prompts, meanwhile):
    # Before dispatch: two programs' buffers do not fit a device at once.
    reporter.wait()

    def also(so_far):
      parts.notice.check()
      reporter.flush()
      meanwhile(so_far)

    return parts.programs.rollout(
      state, parts.student.frozen, prompts, meanwhile=also
    )

  return rounds.sampled_round(
    questions, rollout, parts.maker, parts.rules, parts.mesh, parts.grader,
    poll=parts.notice.poll,
  )  # fmt: skip
