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


def open_gguf(file: pathlib.Path) -> gguf.GGUFReader:
  """Opens a GGUF file, whose tensors are then read on demand."""
  try:
    return gguf.GGUFReader(file)
  # A damaged file fails anywhere in the parser, with any exception.
  except Exception as error:
    raise UserError(
      f'model.path or model.tokenizer_path = {file}: not a readable GGUF file'
      f' ({error})'
    ) from error


def read_gguf_header(file: pathlib.Path) -> GgufHeader:
  """The header, kept for the last file: parsing a vocabulary takes seconds."""
  stat = os.stat(file)
  return _read_gguf_header(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)
def _read_gguf_header(file, mtime_ns, size):
  del mtime_ns, size  # only part of the cache's key
  reader = open_gguf(file)
  fields = {name: field.contents() for name, field in reader.fields.items()}
  shapes = {
    tensor.name: tuple(int(size) for size in reversed(tensor.shape))
    for tensor in reader.tensors
  }
  return GgufHeader(fields, shapes)
