"""Tunix's sampler as an engine of `benchmarks/rollout.py`.

In an environment of its own, from `benchmarks/rollout_tunix.txt`.

Used as its authors' rollout worker uses it: `Sampler` with its compiled
prefill and decode loop, a cache of exactly prompt and response, prompts at
their own length (its default pads them to a power of 2), no log-probabilities.
It has no shared prompts, so a batch has a row for each rollout. It has no
forced lengths: a batch runs until its longest row has ended, as it would for
rows that end by themselves, and rows are cut afterwards.

Its prefill computes logits at every position of the prompts. Where they would
take more than a third of the machine's memory, batches of fewer rows run one
after another.
"""

import importlib.metadata
import json
import os
import pathlib

from benchmarks import rollout_engine

# Never sampled: no row ends early, and no sampled token counts as padding.
_NO_TOKEN = -1


class _Ids:
  """A tokenizer to Tunix; a text is a JSON list of token ids."""

  def encode(self, text):
    return json.loads(text)

  def decode(self, ids):
    return ''

  def bos_id(self):
    return 0  # as a number it stands for none

  def eos_id(self):
    return _NO_TOKEN

  def pad_id(self):
    return _NO_TOKEN

  def dedup_bos_ids(self, ids):
    return ids


def load_model(folder: str):
  """Tunix's model with the weights of a Hugging Face folder, in float32."""
  import functools

  import jax.numpy as jnp

  config = json.loads((pathlib.Path(folder) / 'config.json').read_text())
  num_heads = config['num_attention_heads']
  fields = {
    'num_layers': config['num_hidden_layers'],
    'vocab_size': config['vocab_size'],
    'embed_dim': config['hidden_size'],
    'hidden_dim': config['intermediate_size'],
    'num_heads': num_heads,
    'head_dim': config['hidden_size'] // num_heads,
    'num_kv_heads': config['num_key_value_heads'],
    'rope_theta': config['rope_theta'],
    'norm_eps': config['rms_norm_eps'],
  }
  is_tied = config['tie_word_embeddings']
  if config['model_type'] == 'qwen2':
    from tunix.models.qwen2 import model, params

    fields['use_tied_embedding'] = is_tied
  else:
    from tunix.models.llama3 import model, params

    fields['weight_tying'] = is_tied
    # Its layers leave the config's theta out and rotate with a default.
    model.apply_rope = functools.partial(
      model.apply_rope, rope_theta=config['rope_theta']
    )
  return params.create_model_from_safe_tensors(
    folder, model.ModelConfig(**fields), dtype=jnp.float32
  )


class Engine:
  def __init__(self, folder: str, threads: int):
    self._model = load_model(folder)
    self._samplers = {}
    self.versions = {
      name: importlib.metadata.version(name)
      for name in ('google-tunix', 'jax', 'flax')
    }

  def generate(self, request: dict, lengths: list[int]) -> list:
    prompts = request['prompts']
    size = len(prompts[0])
    assert all(len(prompt) == size for prompt in prompts)
    texts = [
      text
      for text in map(json.dumps, prompts)
      for _ in range(request['group_size'])
    ]
    step = self._rows_at_once(size, len(texts))
    rows = []
    for start in range(0, len(texts), step):
      end = start + step
      rows += self._run(
        texts[start:end], size, request, max(lengths[start:end]), start
      )
    return rows

  def _run(self, texts, size, request, num_tokens, start):
    # The loop takes a step after the last token. For a first token alone, an
    # end of sequence that any token is prevents it.
    vocab_size = self._model.config.vocab_size
    eos = range(vocab_size) if num_tokens == 1 else [_NO_TOKEN]
    top_p = request['top_p'] if request['temperature'] else None
    sampler = self._sampler(size + max(request['lengths']))
    output = sampler(
      texts,
      max_generation_steps=num_tokens,
      max_prompt_length=size,
      eos_tokens=list(eos),
      temperature=request['temperature'],
      top_p=top_p,
      top_k=request['top_k'],
      seed=request['seed'] + start,
      pad_output=False,
    )
    if num_tokens == 1:  # a row ends before its end of sequence
      return [[_NO_TOKEN]] * len(texts)
    return output.tokens

  def _rows_at_once(self, size, num_rows):
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    row_bytes = 4 * size * self._model.config.vocab_size
    while num_rows > 1 and num_rows * row_bytes > memory / 3:
      num_rows = (num_rows + 1) // 2
    return num_rows

  def _sampler(self, cache_size):
    if cache_size not in self._samplers:
      from tunix.generate import sampler

      config = self._model.config
      self._samplers[cache_size] = sampler.Sampler(
        self._model,
        _Ids(),
        sampler.CacheConfig(
          cache_size=cache_size,
          num_layers=config.num_layers,
          num_kv_heads=config.num_kv_heads,
          head_dim=config.head_dim,
        ),
      )
    return self._samplers[cache_size]


if __name__ == '__main__':
  rollout_engine.serve(Engine)
