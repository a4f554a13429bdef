"""Dequantized tensors on disk, and what happens to them."""

import os
import shutil

from ogls_jax.models import tensor_files
from tests.weight_files import assert_same, load, write_gguf


def test_second_load_comes_from_the_cache(tmp_path, cache_dir, monkeypatch):
  file = write_gguf(tmp_path / 'a.gguf')
  first = load(file)
  (broken,) = [p for p in cache_dir.rglob('*') if p.is_file()]  # no other file
  for damage in (broken.read_bytes()[:-4], b'', b'\xff' * 100):
    broken.write_bytes(damage)
    assert_same(load(file), first)
  opened = []
  monkeypatch.setattr(tensor_files, 'open_gguf_tensors', opened.append)
  assert_same(load(file), first)  # what was broken was written anew
  monkeypatch.undo()
  monkeypatch.setenv('OGLS_CACHE_DIR', str(cache_dir))
  write_gguf(file, scale=2.0)
  os.utime(file, ns=(0, 12345))  # same size, another time
  assert_same(load(file), {name: 2 * a for name, a in first.items()})


def test_a_cache_that_another_process_wrote_first(
  tmp_path, cache_dir, monkeypatch
):
  """Its files are in use: they stay."""
  file = write_gguf(tmp_path / 'a.gguf')
  first = load(file)
  (folder,) = cache_dir.iterdir()
  shutil.move(folder, tmp_path / 'theirs')
  write_shards, inodes = tensor_files.write_shards, []

  def slower(*args):
    write_shards(*args)
    shutil.copytree(tmp_path / 'theirs', folder)
    inodes.append(folder.stat().st_ino)

  monkeypatch.setattr(tensor_files, 'write_shards', slower)
  assert_same(load(file), first)
  assert [folder.stat().st_ino] == inodes
  assert list(cache_dir.iterdir()) == [folder]


def test_cache_that_cannot_be_written(tmp_path, monkeypatch, caplog):
  monkeypatch.setenv('OGLS_CACHE_DIR', __file__)
  assert len(load(write_gguf(tmp_path / 'a.gguf'))) == 11
  assert 'not cached' in caplog.text
