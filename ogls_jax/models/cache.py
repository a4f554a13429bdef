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
  data_fields=['key_LBHGKT', 'value_LBHGTK', 'length'],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class OwnCache:
  """Keys and values of each continuation's own first `length` tokens.

  Stacked, or tuples of L arrays.
  """

  key_LBHGKT: jax.Array | tuple[jax.Array, ...]
  value_LBHGTK: jax.Array | tuple[jax.Array, ...]
  length: jax.Array

  @property
  def num_slots(self) -> int:
    """T, room for later tokens included."""
    return jax.tree.leaves(self.key_LBHGKT)[0].shape[-1]

  def unstacked(self) -> 'OwnCache':
    """The same with tuples."""
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


def write(into, kv, length):
  """(key, value) with those of new tokens at `length`."""
  put = functools.partial(
    jax.lax.dynamic_update_slice_in_dim, start_index=length
  )
  (key, value), (new_key, new_value) = into, kv
  return (
    put(key, new_key, axis=key.ndim - 1),
    put(value, new_value, axis=value.ndim - 2),
  )
