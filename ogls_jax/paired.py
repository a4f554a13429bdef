"""Compares evaluations: `python -m ogls_jax.paired --first=A --second=B`.

Both are folders that `ogls_jax.evaluate` has written, of the same questions.
Prints how much more the first has, with the 95% interval of the difference
(bootstrap over questions), and p: how often a difference as large would come up
if there were none (random flips of signs).
"""

import dataclasses
import pathlib

import numpy as np
from absl import flags

from ogls_jax import cli, hosts, results
from ogls_jax.errors import UserError
from ogls_jax.intervals import Paired, paired
from ogls_jax.json_file import flat, read_json, read_rows

# When training asks; an evaluation does not depend on them.
_OF_TRAINING = ('eval.has_before_after', 'eval.every_steps')


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
  _check_judged_alike(claims, folder, other)
  for path, claim in zip((folder, other), claims, strict=True):
    if num := claim.get('num_trained_on'):
      hosts.say(
        f'{path}: {num} of the questions are among those of its training'
      )
  shares = [
    shares_of(path, claim)
    for path, claim in zip((folder, other), claims, strict=True)
  ]
  found = {}
  for kind in results.KINDS[:2]:
    ours, theirs = (each.get(kind) for each in shares)
    if ours and theirs:
      names = ours.of_id.keys()
      ours_Q, theirs_Q = (
        np.array([side.of_id[name] for name in names])
        for side in (ours, theirs)
      )
      groups = [ours.group_of[name] for name in names]
      name = 'accuracy' if kind == 'sample' else kind
      found[name] = (
        float(ours_Q.mean()), float(theirs_Q.mean()),
        paired(ours_Q, theirs_Q, groups),
      )  # fmt: skip
  if not found:
    raise UserError(f'{folder} and {other} have no kind of rollout in common')
  return found


def _check_judged_alike(claims, folder, other):
  ours, theirs = (flat(claim['config']) for claim in claims)
  changed = [
    f'{key} = {ours.get(key)!r} and {theirs.get(key)!r}'
    for key in sorted(ours.keys() | theirs.keys())
    if ours.get(key) != theirs.get(key) and key not in _OF_TRAINING
  ]
  for key, name in (
    (key, ours.get(key)) for key in ('data.task', 'prompt.student_template')
  ):
    # Older evaluations did not look.
    digests = {claim.get('files_sha256', {}).get(name) for claim in claims}
    if name == theirs.get(key) and len(digests - {None}) > 1:
      changed.append(f'{key} = {name!r} of another content')
  judges = ('min_reward', 'grading.', 'data.task')
  if of_judges := [text for text in changed if text.startswith(judges)]:
    raise UserError(
      f'{folder} and {other} were judged differently: {"; ".join(of_judges)};'
      ' evaluate both alike'
    )
  asked = ('max_tokens', 'prompt.', 'eval.', 'seed')
  if of_rollouts := [text for text in changed if text.startswith(asked)]:
    hosts.say(f'they were asked differently: {"; ".join(of_rollouts)}')


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


@dataclasses.dataclass(frozen=True)
class Shares:
  """Of the questions of an evaluation, by id.

  Attributes:
    of_id: the share of correct rollouts.
    group_of: what is not independent of others, as for `mean_interval`.
  """

  of_id: dict[str, float]
  group_of: dict[str, str]


def shares_of(folder: pathlib.Path, claim: dict) -> dict[str, Shares]:
  """By kind, of the evaluation in `folder`, whose results are `claim`.

  Raises:
    UserError: rollouts are missing from generations.jsonl.
  """
  path = folder / 'generations.jsonl'
  try:
    return _shares_of(path, claim)
  except KeyError as error:
    raise UserError(
      f'{path}: a line has no {error}; delete it, and give the command that'
      ' wrote it again'
    ) from error


def _shares_of(path, claim):
  rows_of = {}
  for row in read_rows(path, key='batch'):
    by_id = rows_of.setdefault(row['kind'], {})
    by_id.setdefault(row['id'], []).append(row)
  e, min_reward = claim['config']['eval'], claim['config']['min_reward']
  found = {}
  for kind, num in (('sample', e['samples']), ('greedy', e['has_greedy'])):
    by_id = rows_of.get(kind, {}) if num else {}
    num_questions = claim['num_questions'] if num else 0
    if len(by_id) != num_questions or any(
      len(rows) != num for rows in by_id.values()
    ):
      raise UserError(
        f'{path} has not {num} rollouts ({kind}) of each of {num_questions}'
        ' questions, as results.json says; give the command that wrote it again'
      )
    if by_id:
      found[kind] = Shares(
        {
          name: float(results.correct_shares([rows], min_reward)[0])
          for name, rows in by_id.items()
        },
        {name: rows[0].get('group', name) for name, rows in by_id.items()},
      )
  return found


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
