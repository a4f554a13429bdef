"""A workdir belongs to one config and one command at a time."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

from ogls_jax import hosts
from ogls_jax.errors import UserError
from ogls_jax.json_file import flat, read_json

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
  old, new = flat(found), flat(values)
  changed = [
    f'{key} = {old.get(key)!r} there, {new.get(key)!r} here'
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  ]
  if changed:
    more = len(changed) - _SHOWN
    raise UserError(
      f'{flag} holds what another config, model or file has made:'
      f' {"; ".join(changed[:_SHOWN])}'
      f'{f" (and {more} more)" if more > 0 else ""}; give what {path} says,'
      ' use another folder, or delete that one to begin anew'
    )
  return True


@contextlib.contextmanager
def locked(
  path: pathlib.Path, *, flag: str, is_waited_for: bool = False
) -> Iterator[None]:
  """Within it no other process holds the lock `path`; the first host does.

  The lock ends with the process, however that ends; its file stays. Where the
  file system has no locks nothing is locked.

  Args:
    path: a file of its own, in a folder that is there.
    flag: the flag or key that led to it, with its value, for errors.
    is_waited_for: whether to wait for another process that holds it.

  Raises:
    UserError: another holds it, or the file cannot be made.
  """
  if not hosts.is_first():
    yield
    return
  try:
    file = path.open('ab')
  except OSError as error:
    raise UserError(
      f'{flag}: {path} cannot be written ({error.strerror})'
    ) from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      if not is_waited_for:
        raise UserError(
          f'{flag}: another process is at work there and holds {path}; wait for'
          ' its end, or use another folder'
        ) from error
      hosts.say(f'{flag}: waiting for another process, which is at work there')
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
      pass  # some file systems have no locks
    yield
