"""Models, prompts and lengths of `benchmarks/rollout.py`: random, fixed."""

import json
import math
import pathlib

import numpy as np

from ogls_jax.models import shards

_COMMON = {
  'hidden_act': 'silu', 'tie_word_embeddings': True, 'torch_dtype': 'float32',
  'attention_bias': False, 'mlp_bias': False, 'bos_token_id': None,
  'eos_token_id': None,
}  # fmt: skip
MODELS = {
  'smollm2': _COMMON | {
    'model_type': 'llama', 'architectures': ['LlamaForCausalLM'],
    'vocab_size': 49_152, 'hidden_size': 576, 'num_hidden_layers': 30,
    'num_attention_heads': 9, 'num_key_value_heads': 3,
    'intermediate_size': 1536, 'rms_norm_eps': 1e-5, 'rope_theta': 1e5,
    'max_position_embeddings': 8192,
  },
  'qwen05b': _COMMON | {
    'model_type': 'qwen2', 'architectures': ['Qwen2ForCausalLM'],
    'vocab_size': 151_936, 'hidden_size': 896, 'num_hidden_layers': 24,
    'num_attention_heads': 14, 'num_key_value_heads': 2,
    'intermediate_size': 4864, 'rms_norm_eps': 1e-6, 'rope_theta': 1e6,
    'max_position_embeddings': 32_768,
  },
}  # fmt: skip
WORKLOADS = {
  'a': 'prompts of 64 tokens, every rollout of 256',
  'b': 'prompts of 64 tokens, rollouts of 8 to 256, a long tail',
  'c': 'prompts of 1,024 tokens, every rollout of 256',
}
SAMPLING = {'temperature': 1.1, 'top_p': 0.95, 'top_k': 20}
NUM_PROMPTS, GROUP_SIZE, MAX_TOKENS = 4, 8, 256


def weight_shapes(config: dict) -> dict[str, tuple[int, ...]]:
  """As Hugging Face names and stores the tensors."""
  from flax import nnx

  from ogls_jax.models import families, hf_config, transformer

  settings = hf_config.settings_from_config(config, pathlib.Path())
  decoder = nnx.eval_shape(
    lambda: transformer.Decoder(settings, rngs=nnx.Rngs(0))
  )
  shapes = {}
  for path, variable in nnx.to_flat_state(nnx.state(decoder)):
    weight = families.FAMILIES[config['model_type']].weights['.'.join(path)]
    shape = variable.shape
    if '{}' not in weight.hf:
      shapes[weight.hf] = shape
      continue
    for layer in range(settings.num_layers):
      own = shape[1:][::-1] if weight.is_kernel else shape[1:]
      shapes[weight.hf.format(layer)] = own
  return shapes


def write_model(folder: pathlib.Path, config: dict) -> None:
  """Random weights of the config's dtype, unless the folder has them already.

  A matrix keeps the variance of what it reads, so that attention looks at some
  places more than at others, and an error in a position shows.
  """
  text = json.dumps(config, indent=2)
  file = folder / 'config.json'
  if file.is_file() and file.read_text() == text:
    return
  folder.mkdir(parents=True, exist_ok=True)
  shapes, dtype = weight_shapes(config), np.dtype(config['torch_dtype'])
  rng = np.random.default_rng(0)

  def draw(name):
    shape = shapes[name]
    values = rng.standard_normal(shape, np.float32)
    if len(shape) == 2:
      values *= np.float32(shape[1] ** -0.5)
    else:
      values = np.float32(0.1) * values + np.float32('norm' in name)
    return values.astype(dtype)

  size = dtype.itemsize
  sizes = {name: size * math.prod(shape) for name, shape in shapes.items()}
  shards.write_shards(folder, sizes, draw)
  file.write_text(text)


def long_tail(rows: int) -> list[int]:
  """Lengths of rows: log-normal, median 72, the longest `MAX_TOKENS`."""
  draws = np.random.default_rng(0).lognormal(np.log(72), 0.7, rows)
  lengths = np.clip(draws.round().astype(int), 8, MAX_TOKENS)
  lengths[lengths.argmax()] = MAX_TOKENS
  return lengths.tolist()


def make_request(workload: str, folder, config: dict, max_tokens: int) -> dict:
  """The request of a workload; see `rollout_engine.py`.

  Args:
    workload: of `WORKLOADS`.
    folder: of the model.
    config: of the model.
    max_tokens: what is longer is cut, `MAX_TOKENS` for none.
  """
  size = 1024 if workload == 'c' else 64
  rows = NUM_PROMPTS * GROUP_SIZE
  prompts = np.random.default_rng(1).integers(
    config['vocab_size'], size=(NUM_PROMPTS, size)
  )
  lengths = long_tail(rows) if workload == 'b' else [MAX_TOKENS] * rows
  return {
    'model': str(folder),
    'prompts': prompts.tolist(),
    'group_size': GROUP_SIZE,
    'lengths': [min(length, max_tokens) for length in lengths],
    'seed': 0,
    **SAMPLING,
  }
