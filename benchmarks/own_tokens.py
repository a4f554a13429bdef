r"""What each distribution gives the tokens that a rollout is made of.

    python -m benchmarks.own_tokens runs/mine

Means over the tokens in inspect.jsonl of a run (`log.inspect_every_steps`),
by update; `halved` is the share of tokens that the steered teacher gives less
than half of what the anchor does.
"""

import pathlib
import statistics
import sys

from ogls_jax.json_file import read_rows


def summarize(rows: list[dict]) -> dict[str, float]:
  """Means by distribution, and `halved`; of rows of inspect.jsonl."""
  own = {
    name: [p for row in rows for p in row['own'][name]]
    for name in rows[0]['own']
  }
  pairs = zip(own['steered'], own['anchor'], strict=True)
  return {name: statistics.fmean(values) for name, values in own.items()} | {
    'halved': statistics.fmean(s < a / 2 for s, a in pairs)
  }


def main(workdir: str) -> None:
  """Prints a table, an update a line."""
  by_step = {}
  for row in read_rows(pathlib.Path(workdir) / 'inspect.jsonl'):
    by_step.setdefault(row['step'], []).append(row)
  if not by_step:
    sys.exit(
      f'{workdir} has nothing in inspect.jsonl: sft and grpo have no teacher,'
      ' others need log.inspect_every_steps'
    )
  found = {step: summarize(rows) for step, rows in sorted(by_step.items())}
  names = next(iter(found.values()))
  print(f'| update | rollouts | {" | ".join(names)} |')
  print('|' + '---|' * (len(names) + 2))
  for step, means in found.items():
    values = ' | '.join(f'{x:.1%}' for x in means.values())
    print(f'| {step} | {len(by_step[step])} | {values} |')


if __name__ == '__main__':
  if len(sys.argv) != 2:
    sys.exit('give the workdir of a run')
  main(sys.argv[1])
