"""The device mesh, and the one table from dim letter to mesh axis."""

import math

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ogls_jax.errors import UserError

AXES = ('data', 'fsdp', 'model')

# STYLE.md section 3 has the meaning of each letter. A letter that is missing
# here is an error, so that a misspelt suffix does not replicate in silence.
ROW_AXES = ('data', 'fsdp')  # B and R
ACTIVATION_AXES = {
  'B': ROW_AXES, 'R': ROW_AXES, 'G': None, 'M': None, 'P': None, 'T': None,
  'C': None, 'V': 'model', 'D': None, 'F': 'model', 'H': 'model', 'K': None,
  'L': None, '1': None,
}  # fmt: skip
WEIGHT_AXES = {
  'V': 'model', 'D': 'fsdp', 'F': 'model', 'H': 'model', 'K': None, 'L': None,
  'A': None, '1': None,
}  # fmt: skip

# While tokens are decoded the few activations move, not the weights: every
# device of `fsdp` holds columns of each matrix, sees all rows, and adds up.
# Gathering the weights for each token would take ten times as long.
_COLUMNS = ('model', 'fsdp')
_BY_COLUMN = {'V': _COLUMNS, 'F': _COLUMNS, 'H': _COLUMNS}
DECODING_ACTIVATION_AXES = (
  ACTIVATION_AXES | _BY_COLUMN | {'B': 'data', 'R': 'data'}
)
DECODING_WEIGHT_AXES = WEIGHT_AXES | _BY_COLUMN | {'D': None}

# Embeddings as they come out of a matrix that `fsdp` shares out by D. Without
# this stop XLA replicates them on meshes that have `data` as well.
_LOOKED_UP_AXES = ACTIVATION_AXES | {'B': 'data', 'D': 'fsdp'}

_DIM_NAMES = {
  'V': 'the vocabulary',
  'D': 'the model width',
  'F': 'the MLP width',
  'H': 'all heads',
}


def mesh_shape(num_devices: int, axis_sizes: dict[str, int]) -> dict[str, int]:
  """Sizes of `AXES`, with one -1 filled in; UserError if they do not fit."""
  sizes = {axis: axis_sizes[axis] for axis in AXES}
  text = ' x '.join(f'mesh.{axis} = {size}' for axis, size in sizes.items())
  free = [axis for axis, size in sizes.items() if size == -1]
  if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
    raise UserError(f'{text}: sizes are positive, and one may be -1')
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if free and num_devices % fixed == 0:
    sizes[free[0]] = num_devices // fixed
  elif free or fixed != num_devices:
    advice, rest = {}, num_devices
    for axis in ('model', 'fsdp', 'data'):
      advice[axis] = math.gcd(abs(sizes[axis]), rest)
      rest //= advice[axis]
    advice[free[0] if free else 'data'] = -1
    tries = ' '.join(f'mesh.{axis}={advice[axis]}' for axis in AXES)
    raise UserError(f'{text} does not fit {num_devices} device(s); try {tries}')
  return sizes


def make_mesh(axis_sizes: dict[str, int], devices=None) -> Mesh:
  """Mesh over `devices`, all if None; `axis_sizes` as in `mesh_shape`.

  Of several TPU slices `data` alone spans the network between them.

  Raises:
    UserError: the sizes do not fit the devices or the slices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = mesh_shape(len(devices), axis_sizes)
  axis_types = (AxisType.Auto,) * len(AXES)
  # Other platforms have slices too, but of any size that a user may mean.
  is_tpu = devices[0].platform == 'tpu'
  num_slices = len(
    {getattr(device, 'slice_index', 0) * is_tpu for device in devices}
  )
  # An axis may take a part of a torus dim, where whole ones do not make it up.
  options = {'allow_split_physical_axes': True}
  if num_slices == 1:
    grid = mesh_utils.create_device_mesh(
      tuple(sizes.values()), devices, **options
    )
    return Mesh(grid, AXES, axis_types=axis_types)
  if sizes['data'] % num_slices:
    raise UserError(
      f'mesh.data = {sizes["data"]} must be a multiple of the {num_slices}'
      ' slices, as only `data` may span the network between them; try mesh.data'
      f'={num_slices} mesh.fsdp=-1'
    )
  within = {**sizes, 'data': sizes['data'] // num_slices}
  grid = mesh_utils.create_hybrid_device_mesh(
    tuple(within.values()), (num_slices, 1, 1), devices, **options
  )
  return Mesh(grid, AXES, axis_types=axis_types)


def single_device_mesh() -> Mesh:
  """Mesh over the first device alone, for what does not pay to share."""
  devices = np.reshape(jax.devices()[:1], (1,) * len(AXES))
  return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _spec(dims: str, table: dict[str, tuple[str, ...] | str | None]):
  axes = []
  for letter in dims:
    if letter not in table:
      raise ValueError(f'dim letter {letter!r} of {dims!r} is not in the table')
    axes.append(table[letter])
  used = [
    axis
    for entry in axes
    if entry is not None
    for axis in ((entry,) if isinstance(entry, str) else entry)
  ]
  if len(used) != len(set(used)):
    raise ValueError(f'two dims of {dims!r} land on one mesh axis: {used}')
  return PartitionSpec(*axes)


def activation_spec(dims: str) -> PartitionSpec:
  """PartitionSpec of an activation or batch array with these dim letters."""
  return _spec(dims, ACTIVATION_AXES)


def weight_spec(dims: str) -> PartitionSpec:
  """PartitionSpec of a parameter with these dim letters."""
  return _spec(dims, WEIGHT_AXES)


def shard(
  array: jax.Array, dims: str, *, is_decoding: bool = False
) -> jax.Array:
  """Constrains an activation inside jit: `shard(logits_RTV, 'RTV')`.

  Needs `jax.set_mesh`; without a mesh (single-device tests) it does nothing.

  Args:
    array: any.
    dims: a letter for each of its dims.
    is_decoding: it meets weights that `place_for_decoding` has placed.

  Raises:
    ValueError: a letter is unknown, the rank differs, or two dims of the array
      land on the same mesh axis.
  """
  if array.ndim != len(dims):
    raise ValueError(f'{dims!r} names {len(dims)} dims, got {array.shape}')
  table = DECODING_ACTIVATION_AXES if is_decoding else ACTIVATION_AXES
  return _constrain(array, _spec(dims, table))


def shard_looked_up(x_BGTD: jax.Array) -> jax.Array:
  """Rows of an embedding, with rows on `data` and D as the matrix has it."""
  return _constrain(x_BGTD, _spec('BGTD', _LOOKED_UP_AXES))


def replicate(array: jax.Array) -> jax.Array:
  """The whole of it on every device, so that any host can read it."""
  return _constrain(array, PartitionSpec())


def _constrain(array, spec):
  if jax.sharding.get_abstract_mesh().empty:
    return array
  return jax.lax.with_sharding_constraint(array, spec)


def place_for_decoding(tree):
  """Weights laid out by column, inside jit: a tree of nnx.Variables.

  Where the devices do not divide the columns a weight stays as it is, and is
  gathered for every token.
  """
  mesh = jax.sharding.get_abstract_mesh()

  def placed(leaf):
    if not isinstance(leaf, nnx.Variable):
      return leaf
    dims, array = leaf.get_metadata()['dims'], leaf.get_value()
    spec = _spec(dims, DECODING_WEIGHT_AXES)
    if not _divides(mesh, array.shape, spec):
      spec = weight_spec(dims)
    return leaf.replace(jax.lax.with_sharding_constraint(array, spec))

  return jax.tree.map(
    placed, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
  )


def _divides(mesh, shape, spec) -> bool:
  def num(entry):
    axes = (entry,) if isinstance(entry, str) else entry or ()
    return math.prod(mesh.shape[axis] for axis in axes)

  return all(
    size % num(entry) == 0 for size, entry in zip(shape, spec, strict=True)
  )


def num_shards_of(*axes: str) -> int:
  """Over how many shards the current mesh spreads these axes together."""
  sizes = jax.sharding.get_abstract_mesh().shape
  return math.prod(sizes.get(axis, 1) for axis in axes)


def num_row_shards() -> int:
  """Over how many shards of the current mesh rows (B or R) are spread."""
  return num_shards_of(*ROW_AXES)


def num_row_shards_of(mesh: Mesh) -> int:
  """The same of a mesh."""
  return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def shardings_of(tree, mesh: Mesh):
  """NamedShardings of a tree of parameters, optimizer state or scalars.

  A variable's `dims` metadata says where it lives; anything else is replicated.

  Raises:
    UserError: a mesh axis does not divide the dim that it holds.
  """

  def sharding(leaf):
    if not isinstance(leaf, nnx.Variable):
      return NamedSharding(mesh, PartitionSpec())
    dims = leaf.get_metadata()['dims']
    spec = weight_spec(dims)
    for letter, size, axis in zip(dims, leaf.shape, spec, strict=True):
      if axis is not None and size % mesh.shape[axis]:
        raise UserError(
          f'mesh.{axis} = {mesh.shape[axis]} does not divide'
          f' {_DIM_NAMES[letter]}, {size}; choose a divisor of it'
        )
    return NamedSharding(mesh, spec)

  return jax.tree.map(
    sharding, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
  )
