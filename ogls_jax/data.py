"""Questions from files and TensorFlow Datasets, in an order that can resume."""

import gzip
import hashlib
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence

import grain

from ogls_jax import errors, tfds_rows
from ogls_jax.tasks.question import Question

_DATA_PREFIX = 'data:'
_BAD_ROW_CHOICES = ('error', 'skip')
_COLUMNS = {'id', 'question', 'answer', 'solution', 'choices'}


def resolve_path(path: str) -> str:
  """Puts $OGLS_DATA_DIR (default ../shared/data) in place of a `data:` prefix.

  So a config can name `data:svamp/test.jsonl` and work on every machine.
  """
  if not path.startswith(_DATA_PREFIX):
    return path
  data_dir = os.environ.get('OGLS_DATA_DIR', '../shared/data')
  return os.path.join(data_dir, path.removeprefix(_DATA_PREFIX))


def read_jsonl(
  path: str, *, on_bad_row: str = 'error', key: str = 'data.path'
) -> tuple[list[Question], int]:
  """Reads (questions, number of bad rows skipped) from .jsonl or .jsonl.gz.

  A row is an object with strings `question` and `answer` (or an int), and
  optionally `id`, `solution` and a list of strings `choices`. The id defaults
  to `<file stem>-<line>`. Other columns go to `Question.fields`, and so do the
  keys of an object `fields`. Blank lines are ignored. `key` names the config
  key in errors.
  """
  if on_bad_row not in _BAD_ROW_CHOICES:
    raise errors.UserError(
      f'data.on_bad_row = {on_bad_row!r} is unknown; '
      f'use one of {", ".join(_BAD_ROW_CHOICES)}'
    )
  file = pathlib.Path(resolve_path(path))
  stem = file.name.removesuffix('.gz').removesuffix('.jsonl')
  questions, seen, bad = [], set(), []
  for number, line in _numbered_lines(file, key):
    try:
      row = json.loads(line.decode('utf-8-sig' if number == 1 else 'utf-8'))
      question = _question(row, default_id=f'{stem}-{number}')
      _check_new(question.id, seen)
    except (ValueError, RecursionError) as error:
      problem = f'{file}:{number}: {error}'
      if on_bad_row == 'error':
        raise errors.UserError(
          f'{problem}; set data.on_bad_row=skip to skip such rows'
        ) from error
      bad.append(problem)
    else:
      questions.append(question)
  if not questions:
    why = f'{len(bad)} bad rows, the first {bad[0]}' if bad else 'it is empty'
    raise errors.UserError(
      f'{key} = {file} holds no question: {why}; '
      'give a file with one JSON object a line'
    )
  if bad:
    logging.getLogger(__name__).warning(
      'skipped %d bad rows of %s, the first %s', len(bad), file, bad[0]
    )
  return questions, len(bad)


def read_tfds(
  name: str,
  *,
  split: str,
  data_dir: str,
  on_bad_row: str = 'error',
  columns: Sequence[str] = tfds_rows.COLUMNS,
) -> tuple[list[Question], int]:
  """Reads a TensorFlow Datasets split; array_record needs no TensorFlow.

  Returns (questions, number of bad rows skipped), as `read_jsonl` does, of rows
  by `tfds_rows.converter_of`.

  Args:
    name: as `tfds.data_source` takes it, e.g. `my_set/config:1.0.0`.
    split: e.g. `train` or `train[:1000]`.
    data_dir: where it is prepared; '' is TFDS's own default.
    on_bad_row: 'error' or 'skip'.
    columns: the data set's names for id, question, answer and solution, if it
      is not known to `tfds_rows`. The first and the last may be absent (the id
      becomes `<name>-<split>-<row>`).
  """
  convert = tfds_rows.converter_of(name, columns)
  try:
    import tensorflow_datasets as tfds  # slow to import; jsonl needs none of it
  except ImportError as error:
    raise errors.UserError(
      f'data.tfds_name = {name} needs a package that is missing ({error}); '
      'pip install tensorflow-datasets array_record'
    ) from error
  try:
    source = tfds.data_source(name, split=split, data_dir=data_dir or None)
  except Exception as error:  # TFDS raises a dozen unrelated types here
    reason = (str(error).splitlines() or [''])[0]
    raise errors.UserError(
      f'data.tfds_name = {name}, tfds_split = {split}, tfds_dir = {data_dir}: '
      f'{type(error).__name__}: {reason}; prepare it with '
      '`tfds build --file_format=array_record`'
    ) from error

  questions, seen, num_bad = [], set(), 0
  for i, record in enumerate(source):
    try:
      question = _question(convert(record), default_id=f'{name}-{split}-{i}')
      _check_new(question.id, seen)
    except ValueError as error:
      if on_bad_row == 'skip':
        num_bad += 1
        continue
      raise errors.UserError(
        f'data.tfds_name = {name}, tfds_split = {split}, row {i}: {error}; '
        'prepare the data set again with the row mended, or set'
        ' data.on_bad_row=skip'
      ) from error
    questions.append(question)
  if not questions:
    raise errors.UserError(
      f'data.tfds_name = {name}, tfds_split = {split} holds no question'
    )
  return questions, num_bad


def without_shared(
  questions: Sequence[Question],
  held_out: Sequence[Question],
  *,
  on_bad_row: str,
) -> tuple[list[Question], int]:
  """(questions that are not among `held_out`, number left out).

  Raises:
    UserError: there are some, and `on_bad_row` is 'error'.
  """
  texts = {question.question for question in held_out}
  shared = [q for q in questions if q.question in texts]
  if shared and on_bad_row == 'error':
    raise errors.UserError(
      f'question {shared[0].id!r} of the training data is also held out by'
      ' data.eval_path or data.tfds_eval_split; mend it, or set'
      ' data.on_bad_row=skip to train without such questions'
    )
  kept = [q for q in questions if q.question not in texts]
  if not kept:
    raise errors.UserError(
      'the training data holds no question beyond those of data.eval_path or'
      ' data.tfds_eval_split'
    )
  return kept, len(shared)


def split_by_id(
  questions: Sequence[Question], *, eval_fraction: float, seed: int
) -> tuple[list[Question], list[Question]]:
  """Returns (train, eval), each in the order given.

  Where a row goes is a hash of its id and the seed, so it does not depend on
  other questions; the fraction is therefore met only on average. Rows that ask
  the same, word for word, go where the least of their ids does.
  """
  if not 0 <= eval_fraction < 1:
    raise errors.UserError(
      f'data.eval_fraction = {eval_fraction} must be in [0, 1)'
    )
  id_of = {}
  for question in questions:
    text, name = question.question, question.id
    id_of[text] = min(id_of.get(text, name), name)
  train, held_out = [], []
  for question in questions:
    name = id_of[question.question]
    digest = hashlib.sha256(f'{seed}:{name}'.encode()).digest()
    is_held_out = int.from_bytes(digest[:8]) < eval_fraction * 2**64
    (held_out if is_held_out else train).append(question)
  if not train or (eval_fraction > 0 and not held_out):
    side = 'evaluation' if train else 'training'
    raise errors.UserError(
      f'data.eval_fraction = {eval_fraction} leaves none of '
      f'{len(questions)} questions for {side}; change it or data.seed'
    )
  return train, held_out


def question_iterator(
  questions: Sequence[Question], *, batch_questions: int, seed: int
) -> grain.DatasetIterator:
  """Yields lists of `batch_questions` questions for ever.

  Every epoch holds each question once, in a new order. A batch may reach into
  the next epoch, so none is dropped. `get_state()` is a small dict that JSON
  can hold; `set_state()` of it, with the same arguments here, resumes.
  """
  if not questions:
    raise errors.UserError('data.path: no question to iterate over')
  if batch_questions < 1:
    raise errors.UserError(
      f'batch_questions = {batch_questions} must be at least 1'
    )
  dataset = grain.MapDataset.source(questions).seed(seed).shuffle().repeat()
  # The questions are in memory: reader threads would only cost start-up time.
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  # Batched last: an endless MapDataset in batches of 1 overflows its length.
  batches = dataset.to_iter_dataset(options).batch(
    batch_questions, batch_fn=list
  )
  return iter(batches)


def _numbered_lines(
  file: pathlib.Path, key: str
) -> Iterator[tuple[int, bytes]]:
  """Yields (line number from 1, line) of the lines that are not blank."""
  if not file.name.endswith(('.jsonl', '.jsonl.gz')):
    raise errors.UserError(f'{key} = {file} must end in .jsonl or .jsonl.gz')
  opener = gzip.open if file.suffix == '.gz' else open
  try:
    with opener(file, 'rb') as lines:
      for number, line in enumerate(lines, start=1):
        if line.strip(b' \t\r\n\xef\xbb\xbf'):
          yield number, line
  except (OSError, EOFError, zlib.error) as error:
    twin = file.with_suffix('') if opener == gzip.open else f'{file}.gz'
    way_out = 'fetch the file again'
    if isinstance(error, FileNotFoundError):
      way_out = f'{twin} is there' if os.path.exists(twin) else 'check the path'
    raise errors.UserError(
      f'{key} = {file} cannot be read ({type(error).__name__}: {error}); '
      f'{way_out}'
    ) from error


def _question(row: object, *, default_id: str) -> Question:
  """Builds a question, or raises ValueError with what is wrong in the row."""
  if not isinstance(row, dict):
    raise ValueError(f'a row must be an object, not {type(row).__name__}')
  choices = row.get('choices')
  choices = [] if choices is None else choices
  if not isinstance(choices, list):
    raise ValueError(
      f'`choices` must be a list of strings, not {type(choices).__name__}'
    )
  question = Question(
    id=_text('id', row.get('id', default_id)),
    question=_text('question', row.get('question')),
    answer=_text('answer', row.get('answer')),
    solution=(
      None
      if row.get('solution') is None
      else _text('solution', row['solution'])
    ),
    choices=tuple(_text('choices', choice) for choice in choices),
    fields=_fields(row),
  )
  if choices and question.answer not in question.choices:
    raise ValueError(f'`answer` {question.answer!r} is not in `choices`')
  return question


def _fields(row: dict) -> dict:
  """Columns that are no others of a question; an object `fields` is spread."""
  others = {key: row[key] for key in row if key not in _COLUMNS}
  if isinstance(others.get('fields'), dict):
    others = others.pop('fields') | others
  return others


def _text(field: str, value: object) -> str:
  # bool is an int in Python, and a float has more than one spelling.
  if field in ('id', 'answer') and type(value) is int:
    value = str(value)
  if value is None:
    raise ValueError(f'`{field}` is missing')
  if not isinstance(value, str):
    kind = 'a string or an int' if field in ('id', 'answer') else 'a string'
    raise ValueError(f'`{field}` must be {kind}, not {type(value).__name__}')
  if not value.strip():
    raise ValueError(f'`{field}` is empty')
  value.encode()  # raises ValueError for half a surrogate pair
  return value


def _check_new(row_id: str, seen: set[str]) -> None:
  if row_id in seen:
    raise ValueError(f'`id` {row_id} is already taken by an earlier row')
  seen.add(row_id)
