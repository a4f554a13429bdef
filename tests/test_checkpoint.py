"""Checkpoints: damage is seen, failed saves are tried again, the best stays."""

import contextlib
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ogls_jax import checkpoint, checksums, mesh
from ogls_jax.batches import TrainState
from ogls_jax.checkpoint import Checkpointer
from ogls_jax.errors import UserError


def state_of(number):
  return TrainState(
    step=jnp.int32(number),
    key=jax.random.key(number),
    params={'w': jax.random.normal(jax.random.key(number), (64, 48))},
    opt_state={'m': jnp.full((200,), number, jnp.bfloat16)},
    ema_params=None,
  )


def open_in(tmp_path, **options):
  options = {'keep': 5} | options
  return contextlib.closing(Checkpointer(tmp_path / 'steps', **options))


def fill(tmp_path, steps, **options):
  with open_in(tmp_path, **options) as checkpointer:
    for step in steps:
      checkpointer.save(step, state_of(step), {'data': {'place': step}})


def assert_is(found, step):
  number, state, position = found
  assert number == step and position == {'data': {'place': step}}
  expected = state_of(step)
  np.testing.assert_array_equal(state.params['w'], expected.params['w'])
  assert (
    jax.random.key_data(state.key) == jax.random.key_data(expected.key)
  ).all()


def test_one_changed_word_changes_a_checksum():
  rng = np.random.default_rng(0)
  arrays = {
    'f32': rng.normal(size=(5, 7, 3)).astype(np.float32),
    'bf16': jnp.asarray(rng.normal(size=(5, 7)), jnp.bfloat16),
    'i8': rng.integers(-9, 9, (40,)).astype(np.int8),
    'bool': rng.integers(0, 2, (9,)) > 0,
    'scalar': np.int32(3),
  }
  arrays = jax.tree.map(jnp.asarray, arrays)
  plain = checksums.checksums_of(arrays)
  assert len(set(plain.values())) == 5
  for name, array in arrays.items():
    if not array.ndim:
      continue
    flat = np.array(array).reshape(-1)
    order = np.arange(flat.size)
    first = flat != flat[0]
    other = int(np.flatnonzero(first)[0])
    order[[0, other]] = order[[other, 0]]  # two words change places
    swapped = flat[order]
    one = flat.copy()
    one.view(np.uint8)[-1] ^= 1  # a bit
    for changed in (swapped, one):
      changed = jnp.asarray(changed.reshape(array.shape))
      found = checksums.checksums_of(arrays | {name: changed})
      wrong = [key for key in plain if plain[key] != found[key]]
      assert wrong == [f"['{name}']"]
  with pytest.raises(ValueError, match='no checksum'):
    checksums.checksums_of([jnp.ones(2, jnp.complex64)])


@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 2, 2)])
def test_a_checksum_is_the_same_on_every_mesh(shape):
  assert jax.device_count() == 8
  array = jax.random.normal(jax.random.key(0), (16, 24))
  plain = checksums.checksums_of([array])
  grid = mesh.make_mesh(dict(zip(mesh.AXES, shape, strict=True)))
  spec = jax.sharding.PartitionSpec('fsdp', 'model')
  placed = jax.device_put(array, jax.NamedSharding(grid, spec))
  with jax.set_mesh(grid):
    assert checksums.checksums_of([placed]) == plain


def damage_bytes(folder):
  """One byte of the largest file."""
  file = max(
    (x for x in folder.rglob('*') if x.is_file()),
    key=lambda x: x.stat().st_size,
  )
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def damage_length(folder):
  for file in folder.rglob('*'):
    if file.is_file() and file.stat().st_size > 4000:
      os.truncate(file, file.stat().st_size // 2)


def damage_record(folder):
  (file,) = (folder / 'position').rglob('metadata')
  text = file.read_text().replace('"place": 3', '"place": 4')
  text = text.replace('"place":3', '"place":4')
  assert '4' in text
  file.write_text(text)


def damage_files(folder):
  shutil.rmtree(folder / 'state')


def damage_array(folder):
  """A whole array of another step, as files that are well formed."""
  other = folder.parent / '2' / 'state'
  shutil.rmtree(folder / 'state')
  shutil.copytree(other, folder / 'state')


@pytest.mark.parametrize(
  'damage',
  [damage_bytes, damage_length, damage_record, damage_files, damage_array],
)
def test_a_damaged_step_is_told_of_and_the_one_before_counts(
  tmp_path, damage, capsys
):
  fill(tmp_path, [1, 2, 3])
  damage(tmp_path / 'steps' / '3')
  with open_in(tmp_path) as checkpointer:
    with pytest.raises(UserError, match='3 is damaged.*choose another step'):
      checkpointer.restore(3, state_of(0))
    assert_is(checkpointer.restore_newest(state_of(0)), 2)
    assert 'steps/3 is damaged' in capsys.readouterr().out
    assert len(list((tmp_path / 'steps.damaged').iterdir())) == 1
    # Its place is free.
    checkpointer.save(3, state_of(3), {'data': {'place': 3}})
  with open_in(tmp_path) as checkpointer:
    assert_is(checkpointer.restore_newest(state_of(0)), 3)


def test_only_verify_sees_a_well_formed_array_of_another_step(tmp_path):
  fill(tmp_path, [1, 2, 3])
  damage_array(tmp_path / 'steps' / '3')
  with open_in(tmp_path, verify=False) as checkpointer:
    step, state, _ = checkpointer.restore_newest(state_of(0))
  assert step == 3
  np.testing.assert_array_equal(state.params['w'], state_of(2).params['w'])


def test_where_no_step_is_good_nothing_starts_afresh(tmp_path):
  fill(tmp_path, [1, 2])
  for step in (1, 2):
    damage_files(tmp_path / 'steps' / str(step))
  with (
    open_in(tmp_path) as checkpointer,
    pytest.raises(UserError, match='has steps 1, 2, and all are damaged'),
  ):
    checkpointer.restore_newest(state_of(0))
  assert {x.name for x in (tmp_path / 'steps').iterdir()} == {'1', '2'}
  with open_in(tmp_path / 'new') as checkpointer:
    assert checkpointer.restore_newest(state_of(0)) is None


def test_the_best_step_stays(tmp_path):
  accuracies = {1: 0.2, 2: 0.7, 3: None, 4: 0.5, 5: None, 6: 0.6}
  with open_in(tmp_path, keep=2) as checkpointer:
    for step, accuracy in accuracies.items():
      if accuracy is not None:
        checkpointer.rate(step, accuracy)
      checkpointer.save(step, state_of(step), {'data': {'place': step}})
    checkpointer.wait()
    assert checkpointer.all_steps() == [2, 5, 6]
  # Rated only after it was saved, as where a stop came before the evaluation.
  with open_in(tmp_path, keep=1) as checkpointer:
    checkpointer.restore_newest(state_of(0))
    checkpointer.rate(6, 0.8)
    for step in (7, 8):
      checkpointer.save(step, state_of(step), {'data': {'place': step}})
    checkpointer.wait()
    assert checkpointer.all_steps() == [6, 8]
  # What a later step says of it counts, too.
  with open_in(tmp_path, keep=1) as checkpointer:
    checkpointer.restore_newest(state_of(0))
    checkpointer.rate(8, 0.7)
    checkpointer.save(9, state_of(9), {'data': {'place': 9}})
    checkpointer.wait()
    assert checkpointer.all_steps() == [6, 9]


def failing(monkeypatch, error, times):
  """The disk fails so many times, behind Orbax's back."""
  original, calls = checkpoint.ocp.CheckpointManager.save, []

  def save(*args, **kwargs):
    calls.append(1)
    if len(calls) <= times:
      raise error
    return original(*args, **kwargs)

  monkeypatch.setattr(checkpoint.ocp.CheckpointManager, 'save', save)


def test_a_full_disk_is_tried_again_later(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(checkpoint, '_FIRST_WAIT', 0.05)
  failing(monkeypatch, OSError(28, 'No space left on device'), times=2)
  with open_in(tmp_path) as checkpointer:
    checkpointer.save(1, state_of(1), {'data': {'place': 1}})
    assert not checkpointer.is_due(2, every_steps=2)
    waited = 0
    for step in range(2, 200):
      if checkpointer.is_due(step, every_steps=1000):
        checkpointer.save(step, state_of(step), {'data': {'place': step}})
        waited += 1
      if waited == 2:
        break
      checkpoint.time.sleep(0.01)
    checkpointer.wait()
    assert checkpointer.all_steps() == [step]
    assert not checkpointer.is_due(3, every_steps=2)
    assert checkpointer.is_due(4, every_steps=2)
  text = capsys.readouterr().out
  assert text.count('No space left on device') == 2
  assert 'the next attempt is in' in text


def test_a_save_that_fails_in_the_background_is_tried_again(
  tmp_path, monkeypatch, capsys
):
  """As where the disk fills up while files are written."""
  monkeypatch.setattr(checkpoint, '_FIRST_WAIT', 0.01)
  original, calls = checkpoint.ocp.CheckpointManager.wait_until_finished, []

  def wait(self):
    original(self)
    if (tmp_path / 'steps' / '1').exists() and not calls:
      calls.append(1)
      shutil.rmtree(tmp_path / 'steps' / '1')
      raise ValueError('RESOURCE_EXHAUSTED: No space left on device')

  monkeypatch.setattr(
    checkpoint.ocp.CheckpointManager, 'wait_until_finished', wait
  )
  with open_in(tmp_path) as checkpointer:
    checkpointer.save(1, state_of(1), {'data': {'place': 1}})
    checkpointer.wait()
    assert checkpointer.all_steps() == []
    assert 'step 1 was not saved (RESOURCE' in capsys.readouterr().out
    position = {'data': {'place': 2}}
    checkpointer.save_now(2, state_of(2), position, most_seconds=9.0)
    assert_is(checkpointer.restore_newest(state_of(0)), 2)


def test_damage_that_another_host_sees_is_seen_by_all(tmp_path, monkeypatch):
  """Before the checksums, which need all hosts."""
  fill(tmp_path, [1, 2])
  answers = iter([1])
  monkeypatch.setattr(
    checkpoint.hosts, 'largest', lambda *x: (next(answers, x[0]),)
  )
  sums, original = [], checkpoint.checksums_of
  monkeypatch.setattr(
    checkpoint, 'checksums_of', lambda x: sums.append(1) or original(x)
  )
  with open_in(tmp_path) as checkpointer:
    assert_is(checkpointer.restore_newest(state_of(0)), 1)
  assert len(sums) == 1


def test_the_last_save_is_tried_until_it_is_there_or_time_is_up(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(checkpoint, '_FIRST_WAIT', 0.01)
  failing(monkeypatch, OSError(30, 'Read-only file system'), times=3)
  with open_in(tmp_path) as checkpointer:
    with pytest.raises(UserError, match='step 1 cannot be saved; mend the'):
      checkpointer.save_now(1, state_of(1), {}, most_seconds=0.02)
    checkpointer.save_now(1, state_of(1), {}, most_seconds=60)
    assert checkpointer.all_steps() == [1]


def test_a_folder_that_vanished_is_no_place_to_save(tmp_path, capsys):
  with open_in(tmp_path) as checkpointer:
    checkpointer.save(1, state_of(1), {})
    checkpointer.wait()
    os.replace(tmp_path / 'steps', tmp_path / 'elsewhere')
    checkpointer.save(2, state_of(2), {})
    assert 'the folder is gone' in capsys.readouterr().out
    assert not (tmp_path / 'steps').exists()
    os.replace(tmp_path / 'elsewhere', tmp_path / 'steps')
    checkpointer.save(3, state_of(3), {})
    checkpointer.wait()
    assert checkpointer.all_steps() == [1, 3]


def test_what_a_cut_off_save_left_is_no_step_and_goes_away(tmp_path):
  fill(tmp_path, [1])
  shutil.copytree(
    tmp_path / 'steps' / '1', tmp_path / 'steps' / '3.orbax-checkpoint-tmp'
  )
  with open_in(tmp_path) as checkpointer:
    assert checkpointer.all_steps() == [1]
    checkpointer.save(2, state_of(2), {'data': {'place': 2}})
  names = {path.name for path in (tmp_path / 'steps').iterdir()}
  assert names == {'1', '2'}


def test_the_record_is_json(tmp_path):
  fill(tmp_path, [1])
  (file,) = (tmp_path / 'steps' / '1' / 'position').rglob('metadata')
  record = json.loads(file.read_text())
  assert set(record) == {'crc32', 'position', 'checksums', 'accuracies'}
  assert len(record['checksums']) == 4


def test_a_step_that_is_there_counts_whatever_else_fails(
  tmp_path, monkeypatch, capsys
):
  """Removing an older step may fail once the new one is whole."""
  original, calls = checkpoint.ocp.CheckpointManager.wait_until_finished, []

  def wait(self):
    original(self)
    if 2 in self.all_steps() and not calls:
      calls.append(1)
      raise OSError(16, 'Device or resource busy')

  monkeypatch.setattr(
    checkpoint.ocp.CheckpointManager, 'wait_until_finished', wait
  )
  with open_in(tmp_path, keep=1) as checkpointer:
    for step in (1, 2):
      position = {'data': {'place': step}}
      checkpointer.save_now(step, state_of(step), position, most_seconds=0.0)
    assert 'step 2 is saved, but an older one' in capsys.readouterr().out
    assert_is(checkpointer.restore_newest(state_of(0)), 2)


def test_a_reader_leaves_a_save_that_is_under_way(tmp_path):
  fill(tmp_path, [1])
  under_way = tmp_path / 'steps' / '2.orbax-checkpoint-tmp'
  shutil.copytree(tmp_path / 'steps' / '1', under_way)
  with open_in(tmp_path, is_read_only=True) as checkpointer:
    assert checkpointer.all_steps() == [1]
    checkpointer.restore(1, state_of(0))
  assert under_way.exists()


@pytest.mark.parametrize('error', [MemoryError(), PermissionError(13, 'no')])
def test_errors_of_this_machine_are_no_damage(tmp_path, monkeypatch, error):
  fill(tmp_path, [1, 2])

  def restore(*args, **kwargs):
    raise error

  monkeypatch.setattr(checkpoint.ocp.CheckpointManager, 'restore', restore)
  with open_in(tmp_path) as checkpointer, pytest.raises(type(error)):
    checkpointer.restore_newest(state_of(0))
  assert {x.name for x in (tmp_path / 'steps').iterdir()} == {'1', '2'}


def test_errors_of_the_device_are_no_full_disk(tmp_path, monkeypatch):
  failing(monkeypatch, jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED'), 1)
  with (
    open_in(tmp_path) as checkpointer,
    pytest.raises(jax.errors.JaxRuntimeError),
  ):
    checkpointer.save(1, state_of(1), {})
