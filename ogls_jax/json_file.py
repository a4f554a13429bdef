"""JSON objects in files: read, and written in one piece."""

import contextlib
import json
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
  partial = file.with_suffix('.partial')
  with partial.open('wb') as f:
    f.write(content)
    f.flush()
    os.fsync(f.fileno())
  os.replace(partial, file)
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
