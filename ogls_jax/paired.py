"""Compares evaluations: `python -m ogls_jax.paired --first=A --second=B`.

Both are folders that `ogls_jax.evaluate` has written, of the same questions.
Prints how much more the first has, with the 95% interval of the difference
(bootstrap over questions) and the p-value of none (random flips of signs).
"""

import pathlib

import numpy as np
from absl import flags

from ogls_jax import cli, results
from ogls_jax.errors import UserError
from ogls_jax.intervals import Paired, paired
from ogls_jax.json_file import read_json, read_rows


def compare(
  folder: pathlib.Path, other: pathlib.Path
) -> dict[str, tuple[float, float, Paired]]:
  """(mean of `folder`, of `other`, the difference) of what both have.

  Raises:
    UserError: one holds no results, or they are of other questions.
  """
  claims = [read_results(path) for path in (folder, other)]
  digests = [claim['questions_sha256'] for claim in claims]
  if digests[0] != digests[1]:
    raise UserError(
      f'{folder} and {other} asked other questions (questions_sha256 ='
      f' {digests[0][:12]} and {digests[1][:12]}); evaluate both on the same'
      ' data'
    )
  shares = [
    shares_of(path, claim['config']['min_reward'])
    for path, claim in zip((folder, other), claims, strict=True)
  ]
  found = {}
  for kind in results.KINDS[:2]:
    ours, theirs = (each.get(kind) for each in shares)
    if ours and theirs:
      names = ours.keys()
      ours_Q, theirs_Q = (
        np.array([side[name] for name in names]) for side in (ours, theirs)
      )
      name = 'accuracy' if kind == 'sample' else kind
      found[name] = (
        float(ours_Q.mean()), float(theirs_Q.mean()), paired(ours_Q, theirs_Q)
      )  # fmt: skip
  if not found:
    raise UserError(f'{folder} and {other} have no kind of rollout in common')
  return found


def read_results(folder: pathlib.Path) -> dict:
  """What results.json of an evaluation holds.

  Raises:
    UserError: there is none.
  """
  claim = read_json(folder / 'results.json', flag=str(folder))
  if claim is None:
    raise UserError(
      f'{folder} has no results.json; give a folder that'
      ' `python -m ogls_jax.evaluate` has finished'
    )
  return claim


def shares_of(
  folder: pathlib.Path, min_reward: float
) -> dict[str, dict[str, float]]:
  """By kind and question's id: the share of correct rollouts."""
  rows_of = {}
  for row in read_rows(folder / 'generations.jsonl', key='batch'):
    if row['kind'] in results.KINDS[:2]:
      by_id = rows_of.setdefault(row['kind'], {})
      by_id.setdefault(row['id'], []).append(row)
  return {
    kind: {
      name: float(results.correct_shares([rows], min_reward)[0])
      for name, rows in by_id.items()
    }
    for kind, by_id in rows_of.items()
  }


def main() -> None:
  """Reads the flags and prints a table."""
  folders = map(pathlib.Path, (flags.FLAGS.first, flags.FLAGS.second))
  found = compare(*folders)
  print('| | first | second | difference | p |\n|---|---|---|---|---|')
  for name, (ours, theirs, pair) in found.items():
    print(
      f'| {name} | {ours:.1%} | {theirs:.1%} | {pair.difference} |'
      f' {pair.p_value:.4f} |'
    )


if __name__ == '__main__':
  for name in ('first', 'second'):
    flags.DEFINE_string(name, None, 'Folder of an evaluation.', required=True)
  cli.run(main)
