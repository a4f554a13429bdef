"""How often a loop of a compiled program runs."""

import re

from ogls_jax import hlo


def trip_count(
  module: hlo.Module, loop: hlo.Instruction, within: hlo.Computation
) -> int | None:
  """As XLA says, or of a counter from one constant to below another.

  None where it depends on data.
  """
  found = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if found:
    return int(found[1])
  (condition,) = loop.called('condition')
  (body,) = loop.called('body')
  condition = module.computations[condition]
  body = module.computations[body]
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
