"""From a config to the things a command works with."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import config_dict

from ogls_jax import optimizer
from ogls_jax.batches import TrainState
from ogls_jax.checkpoint import Checkpointer
from ogls_jax.errors import UserError
from ogls_jax.hints import HintRules
from ogls_jax.mesh import shardings_of
from ogls_jax.models import weights
from ogls_jax.models.locate import resolve_model_path
from ogls_jax.models.settings import DecoderSettings
from ogls_jax.models.transformer import LORA_TARGETS, Decoder
from ogls_jax.prompts import PromptMaker, load_template
from ogls_jax.step import Objective
from ogls_jax.tasks.grading import Grader
from ogls_jax.tasks.question import Question
from ogls_jax.tokenizer import Tokenizer, load_tokenizer
from ogls_jax.validate import get, lora_targets


@dataclasses.dataclass(frozen=True)
class Model:
  """A decoder taken apart: nnx.merge(graphdef, params, frozen) is the module.

  `params` are the trained arrays, `frozen` the rest (empty unless LoRA).
  """

  graphdef: nnx.GraphDef
  params: nnx.State
  frozen: nnx.State


def load_maker(config: config_dict.ConfigDict) -> PromptMaker:
  """The tokenizer and the prompt templates.

  Raises:
    UserError: one of them cannot be read, or thinking is turned off and the
      chat template cannot do that.
  """
  tokenizer = load_tokenizer_of(config)
  for key in ('prompt.student_thinking', 'prompt.teacher_thinking'):
    if not get(config, key) and not tokenizer.has_thinking_switch:
      raise UserError(
        f'{key} = False, but the chat template of'
        f' {config.model.tokenizer_path or config.model.path} has no'
        f' enable_thinking to turn off, or there is none; set {key}=True'
      )
  return PromptMaker(
    tokenizer=tokenizer,
    student=load_template(
      'prompt.student_template', config.prompt.student_template
    ),
    teacher=load_template(
      'prompt.teacher_template',
      config.prompt.teacher_template,
      ('question', 'hint'),
    ),
    is_student_thinking=config.prompt.student_thinking,
    is_teacher_thinking=config.prompt.teacher_thinking,
  )


def load_tokenizer_of(config: config_dict.ConfigDict) -> Tokenizer:
  """The tokenizer of model.tokenizer_path, or else of model.path."""
  key = 'model.tokenizer_path' if config.model.tokenizer_path else 'model.path'
  if key == 'model.path':
    weights.read_settings(config.model.path)  # is it a model at all?
  return load_tokenizer(resolve_model_path(get(config, key), key=key))


def decoder_settings(
  config: config_dict.ConfigDict, vocab_size: int
) -> DecoderSettings:
  """Sizes from the checkpoint, or from the config for random weights."""
  m = config.model
  if m.path:
    return weights.read_settings(m.path)
  return DecoderSettings(
    vocab_size=vocab_size,
    width=m.width,
    num_layers=m.num_layers,
    num_heads=m.num_heads,
    num_kv_heads=m.num_kv_heads,
    head_size=m.width // m.num_heads,
    mlp_size=m.mlp_size,
  )


def _kernel_obstacle(settings, mesh) -> str:
  """Why the splash attention kernel cannot be had; '' if it can."""
  # By the mesh: `preflight` compiles for TPUs where there are none.
  if mesh.devices.flat[0].platform != 'tpu':
    return 'there is no TPU'
  if any(settings.windows):
    return 'its layers have windows'
  if settings.num_kv_heads % mesh.shape['model']:
    # shard_map wants whole heads on each device; the plain path does not.
    return (
      f'mesh.model = {mesh.shape["model"]} does not divide'
      f' {settings.num_kv_heads} key-value heads'
    )
  return ''


def _options(config, settings, mesh) -> dict:
  """What `Decoder` needs besides sizes and weights.

  Raises:
    UserError: the kernel was asked for and cannot be had.
  """
  m, attention = config.model, config.model.attention
  obstacle = _kernel_obstacle(settings, mesh)
  if attention == 'splash' and obstacle:
    raise UserError(
      f"model.attention = 'splash', but {obstacle}; set model.attention=auto"
    )
  if attention == 'auto':
    attention = 'plain' if obstacle else 'splash'
  return dict(
    dtype=jnp.dtype(m.dtype),
    param_dtype=jnp.dtype(m.param_dtype),
    remat=m.remat,
    is_scanned=m.is_scanned,
    attention=attention,
  )


def decoder_maker(
  config: config_dict.ConfigDict,
  settings: DecoderSettings,
  mesh: Mesh,
  *,
  lora_rank: int,
  is_quantized: bool = False,
) -> Callable[[jax.Array], Decoder]:
  """key -> a decoder with random weights, for `jit` or `nnx.eval_shape`.

  With `is_quantized` its linear layers are as model.quantize says.
  """
  options = _options(config, settings, mesh)

  def make(key):
    decoder = Decoder(
      settings,
      lora_rank=lora_rank,
      lora_alpha=config.lora.alpha,
      lora_init_variance=config.lora.init_variance,
      lora_targets=lora_targets(config),
      **options,
      rngs=nnx.Rngs(key),
    )
    if is_quantized and config.model.quantize:
      for linear in _linears(decoder):
        linear.quantize(config.model.quantize, mesh)
    return decoder

  return make


def make_key(mesh: Mesh, seed: int, *folds: int) -> jax.Array:
  """The key of `seed` with `folds` folded in, on all devices of all hosts."""

  def make():
    key = jax.random.key(seed)
    for fold in folds:
      key = jax.random.fold_in(key, fold)
    return key

  return jax.jit(make, out_shardings=NamedSharding(mesh, PartitionSpec()))()


def _init(make, filters, mesh, key):
  """Random values of the variables in `filters`, made where they will live."""

  def state_of(key):
    return nnx.state(make(key), filters)

  shardings = shardings_of(jax.eval_shape(state_of, key), mesh)
  return jax.jit(state_of, out_shardings=shardings)(key)


def base_model(
  config: config_dict.ConfigDict, settings: DecoderSettings, mesh
) -> Model:
  """The starting model without adapters, all of it in `params`."""
  if config.model.path:
    decoder = weights.load_decoder(
      config.model.path,
      mesh=mesh,
      **_options(config, settings, mesh),
    )
    return Model(*nnx.split(decoder, nnx.Param), nnx.State({}))
  make = decoder_maker(config, settings, mesh, lora_rank=0)
  abstract = nnx.eval_shape(make, jax.random.key(0))
  graphdef, _ = nnx.split(abstract, nnx.Param)
  params = _init(make, nnx.Param, mesh, make_key(mesh, config.seed))
  return Model(graphdef, params, nnx.State({}))


def quantized(config: config_dict.ConfigDict, base: Model, mesh) -> Model:
  """`base` with its linear layers quantized, if model.quantize says so.

  Each kernel is deleted once its codes are there, so that both never fill the
  memory: `base` itself is of no use afterwards.
  """
  qtype = config.model.quantize
  if not qtype:
    return base
  decoder = nnx.merge(base.graphdef, base.params)
  for linear in _linears(decoder):
    kernel = linear.kernel.get_value()
    linear.quantize(qtype, mesh)
    kernel.delete()
  return Model(*nnx.split(decoder, nnx.Param), base.frozen)


def _linears(decoder):
  return [getattr(decoder.layers, name) for name in LORA_TARGETS]


def student_model(config: config_dict.ConfigDict, base: Model, mesh) -> Model:
  """The model that is trained: adapters over `base`, or a copy of it.

  A copy, because the train state is donated and the base still teaches.
  """
  rank = config.lora.rank
  if not rank:
    return Model(
      base.graphdef, jax.tree.map(jnp.copy, base.params), base.frozen
    )
  settings = nnx.merge(base.graphdef, base.params).settings
  make = decoder_maker(config, settings, mesh, lora_rank=rank)
  make_like_base = decoder_maker(
    config, settings, mesh, lora_rank=rank, is_quantized=True
  )
  abstract = nnx.eval_shape(make_like_base, jax.random.key(0))
  graphdef, _, _ = nnx.split(abstract, nnx.LoRAParam, ...)
  # 1: the base's weights came from the seed itself.
  key = make_key(mesh, config.seed, 1)
  adapters = _init(make, nnx.LoRAParam, mesh, key)
  return Model(graphdef, adapters, base.params)


def first_step(mesh: Mesh) -> jax.Array:
  """0, on all devices of all hosts."""
  sharding = NamedSharding(mesh, PartitionSpec())
  return jax.jit(lambda: jnp.int32(0), out_shardings=sharding)()


def init_state(
  config: config_dict.ConfigDict,
  params: nnx.State,
  transformation: optax.GradientTransformation,
  mesh,
  *,
  has_ema: bool,
) -> TrainState:
  """Step 0, with optimizer state placed like the params it belongs to."""
  shapes = jax.eval_shape(transformation.init, params)
  init = jax.jit(transformation.init, out_shardings=shardings_of(shapes, mesh))
  return TrainState(
    step=first_step(mesh),
    # 2: apart from the keys that made the weights.
    key=make_key(mesh, config.seed, 2),
    params=params,
    opt_state=init(params),
    ema_params=jax.tree.map(jnp.copy, params) if has_ema else None,
  )


def make_schedule(config: config_dict.ConfigDict) -> optax.Schedule:
  """Stage 2's learning rate by update."""
  o = config.optimizer
  return optimizer.make_schedule(
    learning_rate=o.learning_rate,
    warmup_steps=o.warmup_steps,
    num_steps=config.num_steps,
    schedule=o.schedule,
  )


def make_optimizer(
  config: config_dict.ConfigDict,
) -> optax.GradientTransformation:
  """AdamW with this config's constants."""
  o = config.optimizer
  return optimizer.make_optimizer(
    b1=o.b1,
    b2=o.b2,
    weight_decay=o.weight_decay,
    max_grad_norm=o.max_grad_norm,
  )


def make_grader(config: config_dict.ConfigDict) -> Grader:
  """Of the config's task; it starts with the first answers. Close it."""
  g = config.grading
  return Grader(
    config.data.task,
    seconds=g.seconds,
    symbolic_seconds=g.symbolic_seconds,
    symbolic_mib=g.symbolic_mib,
  )


def check_task(config: config_dict.ConfigDict, question: Question) -> None:
  """Tries a task of the user's own before anything compiles.

  Raises:
    UserError: as `Grader.check`.
  """
  with contextlib.closing(make_grader(config)) as grader:
    grader.check(question)


def checkpointer(
  config: config_dict.ConfigDict,
  folder: pathlib.Path,
  *,
  is_read_only: bool = False,
) -> Checkpointer:
  """Of stage 2, in `folder`."""
  c = config.checkpoint
  return Checkpointer(
    folder, keep=c.keep, verify=c.verify, is_read_only=is_read_only
  )


def objective(
  config: config_dict.ConfigDict, *, eos_ids: tuple[int, ...]
) -> Objective:
  """Stage 2's loss. `eos_ids`: all of the tokenizer's."""
  return Objective(
    method=config.method,
    temperature=config.loss.temperature,
    block_tokens=config.loss.block_tokens,
    kl=config.loss.kl,
    jsd_beta=config.loss.jsd_beta,
    clip_mode=config.loss.clip_mode,
    pointwise_clip=config.loss.pointwise_clip,
    max_strength=config.steering.max_strength,
    ramp_steps=config.steering.ramp_steps,
    tail_weight=config.tail.weight,
    clip_low=config.grpo.clip_low,
    clip_high=config.grpo.clip_high,
    kl_weight=config.grpo.kl_weight,
    rollout_temperature=config.rollouts.temperature,
    eos_ids=eos_ids if config.loss.merge_eos else (),
  )


def hint_rules(config: config_dict.ConfigDict) -> HintRules:
  """How hint pools are filled."""
  h = config.hints
  return HintRules(
    exclude_self=h.exclude_self,
    max_per_pool=h.max_per_pool,
    max_tokens=h.max_tokens,
    strip_thinking=h.strip_thinking,
  )
