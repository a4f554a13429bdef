"""Flops of one instruction of a compiled program: its matrix products."""

import functools
import math
import re

import numpy as np

from ogls_jax import hlo


def of_dot(each: hlo.Instruction, within: hlo.Computation) -> float:
  """Two for a multiply-add."""
  left = within.operands_of(each)[0].arrays[0]
  contracted = hlo.numbers(each.attribute('lhs_contracting_dims'))
  return 2.0 * each.arrays[0].size * math.prod(left.dims[i] for i in contracted)


def of_convolution(each: hlo.Instruction, within) -> float:
  """Products of a place and a weight that are both there, as XLA counts."""
  left, kernel = (operand.arrays[0] for operand in within.operands_of(each))
  labels = re.match(r'(\w+)_(\w+)->(\w+)', each.attribute('dim_labels'))
  left_labels, kernel_labels, out_labels = labels.groups()
  window, pairs = _window(each.attribute('window')), 1
  for number, settings in enumerate(window):
    label = str(number)
    pairs *= _valid_pairs(
      left.dims[left_labels.index(label)],
      kernel.dims[kernel_labels.index(label)],
      each.arrays[0].dims[out_labels.index(label)],
      *settings,
    )
  groups = int(each.attribute('feature_group_count') or 1)
  batch_groups = int(each.attribute('batch_group_count') or 1)
  features = left.dims[left_labels.index('f')] / groups
  batch = left.dims[left_labels.index('b')] / batch_groups
  out_features = each.arrays[0].dims[out_labels.index('f')]
  return 2.0 * features * batch * out_features * pairs


def _window(text: str) -> list[tuple[int, int, int, int]]:
  """(stride, padding before, dilation of the input, of the kernel) by dim."""
  fields = dict(part.split('=') for part in text.strip('{}').split() if part)
  num_dims = len(fields.get('size', '').split('x')) if 'size' in fields else 0

  def column(name, default):
    if name not in fields:
      return [default] * num_dims
    return [int(each.split('_')[0]) for each in fields[name].split('x')]

  return list(
    zip(
      column('stride', 1),
      column('pad', 0),
      column('lhs_dilate', 1),
      column('rhs_dilate', 1),
      strict=True,
    )
  )


@functools.cache
def _valid_pairs(
  size, kernel, out, stride, padding, size_dilation, kernel_dilation
) -> int:
  place_O = np.arange(out) * stride - padding
  end, total = (size - 1) * size_dilation + 1, 0
  for w in range(kernel):
    at_O = place_O + w * kernel_dilation
    is_there_O = (at_O >= 0) & (at_O < end) & (at_O % size_dilation == 0)
    total += int(is_there_O.sum())
  return total


# Products of each pass of JAX's splash attention kernel, which does not say.
_SPLASH = re.compile(r'splash_m[hq]a_(fwd|dq|dkv)')
_SPLASH_PRODUCTS = {'fwd': 2, 'dq': 3, 'dkv': 4}


def of_splash(each: hlo.Instruction, within) -> float:
  """Of JAX's splash attention, for the pairs that causality allows.

  0 of another kernel.

  The last query is taken to see all keys, the one before all but one, and so
  on. The kernel computes whole blocks, which is more.
  """
  found = _SPLASH.search(each.name)
  if not found:
    return 0.0
  floats = [
    array
    for operand in within.operands_of(each)
    for array in operand.arrays
    if array.dtype in ('bf16', 'f32') and len(array.dims) > 1
  ]
  query, key = floats[:2]
  num_queries, head_size = query.dims[-2:]
  num_keys = key.dims[-2]
  pairs = num_queries * (num_keys - num_queries)
  pairs += num_queries * (num_queries + 1) // 2
  num_heads = math.prod(query.dims[:-2])
  products = _SPLASH_PRODUCTS[found[1]]
  return 2.0 * products * pairs * head_size * num_heads
