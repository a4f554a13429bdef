"""What a report shows of a run, read from its workdir; nothing is written."""

import collections
import json
import math
import pathlib
import zlib

from ogls_jax.errors import UserError
from ogls_jax.health import Health
from ogls_jax.json_file import flat, read_json, read_rows

MOST_POINTS = 500  # of a curve
_MOST_WARNINGS = 200
# Of them a probability is a whole number; less is shown as less than one.
_PROBABILITY_UNITS = 10_000


def read_run(workdir: pathlib.Path, *, most_bytes: int) -> dict:
  """All that the page shows, as JSON.

  The run may be going on: lines that are being written are left out.

  Args:
    workdir: of a run.
    most_bytes: of rollouts, once they are packed; those of steps all over the
      run are taken, as many as fit.

  Raises:
    UserError: there is no run, or a file of it is broken.
  """
  if not workdir.is_dir():
    raise UserError(f'{workdir}: no such folder; give the workdir of a run')
  config = read_json(workdir / 'config.json', flag=str(workdir))
  if config is None:
    is_comparison = (workdir / 'comparison.json').exists()
    raise UserError(
      f'{workdir} has no config.json; give the workdir of a run'
      f'{", such as one in its runs/" if is_comparison else ""}'
    )
  summary = read_json(workdir / 'summary.json', flag=str(workdir))
  rows = read_rows(workdir / 'metrics.jsonl')
  if summary is not None and not rows:
    raise UserError(
      f'{workdir} has a summary.json and no metrics.jsonl; bring it back'
    )
  inspected = read_rows(workdir / 'inspect.jsonl')
  samples = read_rows(workdir / 'samples.jsonl')
  settings = _settings(config)
  warnings = _warnings(rows)
  run = {
    'name': workdir.resolve().name,
    'method': config.get('method'),
    'kl': _get(config, 'loss.kl'),
    'num_steps': config.get('num_steps'),
    'last_step': rows[-1]['step'] if rows else 0,
    'config': settings,
    'has_defaults': bool(settings) and 'default' in settings[0],
    'curves': _curves(rows),
    'num_warnings': len(warnings),
    'warnings': warnings[-_MOST_WARNINGS:],
    'summary': summary,
    'rollouts': _rollouts(inspected, samples, most_bytes),
  }
  return _finite(run)


def _finite(tree):
  """The same with None for what JSON has no number for."""
  if isinstance(tree, dict):
    return {key: _finite(value) for key, value in tree.items()}
  if isinstance(tree, list):
    return [_finite(value) for value in tree]
  if isinstance(tree, float) and not math.isfinite(tree):
    return None
  return tree


def _get(config, key):
  for part in key.split('.'):
    config = config.get(part) if isinstance(config, dict) else None
  return config


def _settings(config) -> list[dict]:
  """Every key; with its default, where configs/ is there to tell."""
  try:
    from configs import default
  except ImportError:
    return [{'key': key, 'value': value} for key, value in flat(config).items()]
  defaults = flat(json.loads(default.get_config().to_json()))
  return [
    {'key': key, 'value': value, 'default': defaults.get(key)}
    for key, value in flat(config).items()
  ]


def _warnings(rows) -> list[dict]:
  """What `health` says of the updates, and those that were skipped."""
  health, found, num_skipped = Health([]), [], 0
  for row in rows:
    texts = health.look(row)
    if (row.get('updates_skipped') or 0) > num_skipped:
      num_skipped = row['updates_skipped']
      texts.append('the update is skipped: its loss or gradient is not finite')
    found += [{'step': row['step'], 'text': text} for text in texts]
  return found


def _curves(rows) -> dict:
  """{'step': [...], name: [...], 'every': n}: means of n updates in a row."""
  every = max(math.ceil(len(rows) / MOST_POINTS), 1)
  names = dict.fromkeys(name for row in rows for name in row)
  parts = [rows[n : n + every] for n in range(0, len(rows), every)]
  curves = {'every': every, 'step': [part[-1]['step'] for part in parts]}
  for name in names:
    if name in ('step', 'time'):
      continue
    values = [_mean([row.get(name) for row in part]) for part in parts]
    if any(value is not None for value in values):
      curves[name] = values
  return curves


def _mean(values):
  values = [
    value
    for value in values
    if isinstance(value, int | float) and math.isfinite(value)
  ]
  return float(f'{sum(values) / len(values):.4g}') if values else None


def _rollouts(inspected, samples, most_bytes) -> dict:
  """Those with tokens and, where they are not shown so, the samples."""
  # An eighth of the room is kept for the samples.
  with_tokens, size = _fitting(inspected, 'inspect', most_bytes * 7 // 8)
  twins = collections.Counter(_identity(row) for row, _ in with_tokens)
  others = []
  for row in samples:
    if twins[_identity(row)]:
      twins[_identity(row)] -= 1
    else:
      others.append(row)
  without, _ = _fitting(others, 'samples', most_bytes - size)
  shown = [packed for _, packed in [*with_tokens, *without]]
  return {
    'num_inspected': len(inspected),
    'num_samples': len(others),
    'num_inspected_shown': len(with_tokens),
    'num_samples_shown': len(without),
    'list': sorted(shown, key=lambda row: row['step']),
  }


def _identity(row):
  # As text: a broken row may hold anything.
  return repr((row['step'], row.get('id'), row.get('response')))


def _fitting(rows, name, most_bytes):
  """([(row, as the page reads it)], their bytes) of those that fit."""
  kept, size = [], 0
  for row in _spread(rows):
    try:
      packed = _packed(row)
    except (KeyError, TypeError, AttributeError) as error:
      raise UserError(
        f'{name}.jsonl: a row of step {row["step"]} is of another version of'
        ' ogls_jax, or broken; move the file away'
      ) from error
    # All of them together take less.
    text = json.dumps(packed, separators=(',', ':'))
    more = len(zlib.compress(text.encode(), 6)) * 4 // 3
    if size + more <= most_bytes:
      size += more
      kept.append((row, packed))
  return kept, size


def _spread(rows) -> list[dict]:
  """The same rows: one of each step first, and steps from all over the run.

  The last step, the first, one between them, and so on by halves.
  """
  by_step = {}
  for row in rows:
    by_step.setdefault(row['step'], []).append(row)
  steps = sorted(by_step)
  order = list(dict.fromkeys([len(steps) - 1, 0])) if steps else []
  gaps = [(0, len(steps) - 1)]
  for low, high in gaps:  # grows meanwhile
    middle = (low + high) // 2
    if low < middle < high:
      order.append(middle)
      gaps += [(low, middle), (middle, high)]
  ranked = [
    (rank, row)
    for place in order
    for rank, row in enumerate(by_step[steps[place]])
  ]
  return [row for _, row in sorted(ranked, key=lambda pair: pair[0])]


def _packed(row) -> dict:
  """A row of inspect.jsonl or samples.jsonl as the page reads it."""
  names = (
    'step', 'id', 'question', 'answer', 'response', 'reward', 'is_correct',
    'is_scored',
  )  # fmt: skip
  packed = {name: row.get(name) for name in names}
  for name in ('id', 'question', 'answer', 'response'):
    if not isinstance(packed[name], str):
      raise TypeError(f'{name} is no text')
  if 'tokens' not in row:
    return packed
  more = (
    'strength', 'num_hints', 'token_ids', 'tokens', 'rest', 'divergence',
    'moved', 'own', 'top_ids', 'names',
  )  # fmt: skip
  packed |= {name: row[name] for name in more}
  of_tokens = [row[name] for name in ('token_ids', 'divergence', 'moved')]
  for name in ('own', 'top', 'top_ids'):
    of_tokens += row[name].values()
  if any(len(values) != len(row['tokens']) for values in of_tokens):
    raise TypeError('not all values are there for each token')
  # It is `tokens` and `rest` once more.
  del packed['response']
  packed['top'] = {
    name: [[_units(p) for p in top_K] for top_K in top_TK]
    for name, top_TK in row['top'].items()
  }
  return packed


def _units(probability):
  return (
    None if probability is None else round(probability * _PROBABILITY_UNITS)
  )
