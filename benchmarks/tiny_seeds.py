"""Accuracy before and after configs/tiny.py, for several seeds and methods.

    python benchmarks/tiny_seeds.py --folder=runs/seeds --seeds=3 \
        --methods=ogls_sd,opsd

Each seed is a whole run: its own weights, warm-up, rollouts and order of
questions; the methods of one seed share its warm-up. The evaluation questions
are the same for all. Finished runs are not repeated. Prints a table, and the
gain's 95% interval over seeds (Student's t).
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
import scipy.stats


def run(folder: pathlib.Path, method: str, seed: int, overrides) -> dict:
  workdir = folder / f'{method}_{seed}'
  summary = workdir / 'summary.json'
  if not summary.is_file():
    subprocess.run(
      [
        sys.executable,
        '-m',
        'ogls_jax.train',
        '--config=configs/tiny.py',
        f'--workdir={workdir}',
        f'--config.warmup.workdir={folder / f"warmup_{seed}"}',
        f'--config.method={method}',
        f'--config.seed={seed}',
        *overrides,
      ],
      check=True,
    )
  return json.loads(summary.read_text())


def interval(values: np.ndarray) -> str:
  mean = values.mean()
  if len(values) < 2:
    return f'{mean:+.1%}'
  error = values.std(ddof=1) / len(values) ** 0.5
  half = scipy.stats.t.ppf(0.975, len(values) - 1) * error
  return f'{mean:+.1%} [{mean - half:+.1%}, {mean + half:+.1%}]'


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--methods', default='ogls_sd')
  args, overrides = parser.parse_known_args()
  rows = []
  for method in args.methods.split(','):
    runs = [
      run(args.folder, method, seed, overrides) for seed in range(args.seeds)
    ]
    before, after, gain = (
      np.array([r[f'accuracy_{name}']['mean'] for r in runs])
      for name in ('before', 'after', 'gain')
    )
    seconds = np.array([r['seconds'][method] for r in runs])
    rows.append(
      f'| {method} | {" ".join(f"{x:.1%}" for x in before)} |'
      f' {" ".join(f"{x:.1%}" for x in after)} | {interval(gain)} |'
      f' {np.median(seconds):.0f} |'
    )
  print('| method | before, by seed | after, by seed | gain | seconds |')
  print('|---|---|---|---|---|')
  print('\n'.join(rows))


if __name__ == '__main__':
  main()
