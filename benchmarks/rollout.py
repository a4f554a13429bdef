"""Rollouts per second: our sampler, Tunix's and transformers' `generate`.

    pip install -r requirements-test.txt
    python -m venv out/tunix
    out/tunix/bin/pip install -r benchmarks/rollout_tunix.txt
    python -m benchmarks.rollout --transformers_python=python \
        --tunix_python=out/tunix/bin/python --json=out/rollout.json

For each model and workload, an engine is one process with the same weights
(random, float32, a Hugging Face folder), prompts, lengths, sampling and number
of threads. Each warms up; then they take turns, one at a time, and medians with
the least and the largest run are printed. Ratios are of the same round. Below a
table is the roofline (`rollout_roofline.py`), at the best rates that the
machine has shown so far.

Rollouts have forced lengths, so that all engines make the same number of
tokens. A rollout's tokens count, not those that an engine makes past its end.
`transformers+prefix` is transformers with each prompt read once by hand.

The share of the CPUs that other processes took during the runs is printed. With
others at work the numbers mean nothing: an engine whose two threads wait for
each other at every product, as in PyTorch, may wait for a time slice each time.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import rollout_roofline, rollout_table, rollout_workloads

ROOT = pathlib.Path(__file__).parents[1]
# By name: the module, and what its requests have besides.
ENGINES = {
  'ours': ('rollout_ours', {}),
  'tunix': ('rollout_tunix', {}),
  'transformers': ('rollout_transformers', {}),
  'transformers+prefix': ('rollout_transformers', {'is_prefix_shared': True}),
}


def start_module(python: str, name: str, threads: int, **pipes):
  environment = {'JAX_PLATFORMS': 'cpu', **os.environ}
  return subprocess.Popen(
    [python, '-m', f'benchmarks.{name}', f'--threads={threads}'],
    cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, **pipes,
  )  # fmt: skip


def busy_seconds() -> float:
  """CPU time of all processes so far."""
  fields = pathlib.Path('/proc/stat').read_text().split('\n', 1)[0].split()
  user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
  busy = user + nice + system + irq + softirq + steal
  return busy / os.sysconf('SC_CLK_TCK')


def own_seconds(pid: int) -> float:
  stat = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
  return sum(map(int, stat.split()[11:13])) / os.sysconf('SC_CLK_TCK')


class Engine:
  """A process that answers requests; see `rollout_engine.py`."""

  def __init__(self, name: str, python: str, threads: int):
    self.name = name
    module, self._options = ENGINES[name]
    self._errors = tempfile.TemporaryFile('w+')  # noqa: SIM115
    self._process = start_module(
      python, module, threads,
      stdin=subprocess.PIPE, stderr=self._errors,
    )  # fmt: skip

  def ask(self, request: dict) -> dict | None:
    """The answer, or None once the process has failed."""
    if self._process.poll() is not None:
      return None
    pid = self._process.pid
    busy, own, began = busy_seconds(), own_seconds(pid), time.monotonic()
    try:
      line = json.dumps(request | self._options)
      print(line, file=self._process.stdin, flush=True)
      answer = json.loads(self._process.stdout.readline())
    except (BrokenPipeError, ValueError):
      status = self._process.wait()
      self._errors.seek(0)
      tail = self._errors.read()[-1500:]
      print(f'{self.name} failed with status {status}\n{tail}', flush=True)
      return None
    others = busy_seconds() - busy - (own_seconds(pid) - own)
    spent = os.cpu_count() * (time.monotonic() - began)
    return answer | {'others_share': max(others, 0) / spent}

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()
    self._errors.close()


def run_engines(pythons: dict, request: dict, args) -> dict[str, list[dict]]:
  """Answers by engine: the warm-up's, then those of the rounds."""
  engines = [Engine(n, path, args.threads) for n, path in pythons.items()]
  answers = {engine.name: [] for engine in engines}
  try:
    for number in range(args.runs + 1):
      for engine in engines:
        answer = engine.ask(request)
        if answer:
          answers[engine.name].append(answer)
          what = f'run {number}' if number else 'warm-up'
          print(
            f'  {what} {engine.name}: {answer["seconds"]:.2f} s',
            file=sys.stderr, flush=True,
          )  # fmt: skip
  finally:
    for engine in engines:
      engine.close()
  return {n: a for n, a in answers.items() if len(a) == args.runs + 1}


def measure_machine(threads: int, rates: dict) -> None:
  """Raises `rates` to what the machine does now, where that is more."""
  process = start_module(sys.executable, 'rollout_roofline', threads)
  text, _ = process.communicate()
  if process.returncode:
    raise SystemExit(f'rollout_roofline ended with {process.returncode}')
  for key, new in json.loads(text).items():
    old = rates.setdefault(key, {})
    rates[key] = {name: max(old.get(name, 0), new[name]) for name in new}


def parse_arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--models', default=','.join(rollout_workloads.MODELS))
  parser.add_argument(
    '--workloads', default=','.join(rollout_workloads.WORKLOADS)
  )
  parser.add_argument('--runs', type=int, default=5)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument(
    '--max_tokens', type=int, default=rollout_workloads.MAX_TOKENS
  )
  parser.add_argument('--engines', default=','.join(ENGINES))
  parser.add_argument('--tunix_python')
  parser.add_argument('--transformers_python')
  parser.add_argument('--folder', help='keeps the models, for another time')
  parser.add_argument('--json', help='file for all runs')
  args = parser.parse_args()
  for flag, known in (
    ('models', rollout_workloads.MODELS),
    ('workloads', rollout_workloads.WORKLOADS),
    ('engines', ENGINES),
  ):
    for name in getattr(args, flag).split(','):
      if name not in known:
        parser.error(f'--{flag}: {name!r} is none of {", ".join(known)}')
  if not 1 <= args.max_tokens <= rollout_workloads.MAX_TOKENS:
    parser.error(
      f'--max_tokens={args.max_tokens} is not in 1 to'
      f' {rollout_workloads.MAX_TOKENS}'
    )
  return args


def main() -> None:
  args = parse_arguments()
  given = {'ours': sys.executable}
  for name in ('tunix', 'transformers'):
    given[name] = getattr(args, f'{name}_python')
    if not given[name]:
      print(f'{name} is left out: no --{name}_python')
  names = args.engines.split(',')
  pythons = {name: given[name.split('+')[0]] for name in names}
  pythons = {name: path for name, path in pythons.items() if path}
  results, rates = [], {}
  with tempfile.TemporaryDirectory() as work:
    for model in args.models.split(','):
      config = rollout_workloads.MODELS[model]
      folder = pathlib.Path(args.folder or work).absolute() / model
      rollout_workloads.write_model(folder, config)
      for workload in args.workloads.split(','):
        request = rollout_workloads.make_request(
          workload, folder, config, args.max_tokens
        )
        results.append(compare(pythons, request, args, model, workload, rates))
        if args.json:
          content = {'rates': rates, 'threads': args.threads, 'runs': results}
          pathlib.Path(args.json).write_text(json.dumps(content, indent=2))


def compare(pythons, request, args, model, workload, rates) -> dict:
  config = rollout_workloads.MODELS[model]
  lengths, size = request['lengths'], len(request['prompts'][0])
  print(
    f'{model} {workload}: {len(request["prompts"])} prompts of {size} tokens x'
    f' {request["group_size"]} rollouts of {min(lengths)} to {max(lengths)},'
    f' {sum(lengths)} tokens',
    flush=True,
  )
  measure_machine(args.threads, rates)
  answers = run_engines(pythons, request, args)
  summaries = {
    name: rollout_table.summarize(rows) for name, rows in answers.items()
  }
  least = rollout_roofline.roofline(request, config, rates)
  rollout_table.print_table(summaries)
  rollout_table.print_roofline(summaries, model, least, rates)
  return {
    'model': model, 'workload': workload, 'lengths': lengths,
    'prompt_tokens': size, 'roofline': dataclasses.asdict(least),
    'engines': {n: dataclasses.asdict(s) for n, s in summaries.items()},
  }  # fmt: skip


if __name__ == '__main__':
  main()
