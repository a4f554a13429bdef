import json
import logging
import os
import pathlib
import re
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import default
from ogls_jax import data, errors
from ogls_jax.questions import load_evaluated, load_questions
from ogls_jax.tasks.question import Question
from tests.question_rows import make_questions, row, write
from tests.tfds_files import prepare_tfds

DATA_DIR = pathlib.Path(os.environ.get('OGLS_DATA_DIR', '../shared/data'))


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz'])
def test_read_jsonl_fields(tmp_path, name):
  path = write(
    tmp_path / name,
    [
      row(0, solution='s\nt', level=3),
      '',
      {'question': 'née?', 'answer': 7, 'solution': None},
      row(2, answer='no', choices=['yes', 'no']),
      {'id': 12, 'question': 'q', 'answer': 'a', 'choices': None},
    ],
  )
  assert data.read_jsonl(path) == (
    [
      Question('r0', '0 + 1', '1', 's\nt', fields={'level': 3}),
      Question('a-3', 'née?', '7'),
      Question('r2', '2 + 1', 'no', None, ('yes', 'no')),
      Question('12', 'q', 'a'),
    ],
    0,
  )


def test_other_columns_become_fields(tmp_path):
  others = {'fields': {'tests': [1, {'a': None}], 'question': 'p'}, 'label': 0}
  path = write(tmp_path / 'a.jsonl', [row(0, **others), row(1, fields=7)])
  first, second = data.read_jsonl(path)[0]
  assert first.fields == {
    'tests': [1, {'a': None}], 'question': 'p', 'label': 0,
  }  # fmt: skip
  assert first.question == '0 + 1' and second.fields == {'fields': 7}
  assert len({first, second}) == 2  # hashable


def test_byte_order_mark_and_windows_line_ends(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(
    b'\xef\xbb\xbf'
    + json.dumps(row(0)).encode()
    + b'\r\n\r\n'
    + json.dumps(row(1)).encode()
    + b'\r\n'
  )
  assert data.read_jsonl(str(path)) == (make_questions(2), 0)


BAD_ROWS = {
  'broken JSON': ('{"question": "1"', 'Expecting'),
  'not an object': ('[1, 2]', 'object, not list'),
  'no question': ({'answer': '1'}, '`question` is missing'),
  'no answer': ({'question': 'q'}, '`answer` is missing'),
  'empty answer': (row(5, answer=' '), '`answer` is empty'),
  'empty question': (row(5, question=''), '`question` is empty'),
  'float answer': (row(5, answer=1.5), '`answer` must be .* not float'),
  'bool answer': (row(5, answer=True), '`answer` must be .* not bool'),
  'int question': (row(5, question=5), '`question` must be .* not int'),
  'list solution': (row(5, solution=['s']), '`solution` must .* not list'),
  'dict id': (row(5, id={}), '`id` must be .* not dict'),
  'string choices': (row(5, choices='6'), '`choices` must be .* not str'),
  'false choices': (row(5, choices=False), '`choices` must be .* not bool'),
  'int choice': (row(5, choices=['6', 7]), '`choices` must be .* not int'),
  'answer not a choice': (row(5, choices=['a']), "'6' is not in `choices`"),
  'duplicate id': (row(0), '`id` r0 is already taken'),
  'half a surrogate': ('{"question": "\\ud800", "answer": "1"}', 'surrogates'),
  'deep nesting': ('[' * 100_000, 'recursion'),
  'huge int': ('{"question": "q", "answer": 1%s}' % ('0' * 5000), 'limit'),
}


@pytest.mark.parametrize('kind', BAD_ROWS)
def test_bad_rows_are_errors_or_counted(tmp_path, caplog, kind):
  bad, problem = BAD_ROWS[kind]
  path = write(tmp_path / 'a.jsonl', [row(0), bad, row(2), bad])
  with pytest.raises(errors.UserError, match=problem) as error:
    data.read_jsonl(path)
  message = str(error.value)
  assert message.startswith(f'{path}:2: ') and '\n' not in message
  assert 'data.on_bad_row=skip' in message

  with caplog.at_level(logging.WARNING):
    questions, num_bad = data.read_jsonl(path, on_bad_row='skip')
  assert [q.id for q in questions] == ['r0', 'r2']
  assert num_bad == 2
  (record,) = caplog.records
  assert 'skipped 2 bad rows' in record.getMessage()
  assert re.search(f'{re.escape(path)}:2: .*{problem}', record.getMessage())


def test_bad_utf8_is_a_bad_row(tmp_path):
  path = tmp_path / 'a.jsonl'
  good = json.dumps(row(0)).encode()
  path.write_bytes(good + b'\n{"question": "\xff", "answer": "1"}\n')
  with pytest.raises(errors.UserError, match='a.jsonl:2: .*utf-8'):
    data.read_jsonl(str(path))
  assert data.read_jsonl(str(path), on_bad_row='skip')[1] == 1


def test_files_that_cannot_be_read(tmp_path):
  (tmp_path / 'dir.jsonl').mkdir()
  (tmp_path / 'empty.jsonl').touch()
  (tmp_path / 'blank.jsonl').write_bytes(b'\xef\xbb\xbf\n \r\n\n')
  write(tmp_path / 'bad.jsonl', ['{', row(0, answer=None)])
  write(tmp_path / 'whole.jsonl.gz', [row(i) for i in range(500)])
  whole = (tmp_path / 'whole.jsonl.gz').read_bytes()
  (tmp_path / 'cut.jsonl.gz').write_bytes(whole[: len(whole) // 2])
  middle = len(whole) // 2
  broken = whole[:middle] + b'\x00' * 40 + whole[middle + 40 :]
  (tmp_path / 'broken.jsonl.gz').write_bytes(broken)
  (tmp_path / 'plain.jsonl.gz').write_bytes(json.dumps(row(0)).encode())
  (tmp_path / 'a.csv').write_text('q,a')
  for name, problem in {
    'missing.jsonl': 'FileNotFoundError.* check the path',
    'whole.jsonl': '/whole.jsonl.gz is there',
    'bad.jsonl.gz': '/bad.jsonl is there',
    'dir.jsonl': 'IsADirectoryError',
    'empty.jsonl': 'it is empty',
    'blank.jsonl': 'it is empty',
    'bad.jsonl': '2 bad rows, the first .*bad.jsonl:1',
    'cut.jsonl.gz': 'EOFError.* fetch the file again',
    'broken.jsonl.gz': 'cannot be read',
    'plain.jsonl.gz': 'BadGzipFile',
    'a.csv': r'must end in .jsonl or .jsonl.gz',
  }.items():
    with pytest.raises(errors.UserError, match=problem) as error:
      data.read_jsonl(str(tmp_path / name), on_bad_row='skip')
    assert f'data.path = {tmp_path / name}' in str(error.value)
  with pytest.raises(errors.UserError, match="data.on_bad_row = 'drop'"):
    data.read_jsonl(str(tmp_path / 'empty.jsonl'), on_bad_row='drop')


def test_resolve_path(tmp_path, monkeypatch):
  monkeypatch.setenv('OGLS_DATA_DIR', str(tmp_path))
  assert data.resolve_path('data:x/a.jsonl') == str(tmp_path / 'x/a.jsonl')
  assert data.resolve_path('x/a.jsonl') == 'x/a.jsonl'
  write(tmp_path / 'a.jsonl', [row(0)])
  assert data.read_jsonl('data:a.jsonl') == (make_questions(1), 0)
  monkeypatch.delenv('OGLS_DATA_DIR')
  assert data.resolve_path('data:a.jsonl') == '../shared/data/a.jsonl'


def test_every_local_data_set_is_read():
  files = sorted(DATA_DIR.glob('*/*.jsonl')) + sorted(DATA_DIR.glob('*/*.gz'))
  files = [file for file in files if file.stat().st_size < 1_000_000]
  if not files:
    pytest.skip(
      f'no data sets in {DATA_DIR}; set OGLS_DATA_DIR to their folder'
    )
  for file in files:
    questions, num_bad = data.read_jsonl(str(file))
    assert num_bad == 0 and len(questions) >= 30


def test_read_tfds(tmp_path):
  def text_columns(features):
    return {key: features.Text() for key in rows[0]}

  rows = [row(i, solution=f'née {i}') for i in range(6)]
  prepare_tfds(tmp_path, 'toy', {'train': rows}, text_columns)
  questions, num_bad = data.read_tfds(
    'toy', split='train', data_dir=str(tmp_path)
  )
  assert num_bad == 0
  assert sorted(questions, key=lambda q: q.id) == [
    Question(q.id, q.question, q.answer, f'née {i}')
    for i, q in enumerate(make_questions(6))
  ]
  part, _ = data.read_tfds('toy', split='train[:2]', data_dir=str(tmp_path))
  assert part == questions[:2]

  for name, split, problem in (
    ('toy', 'test', "Unknown split 'test'"),
    ('nothing', 'train', 'DatasetNotFoundError'),
    ('toy', 'train[:0]', '0 length'),
  ):
    with pytest.raises(errors.UserError, match=problem) as error:
      data.read_tfds(name, split=split, data_dir=str(tmp_path))
    assert '\n' not in str(error.value) and 'data.tfds_' in str(error.value)


def test_read_tfds_with_other_columns(tmp_path):
  def columns(features):
    return {'problem': features.Text(), 'result': features.Scalar(np.int64)}

  rows = [{'problem': f'{i} + 1', 'result': i + 1} for i in range(3)]
  prepare_tfds(tmp_path, 'toy_other', {'train': rows}, columns)
  questions, _ = data.read_tfds(
    'toy_other',
    split='train',
    data_dir=str(tmp_path),
    columns=('id', 'problem', 'result', 'solution'),
  )
  assert [q.id for q in questions] == [f'toy_other-train-{i}' for i in range(3)]
  assert {(q.question, q.answer) for q in questions} == {
    (f'{i} + 1', str(i + 1)) for i in range(3)
  }
  with pytest.raises(
    errors.UserError, match="no column 'question'.*only problem, result"
  ):
    data.read_tfds('toy_other', split='train', data_dir=str(tmp_path))


def test_read_tfds_choices_and_bad_rows(tmp_path):
  def columns(features):
    text = features.Text()
    return {
      'question': text,
      'answer': text,
      'choices': features.Sequence(features.Text()),
    }

  rows = [
    {'question': f'q{i}', 'answer': answer, 'choices': ['yes', 'no']}
    for i, answer in enumerate(['yes', 'maybe', 'no'])
  ]
  prepare_tfds(tmp_path, 'toy_choice', {'train': rows}, columns)
  where = {'split': 'train', 'data_dir': str(tmp_path)}
  with pytest.raises(errors.UserError, match="'maybe' is not in `choices`"):
    data.read_tfds('toy_choice', **where)
  questions, num_bad = data.read_tfds('toy_choice', on_bad_row='skip', **where)
  assert {q.answer for q in questions} == {'yes', 'no'} and num_bad == 1
  assert all(q.choices == ('yes', 'no') for q in questions)


def test_who_holds_out_is_named(tmp_path, caplog, maker):
  config = default.get_config()
  config.data.path = write(tmp_path / 'a.jsonl', map(row, range(20)))
  config.eval.num_questions = 1
  load_questions(config, maker)
  assert 'more are held out by data.eval_fraction = 0.2 and' in caplog.text
  config.data.eval_path = write(tmp_path / 'b.jsonl', map(row, range(20, 24)))
  _, held_out, _ = load_questions(config, maker)
  named = f'data.eval_path = {config.data.eval_path}'
  assert [q.id for q in held_out] == ['r20']
  assert f'20 questions to train on; 3 more are held out by {named}' in (
    caplog.text
  )
  config.eval.num_questions = 5
  with pytest.raises(errors.UserError, match=f'only 4 .* held out by {named}'):
    load_questions(config, maker)


def test_questions_of_multirc_that_are_cut_are_named(tmp_path, caplog, maker):
  config = default.get_config()
  config.data.path = write(tmp_path / 'a.jsonl', map(row, range(20)))
  rows = [
    row(n, paragraph_idx=0, question_idx=n // 3) | {'id': f'multirc-{n}'}
    for n in range(20, 32)
  ]
  config.data.eval_path = write(tmp_path / 'b.jsonl', rows)
  for num, is_parted in ((4, False), (6, True)):
    config.eval.num_questions = num
    for load in (load_questions, load_evaluated):
      caplog.clear()
      load(config, maker)
      assert ('eval.num_questions = 6 left out: 1;' in caplog.text) == is_parted


@settings(max_examples=200, deadline=None)
@given(
  st.lists(
    st.one_of(
      st.binary(max_size=60),
      st.dictionaries(
        st.sampled_from(['id', 'question', 'answer', 'solution', 'choices']),
        st.one_of(
          st.none(), st.booleans(), st.integers(), st.floats(), st.text(),
          st.lists(st.text(), max_size=3),
        ),
      ).map(lambda x: json.dumps(x).encode()),
    ),
    max_size=6,
  ),
  st.sampled_from(['error', 'skip']),
)  # fmt: skip
def test_rows_in_any_damage_are_one_error_or_counted(lines, on_bad_row):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'rows.jsonl'
    path.write_bytes(b'\n'.join(lines))
    num_lines = sum(
      bool(line.strip(b' \t\r\n\xef\xbb\xbf'))
      for line in path.read_bytes().split(b'\n')
    )
    try:
      questions, num_bad = data.read_jsonl(str(path), on_bad_row=on_bad_row)
    except errors.UserError as error:
      assert 'rows.jsonl' in str(error) and '\n' not in str(error)
      return
    assert len(questions) + num_bad == num_lines
    assert on_bad_row == 'skip' or num_bad == 0
    assert len({q.id for q in questions}) == len(questions)
