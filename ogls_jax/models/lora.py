"""Linear layers, stacked over the decoder's layers, with LoRA adapters."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from ogls_jax.mesh import weight_spec
from ogls_jax.models.quantize import dequantize, quantize


class Linear(nnx.Module):
  """x @ kernel + bias, plus (alpha / rank) * (x @ lora_a) @ lora_b if rank > 0.

  Arrays carry a leading layer dim L until the decoder's scan slices it away.
  LoRA as in arXiv:2106.09685: lora_a is random, lora_b starts at zero, so that
  a fresh adapter changes nothing. The variance of lora_a is init_variance / in.
  """

  def __init__(
    self,
    num_layers: int,
    in_size: int,
    out_size: int,
    *,
    dims: str,
    rank: int,
    alpha: float,
    init_variance: float,
    has_bias: bool = False,
    param_dtype: jnp.dtype,
    rngs: nnx.Rngs,
    init_scale: float = 1.0,
  ):
    """`dims`: letters of (in, out), which place the kernel on the mesh."""
    init = jax.nn.initializers.normal(init_scale * in_size**-0.5)
    self.kernel = nnx.Param(
      init(rngs.params(), (num_layers, in_size, out_size), param_dtype),
      dims='L' + dims,
    )
    self.has_bias = has_bias
    if has_bias:
      self.bias = nnx.Param(
        jnp.zeros((num_layers, out_size), param_dtype), dims='L' + dims[1]
      )
    self.qtype = ''
    self.scale = alpha / rank if rank else 0.0
    if rank:
      down = jax.nn.initializers.variance_scaling(
        init_variance, 'fan_in', 'uniform'
      )
      # Adapters stay float32: at a learning rate of 5e-6 a bfloat16 parameter
      # rounds most updates away.
      self.lora_a = nnx.LoRAParam(
        jax.vmap(lambda key: down(key, (in_size, rank), jnp.float32))(
          jax.random.split(rngs.params(), num_layers)
        ),
        dims='L' + dims[0] + 'A',
      )
      self.lora_b = nnx.LoRAParam(
        jnp.zeros((num_layers, rank, out_size), jnp.float32),
        dims='LA' + dims[1],
      )

  def quantize(self, qtype: str, mesh: Mesh) -> None:
    """Keeps the kernel as codes and scales; it cannot be trained then."""
    dims = self.kernel.get_metadata()['dims']
    scale_dims = 'L1' + dims[-1]
    codes, scale = jax.jit(
      quantize,
      static_argnums=1,
      out_shardings=tuple(
        NamedSharding(mesh, weight_spec(d)) for d in (dims, scale_dims)
      ),
    )(self.kernel.get_value(), qtype)
    self.qtype = qtype
    self.kernel = nnx.Param(codes, dims=dims)
    self.kernel_scale = nnx.Param(scale, dims=scale_dims)

  def dense_kernel(self, dtype: jnp.dtype) -> jax.Array:
    """The kernel itself; of all layers, or of the one that is sliced out."""
    kernel = self.kernel[...]
    if self.qtype:
      kernel = dequantize(kernel, self.kernel_scale[...], self.qtype)
    return kernel.astype(dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps the last axis, in x's dtype. One layer's slice of the arrays."""
    y = x @ self.dense_kernel(x.dtype)
    if self.has_bias:
      bias = self.bias[...].astype(x.dtype)
      y += jax.lax.expand_dims(bias, range(x.ndim - 1))
    if self.scale:
      adapter = x @ self.lora_a[...].astype(x.dtype)
      y += self.scale * (adapter @ self.lora_b[...].astype(x.dtype))
    return y
