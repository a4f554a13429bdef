"""The programs of `benchmarks/steering.py`, and what they are given."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import steering_reference
from configs import default
from ogls_jax import build, hints, step
from ogls_jax.batches import PromptBatch, Rollouts
from ogls_jax.hosts import put_rows
from ogls_jax.loss_masks import make_loss_batch

GROUP_SIZE, PROMPT_TOKENS = 8, 64
IS_CORRECT_R = np.arange(GROUP_SIZE) % 2 == 0
REFERENCES = [
  f'{rows}-{batching}'
  for rows in ('all', 'wrong')
  for batching in steering_reference.BATCHINGS
]


def make_config(args):
  config = default.get_config()
  config.model.dtype = config.model.param_dtype = args.dtype
  config.model.width, config.model.num_layers = 576, args.num_layers
  config.model.num_heads, config.model.num_kv_heads = 9, 3
  config.model.mlp_size = 1536
  config.lora.rank, config.lora.alpha = args.lora_rank, 2.0 * args.lora_rank
  config.loss.clip_mode = 'none'
  config.steering.ramp_steps = 0
  config.optimizer.max_grad_norm = 0.0
  if args.block_tokens:
    config.loss.block_tokens = args.block_tokens
  return config


def make_given(method: str, vocab_size: int, args):
  """A question's prompts, rollouts, hints and pools; half of it is wrong."""
  rng = np.random.default_rng(0)

  def draw(rows, length):
    return rng.integers(vocab_size, size=(rows, length), dtype=np.int32)

  prompt_1P, solution = draw(1, PROMPT_TOKENS), draw(1, args.hint_tokens)[0]
  response_RT = draw(GROUP_SIZE, max(args.hint_tokens, args.window))
  pools = hints.build_pools(
    is_correct_BG=IS_CORRECT_R[None],
    has_solution_B=np.array([True]),
    method=method,
    rules=hints.HintRules(
      exclude_self=False, max_per_pool=0, max_tokens=args.hint_tokens,
      strip_thinking=False,
    ),
  )  # fmt: skip
  texts = [[], solution, *response_RT[:, : args.hint_tokens]]
  laid_out = hints.lay_out(
    pools,
    lambda _, n: [*prompt_1P[0], *texts[n]],
    max_contexts=hints.num_contexts(method, GROUP_SIZE),
    bucket_tokens=1,
  )
  prompts = PromptBatch(
    tokens_BP=prompt_1P,
    length_B=np.array([PROMPT_TOKENS], np.int32),
    uid_B=np.zeros(1, np.uint32),
  )
  rollouts = Rollouts(
    response_RT=response_RT,
    length_R=np.full(GROUP_SIZE, response_RT.shape[1], np.int32),
    log_prob_RT=np.zeros(response_RT.shape, np.float32),
    is_truncated_R=np.ones(GROUP_SIZE, bool),
  )
  return prompts, rollouts, laid_out, pools.is_scored_R


def make_batch(method: str, vocab_size: int, args):
  """The host batch that `make_distill_step` gets."""
  prompts, rollouts, laid_out, is_scored_R = make_given(
    method, vocab_size, args
  )
  return make_loss_batch(
    prompts=prompts,
    rollouts=rollouts,
    hints=laid_out,
    is_scored_R=is_scored_R,
    is_correct_R=IS_CORRECT_R,
    advantage_R=np.zeros(GROUP_SIZE, np.float32),
    response_tokens=args.window,
    tail_tokens=0,
    bucket_tokens=1,
  )


def make_pairs(rows: str, vocab_size: int, args):
  """The host batch of a reference: `all` rollouts, or the `wrong` ones."""
  prompts, rollouts, laid_out, is_scored_R = make_given(
    'ogls_sd', vocab_size, args
  )
  return steering_reference.make_reference_batch(
    prompt_P=prompts.tokens_BP[0],
    response_RT=rollouts.response_RT[:, : args.window],
    hints=laid_out,
    is_scored_R=is_scored_R,
    row_R=np.flatnonzero(is_scored_R | (rows == 'all')),
  )


def make_student(config, base, mesh):
  """The student; its adapters are moved away from 0, as after some updates."""
  student = build.student_model(config, base, mesh)
  flat = nnx.to_flat_state(student.params)
  for number, (path, variable) in enumerate(flat):
    if path[-1] == 'lora_b':
      key = jax.random.key(number)
      variable.set_value(0.01 * jax.random.normal(key, variable.shape))
  return dataclasses.replace(student, params=nnx.from_flat_state(flat))


@dataclasses.dataclass
class Program:
  """A compiled update with a state of its own; `run` returns the loss."""

  compiled: jax.stages.Compiled
  compile_seconds: float
  state: step.TrainState
  frozen: nnx.State
  teacher_params: tuple
  batch: object

  @property
  def temporary_bytes(self) -> int:
    return self.compiled.memory_analysis().temp_size_in_bytes

  def run(self) -> float:
    self.state, output = jax.block_until_ready(
      self.compiled(self.state, self.frozen, self.teacher_params, self.batch)
    )
    if isinstance(output, dict):
      total, count = output['loss']
      return float(total) / float(count)
    return float(output)


class Bench:
  """All programs of one vocabulary size, over the same weights."""

  def __init__(self, vocab_size: int, args, mesh):
    self._args, self._mesh, self._vocab_size = args, mesh, vocab_size
    self._config = make_config(args)
    settings = build.decoder_settings(self._config, vocab_size)
    self._base = build.base_model(self._config, settings, mesh)
    self._student = make_student(self._config, self._base, mesh)
    self._optimizer = build.make_optimizer(self._config)
    self._state = build.init_state(
      self._config, self._student.params, self._optimizer, mesh, has_ema=False
    )

  def program(self, name: str) -> Program:
    config, base = self._config.copy_and_resolve_references(), self._base
    is_reference = name in REFERENCES
    config.method = 'ogls_sd' if is_reference else name
    parts = (
      self._student.graphdef, base.graphdef, self._optimizer,
      build.make_schedule(config),
    )  # fmt: skip
    if is_reference:
      rows, batching = name.split('-')
      batch = make_pairs(rows, self._vocab_size, self._args)
      update = steering_reference.make_reference_step(
        *parts, strength=config.steering.max_strength, batching=batching
      )
    else:
      batch = make_batch(name, self._vocab_size, self._args)
      objective = build.objective(config, eos_ids=())
      update = step.make_distill_step(*parts, objective=objective)
    arguments = (
      jax.tree.map(jnp.copy, self._state),
      self._student.frozen,
      (base.params, base.frozen),
      jax.device_put(batch) if is_reference else put_rows(batch, self._mesh),
    )
    began = time.monotonic()
    compiled = update.lower(*arguments).compile()
    return Program(compiled, time.monotonic() - began, *arguments)

  def sampler(self):
    """Samples the group; no end-of-sequence, so every rollout is as long."""
    rollout_step = step.make_rollout_step(
      self._student.graphdef, group_size=GROUP_SIZE, temperature=1.0,
      max_tokens=self._args.window, eos_ids=(),
    )  # fmt: skip
    batch = make_batch('opsd', self._vocab_size, self._args)
    prompts = put_rows(batch.prompts, self._mesh)

    def sample():
      jax.block_until_ready(
        rollout_step(self._state, self._student.frozen, prompts)
      )

    return sample
