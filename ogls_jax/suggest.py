"""The mildest changes to a config that make it fit a slice, found by trying."""

import copy
from collections.abc import Callable, Iterator

from ml_collections import config_dict

from ogls_jax.errors import UserError

Overrides = dict[str, object]
# As they are compiled.
_SAMPLING = ('begin', 'place', 'decode', 'compact')
_ORDER = (*_SAMPLING, 'distill', *(f'eval {name}' for name in _SAMPLING))
# Of one key: so often halved or doubled.
_MOST_STEPS = 4


def find(
  config: config_dict.ConfigDict,
  misfit: str,
  try_out: Callable[[config_dict.ConfigDict, Overrides], str],
) -> Overrides | None:
  """Changes with which all programs fit; None if there are none among ours.

  The first program that does not fit gets the mildest change with which it and
  all before it do; then the next that does not.

  Args:
    config: that does not fit.
    misfit: the first program that does not fit.
    try_out: (config with changes, changes) to the first program that does not
      fit then, '' if all do. It may raise UserError: the change is invalid.
  """
  chosen: Overrides = {}
  while misfit:
    for change in changes(with_overrides(config, chosen), program=misfit):
      trial = chosen | change
      try:
        found = try_out(with_overrides(config, trial), trial)
      except UserError:
        continue  # e.g. questions that no longer divide by the devices
      if not found or _ORDER.index(found) > _ORDER.index(misfit):
        chosen, misfit = trial, found
        break
    else:
      return None
  return chosen


def with_overrides(
  config: config_dict.ConfigDict, overrides: Overrides
) -> config_dict.ConfigDict:
  """A copy with these values."""
  changed = copy.deepcopy(config)
  changed.update_from_flattened_dict(overrides)
  return changed


def changes(
  config: config_dict.ConfigDict, *, program: str
) -> Iterator[Overrides]:
  """What may make a program smaller, the mildest first.

  What leaves the result of an update as it is comes first: other sharding, less
  kept for the backward pass, smaller microbatches. Then shorter sequences, then
  fewer questions. Of an evaluation, fewer questions at a time change nothing.
  """
  is_update, is_evaluation = program == 'distill', program.startswith('eval ')
  if is_evaluation:
    for size in _halves(config.eval.batch_questions):
      yield {'eval.batch_questions': size}
  questions = config.rollouts.batch_questions
  if config.mesh.fsdp != -1:
    yield {'mesh.data': 1, 'mesh.fsdp': -1, 'mesh.model': 1}
  if is_update:
    if config.model.remat != 'full':
      yield {'model.remat': 'full'}
    for size in _halves(questions):
      if questions // size > config.optimizer.num_microbatches:
        yield {'optimizer.num_microbatches': questions // size}
  if is_evaluation:
    for size in _halves(config.eval.max_tokens or config.rollouts.max_tokens):
      yield {'eval.max_tokens': size}
    return
  key = 'hints.max_tokens' if is_update else 'rollouts.max_tokens'
  sequence = config.hints if is_update else config.rollouts
  for size in _halves(sequence.max_tokens):
    yield {key: size}
  for size in _halves(questions):
    yield {'rollouts.batch_questions': size}


def _halves(size: int) -> list[int]:
  sizes = []
  while size % 2 == 0 and len(sizes) < _MOST_STEPS:
    size //= 2
    sizes.append(size)
  return sizes


def as_flags(overrides: Overrides) -> str:
  """How a command line sets them."""
  return ' '.join(f'--config.{key}={value}' for key, value in overrides.items())
