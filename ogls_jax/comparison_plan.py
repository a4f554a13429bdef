"""What a comparison is of, checked before anything is trained."""

import dataclasses
import importlib.util
import pathlib

import jax
from ml_collections import config_dict

from ogls_jax import build, evaluate, inputs, runs, spending, variants, warmup
from ogls_jax.errors import UserError
from ogls_jax.json_file import flat, read_json
from ogls_jax.questions import load_questions
from ogls_jax.validate import is_sampled, validate, validate_evaluation
from ogls_jax.validate_inputs import (
  check_choices,
  check_questions,
  check_vocabulary,
)
from ogls_jax.variants import Variant, config_of
from ogls_jax.workdir import check_same

# Of the updates of the reference: what others may need at most for its budget.
_MOST_TIMES = 1000


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is compared, and where it is kept."""

  config: config_dict.ConfigDict
  out: pathlib.Path
  variants: list[Variant]
  seeds: list[int]
  reference: Variant
  budget: str

  @property
  def flag(self) -> str:
    """Names the folder, for errors."""
    return f'--out={self.out}'

  def workdir(self, variant: Variant, seed: int) -> pathlib.Path:
    """Of a run; that of `base` holds a config alone."""
    return self.out / 'runs' / f'{variant.folder}_{seed}'

  def evaluation(self, variant: Variant, seed: int) -> pathlib.Path:
    """Of what the run has at the end."""
    return self.out / 'evaluations' / f'{variant.folder}_{seed}'

  def config_of(self, variant: Variant, seed: int) -> config_dict.ConfigDict:
    """Of a run. With a budget the others go on until it is spent."""
    config = config_of(self.config, variant, seed, self.out)
    if self.budget and variant.is_trained and variant != self.reference:
      reference = config_of(self.config, self.reference, seed, self.out)
      with config.unlocked():
        config.num_steps = reference.num_steps * _MOST_TIMES
    return config

  def rows_per_update(self, variant: Variant) -> int:
    """Responses, or solutions, of an update."""
    config = self.config_of(variant, self.seeds[0])
    group_size = config.rollouts.group_size if is_sampled(config) else 1
    return config.rollouts.batch_questions * group_size

  def in_order(self) -> list[Variant]:
    """The reference first, as a budget is its; the start once it is there."""
    others = [v for v in self.variants if v != self.reference]
    return [self.reference, *others]


def check(plan: Plan) -> dict[str, str]:
  """What all are fed (`inputs.digests`).

  Raises:
    UserError: something cannot be trained, compared or kept in the folder.
  """
  _check_config(plan)
  _check_budget(plan)
  is_there = check_same(
    plan.out / 'comparison.json', claim_of(plan), flag=plan.flag
  )
  if not is_there and (plan.out / 'config.json').exists():
    raise UserError(f'{plan.flag} holds a run; use another folder')
  first = plan.config_of(plan.reference, plan.seeds[0])
  validate(first, jax.device_count())
  validate_evaluation(first, jax.device_count())
  maker = build.load_maker(first)
  num_ids = maker.tokenizer.vocab_size
  settings = build.decoder_settings(first, num_ids)
  questions, held_out, _ = load_questions(first, maker)
  fed = inputs.digests(first, questions, held_out)
  inputs.check(plan.out, fed, flag=plan.flag)
  build.check_task(first, questions[0])
  check_choices(first, held_out)
  for seed in plan.seeds:
    for variant in plan.variants:
      run, workdir = plan.config_of(variant, seed), plan.workdir(variant, seed)
      if variant.is_trained:
        try:
          sizes = validate(run, jax.device_count())
          check_vocabulary(run, num_ids=num_ids, num_rows=settings.vocab_size)
          check_questions(run, questions, held_out, sizes)
          if run.method == 'kd':
            runs.check_kd_teacher(run, maker.tokenizer)
        except UserError as error:
          raise UserError(f'{variant.label}: {error}') from error
      path, values = workdir / 'config.json', variants.values_of(run)
      check_same(path, values, flag=str(workdir))
      inputs.check(workdir, fed, flag=str(workdir))
      _check_evaluation(plan, plan.evaluation(variant, seed), workdir)
    if run.warmup.num_steps:
      stage = warmup.folder_of(run, workdir)
      warmup.is_claimed(run, stage)
      inputs.check(stage.parent, fed, flag=str(stage))
  return fed


def _check_evaluation(plan, folder, workdir):
  """Rejects an evaluation of another training, or graded by other code."""
  kept = read_json(folder / 'evaluation.json', flag=plan.flag)
  if kept is None:
    return
  step = kept['model']['step']
  if step and not (workdir / 'metrics.jsonl').exists():
    raise UserError(
      f'{folder} is of a run that is gone; bring {workdir} back, or delete that'
      ' folder, too, to train and evaluate it again'
    )
  found = {
    'files_sha256': evaluate.files_of(plan.config),
    'model': runs.source_of(workdir, step),
  }
  old = flat(kept)
  for key, value in flat(found).items():
    if old.get(key, value) != value:  # older evaluations do not say all
      raise UserError(
        f'{folder} is of another training or file than is there now: {key} ='
        f' {old[key]!r} there, {value!r} here; delete that folder to evaluate'
        ' anew'
      )


def _check_config(plan):
  config = plan.config
  if config.warmup.workdir:
    raise UserError(
      f'warmup.workdir = {config.warmup.workdir!r} must be empty: each seed has'
      f' its own stage 1, in {plan.out}/stage1_SEED'
    )
  if not config.eval.num_questions:
    raise UserError(
      'eval.num_questions = 0 leaves nothing to compare; set it to how many'
      ' held-out questions are asked'
    )
  if importlib.util.find_spec('matplotlib') is None:
    raise UserError(
      'matplotlib is not installed; pip install -r requirements.txt'
    )


def _check_budget(plan):
  if plan.budget not in spending.BUDGETS:
    raise UserError(
      f'--budget={plan.budget} is none of: seconds, tokens; empty for the same'
      ' number of updates'
    )
  if not plan.budget:
    return
  least = spending.LEAST_UPDATES[plan.budget]
  num_steps = plan.config_of(plan.reference, 0).num_steps
  if num_steps < least:
    raise UserError(
      f'num_steps = {num_steps} of {plan.reference.label!r} is less than'
      f' {least}, the fewest updates that tell what one costs in'
      f' --budget={plan.budget}; raise it'
    )
  for variant in plan.variants:
    config = config_of(plan.config, variant, 0, plan.out)
    if variant != plan.reference and 'num_steps' in variant.changes:
      raise UserError(
        f'--budget={plan.budget} decides the updates of {variant.label!r};'
        ' leave its num_steps out'
      )
    if variant.is_trained and config.optimizer.schedule != 'constant':
      raise UserError(
        f'optimizer.schedule = {config.optimizer.schedule!r} ends with the last'
        f' update, and --budget={plan.budget} does not know that before; set it'
        " to 'constant'"
      )


def claim_of(plan: Plan) -> dict:
  """What all that is ever kept in the folder has in common."""
  claim = {
    'config': variants.values_of(plan.config),
    'budget': plan.budget,
    'budget_of': plan.reference.label if plan.budget else '',
  }
  del claim['config']['method'], claim['config']['seed']
  return claim
