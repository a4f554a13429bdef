"""Parameters read from GGUF files and Hugging Face safetensors folders.

  open_tensors(path, settings) -> Tensors
  tensors.read(param, shape)   -> float32 array of all layers

Tensors are read when asked for. Those of GGUF files are dequantized, which
takes up to a minute, and kept in a cache on disk.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import gguf
import gguf.quants
import numpy as np
import safetensors
import safetensors.numpy

from ogls_jax.errors import UserError
from ogls_jax.gguf_file import open_gguf, read_gguf_header
from ogls_jax.models import families
from ogls_jax.models.transformer import DecoderSettings

# Part of a cached folder's name: raise it when the stored layout changes.
_CACHE_VERSION = 1
_FLOATS = {'F64', 'F32', 'F16', 'BF16'}


def is_gguf(path: pathlib.Path) -> bool:
  """Whether a path that exists is a GGUF file; else it is a folder."""
  if path.is_file() and path.suffix != '.gguf':
    raise UserError(
      f'model.path = {path}: not a .gguf file; give one, or the folder that'
      ' holds config.json and *.safetensors'
    )
  return path.is_file()


def read_json(file: pathlib.Path) -> dict:
  """The JSON object in a file of a model's folder."""
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
class Tensors:
  """What a model's file or folder holds.

  Attributes:
    path: of the file or folder.
    is_gguf: which of the two names and layouts of `families.Weight` it has.
    settings: of the decoder whose parameters are read.
    table: how the model's family stores each parameter.
    shapes: by tensor name, as stored.
    get: reads one tensor as it is stored.
  """

  path: pathlib.Path
  is_gguf: bool
  settings: DecoderSettings
  table: dict[str, families.Weight]
  shapes: dict[str, tuple[int, ...]]
  get: Callable[[str], np.ndarray]

  def names(self, param: str) -> list[str]:
    """The tensors of one parameter: one, or one for each layer."""
    weight = self.table[param]
    pattern = weight.gguf if self.is_gguf else weight.hf
    if '{}' not in pattern:
      return [pattern]
    return [pattern.format(layer) for layer in range(self.settings.num_layers)]

  def parts(
    self, param: str, array: np.ndarray
  ) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor's name and what it fills: one layer of `array`, or all."""
    names = self.names(param)
    return zip(names, array if len(names) > 1 else [array], strict=True)

  def read(self, param: str, shape: tuple[int, ...]) -> np.ndarray:
    """One parameter of all layers, float32, in our layout."""
    if self.is_gguf:
      return _cached(self.path, param, shape, lambda: self._read(param, shape))
    return self._read(param, shape)

  def _read(self, param, shape):
    weight = self.table[param]
    array = np.empty(shape, np.float32)
    for name, part in self.parts(param, array):
      tensor = self.get(name)
      if self.is_gguf and weight.gguf_heads:
        num_heads = getattr(self.settings, weight.gguf_heads)
        tensor = families.unpermute_heads(tensor, num_heads)
      part[...] = tensor.T if weight.is_kernel else tensor
    return array


def open_tensors(path: pathlib.Path, settings: DecoderSettings) -> Tensors:
  """Opens the file or folder that `settings` were read from."""
  return (_open_gguf if is_gguf(path) else _open_folder)(path, settings)


def _open_gguf(file, settings):
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
  return Tensors(file, True, settings, table, header.tensors, get)


def _open_folder(folder, settings):
  index = folder / 'model.safetensors.index.json'
  if index.is_file():
    names = set(read_json(index).get('weight_map', {}).values())
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
  table = families.FAMILIES[read_json(folder / 'config.json')['model_type']]
  get = lambda name: homes[name].get_tensor(name)  # noqa: E731
  return Tensors(folder, False, settings, table, shapes, get)


def _cached(file, name, shape, read):
  """`read()`, kept in a safetensors file of its own.

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
  # Not cached yet, or cut off: read again.
  with contextlib.suppress(OSError, KeyError, safetensors.SafetensorError):
    array = safetensors.numpy.load_file(target)[name]
    if array.shape == shape and array.dtype == np.float32:
      return array
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
