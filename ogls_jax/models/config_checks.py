"""What every description of a model is held to, whatever its format."""

import math
from collections.abc import Callable

from ogls_jax.errors import UserError
from ogls_jax.models.settings import DecoderSettings


def check_family(key: str, name, known, file) -> None:
  """UserError for a family that is not among `known`."""
  if not isinstance(name, str) or name not in known:
    raise UserError(
      f'model.path = {file}: {key} = {name} is not supported; these are:'
      f' {", ".join(known)}'
    )


def unsupported(key: str, value, file) -> UserError:
  """The error for a trait that our decoder has not."""
  return UserError(
    f'model.path = {file}: {key} = {value} is not supported; use a model'
    ' without it'
  )


def number_getter(fields: dict, file) -> Callable:
  """Typed look-up (key, kind, default); without a default it must be there."""

  def get(key, kind, default=None):
    value = fields.get(key)
    value = default if value is None else value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or kind(value) != value:
      found = 'is missing' if value is None else f'= {value!r}'
      raise UserError(
        f'model.path = {file}: {key} {found}, expected one number'
        f'{" without a fraction" if kind is int else ""}'
      )
    return kind(value)

  return get


def checked(settings: DecoderSettings, file) -> DecoderSettings:
  """The settings, if a decoder of these sizes exists."""
  s = settings
  names = ('vocab_size', 'width', 'num_layers', 'num_heads', 'num_kv_heads',
           'head_size', 'mlp_size')  # fmt: skip
  sizes = [getattr(s, name) for name in names]
  named = ', '.join(f'{n} {size}' for n, size in zip(names, sizes, strict=True))
  if min(sizes) < 1 or s.num_heads % s.num_kv_heads or s.head_size % 2:
    raise UserError(
      f'model.path = {file}: no decoder has these sizes: {named}; all are'
      ' positive, heads a multiple of key-value heads, the head size even'
    )
  for rope in (s.rope, s.local_rope or s.rope):
    is_ordered = rope.low_factor < rope.high_factor or not rope.original_tokens
    if rope.theta <= 0 or rope.factor <= 0 or not is_ordered:
      raise UserError(f'model.path = {file}: no rotation is {rope}; mend it')
  return s
