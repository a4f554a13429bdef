"""What the engines of `benchmarks/rollout.py` share; standard library only.

An engine is a process with its own interpreter. It reads requests from stdin,
one JSON object a line,

    {"model": folder, "prompts": [[ids]], "group_size": G, "lengths": [R ints],
     "temperature": t, "top_p": p, "top_k": k, "seed": s}

where R = prompts x G rows are in the order of the prompts and row r gets
`lengths[r]` tokens, and answers each with one line:

    seconds              from prompts in lists to sampled ids on the host
    first_token_seconds  the same with one token a row: a run of its own
    tokens               sum of `lengths`
    peak_bytes           peak resident memory of the process so far
    compile_seconds      first run of this shape minus the second; then 0
    versions             of the libraries

The first request for a shape runs twice, and the second run is the answer.
With `"tokens_out": true` the sampled ids are added as "rows", and temperature 0
is greedy: both for checks.
"""

import argparse
import json
import os
import sys
import time

from benchmarks.measure import resident_bytes


def parse_threads() -> int:
  parser = argparse.ArgumentParser()
  parser.add_argument('--threads', type=int, default=2)
  return parser.parse_args().threads


def set_threads(number: int) -> None:
  """Before any library starts its threads."""
  # XLA's pool on CPUs has a thread for each CPU that the process may run on.
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])
  os.environ['OMP_NUM_THREADS'] = str(number)


def timed(engine, request: dict, lengths: list[int]) -> tuple[float, list]:
  began = time.monotonic()
  rows = engine.generate(request, lengths)
  seconds = time.monotonic() - began
  pairs = list(zip(rows, lengths, strict=True))
  for row, length in pairs:
    assert len(row) >= length, (len(row), length)
  return seconds, [row[:length] for row, length in pairs]


def answer(engine, request: dict, warm: set) -> dict:
  """Runs one request, and warms up where its shape is new."""
  lengths = request['lengths']
  runs = [lengths, [1] * len(lengths)]
  sizes = [len(prompt) for prompt in request['prompts']]
  seconds, compile_seconds = [], []
  for run in runs:
    shape = json.dumps([sizes, request['group_size'], lengths, run])
    cold = 0 if shape in warm else timed(engine, request, run)[0]
    warm.add(shape)
    took, rows = timed(engine, request, run)
    seconds.append(took)
    compile_seconds.append(cold and cold - took)
    if run is lengths:
      tokens = [[int(token) for token in row] for row in rows]
  result = {
    'seconds': seconds[0],
    'first_token_seconds': seconds[1],
    'tokens': sum(lengths),
    'peak_bytes': resident_bytes('VmHWM'),
    'compile_seconds': compile_seconds[0],
    'versions': engine.versions,
  }
  if request.get('tokens_out'):
    result['rows'] = tokens
  return result


def serve(make_engine) -> None:
  """Answers stdin's requests with `make_engine(folder)`, loaded on demand."""
  threads = parse_threads()
  set_threads(threads)
  # Whatever a library prints goes to stderr.
  out = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  engine = folder = None
  warm = set()
  for line in sys.stdin:
    request = json.loads(line)
    if request['model'] != folder:
      engine, folder = None, request['model']  # frees the last one first
      engine = make_engine(folder, threads)
      warm.clear()
    print(json.dumps(answer(engine, request, warm)), file=out, flush=True)
