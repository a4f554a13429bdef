"""A workdir belongs to one config; a second one there is an error."""

import json
import os
import pathlib

from ogls_jax.errors import UserError

_SHOWN = 3  # differences named in an error


def check_same(path: pathlib.Path, values: dict, *, flag: str) -> bool:
  """Whether the JSON object in `path` is there; its values must be `values`.

  Args:
    path: a file as `write_json` leaves it.
    values: nested dict of JSON values.
    flag: the flag or key that led to `path`, with its value, for errors.

  Raises:
    UserError: `path` cannot be read or holds other values.
  """
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    return False
  except (OSError, ValueError) as error:
    raise UserError(
      f'{flag}: {path} cannot be read ({error}); use another workdir'
    ) from error
  if not isinstance(found, dict):
    raise UserError(f'{flag}: {path} holds no config; use another workdir')
  old, new = _flat(found), _flat(values)
  changed = [
    f'{key} = {old.get(key)!r} there, {new.get(key)!r} here'
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  ]
  if changed:
    more = len(changed) - _SHOWN
    raise UserError(
      f'{flag} holds a run with another config: {"; ".join(changed[:_SHOWN])}'
      f'{f" (and {more} more)" if more > 0 else ""}; use another workdir, or'
      f' the config in {path}'
    )
  return True


def write_json(path: pathlib.Path, values: dict, *, flag: str) -> None:
  """Writes `values` in one piece, or not at all.

  Raises:
    UserError: the folder cannot be made or written; `flag` names it.
  """
  partial = path.with_suffix('.partial')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(
      json.dumps(values, indent=2, sort_keys=True) + '\n', encoding='utf-8'
    )
    os.replace(partial, path)
  except OSError as error:
    raise UserError(
      f'{flag}: {path} cannot be written ({error.strerror})'
    ) from error


def _flat(tree: dict, prefix: str = '') -> dict:
  rows = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      rows |= _flat(value, f'{prefix}{key}.')
    else:
      rows[prefix + key] = value
  return rows
