"""A step's time from 8 to 256 chips, by the compiler's programs: weak scaling.

    python -m benchmarks.weak_scaling --out=docs/weak_scaling

The global batch grows with the chips, two questions a chip; `mesh.fsdp` stays 8
and `mesh.data` grows. Each size is one `preflight --json` (minutes; two cores).
Times are those at the chip's published rates: compute and memory, both bounds,
and links, an estimate, each by itself, and the longest. Writes OUT.json and
OUT.png.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

SLICES = {
  8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'
}  # fmt: skip
FSDP, QUESTIONS_A_CHIP = 8, 2
PARTS = ('compute', 'memory', 'links')


def measure(config: str, num_chips: int, overrides: list[str]) -> dict:
  """`preflight`'s report of one size."""
  command = [
    sys.executable, '-m', 'ogls_jax.preflight', f'--config={config}',
    f'--topology=v5e:{SLICES[num_chips]}', '--json',
    '--config.mesh.data=-1', f'--config.mesh.fsdp={FSDP}',
    f'--config.rollouts.batch_questions={QUESTIONS_A_CHIP * num_chips}',
    *overrides,
  ]  # fmt: skip
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  found = subprocess.run(
    command, env=environment, stdout=subprocess.PIPE, text=True, check=False
  )
  if not found.stdout:
    raise SystemExit(f'{" ".join(command)} failed')
  return json.loads(found.stdout)


def seconds_of(report: dict) -> dict[str, dict[str, float]]:
  """Seconds of `decode` and `distill`, by what they would be bound by."""
  result = {}
  for program in report['programs']:
    if program['name'] in ('decode', 'distill'):
      parts = program['parts'].values()
      times = {name: sum(p['seconds'][name] for p in parts) for name in PARTS}
      result[program['name']] = times | {'longest': max(times.values())}
  return result


def plot(rows: dict[int, dict], path: pathlib.Path) -> None:
  """Two panels, a line for each bound."""
  _, panels = plt.subplots(1, 2, figsize=(9, 3.5))
  titles = {'distill': 'update', 'decode': 'a token of every rollout'}
  for panel, (name, title) in zip(panels, titles.items(), strict=True):
    most = max(row[name]['longest'] for row in rows.values())
    for part in PARTS:
      values = [1e3 * row[name][part] for row in rows.values()]
      panel.plot(list(rows), values, marker='o', label=part)
    panel.set(
      xscale='log', xticks=list(rows), xticklabels=list(rows),
      ylim=(0, 1300 * most), title=f'{title}, ms at published rates',
      xlabel='chips (v5e)',
    )  # fmt: skip
    panel.minorticks_off()
    panel.legend(loc='upper center', ncols=3, frameon=False)
  plt.tight_layout()
  plt.savefig(path, dpi=120)


def main() -> None:
  """Compiles every size and writes what came out."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', default='configs/qwen3_1p7b.py')
  parser.add_argument('--chips', type=int, nargs='+', default=list(SLICES))
  parser.add_argument('--out', type=pathlib.Path, required=True)
  options, overrides = parser.parse_known_args()
  rows = {}
  for num_chips in options.chips:
    rows[num_chips] = seconds_of(measure(options.config, num_chips, overrides))
    for name, times in rows[num_chips].items():
      first = rows[options.chips[0]][name]['longest']
      texts = [f'{part} {1e3 * times[part]:.3f}' for part in PARTS]
      print(
        f'{num_chips} chips, {name}, ms: {", ".join(texts)}; longest'
        f' {times["longest"] / first:.3f} of that on {options.chips[0]}',
        flush=True,
      )
  options.out.with_suffix('.json').write_text(json.dumps(rows, indent=1) + '\n')
  plot(rows, options.out.with_suffix('.png'))


if __name__ == '__main__':
  main()
