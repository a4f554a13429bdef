"""JSON objects in files: read, and written in one piece."""

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
  partial = file.with_suffix('.partial')
  partial.write_text(
    json.dumps(content, indent=2, sort_keys=True) + '\n', encoding='utf-8'
  )
  os.replace(partial, file)


def write_json(file: pathlib.Path, content: dict, *, flag: str) -> None:
  """As `save_json`, for a file that `flag` led to.

  Raises:
    UserError: the folder cannot be made or written; `flag` names it.
  """
  try:
    save_json(file, content)
  except OSError as error:
    raise UserError(
      f'{flag}: {file} cannot be written ({error.strerror})'
    ) from error
