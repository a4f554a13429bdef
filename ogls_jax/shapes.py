"""What training works with, as shapes and shardings alone: no weights, no data.

Each function returns what its namesake in training does, with
`jax.ShapeDtypeStruct`s where there are arrays. Sizes are the largest that a
config allows.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import config_dict

from ogls_jax import build, hints, runs
from ogls_jax.batches import Hints, LossBatch, PromptBatch, TrainState
from ogls_jax.errors import UserError
from ogls_jax.mesh import ROW_AXES, shardings_of
from ogls_jax.models.known_sizes import known_settings
from ogls_jax.models.settings import DecoderSettings
from ogls_jax.numerics import round_up
from ogls_jax.step import Objective


def placed(tree, shardings):
  """`tree` with these shardings; they may be a tree of its upper levels."""

  def of_part(sharding, part):
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      part,
    )

  return jax.tree.map(of_part, shardings, tree)


def bytes_per_device(tree) -> int:
  """Of placed shapes, on the device that has most; other leaves are free."""
  return sum(
    leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
    for leaf in jax.tree.leaves(tree)
    if isinstance(leaf, jax.ShapeDtypeStruct)
  )


def decoder_settings(config: config_dict.ConfigDict) -> DecoderSettings:
  """Sizes of the model, without its weights where they are known."""
  known = known_settings(config.model.path)
  if known is not None:
    return known
  num_ids = 0
  if not config.model.path:
    num_ids = build.load_tokenizer_of(config).vocab_size
  return build.decoder_settings(config, num_ids)


def _of_decoder(make):
  # The key is made inside: no machine has this mesh's devices to make it on.
  return nnx.eval_shape(lambda: make(jax.random.key(0)))


def base_model(
  config: config_dict.ConfigDict, settings: DecoderSettings, mesh: Mesh
) -> build.Model:
  """The starting model, quantized if the config says so."""
  make = build.decoder_maker(
    config, settings, mesh, lora_rank=0, is_quantized=True
  )
  graphdef, params = nnx.split(_of_decoder(make), nnx.Param)
  params = placed(params, shardings_of(params, mesh))
  return build.Model(graphdef, params, nnx.State({}))


def student_model(
  config: config_dict.ConfigDict,
  settings: DecoderSettings,
  base: build.Model,
  mesh: Mesh,
) -> build.Model:
  """The model that is trained; adapters share the arrays of `base`."""
  if not config.lora.rank:
    return base
  make = build.decoder_maker(
    config, settings, mesh, lora_rank=config.lora.rank, is_quantized=True
  )
  abstract = _of_decoder(make)
  graphdef, adapters, _ = nnx.split(abstract, nnx.LoRAParam, ...)
  adapters = placed(adapters, shardings_of(adapters, mesh))
  return build.Model(graphdef, adapters, base.params)


def load_kd_teacher(
  config: config_dict.ConfigDict, settings: DecoderSettings, mesh: Mesh
) -> build.Model:
  """The model that teaches by `method='kd'`; a run need not be finished.

  Args:
    config: the student's.
    settings: of the student.
    mesh: where both are.

  Raises:
    UserError: its sizes cannot be known, or do not go with the student's.
  """
  theirs, flag = runs.kd_teacher_config(config)
  try:
    their_settings = decoder_settings(theirs)
  except UserError as error:
    raise UserError(f'{flag}: its sizes are not known: {error}') from error
  runs.check_teacher_rows(
    their_settings.vocab_size, settings.vocab_size, flag=flag
  )
  base = base_model(theirs, their_settings, mesh)
  if config.kd.teacher_path:
    return base
  return student_model(theirs, their_settings, base, mesh)


def init_state(
  config: config_dict.ConfigDict, params: nnx.State, mesh: Mesh
) -> TrainState:
  """Step 0 of training `params`."""
  opt_state = jax.eval_shape(build.make_optimizer(config).init, params)
  rest = {
    'step': jax.ShapeDtypeStruct((), jnp.int32),
    'key': jax.eval_shape(jax.random.key, 0),
  }
  return TrainState(
    **placed(rest, shardings_of(rest, mesh)),
    params=params,
    opt_state=placed(opt_state, shardings_of(opt_state, mesh)),
    ema_params=params if config.teacher == 'ema' else None,
  )


def _rows(mesh: Mesh):
  sharding = NamedSharding(mesh, PartitionSpec(ROW_AXES))

  def row_array(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  return row_array


def prompt_batch(
  config: config_dict.ConfigDict, mesh: Mesh, num_prompts: int
) -> PromptBatch:
  """The longest prompts."""
  array = _rows(mesh)
  width = round_up(config.prompt.max_tokens, config.prompt.bucket_tokens)
  return PromptBatch(
    tokens_BP=array(jnp.int32, num_prompts, width),
    length_B=array(jnp.int32, num_prompts),
    uid_B=array(jnp.uint32, num_prompts),
  )


def loss_batch(
  config: config_dict.ConfigDict,
  objective: Objective,
  mesh: Mesh,
  *,
  group_size: int,
) -> LossBatch:
  """All rollouts with loss, all hints, each as long as it may be.

  A teacher's context is a hint of hints.max_tokens in a prompt of
  prompt.max_tokens, and a bucket for what the teacher's template adds.
  """
  array, bucket = _rows(mesh), config.prompt.bucket_tokens
  num_prompts = config.rollouts.batch_questions
  num_rows = num_prompts * group_size
  width = config.rollouts.max_tokens
  # A tail is at the end of a rollout.
  if objective.is_distilled and not config.tail.weight:
    width = min(width, config.distill.response_tokens)
  width = min(round_up(width, bucket), config.rollouts.max_tokens)
  pools = None
  if objective.is_distilled:
    num_contexts = hints.num_contexts(config.method, group_size)
    context = round_up(
      config.prompt.max_tokens + config.hints.max_tokens, bucket
    )
    weight = array(jnp.float32, num_prompts, group_size, num_contexts)
    pools = Hints(
      context_BMC=array(jnp.int32, num_prompts, num_contexts, context + bucket),
      length_BM=array(jnp.int32, num_prompts, num_contexts),
      anchor_BGM=weight,
      positive_BGM=weight,
      negative_BGM=weight,
    )
  mask = array(jnp.bool_, num_rows, width)
  return LossBatch(
    prompts=prompt_batch(config, mesh, num_prompts),
    response_RT=array(jnp.int32, num_rows, width),
    token_mask_RT=mask,
    tail_mask_RT=mask,
    log_prob_RT=array(jnp.float32, num_rows, width),
    advantage_R=array(jnp.float32, num_rows),
    hints=pools,
  )


def outputs(compiled: jax.stages.Compiled, lowered: jax.stages.Lowered):
  """What a compiled program returns, placed as it places it."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    lowered.out_info,
    compiled.output_shardings,
  )
