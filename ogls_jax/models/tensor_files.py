"""Tensors of a model's GGUF file or Hugging Face folder, read on demand.

  open_tensors(path)        -> Tensors
  tensors.read(name, index) -> that part of one tensor

GGUF tensors are dequantized, which takes up to a minute, and kept in a cache on
disk: $OGLS_CACHE_DIR, by default ~/.cache/ogls_jax.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import gguf
import gguf.quants
import numpy as np

from ogls_jax.cache_dir import cache_dir
from ogls_jax.errors import UserError
from ogls_jax.gguf_file import open_gguf_tensors, read_gguf_header
from ogls_jax.models.hf_config import read_config
from ogls_jax.models.shards import (
  INDEX,
  Shards,
  open_shards,
  write_shards,
)

# Part of a cached folder's name: raise it when the stored layout changes.
_CACHE_VERSION = 2
# Parts of a Gemma 3 that sees images; ours reads text.
_VISION = (
  'vision_tower.', 'multi_modal_projector.', 'model.vision_tower.',
  'model.multi_modal_projector.',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tensors:
  """What a model's file or folder holds.

  Attributes:
    path: of the file or folder.
    is_gguf: which of the two names and layouts of `families.Weight` it has.
    shapes: by tensor name, as stored.
    read: (name, index) to that part of a tensor as stored; float32 for GGUF.
  """

  path: pathlib.Path
  is_gguf: bool
  shapes: dict[str, tuple[int, ...]]
  read: Callable[[str, tuple[slice, ...]], np.ndarray]


def is_gguf(path: pathlib.Path) -> bool:
  """Whether a path that exists is a GGUF file; else it is a folder."""
  if path.is_file() and path.suffix != '.gguf':
    raise UserError(
      f'model.path = {path}: not a .gguf file; give one, or the folder that'
      ' holds config.json and *.safetensors'
    )
  return path.is_file()


def open_tensors(path: pathlib.Path) -> Tensors:
  """Opens a GGUF file or a folder.

  Raises:
    UserError: a file is missing, damaged or not of floats.
  """
  return _open_gguf(path) if is_gguf(path) else _open_folder(path)


def _open_folder(folder):
  if (folder / 'adapter_config.json').is_file():
    raise UserError(
      f'model.path = {folder}: it holds an adapter; give a folder of merged'
      ' weights, without adapter_config.json'
    )
  if read_config(folder).get('model_type') != 'gemma3':
    shards = open_shards(folder)
    return Tensors(folder, False, shards.shapes, shards.read)
  logging.getLogger(__name__).warning(
    '%s: its text model is read, its image encoder is not', folder
  )
  shards = open_shards(folder, left_out=_VISION)
  # Under the names that the text model has on its own.
  stored = {_text_name(name): name for name in shards.shapes}
  return Tensors(
    folder,
    False,
    {new: shards.shapes[name] for new, name in stored.items()},
    lambda name, index: shards.read(stored[name], index),
  )


def _text_name(name):
  if name.startswith('model.language_model.'):
    return 'model.' + name.removeprefix('model.language_model.')
  return name.removeprefix('language_model.')


def read_gguf_tensor(file: pathlib.Path, name: str) -> np.ndarray:
  """One tensor of a GGUF file, dequantized to float32.

  Raises:
    UserError: its quantization is not supported.
  """
  tensor = open_gguf_tensors(file)[name]
  try:
    array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
  except NotImplementedError as error:
    raise UserError(
      f'model.path = {file}: tensor {name} is {tensor.tensor_type.name},'
      ' which cannot be dequantized; use another quantization'
    ) from error
  return array.astype(np.float32, copy=False)


def _open_gguf(file):
  shapes = read_gguf_header(file).tensors
  cached = _cached(file, shapes)
  if cached is not None:
    return Tensors(file, True, shapes, cached.read)
  return Tensors(
    file, True, shapes, lambda name, index: read_gguf_tensor(file, name)[index]
  )


def _cached(file, shapes) -> Shards | None:
  """All tensors of a GGUF file from the cache; None if it cannot be written.

  A cache that is damaged or of other shapes counts as absent.
  """
  stat = file.stat()
  identity = [
    _CACHE_VERSION, str(file.resolve()), stat.st_size, stat.st_mtime_ns
  ]  # fmt: skip
  digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
  folder = cache_dir() / f'{file.stem}-{digest}'
  if found := _open_cached(folder, shapes):
    return found
  logger = logging.getLogger(__name__)
  logger.warning('%s: dequantizing it, once, into %s', file, folder)
  num_bytes = {name: 4 * int(np.prod(shape)) for name, shape in shapes.items()}
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
      new = pathlib.Path(work) / 'new'
      new.mkdir()
      write_shards(new, num_bytes, lambda name: read_gguf_tensor(file, name))
      # Another process may have been faster; its files are in use.
      if not _open_cached(folder, shapes):
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(new, folder)
  except OSError as error:
    found = _open_cached(folder, shapes)
    if not found:
      logger.warning('%s: weights are not cached (%s)', folder, error)
    return found
  return _open_cached(folder, shapes)


def _open_cached(folder, shapes):
  if not any(
    (folder / name).is_file() for name in (INDEX, 'model.safetensors')
  ):
    return None
  try:
    shards = open_shards(folder)
  except UserError:
    return None
  return shards if shards.shapes == shapes else None
