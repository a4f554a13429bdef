"""The short form of benchmarks/crash.py."""

import json
import subprocess
import sys

import pytest

from benchmarks import crash


def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path):
  found = subprocess.run(
    [
      sys.executable, '-m', 'benchmarks.crash', f'--folder={tmp_path / "runs"}',
      '--kills=3', '--seed=2',
    ],
    capture_output=True, text=True, check=False, timeout=900,
  )  # fmt: skip
  assert found.returncode == 0, (found.stdout + found.stderr)[-3000:]
  assert 'all the same, bit for bit' in found.stdout
  # The comparison itself: one number of one line, and one entry of an array.
  whole, other = (
    crash.facts_of(tmp_path / 'runs' / x) for x in ('whole', 'run_0')
  )
  assert whole == other and len(whole) > 20
  path = tmp_path / 'runs' / 'run_0' / 'metrics.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  rows[3]['loss'] += 1e-12
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  changed = crash.facts_of(tmp_path / 'runs' / 'run_0')
  assert [x for x in whole if whole[x] != changed[x]] == ['metrics.jsonl']
  assert any(isinstance(value, bytes) for value in whole.values())


@pytest.mark.parametrize('name', ['time', 'tokens_per_second', 'seconds_hints'])
def test_times_are_not_compared(name):
  assert crash._without_times({name: 1.0, 'loss': 2.0}) == {'loss': 2.0}
