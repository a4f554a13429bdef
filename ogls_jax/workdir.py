"""A workdir belongs to one config; a second one there is an error."""

import pathlib

from ogls_jax.errors import UserError
from ogls_jax.json_file import read_json

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
  found = read_json(path, flag=flag)
  if found is None:
    return False
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


def _flat(tree: dict, prefix: str = '') -> dict:
  rows = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      rows |= _flat(value, f'{prefix}{key}.')
    else:
      rows[prefix + key] = value
  return rows
