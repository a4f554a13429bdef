"""Decoders with the weights of GGUF files and Hugging Face folders.

read_settings(path)      -> DecoderSettings
load_decoder(path, ...)  -> Decoder with these weights, placed on a mesh
"""

import collections
import concurrent.futures
import functools
import mmap
import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ogls_jax.errors import UserError
from ogls_jax.gguf_file import read_gguf_header
from ogls_jax.mesh import shardings_of
from ogls_jax.models.families import FAMILIES, unpermute_heads
from ogls_jax.models.gguf_config import settings_from_gguf
from ogls_jax.models.hf_config import read_config, settings_from_config
from ogls_jax.models.locate import resolve_model_path
from ogls_jax.models.settings import DecoderSettings
from ogls_jax.models.tensor_files import (
  Tensors,
  is_gguf,
  open_tensors,
  read_gguf_tensor,
)
from ogls_jax.models.transformer import Decoder


def read_settings(path: str | os.PathLike) -> DecoderSettings:
  """The decoder's settings from a GGUF header or config.json."""
  path = resolve_model_path(path)
  if is_gguf(path):
    return settings_from_gguf(
      read_gguf_header(path), functools.partial(read_gguf_tensor, path), path
    )
  return settings_from_config(read_config(path), path)


def load_decoder(
  path: str | os.PathLike,
  *,
  mesh: Mesh,
  **options,
) -> Decoder:
  """A decoder with the file's weights, placed on the mesh.

  Parameters go to the devices shard by shard: a process reads of a folder what
  its devices hold, and its memory holds two shards and the tensors that fill
  them, never the model.

  Args:
    path: as in `resolve_model_path`.
    mesh: of the devices that share the weights.
    **options: dtype, param_dtype and others of `Decoder`.

  Raises:
    UserError: a tensor is missing, extra, misshapen or not finite, the file is
      damaged, or a mesh axis does not divide a dim.
  """
  path = resolve_model_path(path)
  settings = read_settings(path)

  def make():
    return Decoder(settings, **options, rngs=nnx.Rngs(0))

  graphdef, abstract = nnx.split(nnx.eval_shape(make))
  variables = {'.'.join(k): v for k, v in nnx.to_flat_state(abstract)}
  tensors = open_tensors(path)
  _check_tensors(
    tensors, settings, {name: v.shape for name, v in variables.items()}
  )
  loader = _Loader(tensors, settings, mesh)
  # Two at a time: one is read while the other goes to its devices.
  with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
    arrays = list(pool.map(loader.load, variables, variables.values()))
  params = nnx.from_flat_state(
    (tuple(name.split('.')), variable.replace(array))
    for (name, variable), array in zip(variables.items(), arrays, strict=True)
  )
  return nnx.merge(graphdef, params)


def _names(param, settings, is_gguf):
  """The tensors of one parameter: one, or one for each layer."""
  weight = FAMILIES[settings.family].weights[param]
  pattern = weight.gguf if is_gguf else weight.hf
  if '{}' not in pattern:
    return [pattern]
  return [pattern.format(layer) for layer in range(settings.num_layers)]


class _Loader:
  """Reads what each device holds of a parameter, and puts it there."""

  def __init__(self, tensors: Tensors, settings: DecoderSettings, mesh: Mesh):
    self._tensors = tensors
    self._settings = settings
    self._mesh = mesh

  def load(self, param: str, variable: nnx.Variable) -> jax.Array:
    """One parameter of all layers, in the variable's dtype and place."""
    sharding = shardings_of(variable, self._mesh)
    homes = collections.defaultdict(list)
    indices = sharding.addressable_devices_indices_map(variable.shape)
    for device, index in indices.items():
      bounds = [
        part.indices(size)[:2]
        for part, size in zip(index, variable.shape, strict=True)
      ]
      homes[tuple(bounds)].append(device)
    arrays = []
    for bounds, devices in homes.items():
      part = self._read(param, bounds, variable.dtype)
      arrays += jax.block_until_ready(
        [jax.device_put(part, d) for d in devices]
      )
    return jax.make_array_from_single_device_arrays(
      variable.shape, sharding, arrays
    )

  def _read(self, param, bounds, dtype):
    """The part of a parameter within `bounds`, (start, stop) by dim."""
    weight = FAMILIES[self._settings.family].weights[param]
    part = _new_array([stop - start for start, stop in bounds], dtype)
    names = _names(param, self._settings, self._tensors.is_gguf)
    is_stack = param.startswith('layers.')
    index = tuple(slice(*pair) for pair in bounds[1 if is_stack else 0 :])
    index = index[::-1] if weight.is_kernel else index
    for name, target in zip(names, part if is_stack else [part], strict=True):
      stored = self._read_tensor(weight, name, index)
      if not _copy(stored, target, is_transposed=weight.is_kernel):
        raise _bad_tensor(
          self._tensors, name, f'is not finite as {np.dtype(dtype)}'
        )
    return part

  def _read_tensor(self, weight, name, index):
    """Part of a tensor in Hugging Face's layout."""
    if not self._tensors.is_gguf:
      return self._tensors.read(name, index)
    if weight.gguf_heads:
      # Whole heads are needed to put their rows in order.
      everything = (slice(None),) * len(self._tensors.shapes[name])
      num_heads = getattr(self._settings, weight.gguf_heads)
      whole = self._tensors.read(name, everything)
      return unpermute_heads(whole, num_heads)[index]
    array = self._tensors.read(name, index)
    if weight.gguf_offset:
      return array - np.float32(weight.gguf_offset)
    return array


def _copy(source, target, *, is_transposed):
  """Casts and maybe transposes; returns whether the result is finite.

  On bits, which NumPy handles faster than bfloat16 and without holding up other
  threads, and by blocks of rows that fit a cache.
  """
  step = 64
  bits = target.view(f'u{target.itemsize}')
  infinity = np.array(np.inf, target.dtype).view(bits.dtype)
  is_finite = True
  for i in range(0, len(source), step):
    block = _bits_as(source[i : i + step], target.dtype)
    is_finite &= not ((block & infinity) == infinity).any()
    if is_transposed:
      bits[:, i : i + step] = block.T
    else:
      bits[i : i + step] = block
  return is_finite


def _bits_as(array, dtype):
  """The bits of an array as another dtype."""
  if array.dtype == jnp.bfloat16 and dtype == np.float32:
    return array.view(np.uint16).astype(np.uint32) << 16
  with np.errstate(over='ignore'):  # the caller looks for what overflows
    return array.astype(dtype, copy=False).view(f'u{dtype.itemsize}')


def _new_array(shape, dtype):
  """Fresh memory that starts at a page, which JAX on CPUs need not copy.

  NumPy would ask for huge pages; waiting for them took most of the time on a
  virtual machine.
  """
  num_bytes = int(np.prod(shape)) * dtype.itemsize
  memory = mmap.mmap(-1, num_bytes, access=mmap.ACCESS_COPY)  # of this process
  return np.frombuffer(memory, dtype).reshape(shape)


def _check_tensors(tensors, settings, shapes):
  """Every tensor is known, there, and of the shape the decoder needs."""
  table = FAMILIES[settings.family].weights
  expected = {}
  for param, shape in shapes.items():
    own = shape[1:] if param.startswith('layers.') else shape
    own = own[::-1] if table[param].is_kernel else own
    names = _names(param, settings, tensors.is_gguf)
    expected |= dict.fromkeys(names, own)
  for name, shape in expected.items():
    if name not in tensors.shapes:
      raise _bad_tensor(tensors, name, 'is missing')
    if tensors.shapes[name] != shape:
      found = tensors.shapes[name]
      raise _bad_tensor(tensors, name, f'has shape {found}, expected {shape}')
  for name in tensors.shapes:
    if name == table['head'].hf and not tensors.is_gguf and settings.is_tied:
      _check_tied(tensors, name, table['embedding'].hf)
    # Old checkpoints store this function of rope_theta; GGUF stores that of
    # its scaling, which the settings have.
    elif name not in expected and not name.endswith(
      ('rotary_emb.inv_freq', 'rope_freqs.weight')
    ):
      raise _bad_tensor(tensors, name, 'has no place in this decoder')


def _check_tied(tensors, head, embedding):
  """A stored copy of a tied matrix must be one, block by block of rows."""
  rows, step = tensors.shapes[head][0], 8192
  same = tensors.shapes[head] == tensors.shapes[embedding]
  for start in range(0, rows if same else 0, step):
    index = (slice(start, min(start + step, rows)), slice(None))
    # Bytes: bfloat16 compares slowly, and nan is to be found as nan.
    ours, theirs = (
      np.ascontiguousarray(tensors.read(name, index)).view(np.uint8)
      for name in (head, embedding)
    )
    same = same and np.array_equal(ours, theirs)
  if not same:
    raise _bad_tensor(
      tensors,
      head,
      f'is not {embedding}, though tie_word_embeddings is true in config.json',
    )


def _bad_tensor(tensors, name, problem):
  return UserError(
    f'model.path = {tensors.path}: tensor {name} {problem}; give the weights'
    ' that belong to its settings'
  )
