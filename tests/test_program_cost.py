import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from ogls_jax import collectives, hlo, program_cost
from ogls_jax.mesh import make_mesh
from ogls_jax.models.settings import DecoderSettings
from ogls_jax.models.transformer import Decoder, project
from ogls_jax.program_cost import count, total

ROWS, WIDTH, LAYERS = 16, 32, 7


def compiled(function, *arguments):
  return jax.jit(function).lower(*arguments).compile().as_text()


def scanned(x, stack):
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]


def layers():
  return jnp.ones((ROWS, WIDTH)), jnp.ones((LAYERS, WIDTH, WIDTH))


def test_a_loop_counts_as_often_as_it_runs():
  cost = total(count(compiled(scanned, *layers())))
  assert cost.flops == 2 * ROWS * WIDTH * WIDTH * LAYERS
  assert not cost.unknown


def test_backward_pass_has_two_more_products_per_layer():
  def loss(x, stack):
    return scanned(x, stack).sum()

  text = compiled(jax.grad(loss, argnums=(0, 1)), *layers())
  assert total(count(text)).flops == 3 * 2 * ROWS * WIDTH * WIDTH * LAYERS


def test_a_slice_of_a_stack_is_not_the_stack():
  # Weights are read once; x, kept on the chip by no CPU, some times a layer.
  cost = total(count(compiled(scanned, *layers())))
  weights = 4 * WIDTH * WIDTH * LAYERS
  x = 4 * ROWS * WIDTH * LAYERS
  # A slice may be copied out first: read, written and read again.
  assert weights + x < cost.num_bytes < 3 * weights + 8 * x


def test_a_loop_that_depends_on_data_runs_once_and_is_named():
  def until(x, w):
    return jax.lax.while_loop(lambda x: x.sum() < 1e3, lambda x: x @ w, x)

  x, stack = layers()
  cost = total(count(compiled(until, x, stack[0])))
  assert cost.flops == 2 * ROWS * WIDTH * WIDTH
  (name,) = cost.unknown
  assert name.startswith('loop ')


def test_of_a_conditional_the_larger_branch_counts():
  def choose(x, w, number):
    branches = [lambda x: x, lambda x: x @ w, lambda x: (x @ w) @ w]
    return jax.lax.switch(number, branches, x)

  x, stack = layers()
  cost = total(count(compiled(choose, x, stack[0], jnp.int32(0))))
  assert cost.flops == 2 * 2 * ROWS * WIDTH * WIDTH


def test_parts_by_scope_add_up():
  def both(x, stack):
    with jax.named_scope('first'):
      x = scanned(x, stack)
    with jax.named_scope('second'):
      return x @ stack[0]

  def part_of(op_name):
    return next((s for s in ('first', 'second') if s in op_name), 'rest')

  costs = count(compiled(both, *layers()), part_of=part_of)
  one = 2 * ROWS * WIDTH * WIDTH
  assert costs['first'].flops == LAYERS * one
  assert costs['second'].flops == one
  assert total(costs).flops == (LAYERS + 1) * one


def test_decoder_agrees_with_a_count_by_hand():
  s = DecoderSettings(
    vocab_size=256, width=64, num_layers=5, num_heads=4, num_kv_heads=2,
    head_size=16, mlp_size=192,
  )  # fmt: skip
  decoder = Decoder(s, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(decoder)
  b, p, g, t = 2, 24, 3, 16

  def logits(params, tokens_BP, response_BGT):
    decoder = nnx.merge(graphdef, params)
    length_B = jnp.full(b, p, jnp.int32)
    hidden = decoder.score(tokens_BP, length_B, response_BGT)
    return project(hidden.reshape(b * g, t, -1), decoder.unembedding_VD)

  tokens, response = jnp.ones((b, p), int), jnp.ones((b, g, t), int)
  cost = total(count(compiled(logits, params, tokens, response)))
  heads, kv_heads = 4 * 16, 2 * 16
  matrices = 2 * 64 * heads + 2 * 64 * kv_heads + 3 * 64 * 192
  # Scores and values of each query to all slots, masked ones included.
  attended = b * p * p + b * g * t * (t + p)
  by_hand = (
    5 * (2 * matrices * (b * p + b * g * t) + 2 * 2 * heads * attended)
    + 2 * b * g * t * 64 * 256
  )
  assert cost.flops == pytest.approx(by_hand, rel=0.02)


def test_collectives_in_a_loop():
  assert jax.device_count() == 8
  mesh = make_mesh({'data': 2, 'fsdp': 4, 'model': 1})

  def sums(x):
    def step(x, _):
      return jax.lax.psum(x, 'fsdp') / 4, None

    x, _ = jax.lax.scan(step, x, None, length=5)
    return jax.lax.all_gather(x, 'data')

  spec = PartitionSpec('data', 'fsdp')
  function = jax.shard_map(
    sums, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(None, None, 'fsdp'),
    check_vma=False,
  )  # fmt: skip
  text = compiled(function, jnp.ones((16, 32)))
  cost = total(count(text))
  local = 4 * (16 // 2) * (32 // 4)
  found = program_cost.by_kind(cost)
  assert found['all-reduce'] == (5, 5 * 2 * local * 3 / 4)
  assert found['all-gather'] == (1, 2 * local * 1 / 2)
  sizes = {each.kind: each.group_size for each in cost.collectives}
  assert sizes == {'all-reduce': 4, 'all-gather': 2}
  assert not any(each.is_between_slices for each in cost.collectives)


# A sum over 4 x 4 chips as libtpu 0.0.52 compiles it, attributes cut.
SLICES_TEXT = """HloModule m, is_scheduled=true, num_partitions=4

ENTRY %main (a: f32[1024,1024]) -> f32[1024,1024] {
  %a = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  %s = f32[256,1024]{1,0:T(8,128)} reduce-scatter(%a), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %b = f32[256,8,128]{2,1,0:T(8,128)} bitcast(%s)
  %t = token[] after-all()
  %send = (f32[256,8,128]{2,1,0:T(8,128)}, u32[]{:S(2)}, token[]) send(%b, %t), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2,3,4}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[256,8,128]{2,1,0:T(8,128)}, u32[]{:S(2)}, token[]) recv(%t), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2,3,4}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv-done = (f32[256,8,128]{2,1,0:T(8,128)}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  %r = f32[256,8,128]{2,1,0:T(8,128)} get-tuple-element(%recv-done), index=0
  %c = f32[256,1024]{1,0:T(8,128)} bitcast(%r)
  ROOT %g = f32[1024,1024]{1,0:T(8,128)} all-gather(%c), channel_id=1, replica_groups={}, dimensions={0}
}
"""  # noqa: E501


def test_what_is_sent_between_slices():
  cost = total(count(SLICES_TEXT, num_slices=4))
  whole = 4 * 1024 * 1024
  assert program_cost.by_kind(cost) == {
    'reduce-scatter': (1, whole * 3 / 4),
    'all-reduce between slices': (1, 2 * whole / 4 * 3 / 4),
    'all-gather': (1, whole * 3 / 4),
  }
  sizes = {each: each.group_size for each in cost.collectives}
  assert set(sizes.values()) == {4} and len(sizes) == 3
  # Each of the three reads and writes once; the send and the recv share it.
  assert cost.num_bytes == 3 * whole / 4 + 2 * whole + whole / 4
  gathered = SLICES_TEXT.replace('"ALL_REDUCE"', '"ALL_GATHER"')
  cost = total(count(gathered, num_slices=4))
  assert program_cost.by_kind(cost)['all-gather between slices'] == (
    1, 4 * whole / 4 * 3 / 4,
  )  # fmt: skip
  with pytest.raises(ValueError, match='transfer_type="NEW" of %send'):
    count(SLICES_TEXT.replace('"ALL_REDUCE"', '"NEW"'), num_slices=4)


TPU_TEXT = """HloModule jit_f, is_scheduled=true

%fused (p.0: bf16[7,32,64], p.1: s32[]) -> bf16[32,64] {
  %p.0 = bf16[7,32,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %cut = bf16[1,32,64]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,32,64}
  ROOT %cast = bf16[32,64]{1,0:T(8,128)(2,1)S(1)} bitcast(%cut)
}

ENTRY %main (a: bf16[7,32,64], b: s32[], c: bf16[16,32]) -> bf16[16,64] {
  %a = bf16[7,32,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = s32[]{:T(128)} parameter(1)
  %c = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(2)
  %w = bf16[32,64]{1,0:T(8,128)(2,1)S(1)} fusion(%a, %b), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/first/slice" stack_frame_id=1}
  ROOT %y = bf16[16,64]{1,0:T(8,128)(2,1)} convolution(%c, %w), dim_labels=bf_io->bf, metadata={op_name="jit(f)/second/dot, x"}
}
"""  # noqa: E501


def test_text_of_a_tpu_program():
  costs = count(
    TPU_TEXT, part_of=lambda name: 'second' if 'second' in name else 'first'
  )
  # One layer and the index are read; what is kept on the chip costs nothing.
  assert costs['first'].num_bytes == 2 * 32 * 64 + 4
  assert costs['second'].num_bytes == 2 * (16 * 32 + 16 * 64)
  assert costs['second'].flops == 2 * 16 * 32 * 64


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('dilation', [1, 3])
def test_convolution_counts_places_that_are_there(stride, dilation):
  left, kernel = jnp.ones((2, 9, 4)), jnp.ones((3, 4, 5))
  text = compiled(
    lambda left, kernel: jax.lax.conv_general_dilated(
      left, kernel, (stride,), ((1, 1),), lhs_dilation=(dilation,),
      dimension_numbers=('NWC', 'WIO', 'NWC'),
    ),
    left, kernel,
  )  # fmt: skip
  width = (9 - 1) * dilation + 1
  padded = np.zeros(width + 2, bool)
  padded[1 : width + 1 : dilation] = True
  out = (width + 2 - 3) // stride + 1
  pairs = sum(padded[o * stride : o * stride + 3].sum() for o in range(out))
  assert total(count(text)).flops == 2 * 2 * 4 * 5 * pairs


def test_groups_of_all_forms():
  def groups(attributes):
    each = hlo.Instruction('x', 'all-reduce', (), (), '', attributes, False)
    return collectives.groups_of(each)

  assert groups('replica_groups={{0,1},{2,3}}') == [[0, 1], [2, 3]]
  assert groups('replica_groups=[2,2]<=[4]') == [[0, 1], [2, 3]]
  assert groups('replica_groups=[2,2]<=[2,2]T(1,0)') == [[0, 2], [1, 3]]
  assert groups("replica_groups=mesh['a'=2,'b'=2] {'a'}, x") == [[0, 2], [1, 3]]
  assert groups("replica_groups=mesh['a'=4] {'a'}, x") == [[0, 1, 2, 3]]
  assert groups('replica_groups={}, use_global_device_ids=true') == []
  assert groups('source_target_pairs={{0,1},{1,0}}') == [[0, 1], [1, 0]]


def test_text_without_an_entry_is_an_error():
  with pytest.raises(ValueError, match='ENTRY'):
    count('HloModule nothing\n')


SPLASH = """HloModule m, is_scheduled=true

%other (b: f32[8]) -> f32[8] {
  %b = f32[8]{0} parameter(0)
  ROOT %c = f32[8]{0} copy(%b)
}, execution_thread="sparsecore"

ENTRY %main (a: s8[1,3,2], q: bf16[2,4,384,128], k: bf16[2,1024,128]) -> bf16[2,4,384,128] {
  %a = s8[1,3,2]{2,1,0} parameter(0)
  %q = bf16[2,4,384,128]{3,2,1,0} parameter(1)
  %k = bf16[2,1024,128]{2,1,0} parameter(2)
  ROOT %NAME.3 = bf16[2,4,384,128]{3,2,1,0} custom-call(%a, %q, %k, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block_q": 128
}}
}
"""  # noqa: E501


@pytest.mark.parametrize(
  ('name', 'products'),
  [
    ('splash_mqa_fwd_segmented', 2),
    ('splash_mqa_dq', 3),
    ('splash_mqa_dkv', 4),
  ],
)
def test_splash_attention_counts_the_pairs_that_causality_allows(
  name, products
):
  cost = total(count(SPLASH.replace('NAME', name)))
  # Query t, of 384, sees 641 + t keys, of 1,024.
  pairs = sum(641 + t for t in range(384))
  assert cost.flops == 2 * products * pairs * 128 * 2 * 4
  assert not cost.unknown


def test_another_kernel_is_not_known():
  cost = total(count(SPLASH.replace('NAME', 'other')))
  assert cost.flops == 0 and list(cost.unknown) == ['kernel other.3']


def test_an_asynchronous_slice_is_read_once():
  text = """HloModule m

ENTRY %main (a: f32[8,4]) -> f32[2,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %s = ((f32[8,4]{1,0}), f32[2,4]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:2], [0:4]}
  ROOT %d = f32[2,4]{1,0:S(1)} slice-done(%s)
}
"""  # noqa: E501
  assert total(count(text)).num_bytes == 4 * 2 * 4
