"""Rows of TensorFlow Datasets, by data set, as rows of a jsonl file."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ogls_jax.errors import UserError
from ogls_jax.tasks import superglue_rows

COLUMNS = ('id', 'question', 'answer', 'solution')
_VERSION = re.compile(r':[0-9][0-9.*]*$')
_CALCULATOR = re.compile(r'<<[^<>]*>>')


def converter_of(
  name: str, columns: Sequence[str] = COLUMNS
) -> Callable[[Mapping[str, Any]], dict]:
  """From a record of this data set to a row; ValueError if it has none.

  Args:
    name: as `tfds.data_source` takes it.
    columns: what a data set that is not known here calls id, question, answer
      and solution.

  Raises:
    UserError: a config of super_glue is missing or is no task of it.
  """
  base, _, config = _VERSION.sub('', name).partition('/')
  base = base.rpartition(':')[2]  # without a namespace
  if base == 'gsm8k':
    return lambda record: _gsm8k(plain(record))
  if base == 'super_glue':
    task = 'wsc' if config == 'wsc.fixed' else config
    if task not in superglue_rows.TASKS:
      raise UserError(
        f'data.tfds_name = {name} is none of: '
        + ', '.join(f'super_glue/{task}' for task in superglue_rows.TASKS)
      )
    return lambda record: superglue_rows.make_row(task, plain(record))
  return lambda record: _renamed(plain(record), columns)


def _gsm8k(record):
  solution, marker, answer = record['answer'].rpartition('####')
  if not marker:
    raise ValueError('`answer` has no ####')
  return {
    'question': record['question'],
    'answer': answer.strip().replace(',', '').replace('$', ''),
    'solution': _CALCULATOR.sub('', solution).strip(),
  }


def _renamed(record, columns):
  record = dict(record)
  row = {}
  for field, column in zip(COLUMNS, columns, strict=True):
    if column in record:
      row[field] = record.pop(column)
    elif field in ('question', 'answer'):
      raise ValueError(
        f'there is no column {column!r} for `{field}`, only '
        f'{", ".join(sorted(record))}'
      )
  return record | row


def plain(value: Any) -> Any:
  """JSON values of what TFDS gives: bytes, NumPy's numbers and arrays.

  Raises:
    ValueError: bytes that are no UTF-8.
  """
  if isinstance(value, Mapping):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, (np.ndarray, np.generic)):
    value = value.tolist()
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  return value.decode() if isinstance(value, bytes) else value
