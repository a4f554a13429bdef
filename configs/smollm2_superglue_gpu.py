"""configs/smollm2_superglue.py on one GPU: 100 updates of 16 questions x 8.

    python -m ogls_jax.compare --config=configs/smollm2_superglue_gpu.py \
        --out=runs/wic --methods=base,sft,opsd,ogls_sd,grpo --seeds=3

Other tasks as there. eval.num_questions is all of a task's held-out rows: 277
of RTE, 56 of CB, 640 of BoolQ. What came out is in docs/experiments.md.
"""

from configs import smollm2_superglue


def get_config():
  config = smollm2_superglue.get_config()
  config.model.dtype = 'bfloat16'
  config.model.param_dtype = 'bfloat16'
  config.model.remat = 'full'  # 2 GiB, not 14, says ogls_jax.preflight
  config.rollouts.batch_questions = 16
  config.prompt.bucket_tokens = 128  # two widths, not four, to compile for
  config.num_steps = 100
  config.checkpoint.every_steps = 100
  config.log.samples_every_steps = 25
  config.eval.num_questions = 638
  config.eval.batch_questions = 128
  config.eval.has_before_after = False
  return config
