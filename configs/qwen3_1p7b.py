"""Qwen3-1.7B on competition mathematics, with the paper's settings.

Source: arXiv:2605.12400; docs/method.md lists where it is silent. The paper
trains on about 30,000 questions of OpenThoughts with solutions; this config
reads the 7,498 of MATH, and any jsonl with `question`, `answer` and `solution`
goes into data.path. It needs accelerators:

    python -m ogls_jax.train --config=configs/qwen3_1p7b.py --workdir=runs/1p7b

fetches the weights; `--config.model.path=FOLDER` reads them from a folder. Not
measured: nobody has run it yet on a TPU or a GPU. The keys and values of a
token take 112 KiB (28 layers, 8 heads of 128, bfloat16), so those of 256
rollouts of 8,192 tokens 224 GiB, shared out over all chips; an evaluation at
38,912 tokens takes five times that for as many. tests/test_qwen3.py runs one
step on a CPU with a small random Qwen3, lengths and batch cut.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.data.task = 'math'
  config.data.path = 'data:math/train.jsonl.gz'
  config.data.eval_path = 'data:aime24/test.jsonl'
  config.data.on_bad_row = 'skip'  # a few prompts are longer than max_tokens
  config.model.path = 'hub:Qwen/Qwen3-1.7B'
  config.prompt.student_thinking = True
  config.prompt.teacher_thinking = True
  config.rollouts.batch_questions = 32  # OPSD's batch; the paper gives none
  config.rollouts.group_size = 8
  config.rollouts.max_tokens = 8192
  config.rollouts.temperature = 1.1
  config.hints.max_tokens = 8192  # a whole rollout
  config.distill.response_tokens = 1024
  config.steering.max_strength = 3.0
  config.steering.ramp_steps = 20  # our reading of "ramp-up"
  config.loss.kl = 'forward'
  config.loss.clip_mode = 'symmetric'
  config.loss.pointwise_clip = 0.05
  # An accelerator multiplies fewer rows no faster than it reads the matrix.
  config.loss.block_tokens = 64
  config.lora.rank = 64
  config.lora.alpha = 128.0
  config.optimizer.learning_rate = 5e-6
  config.optimizer.max_grad_norm = 0.1
  config.teacher = 'base'
  config.eval.num_questions = 0  # 30 for AIME 2024, mean@8, as in the paper
  config.eval.samples = 8
  config.eval.max_tokens = 38_912
  config.num_steps = 100  # the paper gives none
  # Frozen weights are shared out too.
  config.mesh.data, config.mesh.fsdp = 1, -1
  return config
