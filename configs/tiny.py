"""The embedded default: arithmetic, a 1M-parameter decoder, no download."""

import pathlib

from configs import default


def get_config():
  config = default.get_config()
  folder = pathlib.Path(__file__).parent
  config.data.task = 'arithmetic'
  config.data.num_questions = 20_000
  config.data.arithmetic.num_terms = 5
  config.data.arithmetic.max_number = 9
  config.prompt.student_template = 'student_short'
  config.prompt.teacher_template = 'teacher_short'
  config.prompt.max_tokens = 64
  config.prompt.bucket_tokens = 16
  config.model.tokenizer_path = str(folder / 'arithmetic.model')
  config.model.dtype = 'float32'
  config.model.param_dtype = 'float32'
  config.model.is_remat = False
  config.model.width = 128
  config.model.num_layers = 5
  config.model.num_heads = 4
  config.model.num_kv_heads = 4
  config.model.mlp_size = 384
  config.lora.rank = 0
  config.warmup.num_steps = 600
  config.warmup.batch_questions = 64
  config.rollouts.batch_questions = 8
  config.rollouts.group_size = 8
  config.rollouts.max_tokens = 64
  config.rollouts.temperature = 1.0
  config.hints.max_tokens = 64
  config.steering.max_strength = 1.0
  config.steering.ramp_steps = 0
  config.distill.response_tokens = 64
  config.loss.clip_mode = 'none'
  config.loss.block_tokens = 64
  config.optimizer.learning_rate = 5e-5
  config.optimizer.max_grad_norm = 1.0
  config.num_steps = 60
  config.eval.num_questions = 384
  config.eval.batch_questions = 128
  config.checkpoint.every_steps = 20
  return config
