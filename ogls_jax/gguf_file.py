"""GGUF files: the container of a model, its tokenizer or both."""

import dataclasses
import functools
import os
import pathlib

import gguf

from ogls_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class GgufHeader:
  """What a GGUF file says before its data.

  `tensors` has each one's shape in numpy's order, which GGUF reverses.
  """

  fields: dict[str, object]
  tensors: dict[str, tuple[int, ...]]


def read_gguf_header(file: pathlib.Path) -> GgufHeader:
  """The header, kept for the last file: parsing a vocabulary takes seconds."""
  return _read(*_state(file))[0]


def open_gguf_tensors(file: pathlib.Path) -> dict[str, gguf.ReaderTensor]:
  """Its tensors by name; their data is read when used."""
  return _read(*_state(file))[1]


def _state(file):
  stat = os.stat(file)
  return file, stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=1)
def _read(file, mtime_ns, size):
  del mtime_ns, size  # only part of the cache's key
  try:
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
  # A damaged file fails anywhere in the parser, with any exception.
  except Exception as error:
    raise UserError(
      f'model.path or model.tokenizer_path = {file}: not a readable GGUF file'
      f' ({error}); fetch it again'
    ) from error
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  shapes = {
    name: tuple(int(size) for size in reversed(tensor.shape))
    for name, tensor in tensors.items()
  }
  return GgufHeader(fields, shapes), tensors
