"""The least time that a workload of `benchmarks/rollout.py` can take.

Run as a module it measures this machine with JAX and prints JSON: the rate
of float32 matrix products, the best of large squares and of R rows by the
models' matrices, and the memory bandwidth, the best of reading, of changing in
place and of copying to new memory, each the best of several repetitions. Beside
them it takes the matrix products of a decode step with R rows, by each model's
matrices and nothing else, as XLA runs them: what they take longer than the
roofline is not the sampler's to save.

A step of decoding takes at least the larger of its flops over that rate and
its bytes over that bandwidth. It does work for the rows that have not ended
only, reads every matrix once, the keys and values of a prompt once for all its
rollouts, and of a row its own; activations cost nothing.
"""

import dataclasses
import json
import time

from benchmarks import rollout_engine, rollout_workloads

_ROWS = 32
# Rows, inner size and columns of products.
_PRODUCTS = (
  (2048, 2048, 2048), (_ROWS, 576, 1536), (_ROWS, 576, 49_152),
  (_ROWS, 896, 4864), (_ROWS, 4864, 896), (_ROWS, 896, 151_936),
)  # fmt: skip
_COPIED_FLOATS = 1 << 27


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a run at the machine's best rates.

  Attributes:
    step_seconds: the mean step with all rows, and `limit` what bounds it.
    seconds: of reading the prompts once and of all steps.
  """

  step_seconds: float
  limit: str
  seconds: float


def _best_seconds(function, *arguments, repetitions=15, **options) -> float:
  """Of `function`, compiled; what is donated takes the last result's place."""
  import jax

  compiled = jax.jit(function, **options)
  times = []
  for _ in range(repetitions + 1):
    began = time.perf_counter()
    result = jax.block_until_ready(compiled(*arguments))
    times.append(time.perf_counter() - began)
    if options:
      arguments = (result,)
  return min(times[1:])


def _step_products(x_RD, layers, output_DV):
  for q, k, v, o, gate, up, down in layers:
    # Sums stand for attention and gating: every product is used.
    x_RD = (x_RD @ q + (x_RD @ k + x_RD @ v).sum()) @ o
    x_RD = (x_RD @ gate + x_RD @ up) @ down
  return x_RD @ output_DV


def _step_products_seconds(config: dict) -> float:
  """Of all matrix products of a decode step with R rows."""
  import jax.numpy as jnp

  width, inner = config['hidden_size'], config['intermediate_size']
  kv_width = (
    config['num_key_value_heads'] * width // config['num_attention_heads']
  )
  shapes = [
    (width, n) for n in (width, kv_width, kv_width, width, inner, inner)
  ]
  layers = [
    [jnp.ones(shape) for shape in (*shapes, (inner, width))]
    for _ in range(config['num_hidden_layers'])
  ]
  output_DV = jnp.ones((width, config['vocab_size']))
  return _best_seconds(
    _step_products, jnp.zeros((_ROWS, width)), layers, output_DV
  )


def measure() -> dict:
  """Rates of this machine, a second: flops, bytes, and steps' products."""
  import jax
  import jax.numpy as jnp

  flops = {}
  for rows, inner, columns in _PRODUCTS:
    keys = jax.random.split(jax.random.key(0))
    a = jax.random.normal(keys[0], (rows, inner))
    b = jax.random.normal(keys[1], (inner, columns))
    seconds = _best_seconds(jnp.matmul, a, b)
    name = f'[{rows} x {inner}] @ [{inner} x {columns}]'
    flops[name] = 2 * rows * inner * columns / seconds
  array = jnp.ones(_COPIED_FLOATS)
  moved = {
    'read': 4 * _COPIED_FLOATS / _best_seconds(jnp.sum, array),
    'copy': 8 * _COPIED_FLOATS / _best_seconds(jnp.copy, array),
    'change in place': 8
    * _COPIED_FLOATS
    / _best_seconds(lambda x: x + 1, array, donate_argnums=0),
  }
  products = {
    name: 1 / _step_products_seconds(config)
    for name, config in rollout_workloads.MODELS.items()
  }
  return {'flops': flops, 'bytes': moved, 'products': products}


def roofline(request: dict, config: dict, rates: dict) -> Roofline:
  """Of a request, with `rates` from `measure`."""
  rate, bandwidth = max(rates['flops'].values()), max(rates['bytes'].values())
  width, layers = config['hidden_size'], config['num_hidden_layers']
  kv_width = (
    config['num_key_value_heads'] * width // config['num_attention_heads']
  )
  layer_weights = layers * (
    2 * width * (width + kv_width) + 3 * width * config['intermediate_size']
  )
  weights = layer_weights + width * config['vocab_size']
  prompts, group_size = request['prompts'], request['group_size']
  lengths = request['lengths']

  def step(t):
    """(compute, memory) of the step that samples token t of a row."""
    attended = shared = num_active = 0
    for i, prompt in enumerate(prompts):
      group = lengths[i * group_size : (i + 1) * group_size]
      active = sum(t < length for length in group)
      num_active += active
      attended += active * (len(prompt) + t)
      shared += len(prompt) * bool(active)
    flops = 2 * weights * num_active + 4 * layers * width * attended
    cached = 2 * layers * kv_width * (shared + t * num_active)
    return flops / rate, 4 * (weights + cached) / bandwidth

  tokens = sum(len(p) for p in prompts)
  pairs = sum(len(p) ** 2 / 2 for p in prompts)
  read_flops = 2 * layer_weights * tokens + 4 * layers * width * pairs
  steps = [step(t) for t in range(max(lengths))]
  full = [step(t) for t in range(min(lengths))]
  compute, memory = (sum(part) / len(full) for part in zip(*full, strict=True))
  return Roofline(
    step_seconds=max(compute, memory),
    limit='compute' if compute > memory else 'memory',
    seconds=read_flops / rate + sum(max(*parts) for parts in steps),
  )


if __name__ == '__main__':
  rollout_engine.set_threads(rollout_engine.parse_threads())
  print(json.dumps(measure()))
