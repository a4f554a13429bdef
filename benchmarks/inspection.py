"""What looking at tokens adds to an update, on any config.

    python -m benchmarks.inspection --config=configs/tiny.py --updates=16

Trains in a folder that is removed again, and looks at the rollouts of every
update; the first two, which compile, are left out. Prints medians: seconds of
an update without what belongs to it, seconds of `inspect_step` and its way to
the host, seconds of making text of it (meanwhile the device samples), and the
share of all updates at the config's own `log.inspect_every_steps`.
"""

import pathlib
import statistics
import tempfile
import time

from absl import flags

from ogls_jax import cli, inspection, train
from ogls_jax.json_file import read_rows

_NUM_LEFT_OUT = 2


def main():
  config = cli.read_config()
  every = config.log.inspect_every_steps or 10
  made = []
  original = inspection.Inspector._make_rows

  def timed(*arguments):
    began = time.perf_counter()
    rows = original(*arguments)
    made.append(time.perf_counter() - began)
    return rows

  inspection.Inspector._make_rows = timed
  with config.unlocked(), tempfile.TemporaryDirectory() as folder:
    config.log.inspect_every_steps = 1
    config.num_steps = flags.FLAGS.updates + _NUM_LEFT_OUT
    workdir = pathlib.Path(folder) / 'run'
    train.train(config, workdir)
    rows = read_rows(workdir / 'metrics.jsonl')
    num_bytes = (workdir / 'inspect.jsonl').stat().st_size
  names = ('sampling', 'grading', 'hints', 'distill')
  first, rows = rows[0]['seconds_inspection'], rows[_NUM_LEFT_OUT:]
  update = [sum(row[f'seconds_{name}'] for name in names) for row in rows]
  looking = [row['seconds_inspection'] for row in rows]
  texts = made[_NUM_LEFT_OUT:]
  for text, values in (
    ('an update, s', update),
    ('inspect_step, s', looking),
    ('text, s', texts),
  ):
    print(
      f'{text}: median {statistics.median(values):.4f},'
      f' {min(values):.4f} to {max(values):.4f}'
    )
  added = statistics.median(looking) + statistics.median(texts)
  share = added / statistics.median(update)
  print(f'at the first update, with its compiling: {first:.1f} s')
  print(
    f'{len(rows)} updates; {100 * share:.1f}% of one, every {every} updates'
    f' {100 * share / every:.2f}%; {num_bytes / config.num_steps / 1e3:.0f} kB'
    f' for {config.log.inspect_rollouts} rollouts'
  )


if __name__ == '__main__':
  cli.define_config()
  flags.DEFINE_integer('updates', 16, 'Updates to measure.', 1)
  cli.run(main)
