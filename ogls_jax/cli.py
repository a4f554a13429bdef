"""Flags and exit codes that all commands share."""

import logging as python_logging
import pathlib
import re
import sys
import traceback
from collections.abc import Callable

import jax
from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from ogls_jax import hosts
from ogls_jax.cache_dir import keep_programs
from ogls_jax.errors import USER_ERROR_CODE, Preempted, UserError

PREEMPTED_CODE = 75  # EX_TEMPFAIL, of several hosts
INTERRUPTED_CODE = 130  # as shells report SIGINT


def _parse(argv: list[str]) -> list[str]:
  """absl's parsing, with every complaint as one `UserError`."""
  try:
    rest = flags.FLAGS(argv)
  except (AttributeError, KeyError) as error:
    # ml_collections names the last part of an unknown key and its neighbour.
    text = str(error.args[0]).replace('\\n', ' ').replace('\\', '')
    text = ' '.join(text.replace("'", '').split())
    raise UserError(f'unknown config key: {text}') from error
  except ImportError as error:
    raise UserError(
      f'--config: {error}; run from the folder that holds configs/'
    ) from error
  except SyntaxError as error:
    raise UserError(
      f'--config: {error.filename}:{error.lineno}: {error.msg}'
    ) from error
  except NameError as error:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raise UserError(
      f'--config: {frame.filename}:{frame.lineno}: {error}; a config is a'
      ' Python file that defines get_config, as configs/tiny.py does'
    ) from error
  except (flags.Error, TypeError, ValueError) as error:
    text = ' '.join(' '.join(map(str, error.args)).split())
    if missing := re.match(r'flag --(\w+)=None', text):
      text = f'--{missing[1]} is required, as in README.md'
    if "flag 'config." in text:
      text += '; keys of a config need --config=FILE'
    raise UserError(text) from error
  if rest[1:]:
    raise UserError(f'unexpected argument {rest[1]!r}; flags start with --')
  return rest


def define_config(*, is_required: bool = True) -> None:
  """Defines --config=FILE.py and --config.KEY=VALUE for any of its keys."""
  config_flags.DEFINE_config_file('config', None, 'Path of a config file.')
  if is_required:
    flags.mark_flag_as_required('config')
  flags.declare_key_flag('config')


def define_hosts() -> None:
  """Defines the flags of `hosts.start`."""
  flags.DEFINE_string(
    'coordinator', '', 'HOST:PORT of process 0, or auto; empty: one process.'
  )
  flags.DEFINE_integer('num_processes', 0, 'With HOST:PORT: how many.', 0)
  flags.DEFINE_integer('process_id', -1, 'With HOST:PORT: this one, from 0.')
  flags.DEFINE_integer('wait_seconds', 300, 'For the other hosts.', 1)


def start_hosts() -> None:
  """Joins the other hosts, as the flags say."""
  f = flags.FLAGS
  hosts.start(
    f.coordinator, f.num_processes, f.process_id, wait_seconds=f.wait_seconds
  )


def preempted_code() -> int:
  """The exit code once all is saved after SIGTERM or SIGINT.

  0, or 75 with --coordinator: launchers set it, and run the same command again
  on that code.
  """
  return PREEMPTED_CODE if flags.FLAGS.coordinator else 0


def has_config() -> bool:
  """Whether --config is given."""
  return bool(flags.FLAGS['config'].present)


def read_config() -> config_dict.ConfigDict:
  """The config that --config and its overrides describe.

  Raises:
    UserError: the file is missing or is not Python that defines get_config.
  """
  path = flags.FLAGS['config'].config_filename
  if not pathlib.Path(path).is_file():
    raise UserError(f'--config={path}: no such file; see configs/')
  try:
    return flags.FLAGS.config.lock()
  except OSError as error:
    cause = error.__cause__ or error
    raise UserError(f'--config={path}: {cause}') from error


def run(main: Callable[[], None]) -> None:
  """Runs a command; an error is one line on stderr.

  Exit code 2 for bad input, 1 for a value that is not finite, that of
  `preempted_code` for a stop that was asked for, 130 for Ctrl-C elsewhere.
  """

  def guarded(_):
    # Orbax tells of every file it touches at the level below.
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(
      python_logging.Formatter('%(levelname)s %(message)s')
    )
    # A save that fails is told of by `checkpoint.py`, not in pages.
    logging.get_absl_handler().addFilter(
      lambda record: 'orbax' not in record.pathname
    )
    keep_programs()
    try:
      main()
    except UserError as error:
      print(f'error: {error}', file=sys.stderr)
      hosts.leave(USER_ERROR_CODE)
    except Preempted as notice:
      hosts.say(f'stopped: {notice}; the same command continues')
      sys.exit(preempted_code())
    except KeyboardInterrupt:
      print(
        'interrupted; the same command continues from the last checkpoint',
        file=sys.stderr,
      )
      hosts.leave(INTERRUPTED_CODE)
    except FloatingPointError as error:
      print(f'error: {error}', file=sys.stderr)
      hosts.leave(1)
    except Exception:
      if not jax.distributed.is_initialized():
        raise
      traceback.print_exc()
      print(
        'error: as above, here or on another host that has ended; the same'
        ' command continues from the last checkpoint',
        file=sys.stderr,
      )
      hosts.leave(1)

  def parse(argv):
    try:
      return _parse(argv)
    except UserError as error:
      print(f'error: {error}', file=sys.stderr)
      sys.exit(USER_ERROR_CODE)

  # So that --help has the flags of this file, too.
  for flag in flags.FLAGS.get_key_flags_for_module(__name__):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  app.run(guarded, flags_parser=parse)
