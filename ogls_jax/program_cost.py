"""What a compiled program does on one chip: flops, bytes, collectives.

The text is walked from the entry computation, a loop's body as often as the
loop runs (`cost_analysis()` of XLA counts it once). Flops are those of matrix
products, which have a unit of their own on every accelerator; bytes are those
that instructions read from and write to the main memory, a fusion as a whole
and of a slice only the slice; what stays in on-chip memory is free.
"""

import collections
import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable

import numpy as np

from ogls_jax import hlo

COLLECTIVES = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
  'collective-permute', 'ragged-all-to-all', 'collective-broadcast',
)  # fmt: skip
# They move nothing by themselves.
_FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast',
  'after-all', 'partition-id', 'replica-id', 'opt-barrier', 'copy-done',
  'domain', 'iota', 'add-dependency', 'get-dimension-size',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
  """Attributes: kind of `COLLECTIVES`; how many chips take part; whether they
  are of several slices."""

  kind: str
  group_size: int
  is_between_slices: bool


@dataclasses.dataclass
class Cost:
  """Of one chip.

  Attributes:
    flops: of matrix products, two for a multiply-add.
    num_bytes: to and from the main memory.
    collectives: (how often, bytes that pass a chip's links) of each.
    unknown: what could not be counted, with how often it runs: loops whose trip
      count depends on data, taken to run once, and kernels that do not say
      their flops.
  """

  flops: float = 0.0
  num_bytes: float = 0.0
  collectives: dict[Collective, tuple[float, float]] = dataclasses.field(
    default_factory=dict
  )
  unknown: dict[str, float] = dataclasses.field(default_factory=dict)

  def add(self, other: 'Cost', times: float = 1.0) -> None:
    """Adds `other`, so many times."""
    self.flops += times * other.flops
    self.num_bytes += times * other.num_bytes
    for key, (count, num_bytes) in other.collectives.items():
      old_count, old_bytes = self.collectives.get(key, (0.0, 0.0))
      self.collectives[key] = (
        old_count + times * count,
        old_bytes + times * num_bytes,
      )
    for key, count in other.unknown.items():
      self.unknown[key] = self.unknown.get(key, 0.0) + times * count


Costs = dict[str, Cost]


def count(
  text: str,
  *,
  slice_of: tuple[int, ...] = (),
  part_of: Callable[[str], str] = lambda op_name: '',
) -> Costs:
  """The cost of a program, by part.

  Of a conditional the branch with the most flops counts.

  Args:
    text: `compiled.as_text()`.
    slice_of: the slice of each partition; empty where there is one slice.
    part_of: the part of an instruction by its `op_name`, which has the
      `jax.named_scope`s around it; '' where XLA gives it none.
  """
  module = hlo.parse(text)
  return _Counter(module, slice_of, part_of).of_computation(module.entry)


def total(costs: Costs) -> Cost:
  """Of all parts together."""
  result = Cost()
  for cost in costs.values():
    result.add(cost)
  return result


def _add(costs: Costs, others: Costs, times: float = 1.0) -> None:
  for part, cost in others.items():
    costs.setdefault(part, Cost()).add(cost, times)


class _Counter:
  """Costs of the computations of one module, each walked once."""

  def __init__(self, module: hlo.Module, slice_of, part_of):
    self._module, self._slice_of = module, slice_of
    self._part_of = part_of
    self.of_computation = functools.cache(self._of_computation)

  def _of_computation(self, name: str) -> Costs:
    computation, costs = self._module.computations[name], {}
    channels = set()
    for each in computation.instructions:
      _add(costs, self._of_instruction(each, computation))
      if each.opcode == 'fusion':
        self._add_fused_collectives(costs, each, channels)
    return costs

  def _add_fused_collectives(self, costs, fusion: hlo.Instruction, channels):
    """TPUs spread one collective over several fusions, all of one channel."""
    (name,) = fusion.called('calls')
    inner = self._module.computations[name]
    for each in inner.instructions:
      if each.opcode == 'fusion':
        self._add_fused_collectives(costs, each, channels)
      kind = each.opcode.removesuffix('-start')
      channel = each.attribute('channel_id')
      if kind in COLLECTIVES and not (channel and channel in channels):
        channels.add(channel)
        cost = Cost()
        self._add_collective(cost, each, inner, kind)
        cost.num_bytes = 0.0
        _add(costs, {self._part_of(each.op_name or fusion.op_name): cost})

  def _of_instruction(self, each: hlo.Instruction, within) -> Costs:
    cost, opcode = Cost(), each.opcode
    kind = opcode.removesuffix('-start')
    if opcode in _FREE or opcode.endswith(('-done', '-update')):
      return {}
    if opcode == 'while':
      return self._of_loop(each, within)
    if opcode == 'conditional':
      return self._of_branches(each)
    if opcode in ('call', 'async-start'):
      (name,) = each.called('to_apply') or each.called('calls')
      return self.of_computation(name)
    if opcode == 'fusion':
      return self._of_fusion(each, within)
    if kind in COLLECTIVES:
      self._add_collective(cost, each, within, kind)
    elif opcode == 'custom-call':
      _add_kernel(cost, each, within)
    else:
      cost.num_bytes = _bytes_moved(each, within)
    if opcode == 'dot':
      cost.flops = _dot_flops(each, within)
    elif opcode == 'convolution':
      cost.flops = _convolution_flops(each, within)
    return {self._part_of(each.op_name): cost}

  def _of_fusion(self, each: hlo.Instruction, within) -> Costs:
    """Flops of what is inside, and bytes of the fusion as a whole."""
    (name,) = each.called('calls')
    costs = {
      part: Cost(flops=cost.flops, unknown=cost.unknown)
      for part, cost in self.of_computation(name).items()
    }
    op_name = each.op_name or self._module.computations[name].root.op_name
    moved = Cost(num_bytes=self._fusion_bytes(each, within))
    _add(costs, {self._part_of(op_name): moved})
    return costs

  def _of_loop(self, each: hlo.Instruction, within) -> Costs:
    trips, costs = self._trip_count(each, within), {}
    if trips is None:
      loop = Cost(unknown={f'loop {each.name}': 1.0})
      costs[self._part_of(each.op_name)] = loop
    for name in (*each.called('body'), *each.called('condition')):
      _add(costs, self.of_computation(name), 1 if trips is None else trips)
    return costs

  def _trip_count(self, loop: hlo.Instruction, within) -> int | None:
    """As XLA says, or of a counter from one constant to below another."""
    found = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if found:
      return int(found[1])
    (condition,) = loop.called('condition')
    (body,) = loop.called('body')
    condition = self._module.computations[condition]
    body = self._module.computations[body]
    root = condition.root
    if root.opcode != 'compare' or root.attribute('direction') != 'LT':
      return None
    counter, limit = condition.operands_of(root)
    (given,) = within.operands_of(loop)
    if counter.opcode != 'get-tuple-element' or given.opcode != 'tuple':
      return None
    place = int(counter.attribute('index'))
    start = _copied(within, within.operands_of(given)[place])
    if body.root.opcode != 'tuple':
      return None
    step = _step_of(body, place)
    numbers = [_constant(each) for each in (start, _copied(condition, limit))]
    if step is None or None in numbers:
      return None
    return max(-((numbers[0] - numbers[1]) // step), 0)

  def _of_branches(self, each: hlo.Instruction) -> Costs:
    names = each.called('branch_computations') or (
      each.called('true_computation') + each.called('false_computation')
    )

    def size(costs):
      cost = total(costs)
      return cost.flops, cost.num_bytes

    return max(map(self.of_computation, names), key=size)

  def _add_collective(self, cost, each, within, kind):
    size, is_between = self._group(each)
    read = sum(_main_bytes(op.arrays) for op in within.operands_of(each))
    sent = sum(
      array.num_bytes for op in within.operands_of(each) for array in op.arrays
    )
    arrays = each.arrays
    if each.opcode.endswith('-start') and kind in (
      'all-gather', 'collective-permute',
    ):  # fmt: skip
      arrays = arrays[len(each.operands) : 2 * len(each.operands)]
    gathered = sum(array.num_bytes for array in arrays)
    # What passes a chip's links where the chips of a group form a ring.
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
    cost.num_bytes += read + _main_bytes(arrays)
    cost.collectives[Collective(kind, size, is_between)] = (1.0, passed)

  def _group(self, each: hlo.Instruction) -> tuple[int, bool]:
    groups = _groups(each)
    if not groups:
      return max(len(self._slice_of), 1), len(set(self._slice_of)) > 1
    is_between = bool(self._slice_of) and any(
      len({self._slice_of[member] for member in group}) > 1 for group in groups
    )
    return max(map(len, groups)), is_between

  def _fusion_bytes(self, each: hlo.Instruction, within) -> float:
    (name,) = each.called('calls')
    inner = self._module.computations[name]
    total = 0.0
    for number, operand in enumerate(within.operands_of(each)):
      if _main_bytes(operand.arrays):
        total += self._bytes_read(inner, number, operand)
    roots = [inner.root]
    if inner.root.opcode == 'tuple':
      roots = inner.operands_of(inner.root)
    arrays = each.arrays
    if len(roots) != len(arrays):
      return total + _main_bytes(arrays)
    for root, array in zip(roots, arrays, strict=True):
      if array.space == 0:
        total += _bytes_written(inner, root, array)
    return total

  def _bytes_read(self, inner: hlo.Computation, number: int, operand) -> float:
    """Of parameter `number` of a fused computation."""
    whole = sum(array.num_bytes for array in operand.arrays)
    parameter = next(
      each
      for each in inner.instructions
      if each.opcode == 'parameter' and each.arguments == str(number)
    )
    total = 0.0
    for user, place in _readers(inner, parameter):
      if user.opcode in ('dynamic-slice', 'slice', 'gather') and place == 0:
        total += sum(array.num_bytes for array in user.arrays)
      elif user.opcode == 'fusion':
        (name,) = user.called('calls')
        total += self._bytes_read(
          self._module.computations[name], place, operand
        )
      elif user.opcode == 'tuple':
        continue  # passed on as it is
      elif user.opcode != 'dynamic-update-slice' or place != 0:
        return whole
    return min(total, whole)


def _copied(within: hlo.Computation, each: hlo.Instruction):
  """What it is a copy of, or itself."""
  while each.opcode in ('copy', 'bitcast'):
    (each,) = within.operands_of(each)
  return each


def _constant(each: hlo.Instruction) -> int | None:
  is_number = re.fullmatch(r'-?\d+', each.arguments)
  return (
    int(each.arguments) if each.opcode == 'constant' and is_number else None
  )


def _step_of(body: hlo.Computation, place: int) -> int | None:
  """What a loop's body adds to the number at `place` of what it carries."""
  after = body.operands_of(body.root)[place]
  if after.opcode != 'add':
    return None
  for operand in body.operands_of(after):
    each = _copied(body, operand)
    if (step := _constant(each)) is not None and step > 0:
      return step
  return None


def _readers(inner: hlo.Computation, instruction: hlo.Instruction):
  """(user, place of the operand), through bitcasts."""
  for user in inner.users[instruction.name]:
    if user.opcode == 'bitcast':
      yield from _readers(inner, user)
    else:
      for place, name in enumerate(user.operands):
        if name == instruction.name:
          yield user, place


def _bytes_written(inner: hlo.Computation, root, array: hlo.Array) -> float:
  while root.opcode == 'bitcast':
    (root,) = inner.operands_of(root)
  if root.opcode == 'parameter':
    return 0.0
  if root.opcode == 'dynamic-update-slice':
    update = inner.by_name[root.operands[1]]
    return sum(each.num_bytes for each in update.arrays)
  return array.num_bytes


def _main_bytes(arrays) -> float:
  return sum(array.num_bytes for array in arrays if array.space == 0)


def _bytes_moved(each: hlo.Instruction, within: hlo.Computation) -> float:
  """Of an instruction that is not fused."""
  operands = within.operands_of(each)
  written = _main_bytes(each.arrays)
  if each.opcode in ('dynamic-slice', 'slice', 'gather', 'slice-start'):
    # Of slice-start: (operand, result, a flag).
    result = each.arrays[1 if each.opcode == 'slice-start' else 0]
    is_read = operands[0].arrays[0].space == 0
    return result.num_bytes * (is_read + (result.space == 0))
  if each.opcode in ('dynamic-update-slice', 'scatter'):
    update = operands[-1 if each.opcode == 'scatter' else 1]
    moved = sum(array.num_bytes for array in update.arrays)
    return _main_bytes(update.arrays) + moved * bool(written)
  if each.opcode == 'copy-start':
    source, target = each.arrays[1], each.arrays[0]
    return source.num_bytes * ((source.space == 0) + (target.space == 0))
  if each.opcode == 'broadcast':
    return written
  return written + sum(_main_bytes(operand.arrays) for operand in operands)


def _numbers(text: str) -> list[int]:
  return [int(number) for number in re.findall(r'\d+', text)]


def _dot_flops(each: hlo.Instruction, within: hlo.Computation) -> float:
  left = within.operands_of(each)[0].arrays[0]
  contracted = _numbers(each.attribute('lhs_contracting_dims'))
  return 2.0 * each.arrays[0].size * math.prod(left.dims[i] for i in contracted)


def _convolution_flops(each: hlo.Instruction, within) -> float:
  """Products of a place and a weight that are both there, as XLA counts."""
  left, kernel = (operand.arrays[0] for operand in within.operands_of(each))
  labels = re.match(r'(\w+)_(\w+)->(\w+)', each.attribute('dim_labels'))
  left_labels, kernel_labels, out_labels = labels.groups()
  window, pairs = _window(each.attribute('window')), 1
  for number, settings in enumerate(window):
    label = str(number)
    pairs *= _valid_pairs(
      left.dims[left_labels.index(label)],
      kernel.dims[kernel_labels.index(label)],
      each.arrays[0].dims[out_labels.index(label)],
      *settings,
    )
  groups = int(each.attribute('feature_group_count') or 1)
  batch_groups = int(each.attribute('batch_group_count') or 1)
  features = left.dims[left_labels.index('f')] / groups
  batch = left.dims[left_labels.index('b')] / batch_groups
  out_features = each.arrays[0].dims[out_labels.index('f')]
  return 2.0 * features * batch * out_features * pairs


def _window(text: str) -> list[tuple[int, int, int, int]]:
  """(stride, padding before, dilation of the input, of the kernel) by dim."""
  fields = dict(part.split('=') for part in text.strip('{}').split() if part)
  num_dims = len(fields.get('size', '').split('x')) if 'size' in fields else 0

  def column(name, default):
    if name not in fields:
      return [default] * num_dims
    return [int(each.split('_')[0]) for each in fields[name].split('x')]

  return list(
    zip(
      column('stride', 1),
      column('pad', 0),
      column('lhs_dilate', 1),
      column('rhs_dilate', 1),
      strict=True,
    )
  )


@functools.cache
def _valid_pairs(
  size, kernel, out, stride, padding, size_dilation, kernel_dilation
) -> int:
  place_O = np.arange(out) * stride - padding
  end, total = (size - 1) * size_dilation + 1, 0
  for w in range(kernel):
    at_O = place_O + w * kernel_dilation
    is_there_O = (at_O >= 0) & (at_O < end) & (at_O % size_dilation == 0)
    total += int(is_there_O.sum())
  return total


def _add_kernel(cost: Cost, each: hlo.Instruction, within) -> None:
  """A kernel's flops and bytes as it says; its arrays where it does not."""
  found = re.search(r'"cost_estimate":(\{[^}]*\})', each.attributes)
  if found:
    said = json.loads(found[1])
    cost.flops = float(said.get('flops', 0))
    cost.num_bytes = float(said.get('bytes_accessed', 0))
  if not cost.num_bytes:
    cost.num_bytes = _bytes_moved(each, within)
  target = each.attribute('custom_call_target').strip('"')
  if not found and target == 'tpu_custom_call':
    flops = _splash_flops(each, within)
    if flops:
      cost.flops = flops
    else:
      cost.unknown[f'kernel {each.name}'] = 1.0


# Products of each pass of JAX's splash attention kernel, which does not say.
_SPLASH = re.compile(r'splash_m[hq]a_(fwd|dq|dkv)')
_SPLASH_PRODUCTS = {'fwd': 2, 'dq': 3, 'dkv': 4}


def _splash_flops(each: hlo.Instruction, within) -> float:
  """Of the pairs that causality allows; 0 of another kernel.

  The last query is taken to see all keys, the one before all but one, and so
  on. The kernel computes whole blocks, which is more.
  """
  found = _SPLASH.search(each.name)
  if not found:
    return 0.0
  floats = [
    array
    for operand in within.operands_of(each)
    for array in operand.arrays
    if array.dtype in ('bf16', 'f32') and len(array.dims) > 1
  ]
  query, key = floats[:2]
  num_queries, head_size = query.dims[-2:]
  num_keys = key.dims[-2]
  pairs = num_queries * (num_keys - num_queries)
  pairs += num_queries * (num_queries + 1) // 2
  num_heads = math.prod(query.dims[:-2])
  products = _SPLASH_PRODUCTS[found[1]]
  return 2.0 * products * pairs * head_size * num_heads


def _groups(each: hlo.Instruction) -> list[list[int]]:
  """Partitions that take part together; empty: all in one group."""
  pairs = each.attribute('source_target_pairs')
  if pairs:
    return [_numbers(pair) for pair in re.findall(r'\{(\d+,\d+)\}', pairs)]
  text = each.attribute('replica_groups')
  if text.startswith('mesh'):
    return _mesh_groups(text)
  if '<=' not in text:
    rows = [_numbers(group) for group in re.findall(r'\{([\d,]+)\}', text)]
    return [row for row in rows if row]
  shape, rest = text.split('<=')
  dims, _, order = rest.partition('T')
  ids = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
  if order:
    ids = ids.transpose(_numbers(order))
  return ids.reshape(_numbers(shape)[0], -1).tolist()


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


def by_kind(cost: Cost) -> dict[str, tuple[float, float]]:
  """(how often, bytes) of the collectives of each kind."""
  found = collections.defaultdict(lambda: (0.0, 0.0))
  for collective, (times, num_bytes) in cost.collectives.items():
    old_times, old_bytes = found[collective.kind]
    found[collective.kind] = (old_times + times, old_bytes + num_bytes)
  return dict(found)
