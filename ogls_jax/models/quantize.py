"""Kernels as codes with scales, which the `qwix` package makes (QLoRA).

Only kernels that are not trained: with LoRA the base is read, never written.
"""

import math

import jax
import jax.numpy as jnp

from ogls_jax.errors import UserError

QTYPES = ('int8', 'nf4')
# Rows of a column that share a scale, as in arXiv:2305.14314; fewer where 64
# does not divide them. Under int8 too: it moves SmolLM2-135M's predictions by
# 0.0016 nats a token, one scale a column by 0.0044 (benchmarks/quantized.py).
_BLOCK_ROWS = 64


def import_qwix(qtype: str):
  """The package, which nothing else needs."""
  try:
    import qwix
  except ImportError as error:
    raise UserError(
      f'model.quantize = {qtype!r} needs a package: pip install qwix'
    ) from error
  return qwix


def quantize(kernel: jax.Array, qtype: str) -> tuple[jax.Array, jax.Array]:
  """Codes and scales of a kernel [layers, in, out].

  Returns:
    codes: [layers, in, out], int8, or uint4 for nf4.
    scale: [layers, blocks of in, out], float32.
  """
  qwix = import_qwix(qtype)
  block_rows = math.gcd(_BLOCK_ROWS, kernel.shape[1])

  def of_layer(kernel_IO):
    array = qwix.quantize(
      kernel_IO.astype(jnp.float32),
      qtype,
      channelwise_axes=(1,),
      tiled_axes={0: block_rows},
    )
    return array.qvalue, array.scale

  # A layer at a time bounds what the float32 copies take.
  return jax.lax.map(of_layer, kernel)


def dequantize(codes: jax.Array, scale: jax.Array, qtype: str) -> jax.Array:
  """The float32 kernel of `quantize`'s results, or one layer's of their slices.

  Elementwise, so that it fuses into the product that reads it and each device
  handles its own part. `qwix.dequantize` flattens nf4 codes first: on a TPU
  that gathers them on every device and holds whole layers.
  """
  values = _nf4_values()[codes] if qtype == 'nf4' else codes.astype(scale.dtype)
  *layers, rows, columns = codes.shape
  blocks = scale.shape[-2]
  values = values.reshape(*layers, blocks, rows // blocks, columns)
  return (values * scale[..., None, :]).reshape(codes.shape)


def _nf4_values() -> jax.Array:
  """What the 16 codes stand for."""
  qwix = import_qwix('nf4')
  codes = jnp.arange(16, dtype=jnp.uint4)
  return qwix.dequantize(qwix.QArray(codes, jnp.ones(1), qtype='nf4'))
