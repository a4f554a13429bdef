import gc

import jax
import numpy as np
from flax import nnx

from ogls_jax import build
from ogls_jax.mesh import make_mesh
from tests.small import naive_hidden
from tests.small_run import small_config


def make_models(**changes):
  config = small_config(lora__rank=2, **changes)
  mesh = make_mesh({'data': 2, 'fsdp': 2, 'model': 2})
  settings = build.decoder_settings(config, 64)
  base = build.base_model(config, settings, mesh)
  return base, build.student_model(config, base, mesh)


def live_bytes():
  gc.collect()
  return sum(array.nbytes for array in jax.live_arrays())


def test_the_base_is_in_memory_once():
  base, student = make_models()
  for ours, theirs in zip(
    jax.tree.leaves(student.frozen), jax.tree.leaves(base.params), strict=True
  ):
    assert ours is theirs
  adapters = sum(array.nbytes for array in jax.tree.leaves(student.params))
  with_both = live_bytes()
  del student, ours, theirs
  # Nothing but adapters goes with the student.
  assert with_both - live_bytes() == adapters


def test_the_teacher_is_the_student_with_adapters_off():
  base, student = make_models()
  teacher = nnx.merge(base.graphdef, base.params)
  fresh = nnx.merge(student.graphdef, student.params, student.frozen)
  before = naive_hidden(teacher, [1, 2], [3, 4])
  np.testing.assert_array_equal(naive_hidden(fresh, [1, 2], [3, 4]), before)
  trained = jax.tree.map(lambda array: array + 0.1, student.params)
  changed = nnx.merge(student.graphdef, trained, student.frozen)
  assert np.abs(naive_hidden(changed, [1, 2], [3, 4]) - before).max() > 0.1
  teacher = nnx.merge(base.graphdef, base.params)
  np.testing.assert_array_equal(naive_hidden(teacher, [1, 2], [3, 4]), before)


def test_adapters_are_on_the_targets_alone_and_stacked():
  _, student = make_models(lora__targets='q,down')
  shapes = {
    '.'.join(path): variable.shape
    for path, variable in nnx.to_flat_state(student.params)
  }
  assert shapes == {
    'layers.q.lora_a': (2, 32, 2), 'layers.q.lora_b': (2, 2, 32),
    'layers.down.lora_a': (2, 48, 2), 'layers.down.lora_b': (2, 2, 32),
  }  # fmt: skip
  for _, variable in nnx.to_flat_state(student.params):
    assert variable[...].dtype == np.float32


def test_adapters_start_as_the_key_says():
  for variance in (1 / 3, 2.0):
    _, student = make_models(lora__init_variance=variance)
    for path, variable in nnx.to_flat_state(student.params):
      array = np.asarray(variable[...])
      if path[-1] == 'lora_b':
        assert not array.any()
        continue
      num_layers, num_inputs, _ = array.shape
      # Uniform, as PEFT's: a bound of sqrt(3 variance).
      scaled = array * num_inputs**0.5
      most = np.abs(scaled).max()
      assert 0.9 < most / (3 * variance) ** 0.5 <= 1
      assert not np.array_equal(array[0], array[num_layers - 1])
  default = small_config(lora__rank=2).lora.init_variance
  assert default == 1 / 3
