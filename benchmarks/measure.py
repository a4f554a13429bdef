"""What the benchmarks share; standard library only."""

import pathlib
import re
import statistics


def spread(values: list[float], digits: int = 2) -> str:
  """The median, and the least and the largest."""
  median, low, high = statistics.median(values), min(values), max(values)
  return f'{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]'


def resident_bytes(key: str) -> int:
  """Of this process: VmRSS, or VmHWM for the peak (Linux)."""
  # Not getrusage: its peak is inherited from the process that started this one.
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(rf'{key}:\s+(\d+) kB', status)[1]) * 1024
