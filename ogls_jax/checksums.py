"""Checksums of arrays, computed where the arrays live.

Whatever the mesh and the number of hosts, the same values give the same sum;
one changed word always gives another.
"""

import jax
import jax.numpy as jnp

from ogls_jax.mesh import shard


def checksums_of(tree) -> dict[str, int]:
  """uint32 of each array, by its path in the tree; inside `jax.set_mesh`.

  Raises:
    ValueError: an array's entries are not of 4, 8, 16 or 32 bits.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  sums_N = jax.device_get(_sums([leaf for _, leaf in leaves]))
  names = [jax.tree_util.keystr(path) for path, _ in leaves]
  return dict(zip(names, sums_N.tolist(), strict=True))


@jax.jit
def _sums(arrays):
  sums_N = jnp.stack([_sum(array) for array in arrays])
  return shard(sums_N, '1')  # on all devices of all hosts


def _sum(array):
  words = _words(array)
  place = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    place *= jnp.uint32(size % 2**32)
    place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
  # Odd, so that no change of one word is lost; scrambled, so that words that
  # change places are seen. The constants are those of MurmurHash3's last step.
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    place = (place ^ (place >> shift)) * jnp.uint32(factor)
  return (words * (place | jnp.uint32(1))).sum(dtype=jnp.uint32)


def _words(array):
  if array.dtype == jnp.bool_:
    return array.astype(jnp.uint32)
  bits = jax.dtypes.itemsize_bits(array.dtype)
  if bits not in (4, 8, 16, 32):
    raise ValueError(f'no checksum of entries of {array.dtype}')
  unsigned = jnp.dtype(f'uint{bits}')
  return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
