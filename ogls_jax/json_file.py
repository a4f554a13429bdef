"""JSON objects in files: read, and written in one piece; one, or one a line."""

import contextlib
import json
import math
import os
import pathlib

from ogls_jax.errors import UserError


def read_json(file: pathlib.Path, *, flag: str) -> dict | None:
  """The JSON object in `file`; None if there is no such file.

  Args:
    file: to read, UTF-8.
    flag: the flag or key that led to it, with its value, for errors.

  Raises:
    UserError: it cannot be read or holds no JSON object.
  """
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
  except FileNotFoundError:
    return None
  except NotADirectoryError as error:
    raise UserError(f'{flag}: {file.parent} is no folder') from error
  except (OSError, ValueError) as error:
    raise UserError(
      f'{flag}: {file} is not readable as JSON ({error}); mend or replace it'
    ) from error
  if not isinstance(content, dict):
    raise UserError(f'{flag}: {file} holds no JSON object; mend or replace it')
  return content


def save_json(file: pathlib.Path, content: dict) -> None:
  """Writes `content` in one piece, or not at all; makes the folder.

  Raises:
    OSError: the folder cannot be made or written.
  """
  file.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps(content, indent=2, sort_keys=True) + '\n'
  replace_bytes(file, text.encode())


def replace_bytes(file: pathlib.Path, content: bytes) -> None:
  """`file` holds `content`, on disk, or what it held before.

  Raises:
    OSError: it cannot be written.
  """
  # Of this process: others may write the same file.
  partial = file.with_name(f'{file.name}.{os.getpid()}.partial')
  try:
    with partial.open('wb') as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    os.replace(partial, file)
  except OSError:
    with contextlib.suppress(OSError):
      partial.unlink()
    raise
  # The new name, too; not every file system can be asked for that.
  with contextlib.suppress(OSError):
    folder = os.open(file.parent, os.O_RDONLY)
    try:
      os.fsync(folder)
    finally:
      os.close(folder)


def write_json(file: pathlib.Path, content: dict, *, flag: str) -> None:
  """As `save_json`, for a file that `flag` led to.

  Raises:
    UserError: the folder cannot be made or written; `flag` names it.
  """
  make_folder(file.parent, flag=flag)
  try:
    save_json(file, content)
  except OSError as error:
    raise UserError(
      f'{flag}: {file} cannot be written ({error.strerror})'
    ) from error


def make_folder(folder: pathlib.Path, *, flag: str) -> None:
  """Makes `folder` and those above it, where they are missing.

  Raises:
    UserError: it cannot be made; `flag` names what led to it.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'{flag}: {folder} cannot be made ({error.strerror})'
    ) from error


def read_rows(
  path: pathlib.Path, last_step: float = math.inf, key: str = 'step'
) -> list[dict]:
  """Rows of a file of JSON objects, those of steps up to `last_step`.

  A last line that is not whole is left out: a crash has cut it, or it is being
  written. Without the file there are no rows. Rows have their step under `key`.

  Raises:
    UserError: it cannot be read, or a line before the last is broken.
  """
  try:
    data = path.read_bytes()
  except FileNotFoundError:
    return []
  except OSError as error:
    raise UserError(
      f'{path} cannot be read ({error.strerror}); mend it, or move it away'
    ) from error
  kept = []
  # Bytes, as text lines also end where JSON strings may hold U+2028. What
  # follows the last newline was cut.
  for number, line in enumerate(data.split(b'\n')[:-1], start=1):
    try:
      row = json.loads(line)
      row_step = row[key]
      if type(row_step) is not int:
        raise ValueError(f'{key} = {row_step!r} is no integer')
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(
        f'{path}:{number}: not a line of a run ({error}); mend it, or move the'
        ' file away'
      ) from error
    if row_step <= last_step:
      kept.append(row)
  return kept


def flat(tree: dict, prefix: str = '') -> dict:
  """Values by dotted key, such as `loss.kl`."""
  rows = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      rows |= flat(value, f'{prefix}{key}.')
    else:
      rows[prefix + key] = value
  return rows
