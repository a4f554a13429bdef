"""Which part of a step an instruction of a compiled program belongs to."""

import re


def part_of(op_name: str) -> str:
  """The part that an instruction of the distill step belongs to."""
  names = set(re.findall(r'\w+', op_name))
  if 'update' in names:
    return 'update'
  if 'teacher' in names:
    return 'hint reading' if 'read' in names else 'scoring'
  if 'loss' in names:
    return 'loss'
  if 'student' in names:
    is_backward = 'transpose' in names
    return 'student backward' if is_backward else 'student forward'
  return 'rest of the device'
