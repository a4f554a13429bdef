"""Seconds and memory of an update, by method: what steering costs.

    python -m benchmarks.method_cost --json=out/method_cost.json \
      --configs=configs/tiny.py,configs/smollm2_svamp.py

Each run is `ogls_jax.train` in a process of its own, without evaluation: two
updates that compile, and --updates that count. Methods take turns, every round
in another order. Printed are medians over all updates with the least and the
largest; of the largest resident memory of the process, compiling included; and
of the ratios to --reference, each of two runs of the same round. Other flags
go to `ogls_jax.train`. configs/tiny.py has a stage 1 of some minutes, which
--folder keeps for the next time.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

from benchmarks.measure import spread
from ogls_jax.json_file import read_rows
from ogls_jax.spending import NUM_COMPILING, costs_of


def run(config, folder, method, num_updates, flags) -> dict:
  """One method's updates in a new workdir, `folder`/CONFIG_METHOD."""
  workdir = folder / f'{config.stem}_{method}'
  shutil.rmtree(workdir, ignore_errors=True)
  last = NUM_COMPILING + num_updates
  command = [
    sys.executable, '-m', 'ogls_jax.train', f'--config={config}',
    f'--workdir={workdir}', f'--config.method={method}',
    '--config.eval.num_questions=0', f'--config.num_steps={last}',
    f'--config.warmup.workdir={folder / f"{config.stem}_warmup"}',
    f'--config.checkpoint.every_steps={last}',
    '--config.log.inspect_every_steps=0', *flags,
  ]  # fmt: skip
  process = subprocess.Popen(command, stdout=sys.stderr)
  # Not `wait`: this alone says what the process took.
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    sys.exit(f'{" ".join(command)} ended with {process.returncode}')
  rows = read_rows(workdir / 'metrics.jsonl')[NUM_COMPILING:]
  seconds = costs_of(rows, rows_per_update=1).seconds
  return {'seconds': seconds, 'gib': usage.ru_maxrss / 2**20}


def report(name, results, reference) -> None:
  """Prints a table of the rounds of one config."""
  print(f'{name}\n  method     seconds of an update   to {reference}'
        f'              GiB                 to {reference}')  # fmt: skip
  others = results[reference]
  for method, rounds in results.items():
    pairs = list(zip(rounds, others, strict=True))
    slower = [
      statistics.median(a['seconds']) / statistics.median(b['seconds'])
      for a, b in pairs
    ]
    larger = [a['gib'] / b['gib'] for a, b in pairs]
    seconds = [x for one in rounds for x in one['seconds']]
    print(
      f'  {method:9} {spread(seconds):>21} {spread(slower):>19}'
      f' {spread([one["gib"] for one in rounds]):>19} {spread(larger):>19}',
      flush=True,
    )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--configs', default='configs/tiny.py')
  parser.add_argument('--methods', default='ogls_sd,opsd,grpo')
  parser.add_argument('--reference', default='opsd')
  parser.add_argument('--folder', type=pathlib.Path, default='out/method_cost')
  parser.add_argument('--updates', type=int, default=8)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--json', type=pathlib.Path, help='file for all runs')
  args, flags = parser.parse_known_args()
  methods, all_results = args.methods.split(','), {}
  if args.reference not in methods:
    parser.error(f'--reference={args.reference} is none of --methods')
  folder = args.folder.absolute()
  for config in map(pathlib.Path, args.configs.split(',')):
    # Makes stage 1, and caches what is converted, outside of the figures.
    run(config, folder, args.reference, 1, flags)
    results = {method: [] for method in methods}
    for i in range(args.rounds):
      shift = i % len(methods)
      for method in methods[shift:] + methods[:shift]:
        results[method].append(run(config, folder, method, args.updates, flags))
    report(' '.join([str(config), *flags]), results, args.reference)
    all_results[str(config)] = results
    if args.json:
      args.json.parent.mkdir(parents=True, exist_ok=True)
      args.json.write_text(json.dumps(all_results, indent=2) + '\n')


if __name__ == '__main__':
  main()
