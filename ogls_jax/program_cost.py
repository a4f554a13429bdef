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
import re
from collections.abc import Callable

from ogls_jax import collectives as links
from ogls_jax import hlo, hlo_bytes, hlo_flops, hlo_loops

# They move nothing by themselves.
_FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast',
  'after-all', 'partition-id', 'replica-id', 'opt-barrier', 'copy-done',
  'domain', 'iota', 'add-dependency', 'get-dimension-size',
}  # fmt: skip


@dataclasses.dataclass
class Cost:
  """Of one chip.

  Attributes:
    flops: of matrix products, two for a multiply-add.
    num_bytes: to and from the main memory.
    collectives: (how often, bytes that pass a chip's links or, between slices,
      its share of the network) of each.
    unknown: what could not be counted, with how often it runs: loops whose trip
      count depends on data, taken to run once, and kernels that do not say
      their flops.
  """

  flops: float = 0.0
  num_bytes: float = 0.0
  collectives: dict[links.Collective, tuple[float, float]] = dataclasses.field(
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
  num_slices: int = 1,
  part_of: Callable[[str], str] = lambda op_name: '',
) -> Costs:
  """The cost of a program, by part.

  Of a conditional the branch with the most flops counts.

  Args:
    text: `compiled.as_text()`.
    num_slices: that the program runs on.
    part_of: the part of an instruction by its `op_name`, which has the
      `jax.named_scope`s around it; '' where XLA gives it none.
  """
  module = hlo.parse(text)
  return _Counter(module, num_slices, part_of).of_computation(module.entry)


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

  def __init__(self, module: hlo.Module, num_slices, part_of):
    self._module, self._num_slices = module, num_slices
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
      channel = each.attribute('channel_id')
      if links.kind_of(each) and not (channel and channel in channels):
        channels.add(channel)
        cost = self._of_links(each, inner)
        _add(costs, {self._part_of(each.op_name or fusion.op_name): cost})

  def _of_links(self, each: hlo.Instruction, within) -> Cost:
    collective, passed = links.links_of(
      each, within, num_partitions=self._module.num_partitions,
      num_slices=self._num_slices,
    )  # fmt: skip
    return Cost(collectives={collective: (1.0, passed)})

  def _of_instruction(self, each: hlo.Instruction, within) -> Costs:
    cost, opcode = Cost(), each.opcode
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
    if links.kind_of(each):
      cost = self._of_links(each, within)
      cost.num_bytes = sum(
        hlo_bytes.of_arrays(op.arrays) for op in within.operands_of(each)
      ) + hlo_bytes.of_arrays(links.results_of(each))
    elif opcode == 'custom-call':
      _add_kernel(cost, each, within)
    else:
      cost.num_bytes = hlo_bytes.of_instruction(each, within)
    if opcode == 'dot':
      cost.flops = hlo_flops.of_dot(each, within)
    elif opcode == 'convolution':
      cost.flops = hlo_flops.of_convolution(each, within)
    return {self._part_of(each.op_name): cost}

  def _of_fusion(self, each: hlo.Instruction, within) -> Costs:
    """Flops of what is inside, and bytes of the fusion as a whole."""
    (name,) = each.called('calls')
    costs = {
      part: Cost(flops=cost.flops, unknown=cost.unknown)
      for part, cost in self.of_computation(name).items()
    }
    op_name = each.op_name or self._module.computations[name].root.op_name
    moved = Cost(num_bytes=hlo_bytes.of_fusion(self._module, each, within))
    _add(costs, {self._part_of(op_name): moved})
    return costs

  def _of_loop(self, each: hlo.Instruction, within) -> Costs:
    trips, costs = hlo_loops.trip_count(self._module, each, within), {}
    if trips is None:
      loop = Cost(unknown={f'loop {each.name}': 1.0})
      costs[self._part_of(each.op_name)] = loop
    for name in (*each.called('body'), *each.called('condition')):
      _add(costs, self.of_computation(name), 1 if trips is None else trips)
    return costs

  def _of_branches(self, each: hlo.Instruction) -> Costs:
    names = each.called('branch_computations') or (
      each.called('true_computation') + each.called('false_computation')
    )

    def size(costs):
      cost = total(costs)
      return cost.flops, cost.num_bytes

    return max(map(self.of_computation, names), key=size)


def _add_kernel(cost: Cost, each: hlo.Instruction, within) -> None:
  """A kernel's flops and bytes as it says; its arrays where it does not."""
  found = re.search(r'"cost_estimate":(\{[^}]*\})', each.attributes)
  if found:
    said = json.loads(found[1])
    cost.flops = float(said.get('flops', 0))
    cost.num_bytes = float(said.get('bytes_accessed', 0))
  if not cost.num_bytes:
    cost.num_bytes = hlo_bytes.of_instruction(each, within)
  target = each.attribute('custom_call_target').strip('"')
  if not found and target == 'tpu_custom_call':
    flops = hlo_flops.of_splash(each, within)
    if flops:
      cost.flops = flops
    else:
      cost.unknown[f'kernel {each.name}'] = 1.0


def by_kind(cost: Cost) -> dict[str, tuple[float, float]]:
  """(how often, bytes) of the collectives of each kind.

  What is between slices is a kind of its own: `all-reduce between slices`.
  """
  found = collections.defaultdict(lambda: (0.0, 0.0))
  for collective, (times, num_bytes) in cost.collectives.items():
    kind = collective.kind + ' between slices' * collective.is_between_slices
    old_times, old_bytes = found[kind]
    found[kind] = (old_times + times, old_bytes + num_bytes)
  return dict(found)
