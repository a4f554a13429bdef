"""Writes a run's model for other tools.

  python -m ogls_jax.export --workdir=RUN --format=merged --out=DIR
  python -m ogls_jax.export --workdir=RUN --format=adapter --out=DIR

merged: all weights, adapters added in, as transformers reads them: safetensors
(sharded, with an index, where large), config and tokenizer. adapter: the LoRA
matrices alone, as peft reads them, for the model that the run began with.
"""

import os
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

import ogls_jax
from ogls_jax import cli
from ogls_jax.errors import UserError
from ogls_jax.json_file import read_json, save_json
from ogls_jax.mesh import single_device_mesh
from ogls_jax.models.families import FAMILIES
from ogls_jax.models.hf_config import config_from_settings, read_config
from ogls_jax.models.locate import resolve_model_path, split_hub_name
from ogls_jax.models.quantize import dequantize
from ogls_jax.models.shards import (
  MAX_SHARD_BYTES,
  save_tensors,
  write_shards,
)
from ogls_jax.runs import TrainedRun, load_run

FORMATS = ('merged', 'adapter')
DTYPES = ('', 'float32', 'bfloat16')


def export(
  workdir: pathlib.Path,
  out: pathlib.Path,
  *,
  export_format: str,
  step: int | None = None,
  dtype: str = '',
  base: str = '',
  max_shard_bytes: int = MAX_SHARD_BYTES,
) -> TrainedRun:
  """Writes the model of the run in `workdir` into the folder `out`.

  Args:
    workdir: of a run, finished or not.
    out: absent or empty; it appears when it is complete.
    export_format: one of `FORMATS`.
    step: of a checkpoint that is kept, None for the newest; 0 is the model the
      run began with (after its stage 1).
    dtype: of merged weights, '' for the run's model.param_dtype. An adapter is
      float32, as it was trained.
    base: what the adapter names as its base; '' for the run's model.path.
    max_shard_bytes: of a safetensors file.

  Raises:
    UserError: there is no such run or step, `out` is in use, or the format
      cannot hold this model.
  """
  _check_choice('format', export_format, FORMATS)
  _check_choice('dtype', dtype, DTYPES)
  for name, value, wanted in (
    ('base', base, 'adapter'), ('dtype', dtype, 'merged'),
  ):  # fmt: skip
    if value and export_format != wanted:
      raise UserError(f'--{name}={value} is of --format={wanted}; leave it out')
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise UserError(f'--out={out} is there already; name another folder')
  run = load_run(
    workdir, single_device_mesh(), step=step, flag=f'--workdir={workdir}'
  )
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix='.export') as work:
      folder = pathlib.Path(work) / 'new'
      folder.mkdir()
      if export_format == 'merged':
        _write_merged(run, folder, dtype, max_shard_bytes)
      else:
        _write_adapter(run, folder, base)
      save_json(folder / 'ogls_jax.json', _origin(run, workdir, base))
      if out.exists():
        out.rmdir()
      os.replace(folder, out)
  except OSError as error:
    raise UserError(f'--out={out} cannot be written ({error})') from error
  return run


def _check_choice(name, value, choices):
  if value not in choices:
    known = ', '.join(repr(choice) for choice in choices)
    raise UserError(f'--{name}={value} is none of: {known}')


def _origin(run, workdir, base):
  """What made the files, so that an adapter does not meet another base."""
  return {
    'ogls_jax': ogls_jax.__version__,
    'workdir': str(workdir),
    'step': run.step,
    'method': run.config.method,
    'base': base or run.config.model.path,
    'quantize': run.config.model.quantize,
    'has_stage_1': run.config.warmup.num_steps > 0,
  }


def _write_merged(run, folder, dtype, max_bytes):
  # First, since a tokenizer may have no form that other tools read.
  run.tokenizer.save(folder)
  dtype = jnp.dtype(dtype or run.config.model.param_dtype)
  table = FAMILIES[run.settings.family].weights
  arrays = _arrays(run)
  places, num_bytes = {}, {}
  params = [
    name for name in arrays if not name.endswith(('lora_a', 'lora_b', '_scale'))
  ]
  for param in params:
    is_stack = param.startswith('layers.')
    size = int(np.prod(arrays[param].shape[1 if is_stack else 0 :]))
    for layer in range(run.settings.num_layers if is_stack else 1):
      name = table[param].hf.format(layer)
      places[name] = (param, layer if is_stack else ...)
      num_bytes[name] = size * dtype.itemsize

  def read(name):
    param, layer = places[name]
    array = _merged(run, arrays, param, layer).astype(dtype)
    return array.T if table[param].is_kernel else array

  write_shards(
    folder, dict(sorted(num_bytes.items())), read, max_bytes=max_bytes
  )
  source = _source_folder(run)
  save_json(folder / 'config.json', _config(run, source, dtype))
  save_json(folder / 'generation_config.json', _generation_config(run, source))


def _arrays(run) -> dict[str, nnx.Variable]:
  """All arrays of the student by name; those of layers are stacked."""
  student = nnx.merge(
    run.student.graphdef, run.student.params, run.student.frozen
  )
  return {
    '.'.join(path): variable
    for path, variable in nnx.to_flat_state(nnx.state(student))
  }


def _merged(run, arrays, param, layer) -> np.ndarray:
  """A layer's part of a parameter, dequantized and with its adapter added in.

  In float32 where there is an adapter: a bfloat16 sum loses small updates.
  """
  array = arrays[param][layer]
  linear, _, part = param.rpartition('.')
  if part == 'kernel' and f'{linear}.kernel_scale' in arrays:
    codes_scale = arrays[f'{linear}.kernel_scale'][layer]
    array = dequantize(array, codes_scale, run.config.model.quantize)
  array = np.asarray(array)
  if part == 'kernel' and f'{linear}.lora_a' in arrays:
    a, b = (
      np.asarray(arrays[f'{linear}.{name}'][layer])
      for name in ('lora_a', 'lora_b')
    )
    scale = run.config.lora.alpha / run.config.lora.rank
    array = array.astype(np.float32) + scale * (a @ b)
  return array


def _source_folder(run) -> pathlib.Path | None:
  """The Hugging Face folder that the run began with, if it did."""
  if not run.config.model.path:
    return None
  path = resolve_model_path(run.config.model.path)
  return path if path.is_dir() else None


def _config(run, source, dtype):
  """config.json: that of the source where it describes these weights."""
  config = read_config(source) if source else {}
  if config.get('model_type') not in FAMILIES:
    config = config_from_settings(run.settings)
    config['eos_token_id'] = list(run.tokenizer.eos_ids)
    # Else transformers fills in those of the first models of the family.
    config['bos_token_id'] = config['pad_token_id'] = None
  # By the names that transformers 5 and 4 read.
  return config | {'dtype': dtype.name, 'torch_dtype': dtype.name}


def _generation_config(run, source):
  """Which ids end a response, so that other tools stop where ours does."""
  config = None
  if source:
    file = source / 'generation_config.json'
    config = read_json(file, flag=f'model.path = {source}')
  return (config or {}) | {'eos_token_id': list(run.tokenizer.eos_ids)}


def _write_adapter(run, folder, base):
  """In float32, as it was trained, in one file."""
  arrays = _arrays(run)
  linears = [
    name.removesuffix('.lora_a') for name in arrays if name.endswith('lora_a')
  ]
  if not linears:
    raise UserError(
      '--format=adapter: the run trains all weights (lora.rank = 0) and has no'
      ' adapter; use --format=merged'
    )
  table = FAMILIES[run.settings.family].weights
  tensors, targets = {}, set()
  for linear in linears:
    stem = table[f'{linear}.kernel'].hf.removesuffix('.weight')
    targets.add(stem.rpartition('.')[2])
    for layer in range(run.settings.num_layers):
      prefix = f'base_model.model.{stem.format(layer)}'
      for part, theirs in (('lora_a', 'lora_A'), ('lora_b', 'lora_B')):
        array = np.asarray(arrays[f'{linear}.{part}'][layer])
        tensors[f'{prefix}.{theirs}.weight'] = np.ascontiguousarray(array.T)
  save_tensors(tensors, folder / 'adapter_model.safetensors')
  name, revision = _named_base(base) if base else _base_of(run)
  config = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': name,
    'revision': revision,
    'r': run.config.lora.rank,
    'lora_alpha': run.config.lora.alpha,
    'lora_dropout': 0.0,
    'target_modules': sorted(targets),
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }
  save_json(folder / 'adapter_config.json', config)
  run.tokenizer.save(folder)


def _named_base(base):
  """As `_base_of`, of what --base says."""
  if base.startswith('hub:'):
    return split_hub_name(base, key='--base')
  if not (pathlib.Path(base) / 'config.json').is_file():
    raise UserError(
      f'--base={base}: no folder with a config.json; give the folder of a model'
      ' or hub:OWNER/NAME'
    )
  return str(pathlib.Path(base).absolute()), None


def _base_of(run) -> tuple[str, str | None]:
  """(name or folder, revision) that peft can load the run's base from."""
  path = run.config.model.path
  source = _source_folder(run)
  is_theirs = source and read_config(source).get('model_type') in FAMILIES
  if not is_theirs or run.config.warmup.num_steps:
    raise UserError(
      '--format=adapter: no folder or repository holds the weights that this'
      f' run began with (model.path = {path!r}, warmup.num_steps ='
      f' {run.config.warmup.num_steps}); write them with --step=0'
      ' --format=merged, then give that folder in --base'
    )
  return _named_base(path if path.startswith('hub:') else str(source))


def main() -> None:
  """Reads the flags and exports."""
  values = flags.FLAGS
  step = None if values.step < 0 else values.step
  run = export(
    pathlib.Path(values.workdir),
    pathlib.Path(values.out),
    export_format=values.format,
    step=step,
    dtype=values.dtype,
    base=values.base,
  )
  print(f'wrote step {run.step} of {values.workdir} to {values.out}')


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, 'A run.', required=True)
  flags.DEFINE_integer(
    'step', -1, 'Of a checkpoint; -1: newest, 0: the base.', lower_bound=-1
  )
  flags.DEFINE_string('format', 'merged', 'merged or adapter.')
  flags.DEFINE_string('out', None, 'A new folder.', required=True)
  flags.DEFINE_string('dtype', '', "Of merged weights; empty: the run's own.")
  flags.DEFINE_string('base', '', 'What an adapter names as its base.')
  cli.run(main)
