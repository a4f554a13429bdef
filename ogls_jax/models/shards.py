"""Safetensors files of a model: read by tensor, written in shards."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ogls_jax.errors import UserError
from ogls_jax.json_file import read_json, save_json

INDEX = 'model.safetensors.index.json'
# One shard is held in memory while it is written.
MAX_SHARD_BYTES = 1 << 30
_FLOATS = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(jnp.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class Shards:
  """The tensors of a folder's safetensors files.

  Attributes:
    shapes: by tensor name.
    places: the arguments of `np.memmap` for each tensor.
  """

  shapes: dict[str, tuple[int, ...]]
  places: dict[str, dict]

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """Part of a tensor, in its stored dtype.

    A view of the file: what is used of it is fetched, and memory that it took
    is free again when the view is gone.
    """
    return np.asarray(np.memmap(**self.places[name], mode='r')[index])


def open_shards(
  folder: pathlib.Path, *, left_out: tuple[str, ...] = ()
) -> Shards:
  """Opens what the folder's index names, or its only safetensors file.

  Args:
    folder: of a model.
    left_out: beginnings of the names of tensors that are not looked at.

  Raises:
    UserError: a file is missing or damaged, holds other than floats, or what
      another one holds.
  """
  places = {}
  for file in _files(folder):
    new = _places(file, left_out)
    for name in new.keys() & places.keys():
      raise UserError(
        f'model.path = {file}: tensor {name} is in another file of the folder'
        ' too; fetch the folder again'
      )
    places |= new
  return Shards({name: p['shape'] for name, p in places.items()}, places)


def _places(file, left_out):
  """Where each tensor of one file lies."""
  try:
    with safetensors.safe_open(file, 'np') as opened:  # checks all of it
      names = list(opened.keys())
    # The library would copy each tensor, which takes as long as the rest.
    with file.open('rb') as stream:
      num_bytes = int.from_bytes(stream.read(8), 'little')
      header = json.loads(stream.read(num_bytes))
  except (OSError, ValueError, safetensors.SafetensorError) as error:
    raise UserError(
      f'model.path = {file}: not a readable safetensors file ({error}); fetch'
      ' it again'
    ) from error
  places = {}
  for name in names:
    if name.startswith(left_out):
      continue
    kind = header[name]['dtype']
    if kind not in _FLOATS:
      raise UserError(
        f'model.path = {file}: tensor {name} is {kind}; supported are'
        f' {", ".join(sorted(_FLOATS))}'
      )
    places[name] = {
      'filename': file,
      'dtype': _FLOATS[kind],
      'offset': 8 + num_bytes + header[name]['data_offsets'][0],
      'shape': tuple(header[name]['shape']),
    }
  return places


def _files(folder):
  index = folder / INDEX
  content = read_json(index, flag=f'model.path = {folder}')
  if content is not None:
    homes = content.get('weight_map')
    names = list(homes.values()) if isinstance(homes, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
      raise UserError(f'model.path = {index}: it has no weight_map of files')
    if (folder / 'model.safetensors').is_file() and (
      'model.safetensors' not in names
    ):
      raise UserError(
        f'model.path = {folder}: it holds model.safetensors and {INDEX} of'
        ' other files; remove one of the two models'
      )
    names = set(names)
    for name in sorted(names):
      if pathlib.Path(name).name != name or not (folder / name).is_file():
        raise UserError(
          f'model.path = {folder}: {INDEX} names {name!r}, which is not there;'
          ' fetch it'
        )
    return [folder / name for name in sorted(names)]
  if (folder / 'model.safetensors').is_file():
    return [folder / 'model.safetensors']
  files = sorted(folder.glob('*.safetensors'))
  if len(files) != 1:
    raise UserError(
      f'model.path = {folder}: {len(files)} .safetensors files and no {INDEX};'
      ' one file or an index is needed (pickled weights are never read)'
    )
  return files


def save_tensors(tensors: dict[str, np.ndarray], file: pathlib.Path) -> None:
  """One safetensors file that other tools accept."""
  try:
    # transformers refuses a file that does not say who wrote it.
    safetensors.numpy.save_file(tensors, file, {'format': 'pt'})
  except safetensors.SafetensorError as error:  # a full disk is one, too
    raise OSError(str(error)) from error
  file.chmod(0o644)  # the library leaves it to its owner alone


def write_shards(
  folder: pathlib.Path,
  num_bytes: dict[str, int],
  read: Callable[[str], np.ndarray],
  *,
  max_bytes: int = MAX_SHARD_BYTES,
) -> None:
  """Writes tensors as transformers names them: one file, or shards and index.

  Args:
    folder: exists.
    num_bytes: size of each tensor, in the order in which they are written.
    read: gives a tensor by name; asked for each once.
    max_bytes: of a shard, unless one tensor is larger.
  """
  groups, room = [], 0
  for name, size in num_bytes.items():
    if not groups or size > room:
      groups.append([])
      room = max_bytes
    groups[-1].append(name)
    room -= size
  homes = {}
  for number, names in enumerate(groups, 1):
    file = f'model-{number:05}-of-{len(groups):05}.safetensors'
    if len(groups) == 1:
      file = 'model.safetensors'
    tensors = {name: np.ascontiguousarray(read(name)) for name in names}
    save_tensors(tensors, folder / file)
    homes |= dict.fromkeys(names, file)
  if len(groups) > 1:
    content = {
      'metadata': {'total_size': sum(num_bytes.values())}, 'weight_map': homes
    }  # fmt: skip
    save_json(folder / INDEX, content)
