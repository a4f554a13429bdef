"""Weights & Biases, where it is installed and a config asks for it.

It is told the metrics and the config; what it notes by itself, such as the
host's name and the packages, its own settings decide. Its key is read by the
library, from the environment or its own login; nothing here sees it. It is a
copy: where it fails there is a warning, and training goes on without it.
"""

import contextlib
import math
import pathlib
import secrets
from collections.abc import Callable, Iterator

from ogls_jax import hosts
from ogls_jax.errors import Preempted
from ogls_jax.json_file import read_rows, replace_bytes


@contextlib.contextmanager
def logged(
  project: str, workdir: pathlib.Path, values: dict, *, last_step: int
) -> Iterator[Callable[[int, dict], None]]:
  """Within it: (step, metrics) -> None, of the first host; the rest do nothing.

  A run that is continued goes on in the same run there, whose id is in
  `workdir`/wandb_id, and what a crash kept from it is sent again.

  Args:
    project: log.wandb_project; '' for none.
    workdir: of the run.
    values: the config.
    last_step: lines of metrics.jsonl up to it have been written.
  """
  if not project or not hosts.is_first():
    yield lambda step, row: None
    return
  run = _Run(project, workdir, values)
  for row in read_rows(workdir / 'metrics.jsonl', last_step):
    run.log(row['step'], {k: row[k] for k in row if k not in ('step', 'time')})
  try:
    yield run.log
  except Preempted:
    run.finish(0)
    raise
  except BaseException:
    run.finish(1)
    raise
  run.finish(0)


class _Run:
  """A run of W&B, until a call of it fails."""

  def __init__(self, project, workdir, values):
    self._run = None
    self._run = self._called(_begin, project, workdir.resolve(), values)
    # The steps before it are there already.
    self._first = self._run.step if self._run else 0

  def log(self, step, row):
    if self._run and step >= self._first:
      finite = {
        name: value
        for name, value in row.items()
        if value is not None and math.isfinite(value)
      }
      self._called(self._run.log, finite, step=step)

  def finish(self, exit_code):
    if self._run:
      self._called(self._run.finish, exit_code=exit_code)

  def _called(self, function, *args, **kwargs):
    try:
      return function(*args, **kwargs)
    # Its errors are of many kinds: of its own, of connections, of processes.
    except Exception as error:
      self._run = None
      hosts.say(
        'warning: W&B gets no more of this run'
        f' ({type(error).__name__}: {" ".join(str(error).split())[:200]}); mend'
        ' it (`wandb login`, or WANDB_MODE=offline) and start again to send it'
      )
      return None


def _begin(project, workdir, values):
  import wandb  # slow, and not among the needs; `validate` has looked for it

  path = workdir / 'wandb_id'
  if not path.is_file():
    replace_bytes(path, secrets.token_hex(8).encode())
  return wandb.init(
    project=project,
    name=workdir.name,
    id=path.read_text(),
    resume='allow',
    dir=str(workdir),
    config=values,
    settings=wandb.Settings(console='off', disable_git=True, disable_code=True),
  )
