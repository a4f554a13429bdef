"""What a model is fed, by digests: a path may hold something else tomorrow."""

import dataclasses
import hashlib
import json
import logging
import pathlib

from ml_collections import config_dict

from ogls_jax import hosts
from ogls_jax.errors import UserError
from ogls_jax.json_file import read_json, write_json
from ogls_jax.prompts import template_path
from ogls_jax.tasks.question import Question


def digest_of(questions: list[Question]) -> str:
  """SHA-256 of the questions, their answers and order."""
  rows = map(dataclasses.asdict, questions)
  lines = (json.dumps(row, sort_keys=True) for row in rows)
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def file_digest(path: str | pathlib.Path) -> str:
  """SHA-256 of a file; '' for the path ''."""
  if not path:
    return ''
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def digests(
  config: config_dict.ConfigDict,
  questions: list[Question],
  held_out: list[Question],
) -> dict[str, str]:
  """What `claim` keeps of a training, by what it is of."""
  task = config.data.task
  return {
    'questions': digest_of(questions),
    'held_out': digest_of(held_out),
    'student_template': file_digest(
      template_path(config.prompt.student_template)
    ),
    'teacher_template': file_digest(
      template_path(config.prompt.teacher_template)
    ),
    'task': file_digest(task if pathlib.Path(task).is_file() else ''),
  }


def check(folder: pathlib.Path, found: dict[str, str], *, flag: str) -> bool:
  """Rejects a training that began with other questions or templates.

  What inputs.json does not have, as that of an older version, is not compared.

  Args:
    folder: of the training; it has no inputs.json before that begins.
    found: `digests` of now.
    flag: the flag or key that led to `folder`, with its value, for errors.

  Returns:
    Whether the file of a task of one's own is another, which is no error: it
    may be mended in the middle (docs/tasks.md).

  Raises:
    UserError: questions or templates are others than then.
  """
  kept = read_json(folder / 'inputs.json', flag=flag) or found
  changed = [
    name for name in found if kept.get(name, found[name]) != found[name]
  ]
  if others := [name for name in changed if name != 'task']:
    raise UserError(
      f'{flag} began with another content of: {", ".join(others)} (SHA-256 in'
      f' {folder}/inputs.json); bring back what the paths in its config led to,'
      ' or use another folder'
    )
  return 'task' in changed


def claim(folder: pathlib.Path, found: dict[str, str], *, flag: str) -> None:
  """Keeps `found` in `folder`/inputs.json, or checks what is kept there.

  Called under the lock of what is to be trained; warns of a mended task.

  Raises:
    UserError: as `check` does.
  """
  path = folder / 'inputs.json'
  if hosts.is_first() and not path.exists():
    write_json(path, found, flag=flag)
  if check(folder, found, flag=flag):
    logging.getLogger(__name__).warning(
      '%s began with another content of the file in data.task: its rewards are'
      ' of two graders',
      flag,
    )
