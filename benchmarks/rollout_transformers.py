"""transformers' `generate` as an engine of `benchmarks/rollout.py`.

Its defaults for CPUs: a dynamic cache (a static one, of exactly prompt and
response, was not faster, and compiled not either), PyTorch's fused attention, a
row for each rollout. It keeps computing rows past their forced length until the
longest has ended.

`generate` reads a prompt once for each of its rollouts. A request with
`"is_prefix_shared": true` reads it once, as its guide to caches shows, and
gives `generate` a copy of its keys and values for each row.
"""

import importlib.metadata

from benchmarks import rollout_engine


class Engine:
  def __init__(self, folder: str, threads: int):
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    self._torch, self._transformers = torch, transformers
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32, attn_implementation='sdpa'
    )
    self.versions = {
      name: importlib.metadata.version(name)
      for name in ('transformers', 'torch')
    }

  def generate(self, request: dict, lengths: list[int]) -> list:
    torch = self._torch
    prompts = torch.tensor(request['prompts'])
    size = prompts.shape[1]
    end = size + torch.tensor(lengths)

    class AtLength(self._transformers.StoppingCriteria):
      def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] >= end

    options = {'do_sample': False}
    if request['temperature']:
      names = ('temperature', 'top_p', 'top_k')
      options = {'do_sample': True} | {name: request[name] for name in names}
    torch.manual_seed(request['seed'])
    with torch.inference_mode():
      if request.get('is_prefix_shared'):
        options['past_key_values'] = self._read(prompts, request['group_size'])
      ids = self._model.generate(
        prompts.repeat_interleave(request['group_size'], 0),
        attention_mask=torch.ones(len(lengths), size, dtype=torch.long),
        max_new_tokens=max(lengths),
        stopping_criteria=[AtLength()],
        pad_token_id=0,
        **options,
      )
    return ids[:, size:].tolist()

  def _read(self, prompts, group_size):
    """Keys and values of all but the prompts' last tokens, for each row."""
    cache = self._transformers.DynamicCache(config=self._model.config)
    self._model.model(prompts[:, :-1], past_key_values=cache)
    cache.batch_repeat_interleave(group_size)
    return cache


if __name__ == '__main__':
  rollout_engine.serve(Engine)
