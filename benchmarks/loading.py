"""Time and memory of loading a checkpoint: ours beside transformers'.

    pip install -r requirements-test.txt
    python -m benchmarks.loading

writes a checkpoint of Qwen2.5-0.5B's shape with random bfloat16 weights into a
temporary folder and loads it in fresh processes, alternating, with the file in
the page cache. A process reports the seconds from path to weights in memory,
imports excluded, and the growth of its peak resident memory. With
`--folder=DIR` it loads the checkpoint in DIR instead.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import rollout_workloads
from benchmarks.measure import resident_bytes

ENGINES = ('ours', 'transformers')
DTYPES = ('bfloat16', 'float32')
CONFIG = rollout_workloads.MODELS['qwen05b'] | {'torch_dtype': 'bfloat16'}


def load_ours(folder, dtype):
  import jax
  import jax.numpy as jnp

  from ogls_jax.mesh import single_device_mesh
  from ogls_jax.models import weights

  # A backend starts with its first array.
  jax.block_until_ready(jnp.zeros(1))
  yield
  decoder = weights.load_decoder(
    folder,
    mesh=single_device_mesh(),
    dtype=jnp.dtype(dtype),
    param_dtype=jnp.dtype(dtype),
  )
  yield jax.block_until_ready(decoder)


def load_transformers(folder, dtype):
  import torch
  import transformers

  transformers.utils.logging.disable_progress_bar()
  # Lazy: the class is imported with the first use.
  model_class = transformers.AutoModelForCausalLM
  transformers.AutoConfig.for_model('qwen2')
  from transformers.models.qwen2 import modeling_qwen2  # noqa: F401

  yield
  model = model_class.from_pretrained(folder, dtype=getattr(torch, dtype))
  # Files are mapped: touch every page, as a first use would.
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.sum()
  yield model


def measure(engine: str, folder: str, dtype: str) -> None:
  """Loads once in this process and prints what it took as JSON."""
  stages = {'ours': load_ours, 'transformers': load_transformers}[engine](
    folder, dtype
  )
  next(stages)
  before, began = resident_bytes('VmHWM'), time.monotonic()
  model = next(stages)
  seconds = time.monotonic() - began
  grown = resident_bytes('VmHWM') - before
  result = {'seconds': seconds, 'gib': grown / 2**30}
  del model
  print(json.dumps(result))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--folder')
  parser.add_argument('--runs', type=int, default=5)
  parser.add_argument('--one', help='engine,dtype: load once and report')
  args = parser.parse_args()
  if args.one:
    engine, dtype = args.one.split(',')
    measure(engine, args.folder, dtype)
    return
  with tempfile.TemporaryDirectory() as work:
    folder = args.folder
    if not folder:
      folder = work
      rollout_workloads.write_model(pathlib.Path(work), CONFIG)
    for dtype in DTYPES:
      compare(folder, dtype, args.runs)


def compare(folder: str, dtype: str, runs: int) -> None:
  results = {engine: [] for engine in ENGINES}
  for _ in range(runs):
    for engine in ENGINES:
      command = [
        sys.executable, '-m', 'benchmarks.loading', f'--folder={folder}',
        f'--one={engine},{dtype}',
      ]  # fmt: skip
      done = subprocess.run(command, capture_output=True, text=True, check=True)
      results[engine].append(json.loads(done.stdout.splitlines()[-1]))
  for engine, rows in results.items():
    seconds = [row['seconds'] for row in rows]
    print(
      f'{dtype} {engine}: {statistics.median(seconds):.2f} s'
      f' [{min(seconds):.2f}, {max(seconds):.2f}], peak'
      f' {statistics.median(row["gib"] for row in rows):.2f} GiB',
      flush=True,
    )
  for key in ('seconds', 'gib'):
    ratios = [
      ours[key] / theirs[key]
      for ours, theirs in zip(*results.values(), strict=True)
    ]
    print(
      f'{dtype} {key}: ours / transformers = {statistics.median(ratios):.2f}'
      f' [{min(ratios):.2f}, {max(ratios):.2f}]',
      flush=True,
    )


if __name__ == '__main__':
  main()
