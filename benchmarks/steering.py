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

A reference's passes are all `pairs` at once, the direct way, or `scanned` over
hints, which is as much work and less memory. At a vocabulary of 151,936
all-pairs takes 17 GiB.

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
import numpy as np
import optax

from benchmarks.measure import resident_bytes, spread
from benchmarks.steering_programs import (
  GROUP_SIZE,
  PROMPT_TOKENS,
  REFERENCES,
  Bench,
  Program,
)
from ogls_jax.mesh import make_mesh

LEAST_SPEEDUP, LEAST_SAVING, MOST_OPSD, MOST_DIFFERENCE = 4.0, 8.0, 1.5, 1e-4


def gradient(program: Program, b1: float) -> list[np.ndarray]:
  """Of the only update so far: Adam's first moment is (1 - b1) times it."""
  moment = optax.tree_utils.tree_get(program.state.opt_state, 'mu')
  return [np.asarray(x, np.float64) / (1 - b1) for x in jax.tree.leaves(moment)]


def largest_difference(arrays, expected) -> float:
  """The largest over arrays, each relative to its largest expected entry."""
  # np.max, as max() may lose a nan.
  return float(
    np.max(
      [
        np.abs(a - b).max() / np.abs(b).max()
        for a, b in zip(arrays, expected, strict=True)
      ]
    )
  )


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
    '--references', default='all-pairs,all-scanned,wrong-scanned',
    help=f'of {", ".join(REFERENCES)}, or none',
  )  # fmt: skip
  parser.add_argument('--json', help='file for all runs')
  args = parser.parse_args()
  args.references = [name for name in args.references.split(',') if name]
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
        worst = float(np.max([worst, *off.values()]))
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
