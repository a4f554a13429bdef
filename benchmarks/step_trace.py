"""Device time of a traced step by part, from a trace and the compiled text.

A trace says when each instruction of a program ran; the program's text, as
XLA dumps it, says which `jax.named_scope` an instruction comes from.
"""

import collections
import dataclasses
import pathlib
import re

import jax

from ogls_jax.step_parts import part_of

SAMPLING = {
  'begin', 'place', 'unstack', 'decode', 'compact', 'room', 'fold_in'
}  # fmt: skip
PARTS = (
  'sampling', 'grading', 'hint reading', 'scoring', 'student forward',
  'student backward', 'loss', 'update', 'rest of the device', 'host gaps',
)  # fmt: skip
# They wait for the instructions inside.
_CONTAINERS = {'while', 'call', 'conditional', 'async-start', 'async-done'}
_NOT_RUNNING = {'grading', 'queued'}
_INSTRUCTION = re.compile(
  r'^\s*(?:ROOT )?%([\w.-]+) = (?:\([^=]*\)|\S+) ([\w-]+)\((.*)$', re.MULTILINE
)
_SCOPES = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Event:
  """What ran, or what the host was at; times in seconds.

  Attributes:
    begin: its start.
    end: its end.
    part: of an instruction, one of `PARTS`; `grading` of the host; `dispatch`
      of the host's call of a program.
    program: that it belongs to, without XLA's `jit_`.
    run: which of the program's runs.
  """

  begin: float
  end: float
  part: str
  program: str = ''
  run: str = ''


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
  """Instructions on the device; grading and dispatches on the host."""
  events = []
  for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
    for line in plane.lines:
      for event in line.events:
        begin = event.start_ns / 1e9
        span = begin, begin + event.duration_ns / 1e9
        if event.name == 'grading':
          events.append(Event(*span, 'grading'))
        if call := re.fullmatch(r'PjitFunction\((\w+)\)', event.name):
          events.append(Event(*span, 'dispatch', call[1]))
        stats = dict(event.stats)
        program, name = stats.get('hlo_module'), stats.get('hlo_op')
        opcode, op_name = known.get((program, name), ('', ''))
        if name is None or opcode in _CONTAINERS:
          continue
        short, part = program.removeprefix('jit_'), 'rest of the device'
        if short in SAMPLING:
          part = 'sampling'
        elif short == 'distill_step':
          part = part_of(op_name)
        events.append(Event(*span, part, short, str(stats.get('run_id'))))
  return events


def _spans(events):
  """(program, begin, end) of each run, in order."""
  runs = {}
  for event in events:
    if event.run:
      key = event.program, event.run
      begin, end = runs.get(key, (event.begin, event.end))
      runs[key] = min(begin, event.begin), max(end, event.end)
  return sorted((*span, program) for (program, _), span in runs.items())


def _queued(events, spans):
  """When the device had a program to run: from dispatch to the run's end."""
  calls = collections.defaultdict(list)
  dispatches = [event for event in events if event.part == 'dispatch']
  for call in sorted(dispatches, key=lambda event: event.begin):
    same = calls[call.program]
    if not same or call.begin >= same[-1].end:  # a trace has each call twice
      same.append(call)
  queued = []
  for begin, end, program in spans:
    earlier = [c for c in calls[program] if c.begin <= begin]
    since = begin
    if earlier:
      since = min(begin, earlier[0].end)
      calls[program].remove(earlier[0])
    queued.append(Event(since, end, 'queued'))
  return queued


def seconds_by_part(events: list[Event]) -> list[dict[str, float]]:
  """For each step, from the end of one update to the end of the next.

  Instructions that run at the same time share it. Where none runs, the device
  still has a program (`rest of the device`), or the host is grading, or at
  something else (`host gaps`).
  """
  spans = _spans(events)
  ends = [end for _, end, program in spans if program == 'distill_step']
  bounds = [min(event.begin for event in events), *ends]
  shown = [event for event in events if event.part != 'dispatch']
  changes = [(bound, 0, '') for bound in bounds]
  for event in shown + _queued(events, spans):
    changes += [(event.begin, 1, event.part), (event.end, -1, event.part)]
  steps, active, last = [], collections.Counter(), bounds[0]
  current = dict.fromkeys(PARTS, 0.0)
  for time, change, part in sorted(changes):
    shares = {p: n for p, n in active.items() if n and p not in _NOT_RUNNING}
    if not shares and active['queued']:
      shares = {'rest of the device': 1}
    elif not shares:
      shares = {'grading' if active['grading'] else 'host gaps': 1}
    for name, count in shares.items():
      current[name] += (time - last) * count / sum(shares.values())
    last = time
    if change:
      active[part] += change
    elif time > bounds[0]:
      steps.append(current)
      current = dict.fromkeys(PARTS, 0.0)
  return steps
