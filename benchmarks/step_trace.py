"""Device time of a traced step by part, from a trace and the compiled text.

A trace says when each instruction of a program ran; the program's text, as
XLA dumps it, says which `jax.named_scope` an instruction comes from.
"""

import collections
import dataclasses
import pathlib
import re

import jax

SAMPLING = {'begin', 'unstack', 'decode', 'compact', 'grow', 'fold_in'}
PARTS = (
  'sampling', 'grading', 'hint reading', 'scoring', 'student forward',
  'student backward', 'loss', 'update', 'rest of the device', 'host gaps',
)  # fmt: skip
# They wait for the instructions inside.
_CONTAINERS = {'while', 'call', 'conditional', 'async-start', 'async-done'}
_INSTRUCTION = re.compile(
  r'^\s*(?:ROOT )?%([\w.-]+) = (?:\([^=]*\)|\S+) ([\w-]+)\((.*)$', re.MULTILINE
)
_SCOPES = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Event:
  """An instruction that ran, or what the host was at; times in seconds."""

  begin: float
  end: float
  part: str
  run: str  # of the distill program, else ''


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


def instructions(folder: pathlib.Path) -> dict[tuple[str, str], tuple]:
  """(program, instruction) -> (opcode, op_name), of what XLA dumped there.

  Programs of one name, compiled for several shapes, are told apart by nothing
  that a trace has; of equal names of instructions the later one counts.
  """
  found = {}
  for file in sorted(folder.glob('*after_optimizations.txt')):
    program = file.name.split('.')[1]
    for name, opcode, rest in _INSTRUCTION.findall(file.read_text()):
      scopes = _SCOPES.search(rest)
      found[program, name] = opcode, scopes[1] if scopes else ''
  return found


def read_events(trace: pathlib.Path, known: dict) -> list[Event]:
  """What ran on the device, and `grading` on the host."""
  events = []
  for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
    for line in plane.lines:
      for event in line.events:
        begin = event.start_ns / 1e9
        span = begin, begin + event.duration_ns / 1e9
        if event.name == 'grading':
          events.append(Event(*span, 'grading', ''))
          continue
        stats = dict(event.stats)
        program, name = stats.get('hlo_module'), stats.get('hlo_op')
        opcode, op_name = known.get((program, name), ('', ''))
        if name is None or opcode in _CONTAINERS:
          continue
        short, run, part = program.removeprefix('jit_'), '', ''
        if short in SAMPLING:
          part = 'sampling'
        elif short == 'distill_step':
          run, part = str(stats.get('run_id')), part_of(op_name)
        events.append(Event(*span, part or 'rest of the device', run))
  return events


def seconds_by_part(events: list[Event]) -> list[dict[str, float]]:
  """For each step, from the end of one update to the end of the next.

  Instructions that run at the same time share it. Where none runs, the host
  grades or the device waits for something else.
  """
  ends = collections.defaultdict(float)
  for event in events:
    if event.run:
      ends[event.run] = max(ends[event.run], event.end)
  bounds = [min(event.begin for event in events), *sorted(ends.values())]
  changes = [(bound, 0, '') for bound in bounds]
  for event in events:
    changes += [(event.begin, 1, event.part), (event.end, -1, event.part)]
  steps, active, last = [], collections.Counter(), bounds[0]
  current = dict.fromkeys(PARTS, 0.0)
  for time, change, part in sorted(changes):
    device = {p: n for p, n in active.items() if n and p != 'grading'}
    idle = 'grading' if active['grading'] else 'host gaps'
    shares = device or {idle: 1}
    for name, count in shares.items():
      current[name] += (time - last) * count / sum(shares.values())
    last = time
    if change:
      active[part] += change
    elif time > bounds[0]:
      steps.append(current)
      current = dict.fromkeys(PARTS, 0.0)
  return steps
