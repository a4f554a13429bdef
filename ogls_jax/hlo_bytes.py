"""Bytes that an instruction of a compiled program moves to and from memory.

Those of the main memory: what stays on the chip is free. Of a slice only the
slice is read, of an update in place only the update written.
"""

from ogls_jax import hlo


def of_arrays(arrays) -> float:
  """Of those that are in main memory."""
  return sum(array.num_bytes for array in arrays if array.space == 0)


def of_instruction(each: hlo.Instruction, within: hlo.Computation) -> float:
  """Of an instruction that is not fused."""
  operands = within.operands_of(each)
  written = of_arrays(each.arrays)
  if each.opcode in ('dynamic-slice', 'slice', 'gather', 'slice-start'):
    # Of slice-start: (operand, result, a flag).
    result = each.arrays[1 if each.opcode == 'slice-start' else 0]
    is_read = operands[0].arrays[0].space == 0
    return result.num_bytes * (is_read + (result.space == 0))
  if each.opcode in ('dynamic-update-slice', 'scatter'):
    update = operands[-1 if each.opcode == 'scatter' else 1]
    moved = sum(array.num_bytes for array in update.arrays)
    return of_arrays(update.arrays) + moved * bool(written)
  if each.opcode == 'copy-start':
    source, target = each.arrays[1], each.arrays[0]
    return source.num_bytes * ((source.space == 0) + (target.space == 0))
  if each.opcode == 'broadcast':
    return written
  return written + sum(of_arrays(operand.arrays) for operand in operands)


def of_fusion(module: hlo.Module, each: hlo.Instruction, within) -> float:
  """Of a fusion as a whole."""
  (name,) = each.called('calls')
  inner = module.computations[name]
  total = 0.0
  for number, operand in enumerate(within.operands_of(each)):
    if of_arrays(operand.arrays):
      total += _bytes_read(module, inner, number, operand)
  roots = [inner.root]
  if inner.root.opcode == 'tuple':
    roots = inner.operands_of(inner.root)
  arrays = each.arrays
  if len(roots) != len(arrays):
    return total + of_arrays(arrays)
  for root, array in zip(roots, arrays, strict=True):
    if array.space == 0:
      total += _bytes_written(inner, root, array)
  return total


def _bytes_read(module, inner: hlo.Computation, number: int, operand) -> float:
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
      total += _bytes_read(module, module.computations[name], place, operand)
    elif user.opcode == 'tuple':
      continue  # passed on as it is
    elif user.opcode != 'dynamic-update-slice' or place != 0:
      return whole
  return min(total, whole)


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
