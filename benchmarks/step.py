"""Where the time of a training step goes.

    python -m benchmarks.step --json=out/step.json

Runs the first steps of `ogls_jax.train` for each config, evaluation left out:
two that compile, some that are traced, and as many that are not. For the traced
ones, each from the end of one update to the end of the next, the table has the
seconds that the device was at each part, those for which it waited for grading,
and host gaps, in which it had no program to run: medians over the steps with
the least and the largest. Grading in worker processes while the device samples
is in none of them. A step that compiles for a new width has a gap as long.

configs/tiny.py has a stage 1 of some minutes, which --folder keeps for the next
time. It keeps the traces as well: open them with XProf or Perfetto.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

from benchmarks import step_trace
from benchmarks.measure import spread

_COMPILING_STEPS = 2
_MOST_GAPS = 0.03
CONFIGS = ('configs/tiny.py', 'configs/smollm2_svamp.py')


def train(config: pathlib.Path, folder: pathlib.Path, num_steps: int, flags):
  """Runs the steps in a new workdir, `folder`/NAME."""
  workdir = folder / config.stem
  shutil.rmtree(workdir, ignore_errors=True)
  environment = os.environ | {
    # Kept programs would not be dumped again.
    'JAX_ENABLE_COMPILATION_CACHE': 'false',
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")}'
    f' --xla_dump_to={workdir / "dump"} --xla_dump_hlo_as_text'
    ' --xla_dump_hlo_module_re=distill_step'
    ' --xla_cpu_enable_xprof_traceme=true',
  }
  last = _COMPILING_STEPS + 2 * num_steps
  subprocess.run(
    [
      sys.executable, '-m', 'ogls_jax.train', f'--config={config}',
      f'--workdir={workdir}', '--config.eval.num_questions=0',
      f'--config.warmup.workdir={folder / f"{config.stem}_warmup"}',
      f'--config.checkpoint.every_steps={last}', f'--stop_after_steps={last}',
      f'--profile_steps={num_steps}', *flags,
    ],
    check=True, env=environment, stdout=sys.stderr,
  )  # fmt: skip
  return workdir


def read(workdir: pathlib.Path, num_steps: int) -> dict:
  """What the run measured, as it goes into the JSON file."""
  rows = [
    json.loads(line)
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  seconds = [
    sum(row[key] or 0 for key in row if key.startswith('seconds_'))
    for row in rows
  ]
  (trace,) = (workdir / 'profile').rglob('*.xplane.pb')
  known = step_trace.instructions(workdir / 'dump')
  steps = step_trace.seconds_by_part(step_trace.read_events(trace, known))
  if len(steps) != num_steps:
    sys.exit(f'{trace} has {len(steps)} updates, not {num_steps}')
  return {
    'trace': str(trace),
    'traced_steps': steps,
    'untraced_seconds': seconds[_COMPILING_STEPS + num_steps :],
  }


def report(config: pathlib.Path, result: dict) -> None:
  steps = result['traced_steps']
  totals = [sum(step.values()) for step in steps]
  print(
    f'{config}: seconds of a step {spread(totals)} traced,'
    f' {spread(result["untraced_seconds"])} not'
  )
  for part in step_trace.PARTS:
    seconds = [step[part] for step in steps]
    shares = [a / b for a, b in zip(seconds, totals, strict=True)]
    print(
      f'  {part:18} {spread(seconds, 3):>22}'
      f' {statistics.median(shares):>7.1%}'
      + (f'  bar: {_MOST_GAPS:.0%}' if part == 'host gaps' else '')
    )
  print(f'  trace: {result["trace"]}\n', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--configs', default=','.join(CONFIGS))
  parser.add_argument('--folder', type=pathlib.Path, default='out/step')
  parser.add_argument('--steps', type=int, default=5)
  parser.add_argument('--json', type=pathlib.Path, help='file for all steps')
  args, flags = parser.parse_known_args()
  results = {}
  for config in map(pathlib.Path, args.configs.split(',')):
    workdir = train(config, args.folder.absolute(), args.steps, flags)
    results[str(config)] = read(workdir, args.steps)
    report(config, results[str(config)])
    if args.json:
      args.json.parent.mkdir(parents=True, exist_ok=True)
      args.json.write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
  main()
