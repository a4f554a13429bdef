"""Kills a run again and again; it has to end as one that was left alone.

    python -m benchmarks.crash --folder=runs/crash --kills=25 --seed=0

A small run (configs/tiny.py with fewer layers and steps) is trained once in
peace. Then others are: each is killed by SIGKILL at a random moment, given the
same command again, killed again, until it ends. Moments are drawn from `any`
(up to a third of the time that the run in peace took), `update` (after one has
been written: sampling, grading, the update) and `checkpoint` (files of a step
are being written, of either stage). Parameters, optimizer, key, data position,
metrics, samples and inspect.jsonl have to be the same, bit for bit, in every
step that is kept; times are not compared. Prints a table, and exits with 1 if a
run differs.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

MOMENTS = ('any', 'update', 'checkpoint')
OVERRIDES = {
  'model.width': 32, 'model.num_layers': 2, 'model.mlp_size': 48,
  'data.num_questions': 64, 'data.arithmetic.num_terms': 2,
  'warmup.num_steps': 40, 'warmup.batch_questions': 8, 'num_steps': 12,
  'rollouts.batch_questions': 8, 'rollouts.group_size': 2,
  'rollouts.max_tokens': 16, 'eval.num_questions': 16, 'eval.samples': 1,
  'eval.batch_questions': 16, 'checkpoint.every_steps': 2,
  'eval.every_steps': 4, 'log.samples_every_steps': 1,
  'log.inspect_every_steps': 2,
}  # fmt: skip


def start(workdir: pathlib.Path, log) -> subprocess.Popen:
  """The training command."""
  command = [
    sys.executable, '-m', 'ogls_jax.train', '--config=configs/tiny.py',
    f'--workdir={workdir}',
    *(f'--config.{key}={value}' for key, value in OVERRIDES.items()),
  ]  # fmt: skip
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def lines_of(path: pathlib.Path) -> int:
  """Lines so far; 0 where there is no file."""
  try:
    return path.read_bytes().count(b'\n')
  except OSError:
    return 0


def is_there(workdir: pathlib.Path, moment: str, num_lines: int, began) -> bool:
  """Whether a run that began so has come to where `moment` begins."""
  if moment == 'any':
    return True
  if moment == 'update':
    return lines_of(workdir / 'metrics.jsonl') > num_lines
  # Between the files of a step, which has another name until it is whole.
  for folder in (workdir / 'checkpoints', workdir / 'warmup'):
    for path in folder.glob('*.orbax-checkpoint-tmp'):
      with contextlib.suppress(OSError):
        if path.stat().st_ctime > began:
          return True
  return False


def run_and_kill(workdir, moment, most_seconds, rng, log):
  """Runs until `moment` and up to so long after, and kills.

  Returns (whether it ended, seconds from its start to the moment).
  """
  delay = rng.uniform(0, most_seconds)
  num_lines = lines_of(workdir / 'metrics.jsonl')
  began, process = time.time(), start(workdir, log)
  try:
    while not is_there(workdir, moment, num_lines, began):
      if process.poll() is not None:
        break
      time.sleep(0.001)
    seconds = time.time() - began
    try:
      process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
      return False, seconds
    if process.returncode:
      raise SystemExit(f'{workdir} failed; see its log')
    return True, seconds
  finally:
    process.kill()
    process.wait()


def facts_of(workdir: pathlib.Path) -> dict[str, object]:
  """All that a finished run leaves, but for times."""
  facts = {}
  for folder in (workdir / 'checkpoints').absolute().iterdir():
    arrays = ocp.StandardCheckpointer().restore(folder / 'state')
    facts |= {
      f'{folder.name}{jax.tree_util.keystr(path)}': np.asarray(leaf).tobytes()
      for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }
    (file,) = (folder / 'position').rglob('metadata')
    record = json.loads(file.read_text())
    del record['crc32'], record['position']['seconds']
    facts[f'{folder.name} record'] = record
  summary = json.loads((workdir / 'summary.json').read_text())
  del summary['seconds']
  facts['summary.json'] = summary
  for name in ('metrics.jsonl', 'samples.jsonl', 'inspect.jsonl'):
    lines = (workdir / name).read_bytes().split(b'\n')[:-1]
    facts[name] = [_without_times(json.loads(line)) for line in lines]
  return facts


def _without_times(row):
  return {
    key: value
    for key, value in row.items()
    if key not in ('time', 'tokens_per_second')
    and not key.startswith('seconds_')
  }


def main() -> None:
  """Plays the kills and prints what came of them."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--kills', type=int, default=25)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  rng, folder = random.Random(options.seed), options.folder
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  kills = collections.Counter()
  is_same, num_runs, recoveries = True, 0, []
  with (folder / 'log').open('w') as log:
    began = time.monotonic()
    if start(folder / 'whole', log).wait():
      raise SystemExit(f'the run in peace failed; see {folder}/log')
    in_peace = time.monotonic() - began
    print(f'in peace: {in_peace:.1f} s', flush=True)
    whole = facts_of(folder / 'whole')
    # A moment's length, in seconds.
    most_seconds = {'any': in_peace / 3, 'update': 0.5, 'checkpoint': 0.06}
    while kills.total() < options.kills:
      workdir, has_ended = folder / f'run_{num_runs}', False
      num_runs += 1
      while not has_ended and kills.total() < options.kills:
        moment = rng.choice(MOMENTS)
        is_resumed = any((workdir / 'checkpoints').glob('[0-9]*'))
        has_ended, seconds = run_and_kill(
          workdir, moment, most_seconds[moment], rng, log
        )
        if moment == 'update' and is_resumed:
          recoveries.append(seconds)
        if not has_ended:
          kills[moment] += 1
          step = lines_of(workdir / 'metrics.jsonl')
          print(f'{workdir.name}: killed ({moment}), update {step}', flush=True)
      if not has_ended and start(workdir, log).wait():
        raise SystemExit(f'{workdir} failed; see {folder}/log')
      found = facts_of(workdir)
      names = whole.keys() | found.keys()
      wrong = sorted(x for x in names if whole.get(x) != found.get(x))
      is_same &= not wrong
      verdict = f'differs in {", ".join(wrong)[:500]}' if wrong else 'the same'
      print(f'{workdir.name}: {verdict}', flush=True)
  print('\n| killed in | times |\n|---|---|')
  for moment in MOMENTS:
    print(f'| {moment} | {kills[moment]} |')
  if recoveries:
    print(
      f'from a start to the first update after it, s: median'
      f' {statistics.median(recoveries):.1f}, {min(recoveries):.1f} to'
      f' {max(recoveries):.1f} ({len(recoveries)} starts)'
    )
  verdict = 'all the same, bit for bit' if is_same else 'DIFFERENT'
  print(f'{kills.total()} kills in {num_runs} runs: {verdict}')
  if not is_same:
    sys.exit(1)


if __name__ == '__main__':
  main()
