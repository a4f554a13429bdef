import json

import pytest

from ogls_jax.errors import UserError
from ogls_jax.json_file import read_json, write_json


@pytest.mark.parametrize(
  ('content', 'reason'),
  [
    (b'{"a": 1', 'is not readable as JSON .Expecting'),
    (b'{"a": "\xff"}', "is not readable as JSON .'utf-8' codec"),
    (b'[]', 'holds no JSON object'),
  ],
)
def test_a_bad_file_is_one_line(tmp_path, content, reason):
  file = tmp_path / 'a.json'
  file.write_bytes(content)
  with pytest.raises(UserError, match=f'^--x=1: {file} {reason}') as caught:
    read_json(file, flag='--x=1')
  assert str(caught.value).endswith('; mend or replace it')
  assert '\n' not in str(caught.value)


def test_what_is_written_is_read(tmp_path):
  file = tmp_path / 'new' / 'a.json'
  assert read_json(file, flag='f') is None
  for content in ({'a': 'é'}, {'b': [1]}):
    write_json(file, content, flag='f')
    assert read_json(file, flag='f') == content
  assert list(file.parent.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  file = tmp_path / 'a.json'
  write_json(file, {'a': 1}, flag='f')

  def replace(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('os.replace', replace)
  with pytest.raises(UserError, match='f: .*a.json cannot be written .No spa'):
    write_json(file, {'a': 2}, flag='f')
  assert json.loads(file.read_text()) == {'a': 1}
