"""What a model is fed, by digests: a path may hold something else tomorrow."""

import dataclasses
import hashlib
import json
import logging
import pathlib

from ml_collections import config_dict

from ogls_jax import hosts
from ogls_jax.json_file import read_json, write_json
from ogls_jax.prompts import template_path
from ogls_jax.tasks.question import Question
from ogls_jax.workdir import check_same

# It may be mended in the middle of a run (docs/tasks.md).
_TASK = 'task'


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
  """What `claim` keeps of a training."""
  task = pathlib.Path(config.data.task)
  templates = {
    key: file_digest(template_path(config.prompt[key]))
    for key in ('student_template', 'teacher_template')
  }
  return templates | {
    'questions': digest_of(questions),
    'held_out': digest_of(held_out),
    _TASK: file_digest(task) if task.is_file() else '',
  }


def check(folder: pathlib.Path, found: dict[str, str], *, flag: str) -> bool:
  """Whether `folder` has digests; rejects it where they are of other inputs.

  Of another task file it warns.

  Args:
    folder: of the training; it has none before that begins.
    found: `digests` of now.
    flag: the flag or key that led to `folder`, with its value, for errors.

  Raises:
    UserError: they are others than in `folder`.
  """
  kept = read_json(folder / 'inputs.json', flag=flag)
  if kept is None:
    return False
  if kept.get(_TASK, found[_TASK]) != found[_TASK]:
    logging.getLogger(__name__).warning(
      '%s began with another content of the file in data.task: its rewards are'
      ' of two graders',
      flag,
    )
  return check_same(
    folder / 'inputs.json', found | {_TASK: kept.get(_TASK)}, flag=flag,
    made_by='other questions or templates have',
    way_out='bring back what the paths in its config led to',
  )  # fmt: skip


def claim(folder: pathlib.Path, found: dict[str, str], *, flag: str) -> None:
  """Checks, and keeps `found` in `folder`/inputs.json; the first host does."""
  is_there = check(folder, found, flag=flag)
  if not is_there and hosts.is_first():
    write_json(folder / 'inputs.json', found, flag=flag)
