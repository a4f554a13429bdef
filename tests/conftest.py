import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile

# Tests compile much and run little. Set before JAX starts its backend.
_FLAGS = [
  os.environ.get('XLA_FLAGS', ''),
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
]
# LLVM's part of it is halved without the newer emitters; later versions have
# no others, and end a process that is given a flag they do not know.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join(_FLAGS)

# The same small programs are compiled in many files and commands: once is
# enough. Processes started from here take the folder over.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp()
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  atexit.register(
    shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True
  )

import jax  # noqa: E402
import pytest  # noqa: E402

# Before any array exists: setting the device count later raises RuntimeError.
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


# Files of minutes come first, so that no worker ends with one, alone.
_LONG = {
  f'test_{name}'
  for name in (
    'hosts', 'preflight', 'sampling', 'export', 'real_models', 'learning',
    'compare',
  )
}  # fmt: skip


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.stem not in _LONG)


@pytest.fixture(scope='session')
def maker():
  """Short prompts and the arithmetic tokenizer, as configs/tiny.py has."""
  from ogls_jax import prompts
  from ogls_jax.tokenizer import load_tokenizer

  return prompts.PromptMaker(
    tokenizer=load_tokenizer('configs/arithmetic.model'),
    student=prompts.load_template('k', 'student_short'),
    teacher=prompts.load_template('k', 'teacher_short', ('question', 'hint')),
  )


@pytest.fixture(scope='session')
def unevaluated(tmp_path_factory):
  """The workdir of a short run that other runs share stage 1 with."""
  from ogls_jax import train
  from tests.small_run import small_config

  workdir = tmp_path_factory.mktemp('run') / 'unevaluated'
  config = small_config(eval__num_questions=0, method='opsd', num_steps=1)
  train.train(config, workdir)
  return workdir


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
  """Where this test's dequantized GGUF tensors go."""
  folder = tmp_path / 'cache'
  monkeypatch.setenv('OGLS_CACHE_DIR', str(folder))
  return folder


@pytest.fixture(scope='module', autouse=True)
def free_programs():
  """Each compiled program maps memory; Linux allows a process 65,530 maps.

  Beyond them the compiler crashes.
  """
  yield
  jax.clear_caches()
  gc.collect()
