"""Accuracy before and after configs/tiny.py, for several seeds and variants.

    python -m benchmarks.tiny_seeds --folder=runs/seeds --seeds=3 \
        --run= --run="method=opsd" --run="hints.exclude_self=False"

A variant is the config keys it changes (`--run=` changes none), separated by
spaces. Each seed is a whole run: its own weights, warm-up, rollouts and order
of questions; the variants of one seed share its warm-up. The questions of
training and evaluation are the same for all. Finished runs are not repeated,
and other flags are passed on to every run. Prints a table with 95% intervals
over seeds (Student's t), and the difference to the first variant, paired by
seed.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import scipy.stats


def train(folder: pathlib.Path, changes: str, seed: int, flags) -> dict:
  """The summary of one run."""
  name = re.sub(r'[^\w.=]+', '_', changes) or 'default'
  workdir = folder / f'{name}_{seed}'
  # A finished run with the same config ends at once; another config is refused.
  subprocess.run(
    [
      sys.executable,
      '-m',
      'ogls_jax.train',
      '--config=configs/tiny.py',
      f'--workdir={workdir}',
      f'--config.warmup.workdir={folder / f"warmup_{seed}"}',
      f'--config.seed={seed}',
      *(f'--config.{change}' for change in changes.split()),
      *flags,
    ],
    check=True,
  )
  return json.loads((workdir / 'summary.json').read_text())


def interval(values: np.ndarray) -> str:
  mean = values.mean()
  if len(values) < 2:
    return f'{100 * mean:+.1f}'
  error = values.std(ddof=1) / len(values) ** 0.5
  half = scipy.stats.t.ppf(0.975, len(values) - 1) * error
  low, high = 100 * (mean - half), 100 * (mean + half)
  return f'{100 * mean:+.1f} [{low:+.1f}, {high:+.1f}]'


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--run', action='append', dest='runs')
  args, flags = parser.parse_known_args()
  rows, first_gain = [], None
  for changes in args.runs or ['']:
    summaries = [
      train(args.folder, changes, seed, flags) for seed in range(args.seeds)
    ]
    before, after, gain = (
      np.array([s[f'accuracy_{name}']['mean'] for s in summaries])
      for name in ('before', 'after', 'gain')
    )
    seconds = np.median([s['seconds'][s['method']] for s in summaries])
    paired = '' if first_gain is None else interval(gain - first_gain)
    first_gain = gain if first_gain is None else first_gain
    shares = [' '.join(f'{x:.1%}' for x in xs) for xs in (before, after)]
    cells = (f'`{changes or "none"}`', *shares, interval(gain), paired)
    rows.append(f'| {" | ".join(cells)} | {seconds:.0f} |')
  print('| changes | before, by seed | after | gain, points | to first | s |')
  print('|---|---|---|---|---|---|')
  print('\n'.join(rows))


if __name__ == '__main__':
  main()
