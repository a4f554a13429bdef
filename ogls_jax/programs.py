"""The jitted steps and the round that a config asks for."""

import dataclasses
from collections.abc import Callable

from ml_collections import config_dict

from ogls_jax import build, inspect_step, rounds, step


@dataclasses.dataclass(frozen=True)
class Programs:
  """As from `step.make_distill_step` and `step.make_rollout_step`.

  Attributes:
    distill: an update.
    rollout: samples for training.
    evaluate: samples for evaluation.
    inspect: as from `inspect_step.make_inspect_step`; None where the config
      asks for none or the method has no steered teacher.
  """

  distill: Callable
  rollout: Callable
  evaluate: Callable
  inspect: Callable | None


def rollout_options(config: config_dict.ConfigDict) -> dict:
  """Of `make_sampler`, in training."""
  r = config.rollouts
  return dict(
    group_size=r.group_size,
    max_tokens=r.max_tokens,
    temperature=r.temperature,
    top_k=r.top_k,
    top_p=r.top_p,
    min_p=r.min_p,
  )


def evaluation_options(config: config_dict.ConfigDict) -> dict:
  """The same, in evaluation."""
  return dict(
    group_size=config.eval.samples,
    max_tokens=config.eval.max_tokens or config.rollouts.max_tokens,
    temperature=config.eval.temperature,
  )


def make_programs(
  config: config_dict.ConfigDict,
  student: build.Model,
  teacher: build.Model,
  *,
  objective: step.Objective,
  eos_ids: tuple[int, ...],
) -> Programs:
  """The steps of training `student`.

  Args:
    config: the run's.
    student: its params are trained.
    teacher: of the kind `base`.
    objective: as from `build.objective`.
    eos_ids: tokens that end a rollout.
  """
  c, inspect = config, None
  if c.log.inspect_every_steps and objective.is_distilled:
    inspect = inspect_step.make_inspect_step(
      student.graphdef,
      teacher.graphdef,
      objective=objective,
      teacher_kind=c.teacher,
      num_candidates=c.log.inspect_candidates,
    )
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
      eos_ids=eos_ids,
      **rollout_options(c),
    ),
    evaluate=step.make_rollout_step(
      student.graphdef,
      eos_ids=eos_ids,
      **evaluation_options(c),
    ),
    inspect=inspect,
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
    min_reward=config.hints.min_reward,
    hints=build.hint_rules(config),
  )
