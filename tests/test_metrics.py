"""What a run writes, on disks that fail and after crashes."""

import json
import pathlib
import struct

import pytest
from tensorboardX.proto import event_pb2

from ogls_jax import metrics
from ogls_jax.errors import UserError


def read(path):
  return [json.loads(line) for line in path.read_bytes().splitlines()]


def curves(workdir):
  """(name, step, value) of all events, as TensorBoard would read them."""
  found = []
  for file in sorted((workdir / 'tensorboard').iterdir()):
    data = file.read_bytes()
    while data:
      (size,) = struct.unpack('<Q', data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      for value in event.summary.value:
        found.append((value.tag, event.step, round(value.simple_value, 6)))
  return found


def test_after_a_crash_there_is_no_gap_and_no_repeated_step(tmp_path):
  writer = metrics.Writer(tmp_path, start_step=0)
  for step in range(1, 6):
    writer.metrics(step, {'loss': step / 8, 'kl': float('nan')})
    writer.sample(step, {'response': 'a\u2028b'})
  # Killed: not closed, and a line is cut.
  (events,) = (tmp_path / 'tensorboard').iterdir()
  events.rename(events.with_name('events.out.tfevents.1.earlier'))
  with (tmp_path / 'samples.jsonl').open('a') as file:
    file.write('{"step": 6, "resp')
  writer = metrics.Writer(tmp_path, start_step=3)
  assert [row['step'] for row in writer.rows] == [1, 2, 3]
  writer.metrics(4, {'loss': 9.5})
  writer.sample(4, {'response': 'c'})
  writer.close()
  rows = read(tmp_path / 'metrics.jsonl')
  assert [(row['step'], row['loss']) for row in rows] == [
    (1, 1 / 8), (2, 2 / 8), (3, 3 / 8), (4, 9.5),
  ]  # fmt: skip
  assert rows[0]['kl'] is None
  assert [row['step'] for row in read(tmp_path / 'samples.jsonl')] == [
    1, 2, 3, 4,
  ]  # fmt: skip
  assert curves(tmp_path) == [
    ('loss', 1, 0.125), ('loss', 2, 0.25), ('loss', 3, 0.375), ('loss', 4, 9.5),
  ]  # fmt: skip


def test_lines_that_a_full_disk_refuses_are_written_later(
  tmp_path, monkeypatch, capsys
):
  lines = metrics.Lines(tmp_path / 'x.jsonl', last_step=0)
  lines.add({'step': 1})
  is_full, original = [True], pathlib.Path.open

  class Full:
    """Half of a line fits."""

    def __init__(self, file):
      self.file = file

    def __enter__(self):
      return self

    def __exit__(self, *_):
      self.file.close()

    def __getattr__(self, name):
      return getattr(self.file, name)

    def write(self, data):
      self.file.write(data[:5])
      raise OSError(28, 'No space left on device')

  def opened(path, mode='r', *args, **kwargs):
    file = original(path, mode, *args, **kwargs)
    return Full(file) if is_full[0] and '+' in mode else file

  monkeypatch.setattr(pathlib.Path, 'open', opened)
  lines.add({'step': 2})
  lines.add({'step': 3})
  with pytest.raises(OSError, match='No space'):
    lines.sync()
  assert capsys.readouterr().out.count('No space left on device') == 1
  is_full[0] = False
  lines.add({'step': 4})
  lines.sync()
  steps = [row['step'] for row in read(tmp_path / 'x.jsonl')]
  assert steps == [1, 2, 3, 4]


def test_a_broken_line_is_named(tmp_path):
  path = tmp_path / 'samples.jsonl'
  path.write_text('{"step": 1}\nbroken\n{"step": 2}\n')
  with pytest.raises(UserError, match='samples.jsonl:2'):
    metrics.Lines(path, last_step=2)


def test_what_an_fsync_lost_is_written_again(tmp_path, monkeypatch):
  """Linux marks pages that it could not write as clean."""
  path = tmp_path / 'x.jsonl'
  lines = metrics.Lines(path, last_step=0)
  lines.add({'step': 1})
  lines.sync()
  lines.add({'step': 2})

  def lose(_):
    path.write_bytes(b'{"step": 1}\n' + bytes(12))
    raise OSError(5, 'Input/output error')

  with monkeypatch.context() as patch:
    patch.setattr(metrics.os, 'fsync', lose)
    with pytest.raises(OSError, match='Input/output'):
      lines.sync()
  lines.add({'step': 3})
  lines.sync()
  assert [row['step'] for row in read(path)] == [1, 2, 3]


def test_what_is_no_file_is_one_line(tmp_path, monkeypatch):
  (tmp_path / 'metrics.jsonl').mkdir()
  with pytest.raises(UserError, match='metrics.jsonl cannot be read'):
    metrics.Writer(tmp_path, start_step=0)

  def refuse(*_):
    raise OSError(1, 'Operation not permitted')

  monkeypatch.setattr(metrics, 'replace_bytes', refuse)
  with pytest.raises(UserError, match='cannot be written .Operation not perm'):
    metrics.Lines(tmp_path / 'x.jsonl', last_step=0)
