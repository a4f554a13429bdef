"""Where files live that can be made again: $OGLS_CACHE_DIR."""

import hashlib
import os
import pathlib
import platform

import jax


def cache_dir() -> pathlib.Path:
  """$OGLS_CACHE_DIR, by default ~/.cache/ogls_jax; may not exist yet."""
  root = os.environ.get('OGLS_CACHE_DIR') or '~/.cache/ogls_jax'
  return pathlib.Path(root).expanduser()


def keep_programs() -> None:
  """Compiled programs of the next run come from the cache.

  JAX_COMPILATION_CACHE_DIR goes first. Programs of another kind of CPU, which
  may share a home folder, have a folder of their own: they would not run here.
  """
  if jax.config.jax_compilation_cache_dir is None:
    folder = cache_dir() / 'programs' / _cpu_kind()
    jax.config.update('jax_compilation_cache_dir', str(folder))


def _cpu_kind() -> str:
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  # x86 says flags, ARM says Features.
  traits = [x for x in lines if x.startswith(('flags', 'Features'))][:1]
  traits += [platform.machine(), platform.processor()]
  return hashlib.sha256(' '.join(traits).encode()).hexdigest()[:16]
