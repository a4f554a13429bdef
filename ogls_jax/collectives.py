"""Collectives of a compiled program: who takes part, and what links carry."""

import dataclasses
import math
import re

import numpy as np

from ogls_jax import hlo

COLLECTIVES = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
  'collective-permute', 'ragged-all-to-all', 'collective-broadcast',
)  # fmt: skip
# A TPU program is that of one slice: what goes to others it sends to its host.
_BETWEEN_SLICES = {
  'ALL_GATHER': 'all-gather', 'ALL_REDUCE': 'all-reduce',
  'REDUCE_SCATTER': 'reduce-scatter', 'ALL_TO_ALL': 'all-to-all',
  'ONE_TO_ONE': 'collective-permute',
}  # fmt: skip
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
  """Attributes: kind of `COLLECTIVES`; how many chips take part, or slices
  where it is between slices; whether it is."""

  kind: str
  group_size: int
  is_between_slices: bool


def kind_of(each: hlo.Instruction) -> str:
  """Of `COLLECTIVES`; '' where it is none.

  Raises:
    ValueError: it is one between slices, of no kind that is known here.
  """
  if each.opcode != 'send':
    kind = each.opcode.removesuffix('-start')
    return kind if kind in COLLECTIVES else ''
  found = _TRANSFER.search(each.attributes)
  if found and found[1] not in _BETWEEN_SLICES:
    raise ValueError(f'cannot read {found[0]} of %{each.name}')
  return _BETWEEN_SLICES[found[1]] if found else ''


def links_of(
  each: hlo.Instruction,
  within: hlo.Computation,
  *,
  num_partitions: int,
  num_slices: int,
) -> tuple[Collective, float]:
  """(what it is, bytes that pass a chip's links or its share of the network).

  Args:
    each: a collective, or its start.
    within: where it stands.
    num_partitions: of the program, which is that of one slice.
    num_slices: all of which take part in what is between slices.
  """
  kind, is_between = kind_of(each), each.opcode == 'send'
  size = num_slices
  if not is_between:
    size = max(map(len, groups_of(each)), default=num_partitions)
  sent = sum(
    array.num_bytes for op in within.operands_of(each) for array in op.arrays
  )
  # Of a send the result is what is sent.
  gathered = size * sent
  if not is_between:
    gathered = sum(array.num_bytes for array in results_of(each))
  # Where the members of a group form a ring.
  share = (size - 1) / size
  passed = {
    'all-gather': share * gathered,
    'all-reduce': 2 * share * sent,
    'reduce-scatter': share * sent,
    'all-to-all': share * sent,
    'ragged-all-to-all': share * sent,
    'collective-broadcast': sent,
    'collective-permute': sent,
  }[kind]
  return Collective(kind, size, is_between), passed


def results_of(each: hlo.Instruction) -> tuple[hlo.Array, ...]:
  """Those of its start hold the operands as well; a send has none."""
  if each.opcode == 'send':
    return ()
  if each.opcode in ('all-gather-start', 'collective-permute-start'):
    return each.arrays[len(each.operands) : 2 * len(each.operands)]
  return each.arrays


def groups_of(each: hlo.Instruction) -> list[list[int]]:
  """Partitions that take part together; empty: all in one group."""
  pairs = each.attribute('source_target_pairs')
  if pairs:
    return [hlo.numbers(pair) for pair in re.findall(r'\{(\d+,\d+)\}', pairs)]
  text = each.attribute('replica_groups')
  if text.startswith('mesh'):
    return _mesh_groups(text)
  if '<=' not in text:
    rows = [hlo.numbers(group) for group in re.findall(r'\{([\d,]+)\}', text)]
    return [row for row in rows if row]
  shape, rest = text.split('<=')
  dims, _, order = rest.partition('T')
  ids = np.arange(math.prod(hlo.numbers(dims))).reshape(hlo.numbers(dims))
  if order:
    ids = ids.transpose(hlo.numbers(order))
  return ids.reshape(hlo.numbers(shape)[0], -1).tolist()


def _mesh_groups(text: str) -> list[list[int]]:
  """Of `mesh['a'=2,'b'=4] {'b'}`: those that differ in b alone."""
  found = re.fullmatch(r"mesh\[((?:'[^']+'=\d+,? ?)+)\] \{(.*)\}", text)
  if not found:
    raise ValueError(f'cannot read replica_groups={text}')
  sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
  axes, names = list(sizes), re.findall(r"'([^']+)'", found[2])
  if not set(names) <= set(axes):
    raise ValueError(f'cannot read replica_groups={text}')
  ids = np.arange(math.prod(map(int, sizes.values())))
  ids = ids.reshape([int(size) for size in sizes.values()])
  order = [axes.index(name) for name in axes if name not in names]
  order += [axes.index(name) for name in names]
  group_size = math.prod(int(sizes[name]) for name in names)
  return ids.transpose(order).reshape(-1, group_size).tolist()
