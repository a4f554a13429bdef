"""Stage 2: sample, grade, distill, report and save, over and over."""

import contextlib
import dataclasses
import pathlib
import time
from typing import NoReturn

import grain
import jax
from ml_collections import config_dict

from ogls_jax import build, evaluation, hosts, rounds
from ogls_jax.batches import PromptBatch, TrainState
from ogls_jax.checkpoint import Checkpointer
from ogls_jax.errors import Preempted
from ogls_jax.notice import StopNotice
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
    iterator.set_state(position['data'])
    counters = Counters(position['before'], position['seconds'])
    hosts.say(f'resuming at step {start} of {parts.workdir}')
  else:
    began = time.monotonic()
    counters = Counters(accuracy(parts, state, 'before'), seconds)
    counters.seconds['evaluation'] = time.monotonic() - began
  return state, counters, start


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

  shares_Q, num_timeouts = evaluation.evaluate(
    sample,
    parts.held_out,
    parts.maker,
    parts.mesh,
    grader=parts.grader,
    batch_questions=config.eval.batch_questions,
    bucket_tokens=config.prompt.bucket_tokens,
  )
  interval = evaluation.mean_interval(shares_Q)
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
    reporter = closed_after(
      stack,
      Reporter(
        config,
        parts.workdir,
        start=numbers.start - 1,
        num_skipped=parts.num_skipped,
      ),
    )
    saver = _Saver(parts, counters, checkpointer, reporter, numbers.start - 1)
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
      place = iterator.get_state()
      with jax.profiler.StepTraceAnnotation('update', step_num=number):
        try:
          round_ = _next_round(parts, state, next(iterator), reporter)
        except Preempted:
          saver.stop(number - 1, state, place)
        state, sums = parts.programs.distill(
          state,
          parts.student.frozen,
          (parts.teacher.params, parts.teacher.frozen),
          round_.batch,
        )
      reporter.flush()  # where nothing was sampled: about the update before
      reporter.hold(number, sums, round_)
      place = iterator.get_state()
      if parts.notice.is_asked() and number < config.num_steps:
        saver.stop(number, state, place)
      if number == numbers[-1]:
        saver.save_now(number, state, place, _MOST_SECONDS_AT_END)
      elif saver.is_due(number):
        saver.save(number, state, place)
  return state


# Attempts to save go on for so long where there is nothing else to do, and
# where the machine is about to be taken away.
_MOST_SECONDS_AT_END, _MOST_SECONDS_OF_NOTICE = 3600.0, 10.0


class _Saver:
  """Checkpoints of stage 2, with what the host knows of them."""

  def __init__(self, parts, counters, checkpointer, reporter, start):
    """`start`: updates that are saved already."""
    self._parts, self._counters = parts, counters
    self._checkpointer, self._reporter = checkpointer, reporter
    self._saved, self._began = start, time.monotonic()

  def is_due(self, number: int) -> bool:
    every = self._parts.config.checkpoint.every_steps
    return number % every == 0 or self._checkpointer.is_due_again()

  def save(self, number: int, state: TrainState, place: dict) -> None:
    """`place` is the iterator's."""
    position = self._position(place)
    self._checkpointer.save(number, state, position)
    self._reporter.start_clock()

  def save_now(self, number, state, place, most_seconds: float) -> None:
    """Waits until it is on disk."""
    self._checkpointer.save_now(
      number, state, self._position(place), most_seconds=most_seconds
    )

  def stop(self, number, state, place) -> NoReturn:
    """Raises Preempted once update `number` is saved."""
    if number > self._saved:
      self.save_now(number, state, place, _MOST_SECONDS_OF_NOTICE)
    raise Preempted(f'step {number} is saved')

  def _position(self, place):
    self._reporter.flush()
    method, now = self._parts.config.method, time.monotonic()
    seconds = self._counters.seconds
    seconds[method] = seconds.get(method, 0.0) + now - self._began
    self._began = now
    return {'data': place} | dataclasses.asdict(self._counters)


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
    questions, rollout, parts.maker, parts.rules, parts.mesh, parts.grader
  )
