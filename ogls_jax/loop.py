"""Stage 2: sample, grade, distill, report and save, over and over."""

import contextlib
import dataclasses
import pathlib
import time

import grain
import jax
import numpy as np
from ml_collections import config_dict

from ogls_jax import build, evaluation, hosts, rounds
from ogls_jax.batches import PromptBatch, TrainState
from ogls_jax.checkpoint import Checkpointer
from ogls_jax.errors import Preempted
from ogls_jax.profile import Profile
from ogls_jax.programs import Programs
from ogls_jax.prompts import PromptMaker
from ogls_jax.reporting import Reporter
from ogls_jax.tasks.grading import Grader
from ogls_jax.tasks.question import Question


@dataclasses.dataclass
class Counters:
  """Host-side facts of a run that its checkpoints carry along."""

  before: list[float]  # share of correct answers per question at the start
  seconds: dict[str, float]  # wall time by stage


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
  config, start = parts.config, checkpointer.latest_step() or 0
  state = build.init_state(
    config,
    parts.student.params,
    build.make_optimizer(config),
    parts.mesh,
    has_ema=config.teacher == 'ema',
  )
  if start:
    state, position = checkpointer.restore(start, state)
    iterator.set_state(position['data'])
    counters = Counters(position['before'], position['seconds'])
    hosts.say(f'resuming at step {start} of {parts.workdir}')
  else:
    began = time.monotonic()
    counters = Counters(accuracy(parts, state), seconds)
    counters.seconds['evaluation'] = time.monotonic() - began
    print_accuracy('before', counters.before)
  return state, counters, start


def accuracy(parts: Parts, state: TrainState) -> list[float]:
  """Of each held-out question."""
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
    return parts.programs.evaluate(fixed, parts.student.frozen, prompts)

  return evaluation.evaluate(
    sample,
    parts.held_out,
    parts.maker,
    parts.mesh,
    grader=parts.grader,
    batch_questions=config.eval.batch_questions,
    bucket_tokens=config.prompt.bucket_tokens,
  ).tolist()


def print_accuracy(when: str, shares: list[float]) -> None:
  """One line, if anything was evaluated."""
  if shares:
    interval = evaluation.mean_interval(np.array(shares))
    hosts.say(f'accuracy {when}: {interval}, {len(shares)} questions')


def run_steps(
  parts: Parts,
  state: TrainState,
  counters: Counters,
  checkpointer: Checkpointer,
  iterator: grain.DatasetIterator,
  numbers: range,
  *,
  profile_steps: int,
  notice: hosts.StopNotice,
) -> TrainState:
  """Updates `numbers`, their reports and checkpoints; returns the last state.

  The device has the next round to sample before the host writes about the last
  update.

  Raises:
    FloatingPointError: a non-finite loss; the last checkpoint is intact.
    Preempted: `notice` came; all is saved.
  """
  config, began = parts.config, time.monotonic()
  with contextlib.ExitStack() as stack:
    reporter = closed_after(
      stack,
      Reporter(
        config,
        parts.workdir,
        start=numbers.start - 1,
        num_skipped=parts.num_skipped,
      ),
    )
    profile = closed_after(
      stack, Profile(parts.workdir, first=numbers.start + 2, num=profile_steps)
    )

    def settle():
      reporter.flush()
      # The profiler was seen to crash as a save's threads started beside it.
      checkpointer.wait()

    stack.enter_context(jax.transfer_guard('disallow'))
    for number in numbers:
      profile.before(number, settle)
      with jax.profiler.StepTraceAnnotation('update', step_num=number):
        round_ = _next_round(parts, state, next(iterator), reporter)
        state, sums = parts.programs.distill(
          state,
          parts.student.frozen,
          (parts.teacher.params, parts.teacher.frozen),
          round_.batch,
        )
      reporter.flush()  # where nothing was sampled: about the update before
      reporter.hold(number, sums, round_)
      is_asked = notice.is_reached(number)
      is_due = number % config.checkpoint.every_steps == 0
      if is_due or is_asked or number == numbers[-1]:
        reporter.flush()
        seconds = time.monotonic() - began
        began = time.monotonic()
        total = counters.seconds.get(config.method, 0.0) + seconds
        counters.seconds[config.method] = total
        position = {'data': iterator.get_state()}
        position |= dataclasses.asdict(counters)
        checkpointer.save(number, state, position)
        reporter.start_clock()
      if is_asked and number < config.num_steps:
        raise Preempted(f'step {number} is saved')
  return state


def _next_round(parts, state, questions, reporter):
  if not parts.is_sampled:
    return rounds.solution_round(
      questions, parts.maker, parts.rules, parts.mesh
    )

  def rollout(prompts, meanwhile):
    # Before dispatch: two programs' buffers do not fit a device at once.
    reporter.wait()

    def also(so_far):
      reporter.flush()
      meanwhile(so_far)

    return parts.programs.rollout(
      state, parts.student.frozen, prompts, meanwhile=also
    )

  return rounds.sampled_round(
    questions, rollout, parts.maker, parts.rules, parts.mesh, parts.grader
  )
