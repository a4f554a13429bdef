"""Files that are damaged or missing are one line that names them."""

import os
import re
import shutil

import pytest
import safetensors.numpy

from ogls_jax.errors import UserError
from ogls_jax.models import tensor_files
from tests.weight_files import (
  load,
  write_folder,
  write_gguf,
)

pytestmark = pytest.mark.usefixtures('cache_dir')


def write_bytes(name, change):
  def damage(folder):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(change(content))

  return damage


def leave_the_folder(folder):
  name = 'model-0.safetensors'
  os.replace(folder / name, folder.parent / name)
  rename = write_bytes(
    tensor_files.INDEX, lambda b: b.replace(b'model-0', b'../model-0')
  )
  rename(folder)


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (write_bytes('model-1.safetensors', lambda b: b[:-100]), 'not a readable'),
    (write_bytes('model-1.safetensors', lambda b: b[:50]), 'not a readable'),
    (
      write_bytes('model-1.safetensors', lambda b: b[:9] + b'\xff' + b[10:]),
      'model-1.safetensors: not a readable',
    ),
    (
      lambda f: (f / 'model-0.safetensors').unlink(),
      "index.json names 'model-0.safetensors', which is not there",
    ),
    (
      lambda f: safetensors.numpy.save_file({}, f / 'model.safetensors'),
      'remove one of the two models',
    ),
    (
      lambda f: shutil.copy(
        f / 'model-0.safetensors', f / 'model-1.safetensors'
      ),
      'is in another file of the folder too',
    ),
    (
      lambda f: (f / tensor_files.INDEX).write_text('{"weight_map": {"a": 5}}'),
      'no weight_map of files',
    ),
    (
      lambda f: (f / 'adapter_config.json').write_text('{}'),
      'it holds an adapter',
    ),
    (leave_the_folder, "names '../model-0.safetensors', which is not there"),
    (write_bytes(tensor_files.INDEX, lambda b: b'{}'), 'no weight_map'),
    (write_bytes(tensor_files.INDEX, lambda b: b[:30]), 'not readable as JSON'),
    (
      lambda f: os.replace(
        f / 'model-0.safetensors', f / 'model-1.safetensors'
      ),
      'which is not there',
    ),
  ],
)
def test_damaged_folder(tmp_path, damage, message):
  folder = write_folder(tmp_path / 'hf', num_files=2)
  damage(folder)
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    load(folder)
  assert str(tmp_path) in str(caught.value)
  assert '\n' not in str(caught.value)


def test_damaged_gguf(tmp_path):
  file = write_gguf(tmp_path / 'a.gguf')
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(UserError, match=r'a\.gguf: not a readable GGUF'):
    load(file)


def test_pickled_weights_are_not_read(tmp_path):
  folder = write_folder(tmp_path / 'hf')
  os.replace(folder / 'model-0.safetensors', folder / 'pytorch_model.bin')
  with pytest.raises(UserError, match='pickled weights are never read'):
    load(folder)
