"""What decoding keeps: keys and values of prefixes and of continuations."""

import dataclasses
import functools

import jax


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['key_LBHKP', 'value_LBHPK', 'length_B'],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Prefix:
  """Keys and values of B prefixes; entries at or past length_B are ignored.

  Stacked, or tuples of L arrays.
  """

  key_LBHKP: jax.Array | tuple[jax.Array, ...]
  value_LBHPK: jax.Array | tuple[jax.Array, ...]
  length_B: jax.Array

  @property
  def num_slots(self) -> int:
    """P, padding included."""
    return jax.tree.leaves(self.key_LBHKP)[0].shape[-1]

  def unstacked(self) -> 'Prefix':
    """The same with tuples."""
    key, value = tuple(self.key_LBHKP), tuple(self.value_LBHPK)
    return Prefix(key, value, self.length_B)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['key_LBHGKT', 'value_LBHGTK', 'length', 'earlier'],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class OwnCache:
  """Keys and values of each continuation's own first `length` tokens.

  Stacked, or tuples of L arrays. A stack gets more room as another part: at
  their longest two sizes of a cache would not fit a device at once.

  Attributes:
    key_LBHGKT: of the newest part, the only one that is written.
    value_LBHGTK: likewise.
    length: tokens of all parts.
    earlier: (key_LBHGKT, value_LBHGTK) of the parts before, full.
  """

  key_LBHGKT: jax.Array | tuple[jax.Array, ...]
  value_LBHGTK: jax.Array | tuple[jax.Array, ...]
  length: jax.Array
  earlier: tuple = ()

  @property
  def starts(self) -> tuple[int, ...]:
    """The first token of each part, the newest last."""
    sizes = [key.shape[-1] for key, _ in self.earlier]
    return tuple(int(sum(sizes[:n])) for n in range(len(sizes) + 1))

  @property
  def num_slots(self) -> int:
    """T of all parts, room for later tokens included."""
    newest = jax.tree.leaves(self.key_LBHGKT)[0].shape[-1]
    return self.starts[-1] + newest

  @property
  def is_stacked(self) -> bool:
    """Whether all layers share an array."""
    return not isinstance(self.key_LBHGKT, tuple)

  def with_room(self, key, value) -> 'OwnCache':
    """Grown by another part, or, where layers are tuples, by longer arrays."""
    if not self.is_stacked:
      return OwnCache(key, value, self.length)
    full = (self.key_LBHGKT, self.value_LBHGTK)
    return OwnCache(key, value, self.length, (*self.earlier, full))

  def unstacked(self) -> 'OwnCache':
    """The same with tuples; of a cache with one part."""
    key, value = tuple(self.key_LBHGKT), tuple(self.value_LBHGTK)
    return OwnCache(key, value, self.length)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['layers', 'unembedding_DV'],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Unstacked:
  """A copy of the weights as products of few rows on a CPU read them best."""

  layers: tuple  # L states of one layer
  unembedding_DV: jax.Array


def write(into, kv, start):
  """(key, value) with those of new tokens at `start`."""
  put = functools.partial(
    jax.lax.dynamic_update_slice_in_dim, start_index=start
  )
  (key, value), (new_key, new_value) = into, kv
  return (
    put(key, new_key, axis=key.ndim - 1),
    put(value, new_value, axis=value.ndim - 2),
  )
