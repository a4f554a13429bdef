import pytest

from benchmarks.step_trace import (
  PARTS,
  Event,
  instructions,
  seconds_by_part,
)
from ogls_jax.step_parts import part_of

_TEXT = """HloModule jit_distill_step
%body (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %add.1 = f32[2]{0} add(%p, %p), metadata={op_name="jit(f)/teacher/read"}
}
ENTRY %main () -> (f32[2], s32[]) {
  %while.2 = (f32[2]{0}, s32[]) while(%t), body=%body, metadata={op_name="w"}
  %copy.3 = f32[2]{0} copy(%p)
}
"""


def test_instructions_of_a_dump(tmp_path):
  name = 'module_0003.jit_distill_step.cpu_after_optimizations.txt'
  (tmp_path / name).write_text(_TEXT)
  found = instructions(tmp_path)
  program = 'jit_distill_step'
  assert found[program, 'add.1'] == ('add', 'jit(f)/teacher/read')
  assert found[program, 'while.2'] == ('while', 'w')
  assert found[program, 'copy.3'] == ('copy', '')


@pytest.mark.parametrize(
  ('op_name', 'part'),
  [
    ('jit(distill_step)/teacher/while/body/read/dot', 'hint reading'),
    ('jit(distill_step)/teacher/while/body/score/dot', 'scoring'),
    ('jit(distill_step)/jvp(student)/read/while/dot', 'student forward'),
    ('jit(distill_step)/transpose(jvp(student))/score/d', 'student backward'),
    ('jit(distill_step)/jvp(loss)/while/body/dot', 'loss'),
    ('jit(distill_step)/update/mul', 'update'),
    ('jit(distill_step)/students/mul', 'rest of the device'),
    ('', 'rest of the device'),
  ],
)
def test_part_of(op_name, part):
  assert part_of(op_name) == part


def test_seconds_by_part():
  def of(begin, end, part, program, run='1'):
    return Event(begin, end, part, program, run)

  events = [
    of(0, 4, 'sampling', 'decode'),
    Event(5, 6, 'grading'),
    # Two calls, one inside the other, and the program starts late.
    Event(7, 8, 'dispatch', 'distill_step'),
    Event(7.1, 7.9, 'dispatch', 'distill_step'),
    of(9, 12, 'scoring', 'distill_step'),
    of(10, 12, 'loss', 'distill_step'),
    of(13, 14, 'update', 'distill_step'),
    # The next step's program is dispatched while this one runs.
    Event(11, 11.5, 'dispatch', 'decode'),
    of(15, 16, 'sampling', 'decode', '2'),
    of(17, 18, 'update', 'distill_step', '2'),
    of(19, 20, 'sampling', 'decode', '3'),
  ]
  first, second = seconds_by_part(events)
  assert {k: v for k, v in first.items() if v} == {
    'sampling': 4, 'grading': 1, 'host gaps': 3, 'scoring': 2, 'loss': 1,
    'update': 1, 'rest of the device': 2,
  }  # fmt: skip
  assert {k: v for k, v in second.items() if v} == {
    'rest of the device': 1, 'sampling': 1, 'host gaps': 1, 'update': 1,
  }  # fmt: skip
  assert set(first) == set(PARTS)
