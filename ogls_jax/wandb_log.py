"""Weights & Biases, where it is installed and a config asks for it.

It gets the metrics and the config, no texts. Its key is read by the library
itself, from the environment or its own login; nothing here sees it.
"""

import contextlib
import hashlib
import math
import pathlib
from collections.abc import Callable, Iterator

from ogls_jax import hosts


@contextlib.contextmanager
def logged(
  project: str, workdir: pathlib.Path, values: dict
) -> Iterator[Callable[[int, dict], None]]:
  """Within it: (step, metrics) -> None, of the first host; the rest do nothing.

  A run that is continued goes on in the same run there, known by its workdir.
  Steps that a crash repeats are there already, and W&B keeps the first.

  Args:
    project: log.wandb_project; '' for none.
    workdir: names the run.
    values: the config.
  """
  if not project or not hosts.is_first():
    yield lambda step, row: None
    return
  import wandb  # slow, and not among the needs; `validate` has looked for it

  place = str(workdir.resolve())
  run = wandb.init(
    project=project,
    name=workdir.name,
    id=hashlib.sha256(place.encode()).hexdigest()[:16],
    resume='allow',
    dir=place,
    config=values,
  )

  def log(step: int, row: dict) -> None:
    finite = {
      name: value
      for name, value in row.items()
      if value is not None and math.isfinite(value)
    }
    run.log(finite, step=step)

  try:
    yield log
  finally:
    run.finish()
