"""The only place that rejects a config, before anything compiles."""

import dataclasses
import importlib.util
import math
import os

from ml_collections import config_dict

from ogls_jax import loss, mesh, optimizer, step
from ogls_jax.errors import UserError
from ogls_jax.models import quantize
from ogls_jax.models.transformer import ATTENTIONS, LORA_TARGETS, REMATS
from ogls_jax.tasks import symbolic
from ogls_jax.tasks.grading import OWN_TASK_SUFFIX, TASKS

_CHOICES = {
  'method': step.METHODS,
  'teacher': step.TEACHERS,
  'data.on_bad_row': ('error', 'skip'),
  'loss.kl': loss.KLS,
  'loss.clip_mode': loss.CLIP_MODES,
  'kd.source': ('rollouts', 'solutions'),
  'optimizer.schedule': optimizer.SCHEDULES,
  'model.dtype': ('float32', 'bfloat16'),
  'model.param_dtype': ('float32', 'bfloat16'),
  'model.remat': tuple(REMATS),
  'model.attention': ('auto', *ATTENTIONS),
  'model.quantize': ('', *quantize.QTYPES),
}
# (key, lowest, highest); both ends are allowed.
_RANGES = [
  ('num_steps', 1, math.inf),
  ('seed', 0, 2**31 - 1),
  ('ema_decay', 0, 1),
  ('data.eval_fraction', 0, 0.9),
  ('data.seed', 0, 2**31 - 1),
  ('data.num_questions', 1, math.inf),
  ('prompt.max_tokens', 1, math.inf),
  ('prompt.bucket_tokens', 1, math.inf),
  ('model.width', 1, math.inf),
  ('model.num_layers', 1, math.inf),
  ('model.num_heads', 1, math.inf),
  ('model.num_kv_heads', 1, math.inf),
  ('model.mlp_size', 1, math.inf),
  ('lora.rank', 0, math.inf),
  ('lora.alpha', 1e-9, math.inf),
  ('lora.init_variance', 1e-9, math.inf),
  ('rollouts.batch_questions', 1, math.inf),
  ('rollouts.group_size', 1, math.inf),
  ('rollouts.max_tokens', 1, math.inf),
  ('rollouts.temperature', 1e-3, math.inf),
  ('rollouts.top_k', 0, math.inf),
  ('rollouts.top_p', 1e-6, 1),
  ('rollouts.min_p', 0, 1),
  ('hints.min_reward', 1e-6, 1),
  ('hints.max_per_pool', 0, math.inf),
  ('hints.max_tokens', 1, math.inf),
  ('steering.max_strength', 0, math.inf),
  ('steering.ramp_steps', 0, math.inf),
  ('distill.response_tokens', 1, math.inf),
  ('loss.jsd_beta', 1e-6, 1 - 1e-6),
  ('loss.pointwise_clip', 1e-12, math.inf),
  ('loss.temperature', 1e-3, math.inf),
  ('loss.block_tokens', 1, math.inf),
  ('tail.weight', 0, math.inf),
  ('tail.tokens', 1, math.inf),
  ('grpo.clip_low', 0, 1),
  ('grpo.clip_high', 0, math.inf),
  ('grpo.kl_weight', 0, math.inf),
  ('optimizer.learning_rate', 0, math.inf),
  ('optimizer.warmup_steps', 0, math.inf),
  ('optimizer.b1', 0, 1 - 1e-9),
  ('optimizer.b2', 0, 1 - 1e-9),
  ('optimizer.weight_decay', 0, math.inf),
  ('optimizer.max_grad_norm', 0, math.inf),
  ('optimizer.max_skipped_steps', 0, math.inf),
  ('optimizer.num_microbatches', 1, math.inf),
  ('warmup.num_steps', 0, math.inf),
  ('warmup.batch_questions', 1, math.inf),
  ('warmup.hint_fraction', 0, 1),
  ('warmup.wrong_hint_fraction', 0, 1),
  ('warmup.slip_rate', 0, 1),
  ('warmup.hinted_slip_rate', 0, 1),
  ('grading.seconds', 0.1, 3600),
  ('grading.symbolic_seconds', 0, 600),
  ('grading.symbolic_mib', 512, 2**20),
  ('eval.num_questions', 0, math.inf),
  ('eval.every_steps', 0, math.inf),
  ('eval.samples', 0, math.inf),
  ('eval.batch_questions', 1, math.inf),
  ('eval.temperature', 0, math.inf),
  ('eval.max_tokens', 0, math.inf),
  ('checkpoint.every_steps', 1, math.inf),
  ('checkpoint.keep', 1, math.inf),
  ('stop.patience_steps', 1, math.inf),
  ('log.samples_every_steps', 0, math.inf),
  ('log.samples_rollouts', 0, math.inf),
  ('log.inspect_every_steps', 0, math.inf),
  ('log.inspect_rollouts', 1, math.inf),
  ('log.inspect_candidates', 1, math.inf),
]


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What follows from a valid config.

  Attributes:
    group_size: rollouts per question in a loss batch; 1 for given solutions.
    is_sampled: False where the loss is on the dataset's solutions.
  """

  group_size: int
  is_sampled: bool


def get(config: config_dict.ConfigDict, key: str):
  """The value of a dotted key."""
  for name in key.split('.'):
    config = config[name]
  return config


def validate(config: config_dict.ConfigDict, num_devices: int) -> Sizes:
  """Checks every key and returns derived sizes.

  Raises:
    UserError: names the key, its value and the way out.
  """
  _check_values(config)
  _check_method(config)
  c = config
  if c.eval.num_questions and not c.eval.samples:
    raise UserError(
      f'eval.samples = 0 must be at least 1 for eval.num_questions ='
      f' {c.eval.num_questions}'
    )
  rows = _num_row_shards(config, num_devices)
  _check_divides(
    config, 'rollouts.batch_questions', rows, c.optimizer.num_microbatches
  )
  if c.warmup.num_steps:
    _check_divides(config, 'warmup.batch_questions', rows)
  if c.eval.num_questions:
    _check_divides(config, 'eval.batch_questions', rows)
  return Sizes(
    group_size=config.rollouts.group_size if is_sampled(config) else 1,
    is_sampled=is_sampled(config),
  )


def validate_evaluation(
  config: config_dict.ConfigDict, num_devices: int
) -> None:
  """Checks what `python -m ogls_jax.evaluate` uses; the same errors."""
  _check_values(config)
  e = config.eval
  if not (e.samples or e.has_greedy or e.has_likelihood):
    raise UserError(
      'eval.samples = 0: nothing to do; ask for some, for eval.has_greedy or'
      ' for eval.has_likelihood'
    )
  rows = _num_row_shards(config, num_devices)
  _check_divides(config, 'eval.batch_questions', rows)


def _num_row_shards(config, num_devices):
  shape = mesh.mesh_shape(num_devices, dict(config.mesh))
  return shape['data'] * shape['fsdp']


def check_keys(config: config_dict.ConfigDict, *, flag: str) -> None:
  """Rejects a config that an older version wrote; `flag` led to it."""
  for key in (*_CHOICES, *(row[0] for row in _RANGES)):
    try:
      get(config, key)
    except (AttributeError, KeyError) as error:
      raise UserError(
        f'{flag}: its config.json has no {key}; it is no run, or one of another'
        ' version of ogls_jax'
      ) from error


def is_sampled(config: config_dict.ConfigDict) -> bool:
  """False where the loss is on the dataset's solutions."""
  return config.method != 'sft' and not (
    config.method == 'kd' and config.kd.source == 'solutions'
  )


def lora_targets(config: config_dict.ConfigDict) -> tuple[str, ...]:
  """The layers that carry adapters."""
  return tuple(name.strip() for name in config.lora.targets.split(','))


def _check_values(config):
  """Of single keys, and of the model."""
  for key, choices in _CHOICES.items():
    if get(config, key) not in choices:
      raise UserError(
        f'{key} = {get(config, key)!r} is none of:'
        f' {", ".join(choice or repr(choice) for choice in choices)}'
      )
  for key, low, high in _RANGES:
    value = get(config, key)
    if not low <= value <= high or not math.isfinite(value):
      bound = f'in [{low}, {high}]'
      if high == math.inf:
        bound = f'at least {low}, and finite'
      raise UserError(f'{key} = {value} must be {bound}')
  if 0 < config.eval.temperature < 1e-3:
    raise UserError(
      f'eval.temperature = {config.eval.temperature} must be 0 (greedy) or at'
      ' least 0.001'
    )
  if config.grading.symbolic_seconds:
    seconds = config.grading.symbolic_seconds
    symbolic.check_installed(f'grading.symbolic_seconds = {seconds}')
  found = importlib.util.find_spec('wandb')
  # A folder `wandb` of runs, which W&B makes, has a spec without an origin.
  if config.log.wandb_project and (found is None or found.origin is None):
    raise UserError(
      f'log.wandb_project = {config.log.wandb_project!r} needs W&B: pip install'
      " wandb, or set it to ''"
    )
  _check_task(config.data.task)
  _check_model(config)


def _check_task(task):
  if task.endswith(OWN_TASK_SUFFIX):
    if not os.path.isfile(task):
      raise UserError(f'data.task = {task!r} is no file; give the path of one')
  elif task not in TASKS:
    raise UserError(
      f'data.task = {task!r} is none of: {", ".join(TASKS)}; nor does it end in'
      f' {OWN_TASK_SUFFIX}, as a task of your own'
    )


def _check_model(config):
  unknown = [name for name in lora_targets(config) if name not in LORA_TARGETS]
  if config.lora.rank and unknown:
    raise UserError(
      f'lora.targets = {config.lora.targets!r} has {unknown[0]!r}, which is'
      f' none of: {", ".join(LORA_TARGETS)}'
    )
  model = config.model
  if not config.lora.rank and model.param_dtype != 'float32':
    raise UserError(
      f'model.param_dtype = {model.param_dtype!r} must be float32 for lora.rank'
      ' = 0: most updates of a bfloat16 weight round to nothing'
    )
  if model.quantize:
    _check_quantize(config)
  if model.path:
    return
  if model.width % model.num_heads or (model.width // model.num_heads) % 2:
    raise UserError(
      f'model.width = {model.width} must be an even multiple of'
      f' model.num_heads = {model.num_heads}'
    )
  if model.num_heads % model.num_kv_heads:
    raise UserError(
      f'model.num_heads = {model.num_heads} must be a multiple of'
      f' model.num_kv_heads = {model.num_kv_heads}'
    )
  if not model.tokenizer_path:
    raise UserError(
      "model.tokenizer_path = '' needs a value where model.path is empty"
    )


def _check_quantize(config):
  text = f'model.quantize = {config.model.quantize!r}'
  if not config.lora.rank:
    raise UserError(
      f"{text} must be '' for lora.rank = 0, which trains the weights that it"
      ' would freeze; set lora.rank'
    )
  if config.model.remat == 'none':
    raise UserError(
      f"{text} with model.remat = 'none' would keep the dense kernels of all"
      ' layers for the backward pass; set model.remat=full'
    )
  quantize.import_qwix(config.model.quantize)


def _check_method(config):
  if config.method == 'kd':
    if bool(config.kd.teacher_workdir) == bool(config.kd.teacher_path):
      raise UserError(
        f'kd.teacher_workdir = {config.kd.teacher_workdir!r}, kd.teacher_path ='
        f" {config.kd.teacher_path!r}: method = 'kd' needs one of the two, a"
        ' finished run or a model'
      )
    if config.teacher != 'base':
      raise UserError(
        f"teacher = {config.teacher!r} must be 'base' for method = 'kd', whose"
        ' teacher is the model of kd.teacher_workdir or kd.teacher_path'
      )
  if config.tail.weight and (not is_sampled(config) or config.method == 'grpo'):
    raise UserError(
      f'tail.weight = {config.tail.weight} must be 0 for method ='
      f' {config.method!r}: the tail is of rollouts that a teacher scores'
    )
  if config.warmup.num_steps and config.data.task != 'arithmetic':
    raise UserError(
      f'warmup.num_steps = {config.warmup.num_steps} must be 0 for data.task ='
      f' {config.data.task!r}; only arithmetic can write wrong hints'
    )
  for key in ('data.path', 'data.tfds_name'):
    if config.warmup.num_steps and get(config, key):
      raise UserError(
        f'{key} = {get(config, key)!r} must be empty for warmup.num_steps ='
        f' {config.warmup.num_steps}: stage 1 is on generated questions; set'
        ' warmup.num_steps=0'
      )


def _check_divides(config, key, rows, parts=1):
  value, unit = get(config, key), rows * parts
  if value % unit:
    text = f'mesh.data * mesh.fsdp = {rows}'
    if parts > 1:
      text += f' times optimizer.num_microbatches = {parts}'
    raise UserError(
      f'{key} = {value} must be a multiple of {text}; try'
      f' {key}={-(-value // unit) * unit}'
    )
