"""A small model as files: a Hugging Face folder, a GGUF file; and loaded."""

import json

import gguf
import gguf.quants
import numpy as np
import safetensors.numpy
from flax import nnx

from ogls_jax.mesh import make_mesh
from ogls_jax.models import weights
from ogls_jax.models.settings import DecoderSettings, Rope

SETTINGS = DecoderSettings(
  vocab_size=64, width=32, num_layers=2, num_heads=4, num_kv_heads=2,
  head_size=8, mlp_size=64, rope=Rope(5000.0),
  norm_eps=0.5,  # exact in GGUF's float32
)  # fmt: skip
CONFIG = {
  'model_type': 'llama', 'vocab_size': 64, 'hidden_size': 32,
  'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2,
  'intermediate_size': 64, 'rope_theta': 5000, 'rms_norm_eps': 0.5,
  'hidden_act': 'silu', 'tie_word_embeddings': True,
}  # fmt: skip
GGUF_FIELDS = {
  'vocab_size': 64, 'embedding_length': 32, 'block_count': 2, 'head_count': 4,
  'head_count_kv': 2, 'feed_forward_length': 64, 'rope_freq_base': 5000.0,
  'rope_dimension_count': 8, 'layer_norm_rms_eps': 0.5,
}  # fmt: skip
# Shape of each tensor as stored, and its names: Hugging Face's, then GGUF's.
LAYER = [
  ((32, 32), 'self_attn.q_proj', 'attn_q'),
  ((16, 32), 'self_attn.k_proj', 'attn_k'),
  ((16, 32), 'self_attn.v_proj', 'attn_v'),
  ((32, 32), 'self_attn.o_proj', 'attn_output'),
  ((64, 32), 'mlp.gate_proj', 'ffn_gate'),
  ((64, 32), 'mlp.up_proj', 'ffn_up'),
  ((32, 64), 'mlp.down_proj', 'ffn_down'),
  ((32,), 'input_layernorm', 'attn_norm'),
  ((32,), 'post_attention_layernorm', 'ffn_norm'),
]
Q0 = 'model.layers.0.self_attn.q_proj.weight'


def make_tensors():
  """{(Hugging Face name, GGUF name): array}, the same on every call."""
  shapes = {
    ('model.embed_tokens', 'token_embd'): (64, 32),
    ('model.norm', 'output_norm'): (32,),
  }
  for i in range(2):
    for shape, hf, name in LAYER:
      shapes[f'model.layers.{i}.{hf}', f'blk.{i}.{name}'] = shape
  rng = np.random.default_rng(0)
  return {
    tuple(f'{name}.weight' for name in names): rng.standard_normal(shape, 'f')
    for names, shape in shapes.items()
  }


def write_folder(folder, *, change=None, num_files=1, **config):
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(CONFIG | config))
  tensors = {names[0]: array for names, array in make_tensors().items()}
  if change:
    change(tensors)
  files = [f'model-{i}.safetensors' for i in range(num_files)]
  homes = {name: files[i % num_files] for i, name in enumerate(tensors)}
  for file in files:
    part = {name: tensors[name] for name in tensors if homes[name] == file}
    safetensors.numpy.save_file(part, folder / file)
  if num_files > 1:
    index = folder / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': homes}))
  return folder


def write_gguf(
  file, *, arch='llama', scale=1.0, quantized=(), kind='Q8_0', extra=None
):
  writer = gguf.GGUFWriter(file, arch)
  for key, value in GGUF_FIELDS.items():
    getattr(writer, f'add_{key}')(value)
  if extra:
    extra(writer)
  for (_, name), array in make_tensors().items():
    array = array * np.float32(scale)
    for part, heads in [('attn_q.', 4), ('attn_k.', 2)]:
      if part in name:  # row 2i of a head is row i of its first half
        halves = array.reshape(heads, 2, 4, 32)
        array = np.stack([halves[:, 0], halves[:, 1]], 2).reshape(array.shape)
    if name in quantized:
      stored = gguf.GGMLQuantizationType[kind]
      array = gguf.quants.quantize(array, stored)
      writer.add_tensor(name, array, raw_dtype=stored)
    else:
      writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file


def load_decoder(path, **options):
  mesh = make_mesh({'data': 2, 'fsdp': 2, 'model': 2})
  return weights.load_decoder(path, mesh=mesh, **options)


def load(path, **options):
  state = nnx.state(load_decoder(path, **options))
  return {'.'.join(k): v[...] for k, v in nnx.to_flat_state(state)}


def assert_same(left, right):
  assert left.keys() == right.keys()
  for name in left:
    np.testing.assert_array_equal(left[name], right[name], err_msg=name)
