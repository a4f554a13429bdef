"""What a comparison trains: methods with changes, seeds, and their configs."""

import copy
import dataclasses
import difflib
import json
import pathlib
import re

from ml_collections import config_dict

from ogls_jax import step
from ogls_jax.errors import UserError
from ogls_jax.json_file import flat

BASE = 'base'  # what all start from
# What decides the start, the questions and how answers are judged.
_SHARED = ('seed', 'data', 'prompt', 'model', 'warmup', 'eval', 'grading')
_MOST_SEEDS = 1000
# A colon that a key follows; others belong to a value.
_NEXT_CHANGE = re.compile(r':(?=[a-z_0-9.]+=)')


@dataclasses.dataclass(frozen=True)
class Variant:
  """A method, perhaps with changes; `BASE` is not trained.

  Attributes:
    label: as it was given.
    changes: values by dotted key, `method` among them.
  """

  label: str
  changes: dict[str, object]

  @property
  def is_trained(self) -> bool:
    """Whether there is anything to train."""
    return self.label != BASE

  @property
  def folder(self) -> str:
    """The label, as a part of a path."""
    return re.sub(r'[^\w.=+-]+', '_', self.label)


def parse_variants(text: str, config: config_dict.ConfigDict) -> list[Variant]:
  """The variants of --methods, NAME[:key=value]... separated by commas.

  Raises:
    UserError: a name, key or value that is none, or nothing to train.
  """
  flag = f'--methods={text}'
  variants = [_parsed(part.strip(), config, flag) for part in text.split(',')]
  if not any(variant.is_trained for variant in variants):
    raise UserError(f'{flag} trains nothing; name a method, such as opsd')
  folders = {}
  for variant in variants:
    other = folders.setdefault(variant.folder, variant)
    if other is not variant:
      raise UserError(
        f'{flag} has {variant.label!r} after {other.label!r}, and both would'
        f' be kept as {variant.folder}; drop one'
      )
  return variants


def _parsed(label, config, flag):
  method, *changes = _NEXT_CHANGE.split(label)
  if method not in (BASE, *step.METHODS):
    raise UserError(
      f'{flag}: {method!r} is none of: {", ".join((BASE, *step.METHODS))};'
      ' changes follow as :key=value'
    )
  if method == BASE and changes:
    raise UserError(f'{flag}: {label!r} is not trained and so takes no changes')
  # Whatever the config's method, the start is the same.
  values = {'method': 'ogls_sd' if method == BASE else method}
  for change in changes:
    key, value = change.split('=', 1)
    if key in values:
      raise UserError(f'{flag}: {label!r} sets {key} twice')
    values[key] = _value(key, value, config, f'{flag}: {label!r}')
  return Variant(label, values)


def _value(key, text, config, flag):
  """`text` as the type that the config has for `key`."""
  known = flat(config.to_dict())
  if key not in known:
    near = difflib.get_close_matches(key, known, 1)
    hint = f'; did you mean {near[0]}?' if near else '; see configs/default.py'
    raise UserError(f'{flag}: there is no config key {key!r}{hint}')
  if key.split('.')[0] in _SHARED:
    raise UserError(
      f'{flag}: {key} has to be the same for all that is compared; set it with'
      f' --config.{key}= for all'
    )
  kind = type(known[key])
  try:
    if kind is bool:
      return {'true': True, 'false': False}[text.lower()]
    return kind(text)
  except (KeyError, ValueError) as error:
    raise UserError(
      f'{flag}: {key} = {text!r} must be of type {kind.__name__}'
    ) from error


def parse_seeds(text: str) -> list[int]:
  """Of --seeds: N for 0 to N - 1, or a list such as 0,3,5.

  Raises:
    UserError: it is neither.
  """
  flag = f'--seeds={text}'
  if not re.fullmatch(r'[0-9]{1,9}(,[0-9]{1,9})*,?', text):
    raise UserError(f'{flag} must be a number, or seeds separated by commas')
  seeds = [int(part) for part in text.rstrip(',').split(',')]
  if ',' not in text:
    if not 1 <= seeds[0] <= _MOST_SEEDS:
      raise UserError(
        f'{flag} must be in [1, {_MOST_SEEDS}]; it is how many, from 0. A'
        f' single seed: --seeds={text},'
      )
    seeds = list(range(seeds[0]))
  if len(set(seeds)) < len(seeds):
    raise UserError(f'{flag} names a seed twice')
  return seeds


def reference_of(variants: list[Variant], label: str) -> Variant:
  """What others are compared with: `label`, else opsd, else the first trained.

  Raises:
    UserError: `label` is not among those that are trained.
  """
  trained = {variant.label: variant for variant in variants}
  trained.pop(BASE, None)
  if label and label not in trained:
    raise UserError(
      f'--reference={label} is none of the methods that are trained:'
      f' {", ".join(trained)}'
    )
  if not label:
    label = 'opsd' if 'opsd' in trained else next(iter(trained))
  return trained[label]


def config_of(
  config: config_dict.ConfigDict,
  variant: Variant,
  seed: int,
  out: pathlib.Path,
) -> config_dict.ConfigDict:
  """The config of a run: all of a seed share stage 1.

  What a run learned is evaluated by the comparison itself, once. Stage 1 is of
  the same questions as theirs, those that are held out left out.
  """
  found = copy.deepcopy(config)
  with found.unlocked():
    found.update_from_flattened_dict(variant.changes)
    found.seed = seed
    found.warmup.workdir = str(out / f'stage1_{seed}')
    found.eval.has_before_after = False
  return found


def values_of(config: config_dict.ConfigDict) -> dict:
  """The config as JSON holds it."""
  return json.loads(config.to_json())
