"""configs/smollm2_superglue.py on one GPU: 100 updates of 16 questions x 8.

    python -m ogls_jax.compare --config=configs/smollm2_superglue_gpu.py \
        --out=runs/wic --methods=base,opsd,ogls_sd,grpo --seeds=1,2

An H200: 66 to 122 seconds a run, three at a time (docs/performance.md); what
came out is in docs/experiments.md. For another task also set
--config.eval.num_questions, here all 638 of WiC: 277 of RTE, 56 of CB, of BoolQ
640, nearly a fifth of its one file.
"""

from configs import smollm2_superglue


def get_config():
  config = smollm2_superglue.get_config()
  config.model.dtype = 'bfloat16'
  config.model.param_dtype = 'bfloat16'
  # Of an update on four v5p chips a chip holds 0.6 GiB, 3.4 with 'none', says
  # `preflight --topology=v5p:2x2x1 --config.mesh.data=1 --config.mesh.fsdp=4
  # --config.model.attention=plain`.
  config.model.remat = 'full'
  config.lora.init_variance = 2.0  # as docs/experiments.md has it
  config.rollouts.batch_questions = 16
  config.prompt.bucket_tokens = 128  # fewer widths to compile for
  config.num_steps = 100
  config.checkpoint.every_steps = 100
  config.log.samples_every_steps = 25
  config.eval.num_questions = 638
  config.eval.batch_questions = 128
  config.eval.has_before_after = False
  return config
