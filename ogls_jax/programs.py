"""The jitted steps and the round that a config asks for."""

import dataclasses
from collections.abc import Callable

from ml_collections import config_dict

from ogls_jax import build, rounds, step


@dataclasses.dataclass(frozen=True)
class Programs:
  """As from `step.make_distill_step` and `step.make_rollout_step`.

  Attributes:
    distill: an update.
    rollout: samples for training.
    evaluate: samples for evaluation.
  """

  distill: Callable
  rollout: Callable
  evaluate: Callable


def make_programs(
  config: config_dict.ConfigDict,
  student: build.Model,
  teacher: build.Model,
  *,
  group_size: int,
  objective: step.Objective,
  eos_ids: tuple[int, ...],
) -> Programs:
  """The steps of training `student`.

  Args:
    config: the run's.
    student: its params are trained.
    teacher: of the kind `base`.
    group_size: rollouts of a question.
    objective: as from `build.objective`.
    eos_ids: tokens that end a rollout.
  """
  c = config
  return Programs(
    distill=step.make_distill_step(
      student.graphdef,
      teacher.graphdef,
      build.make_optimizer(c),
      build.make_schedule(c),
      objective=objective,
      teacher_kind=c.teacher,
      ema_decay=c.ema_decay,
      num_microbatches=c.optimizer.num_microbatches,
    ),
    rollout=step.make_rollout_step(
      student.graphdef,
      group_size=group_size,
      temperature=c.rollouts.temperature,
      top_k=c.rollouts.top_k,
      top_p=c.rollouts.top_p,
      min_p=c.rollouts.min_p,
      max_tokens=c.rollouts.max_tokens,
      eos_ids=eos_ids,
    ),
    evaluate=step.make_rollout_step(
      student.graphdef,
      group_size=c.eval.samples,
      temperature=c.eval.temperature,
      max_tokens=c.eval.max_tokens or c.rollouts.max_tokens,
      eos_ids=eos_ids,
    ),
  )


def round_rules(
  config: config_dict.ConfigDict, group_size: int, objective: step.Objective
) -> rounds.RoundRules:
  """What a round needs to know of the config."""
  return rounds.RoundRules(
    method=config.method,
    group_size=group_size,
    is_distilled=objective.is_distilled,
    response_tokens=config.distill.response_tokens,
    tail_tokens=config.tail.tokens if config.tail.weight else 0,
    bucket_tokens=config.prompt.bucket_tokens,
    answer_as_solution=config.hints.answer_as_solution,
    hints=build.hint_rules(config),
  )
