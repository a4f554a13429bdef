"""Qwen3-4B on competition mathematics, with the paper's settings.

As configs/qwen3_1p7b.py, with the larger model:

    python -m ogls_jax.train --config=configs/qwen3_4b.py --workdir=runs/4b
"""

from configs import qwen3_1p7b


def get_config():
  config = qwen3_1p7b.get_config()
  config.model.path = 'hub:Qwen/Qwen3-4B'
  return config
