"""A run as one HTML page: `python -m ogls_jax.report WORKDIR [--out=FILE]`.

Curves, warnings, config, and rollouts with what student and teacher made of
each token, as far as `log.inspect_every_steps` has it written down. The page
asks for nothing from any network. Runs that are going on can be looked at, too.

What a model wrote is untrusted. It travels as compressed bytes in base64, gets
into the page as text nodes only, and the page's policy runs no script but the
page's own.
"""

import argparse
import base64
import gzip
import hashlib
import json
import pathlib
import sys

import jinja2

from ogls_jax.errors import USER_ERROR_CODE, UserError
from ogls_jax.json_file import replace_bytes
from ogls_jax.report_data import read_run

MOST_BYTES = 5_000_000
_FOLDER = pathlib.Path(__file__).parent / 'report_page'
_SCRIPTS = ('text.js', 'charts.js', 'rollouts.js', 'main.js')
# What is not rollouts takes less than a tenth.
_MOST_ROLLOUT_BYTES = MOST_BYTES * 9 // 10


def make_page(run: dict) -> str:
  """The page of what `read_run` found."""
  style = (_FOLDER / 'page.css').read_text(encoding='utf-8')
  parts = [(_FOLDER / name).read_text(encoding='utf-8') for name in _SCRIPTS]
  script = "'use strict';\n(() => {\n" + '\n'.join(parts) + '})();\n'
  content = json.dumps(run, allow_nan=False, separators=(',', ':')).encode()
  # Without the time, so that the same run makes the same bytes.
  packed = gzip.compress(content, 9, mtime=0)
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
  )
  return environment.get_template('page.html').render(
    name=_visible(run['name']),
    # Files of ours; all else is escaped.
    style=style,
    script=script,
    style_hash=_hash(style),
    script_hash=_hash(script),
    data=base64.b64encode(packed).decode(),
  )


def _visible(name):
  """A folder's name without bytes that are no text and marks of direction."""
  text = name.encode(errors='replace').decode()
  return ''.join(x if x.isprintable() else '?' for x in text)


def _hash(text):
  digest = hashlib.sha256(text.encode()).digest()
  return f'sha256-{base64.b64encode(digest).decode()}'


def write_report(workdir: pathlib.Path, out: pathlib.Path) -> None:
  """Writes the page of the run in `workdir` to `out`, in one piece.

  Raises:
    UserError: there is no such run, or `out` cannot be written.
  """
  page = make_page(read_run(workdir, most_bytes=_MOST_ROLLOUT_BYTES)).encode()
  try:
    replace_bytes(out, page)
  except OSError as error:
    raise UserError(
      f'--out={out} cannot be written ({error.strerror})'
    ) from error
  print(f'wrote {out}, {len(page) / 1e6:.2f} MB')


class _Parser(argparse.ArgumentParser):
  def error(self, message):
    raise UserError(f'{message}; usage: {self.format_usage()[7:].strip()}')


def main(arguments: list[str]) -> int:
  """Reads the flags and writes the page; returns the exit code."""
  parser = _Parser(
    prog='python -m ogls_jax.report', description=__doc__.partition('\n')[0]
  )
  parser.add_argument('workdir', metavar='WORKDIR', type=pathlib.Path)
  parser.add_argument(
    '--out', type=pathlib.Path, help='default: WORKDIR/report.html'
  )
  try:
    flags = parser.parse_args(arguments)
    write_report(flags.workdir, flags.out or flags.workdir / 'report.html')
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return USER_ERROR_CODE
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
