"""Time and memory of a steered update: ours, a direct version's, and OPSD's.

    python -m benchmarks.steering --json=out/steering.json

One question, a group of rollouts of which half are wrong, given; measured are
teacher, loss, gradient and update. Weights and tokens are random, the model has
SmolLM2-135M's shape. The programs:

  ogls_sd    `step.make_distill_step`
  opsd       the same with one context, the solution, and all rollouts scored
  all-*      `steering_reference.py`: a forward pass for each rollout and hint
             of the group, masked: one program, however many are wrong
  wrong-*    the same for wrong rollouts alone; their number is compiled in

Passes of a reference are `scanned` over hints, which is faster and smaller than
all `pairs` at once (`--references=all-pairs`).

They warm up and then take turns, each round in another order; medians with the
least and the largest run are printed, and ratios are of the same round.
Temporary memory is the compiler's figure for the whole program, weights,
optimizer state and batch excluded. On CPUs it lacks what a fused product and
reduction holds inside, so that the growth of resident memory during a run (the
largest over the runs) stands beside it.

Loss and gradient of the first update are compared; the gradient is read from
Adam's first moment, clipping is off. The exit code is 1 if they differ by more
than the bar, which is one for float32.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import steering_reference
from configs import default
from ogls_jax import build, hints, step
from ogls_jax.batches import Hints, PromptBatch, Rollouts, pad_rows
from ogls_jax.loss_masks import make_loss_batch
from ogls_jax.mesh import make_mesh, put_batch

GROUP_SIZE, PROMPT_TOKENS = 8, 64
IS_CORRECT_R = np.arange(GROUP_SIZE) % 2 == 0
REFERENCES = [
  f'{rows}-{batching}'
  for rows in ('all', 'wrong')
  for batching in steering_reference.BATCHINGS
]
LEAST_SPEEDUP, LEAST_SAVING, MOST_OPSD, MOST_DIFFERENCE = 4.0, 8.0, 1.5, 1e-4


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
  weights = [pools.anchor_BGN, pools.positive_BGN, pools.negative_BGN]
  texts = [[], solution, *response_RT[:, : args.hint_tokens]]
  # As `hints.build_hints` lays them out: what is weighed, the longest first.
  needed = np.flatnonzero(sum(weight[0].any(0) for weight in weights))
  needed = np.array(sorted(needed, key=lambda n: -len(texts[n])))
  contexts = [[*prompt_1P[0], *texts[n]] for n in needed]
  assert len(contexts) == hints.num_contexts(method, GROUP_SIZE)
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
  laid_out = Hints(
    pad_rows(contexts, max(map(len, contexts)))[None],
    np.array([[len(context) for context in contexts]], np.int32),
    *(np.ascontiguousarray(weight[:, :, needed]) for weight in weights),
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
      jax.device_put(batch) if is_reference else put_batch(batch, self._mesh),
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
    prompts = put_batch(batch.prompts, self._mesh)

    def sample():
      jax.block_until_ready(
        rollout_step(self._state, self._student.frozen, prompts)
      )

    return sample


def gradient(program: Program, b1: float) -> list[np.ndarray]:
  """Of the only update so far: Adam's first moment is (1 - b1) times it."""
  moment = optax.tree_utils.tree_get(program.state.opt_state, 'mu')
  return [np.asarray(x, np.float64) / (1 - b1) for x in jax.tree.leaves(moment)]


def largest_difference(arrays, expected) -> float:
  """The largest over arrays, each relative to its largest expected entry."""
  return max(
    float(np.abs(a - b).max() / np.abs(b).max())
    for a, b in zip(arrays, expected, strict=True)
  )


def resident_bytes(key: str) -> int:
  """VmRSS or VmHWM, its peak; 0 where the system does not tell."""
  status = pathlib.Path('/proc/self/status')
  text = status.read_text() if status.exists() else ''
  found = re.search(rf'{key}:\s+(\d+) kB', text)
  return int(found[1]) * 1024 if found else 0


def timed(run) -> dict:
  clear = pathlib.Path('/proc/self/clear_refs')
  if clear.exists():
    clear.write_text('5')  # the peak starts again from here
  resident = resident_bytes('VmRSS')
  before, began = time.process_time(), time.monotonic()
  run()
  return {
    'seconds': time.monotonic() - began,
    'cpu_seconds': time.process_time() - before,
    'resident_growth_bytes': resident_bytes('VmHWM') - resident,
  }


def measure(vocab_size: int, args, mesh) -> dict:
  """Everything about one vocabulary, as it goes into the JSON file."""
  bench = Bench(vocab_size, args, mesh)
  result = {'vocab_size': vocab_size, 'programs': {}, 'differences': {}}
  programs = {}
  for name in ('ogls_sd', *args.references, 'opsd'):
    program = programs[name] = bench.program(name)
    first_loss = program.run()
    sizes = program.compiled.memory_analysis()
    result['programs'][name] = {
      'compile_seconds': program.compile_seconds,
      'temporary_bytes': program.temporary_bytes,
      'argument_bytes': sizes.argument_size_in_bytes,
      'first_loss': first_loss,
    }
    note(f'{name} compiled in {program.compile_seconds:.1f} s and warmed up')
    own = gradient(program, bench._config.optimizer.b1)
    if name == 'ogls_sd':
      ours, our_loss = own, first_loss
    elif name != 'opsd':
      result['differences'][name] = {
        'loss': abs(our_loss - first_loss) / abs(first_loss),
        'gradient': largest_difference(ours, own),
      }
  del ours, own
  sampler = bench.sampler()
  first = timed(sampler)
  result['programs']['sampling'] = {'first_seconds': first['seconds']}
  runs = {name: program.run for name, program in programs.items()}
  runs['sampling'] = sampler
  rows = {name: [] for name in runs}
  for number in range(args.runs):
    names = list(runs)
    for name in names[number % len(names) :] + names[: number % len(names)]:
      rows[name].append(timed(runs[name]))
      note(f'run {number + 1} {name}: {rows[name][-1]["seconds"]:.2f} s')
  for name, own in rows.items():
    for key in own[0]:
      result['programs'][name][key] = [row[key] for row in own]
  return result


def note(text: str) -> None:
  print(f'  {text}', file=sys.stderr, flush=True)


def spread(values, digits: int = 2) -> str:
  low, high = min(values), max(values)
  return (
    f'{statistics.median(values):.{digits}f}'
    f' [{low:.{digits}f}, {high:.{digits}f}]'
  )


def report(result: dict, args) -> None:
  programs = result['programs']
  print(f'vocabulary of {result["vocab_size"]:,}')
  layout = '{:15} {:>24} {:>6} {:>11} {:>15} {:>15}'.format
  print(
    layout(
      '', 'seconds', 'CPUs', 'compile s', 'temporary MiB', 'resident MiB'
    )
  )  # fmt: skip
  for name, own in programs.items():
    busy = sum(own['cpu_seconds']) / sum(own['seconds'])
    columns = ['', '']
    if name != 'sampling':
      columns = [
        f'{own["compile_seconds"]:.1f}',
        f'{own["temporary_bytes"] / 2**20:,.0f}',
      ]
    columns.append(f'{max(own["resident_growth_bytes"]) / 2**20:,.0f}')
    print(layout(name, spread(own['seconds']), f'{busy:.1f}', *columns))
  ours = programs['ogls_sd']
  for name in args.references:
    theirs, off = programs[name], result['differences'][name]
    ratios = divide(theirs['seconds'], ours['seconds'])
    saving = theirs['temporary_bytes'] / ours['temporary_bytes']
    growth = [max(each['resident_growth_bytes']) for each in (theirs, ours)]
    saved = growth[0] / growth[1] if min(growth) > 0 else float('nan')
    print(
      f'{name} / ogls_sd:\n'
      f'  time {spread(ratios)}, bar: at least {LEAST_SPEEDUP:g}\n'
      f'  temporary memory {saving:.2f}, bar: at least {LEAST_SAVING:g};'
      f' resident {saved:.2f}\n'
      f'  differences: loss {off["loss"]:.1e}, gradient {off["gradient"]:.1e},'
      f' bar in float32: at most {MOST_DIFFERENCE:g}'
    )
  sampling = statistics.median(programs['sampling']['seconds'])
  with_sampling = [
    [seconds + sampling for seconds in programs[name]['seconds']]
    for name in ('ogls_sd', 'opsd')
  ]
  alone = divide(ours['seconds'], programs['opsd']['seconds'])
  print(
    f'ogls_sd / opsd:\n'
    f'  time with sampling {spread(divide(*with_sampling))}, bar: at most'
    f' {MOST_OPSD:g}; without {spread(alone)}\n',
    flush=True,
  )


def divide(upper, lower) -> list[float]:
  return [a / b for a, b in zip(upper, lower, strict=True)]


def machine() -> dict:
  cpu = re.search(
    r'model name\s*: (.+)', pathlib.Path('/proc/cpuinfo').read_text()
  )
  return {
    'cpu': cpu[1] if cpu else platform.processor(),
    'num_cpus': os.cpu_count(),
    'device': jax.devices()[0].device_kind,
    'memory_gib': os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    / 2**30,
  }  # fmt: skip


def parse_arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--vocabs', default='49152,151936')
  parser.add_argument('--runs', type=int, default=5)
  parser.add_argument('--num_layers', type=int, default=30)
  parser.add_argument('--window', type=int, default=128)
  parser.add_argument('--hint_tokens', type=int, default=512)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument(
    '--lora_rank', type=int, default=64, help='0: all weights'
  )
  parser.add_argument(
    '--block_tokens', type=int, default=0, help="0: the config's default"
  )
  parser.add_argument(
    '--references', default='all-scanned,wrong-scanned',
    help=f'of {", ".join(REFERENCES)}',
  )  # fmt: skip
  parser.add_argument('--json', help='file for all runs')
  args = parser.parse_args()
  args.references = args.references.split(',')
  if unknown := set(args.references) - set(REFERENCES):
    parser.error(f'--references: no such program as {", ".join(unknown)}')
  return args


def main() -> None:
  args = parse_arguments()
  versions = {
    name: importlib.metadata.version(name)
    for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
  }
  content = {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'machine': machine(), 'versions': versions, 'arguments': vars(args),
    'results': [],
  }  # fmt: skip
  print(
    f'group of {GROUP_SIZE}, half wrong; prompt of {PROMPT_TOKENS} tokens,'
    f' hints of {args.hint_tokens}, window of {args.window}; {args.num_layers}'
    f' layers, {args.dtype}, LoRA rank {args.lora_rank}'
  )
  worst = 0.0
  mesh = make_mesh({'data': jax.device_count(), 'fsdp': 1, 'model': 1})
  with jax.set_mesh(mesh):
    for vocab_size in map(int, args.vocabs.split(',')):
      result = measure(vocab_size, args, mesh)
      content['results'].append(result)
      report(result, args)
      for off in result['differences'].values():
        worst = max(worst, *off.values())
      if args.json:
        file = pathlib.Path(args.json)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + '\n')
  # A nan is no agreement.
  if args.dtype == 'float32' and not worst <= MOST_DIFFERENCE:
    sys.exit(
      f'loss or gradient of ogls_sd and a reference differ by {worst:.1e},'
      f' more than {MOST_DIFFERENCE:g}'
    )


if __name__ == '__main__':
  main()
