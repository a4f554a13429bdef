"""Our sampler as an engine of `benchmarks/rollout.py`.

Unlike the other engines it also computes the log-probability of every token, as
training needs it. Forced lengths are the rows' own limits.
"""

import importlib.metadata

from benchmarks import rollout_engine


class Engine:
  def __init__(self, folder: str, threads: int):
    import jax
    from flax import nnx

    from ogls_jax.mesh import make_mesh
    from ogls_jax.models import weights

    self._mesh = make_mesh({'data': jax.device_count(), 'fsdp': 1, 'model': 1})
    decoder = weights.load_decoder(folder, mesh=self._mesh)
    self._graphdef, self._params = nnx.split(decoder, nnx.Param)
    self._samplers = {}
    self.versions = {
      name: importlib.metadata.version(name) for name in ('jax', 'flax')
    }

  def generate(self, request: dict, lengths: list[int]) -> list:
    import jax
    import numpy as np
    from flax import nnx

    from ogls_jax.batches import PromptBatch, pad_rows

    prompts = request['prompts']
    sizes = np.array([len(prompt) for prompt in prompts], np.int32)
    batch = PromptBatch(
      pad_rows(prompts, sizes.max()),
      sizes,
      np.arange(len(prompts), dtype=np.uint32),
    )
    limit_BG = np.array(lengths, np.int32).reshape(len(prompts), -1)
    sample = self._sampler(request)
    with jax.set_mesh(self._mesh):
      key = jax.random.key(request['seed'])
      rollouts = sample(self._params, nnx.State({}), batch, key, limit_BG)
      return np.asarray(rollouts.response_RT).tolist()

  def _sampler(self, request):
    from ogls_jax import rollout

    options = {
      name: request[name]
      for name in ('group_size', 'temperature', 'top_k', 'top_p')
    } | {'max_tokens': max(request['lengths'])}
    key = tuple(options.items())
    if key not in self._samplers:
      self._samplers[key] = rollout.make_sampler(
        self._graphdef, eos_ids=(), min_p=0.0, **options
      )
    return self._samplers[key]


if __name__ == '__main__':
  rollout_engine.serve(Engine)
