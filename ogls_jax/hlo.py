"""Reads the text of a compiled program: computations, instructions, shapes.

Only what counting needs of XLA's text format, as `as_text()` of a compiled
program prints it.
"""

import dataclasses
import functools
import math
import re

_BITS = {
  'pred': 8, 's2': 2, 'u2': 2, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16,
  'u16': 16, 's32': 32, 'u32': 32, 's64': 64, 'u64': 64, 'f16': 16, 'bf16': 16,
  'f32': 32, 'f64': 64, 'c64': 64, 'c128': 128, 'f4e2m1fn': 4, 'token': 0,
  'opaque': 0,
}  # fmt: skip
_ARRAY = re.compile(r'\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\](\{[^}]*\})?')
_COMPUTATION = re.compile(r'^(ENTRY )?%([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%([\w.\-]+) = ')
_CLOSED = re.compile(r'^\}(, execution_thread=.*)?$')
_NAME = re.compile(r'%([\w.\-]+)')
_OPENING, _CLOSING = '([{', ')]}'


@dataclasses.dataclass(frozen=True)
class Array:
  """Type, dims and memory space (0: the device's main memory) of one array."""

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def size(self) -> int:
    """Number of entries."""
    return math.prod(self.dims)

  @property
  def num_bytes(self) -> float:
    """Without padding."""
    bits = _BITS.get(self.dtype, 8)  # float8 in all its forms
    return self.size * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: `%name = arrays opcode(operands), attributes`."""

  name: str
  opcode: str
  arrays: tuple[Array, ...]  # of its result, tuples flattened
  operands: tuple[str, ...]
  arguments: str  # between the parentheses
  attributes: str
  is_root: bool

  @property
  def op_name(self) -> str:
    """JAX's name of what it comes from, scopes included; '' if not known."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ''

  def attribute(self, name: str) -> str:
    """The value of `name=...` up to the comma that ends it, '' if absent."""
    found = re.search(rf'(?:^|, ){name}=', self.attributes)
    if not found:
      return ''
    rest = self.attributes[found.end() :]
    return rest[: _end(rest, ',')]

  def called(self, name: str) -> tuple[str, ...]:
    """Names of the computations in attribute `name`."""
    return tuple(_NAME.findall(self.attribute(name)))


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions in order."""

  name: str
  instructions: tuple[Instruction, ...]

  @functools.cached_property
  def by_name(self) -> dict[str, Instruction]:
    """All instructions."""
    return {each.name: each for each in self.instructions}

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Who reads the result of an instruction."""
    users = {each.name: [] for each in self.instructions}
    for each in self.instructions:
      for operand in dict.fromkeys(each.operands):
        users[operand].append(each)
    return users

  @functools.cached_property
  def root(self) -> Instruction:
    """Whose result is that of the computation."""
    return next(each for each in self.instructions if each.is_root)

  def operands_of(self, instruction: Instruction) -> list[Instruction]:
    """In order; they are in the same computation."""
    return [self.by_name[name] for name in instruction.operands]


@dataclasses.dataclass(frozen=True)
class Module:
  """A program; `entry` names the computation that runs first."""

  num_partitions: int  # over which SPMD partitioning spread it
  entry: str
  computations: dict[str, Computation]


def parse(text: str) -> Module:
  """Of `compiled.as_text()`.

  Raises:
    ValueError: there is no entry computation, or a line cannot be read.
  """
  computations, entry, name, rows = {}, None, None, []
  for line in _whole_lines(text):
    if name is None:
      if found := _COMPUTATION.match(line):
        name, rows = found[2], []
        entry = name if found[1] else entry
    elif line.startswith('}'):
      computations[name] = Computation(name, tuple(rows))
      name = None
    elif found := _INSTRUCTION.match(line):
      rows.append(_instruction(line[found.end() :], found[2], bool(found[1])))
  if entry is None:
    raise ValueError('no ENTRY computation in the text of the program')
  found = re.search(r'^HloModule .*, num_partitions=(\d+)', text)
  return Module(int(found[1]) if found else 1, entry, computations)


def _whole_lines(text: str) -> list[str]:
  """Lines of a program; attributes of a kernel go over several."""
  lines = []
  for line in text.splitlines():
    is_continued = lines and lines[-1].startswith('  ')
    if is_continued and not line.startswith('  ') and not _CLOSED.match(line):
      lines[-1] += line
    else:
      lines.append(line)
  return lines


def _end(text: str, stop: str) -> int:
  """Index of the first `stop` outside of brackets and quotes, or the end."""
  depth, is_quoted, previous = 0, False, ''
  for index, char in enumerate(text):
    if char == '"' and previous != '\\':
      is_quoted = not is_quoted
    elif not is_quoted:
      if depth == 0 and char == stop:
        return index
      depth += (char in _OPENING) - (char in _CLOSING)
    previous = char
  return len(text)


def numbers(text: str) -> list[int]:
  """All whole numbers in it."""
  return [int(number) for number in re.findall(r'\d+', text)]


def arrays_in(text: str) -> tuple[Array, ...]:
  """The arrays of a type, such as `(f32[2,3]{1,0:T(8,128)S(1)}, s32[])`."""
  found = []
  for dtype, dims, layout in _ARRAY.findall(text):
    if dtype not in _BITS and not dtype.startswith('f8'):
      raise ValueError(f'no such element type as {dtype!r} in {text!r}')
    space = re.search(r'S\((\d+)\)', layout)
    sizes = tuple(int(dim.lstrip('<=')) for dim in dims.split(',') if dim)
    found.append(Array(dtype, sizes, int(space[1]) if space else 0))
  return tuple(found)


def _instruction(text: str, name: str, is_root: bool) -> Instruction:
  end = _end(text, ' ')
  kind, rest = text[:end], text[end + 1 :]
  opening = rest.find('(')
  if opening < 0:
    raise ValueError(f'cannot read instruction %{name} = {text[:200]}')
  inner = rest[opening + 1 :]
  closing = _end(inner, ')')
  arguments, attributes = inner[:closing], inner[closing + 1 :]
  return Instruction(
    name=name,
    opcode=rest[:opening],
    arrays=arrays_in(kind),
    operands=tuple(_NAME.findall(arguments)),
    arguments=arguments,
    attributes=attributes.removeprefix(', '),
    is_root=is_root,
  )
