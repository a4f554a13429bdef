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


@dataclasses.dataclass(frozen=True)
class Collective:
  """Attributes: kind of `COLLECTIVES`; how many chips take part; whether they
  are of several slices."""

  kind: str
  group_size: int
  is_between_slices: bool


def links_of(
  each: hlo.Instruction, within: hlo.Computation, slice_of: tuple[int, ...]
) -> tuple[Collective, float]:
  """(what it is, bytes that pass a chip's links).

  Args:
    each: a collective, or its start.
    within: where it stands.
    slice_of: the slice of each partition; empty where there is one slice.
  """
  kind = each.opcode.removesuffix('-start')
  size, is_between = _group(each, slice_of)
  sent = sum(
    array.num_bytes for op in within.operands_of(each) for array in op.arrays
  )
  gathered = sum(array.num_bytes for array in results_of(each))
  # Where the chips of a group form a ring.
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
  """Those of its start hold the operands as well."""
  if each.opcode in ('all-gather-start', 'collective-permute-start'):
    return each.arrays[len(each.operands) : 2 * len(each.operands)]
  return each.arrays


def _group(each, slice_of) -> tuple[int, bool]:
  groups = groups_of(each)
  if not groups:
    return max(len(slice_of), 1), len(set(slice_of)) > 1
  is_between = bool(slice_of) and any(
    len({slice_of[member] for member in group}) > 1 for group in groups
  )
  return max(map(len, groups)), is_between


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
