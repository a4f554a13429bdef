"""A method learns, end to end."""

import json
import os
import subprocess
import sys

import numpy as np


def read(workdir, name):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return np.array([json.loads(line)[name] for line in lines])


def run(workdir, **changes):
  """A run of configs/tiny.py on one device, compiled for speed."""
  environment = os.environ.copy()
  environment.pop('XLA_FLAGS')
  flags = [
    f'--config.{key.replace("__", ".")}={value}'
    for key, value in changes.items()
  ]
  subprocess.run(
    [
      sys.executable, '-m', 'ogls_jax.train', '--config=configs/tiny.py',
      f'--workdir={workdir}', *flags,
    ],
    check=True,
    env=environment,
  )  # fmt: skip


def test_ogls_sd_learns(tmp_path):
  """Single sums, with a slip in half of the corpus, from stage 1 on."""
  run(
    tmp_path,
    data__arithmetic__num_terms=2,
    data__num_questions=100,
    eval__num_questions=0,
    model__width=64,
    model__num_layers=3,
    model__mlp_size=192,
    warmup__num_steps=500,
    warmup__slip_rate=0.5,
    rollouts__max_tokens=24,
    num_steps=25,
    optimizer__learning_rate=3e-4,
  )
  reward = read(tmp_path, 'reward_mean')
  # 128 rollouts a step: the standard deviation of five steps' mean is 0.02.
  # With the two pools swapped reward falls.
  assert reward[-5:].mean() > reward[:5].mean() + 0.1


def test_sft_learns(tmp_path):
  """With a wrong sign or a wrong mask the loss does not fall."""
  run(
    tmp_path,
    method='sft',
    num_steps=60,
    eval__num_questions=0,
    warmup__num_steps=0,
    model__width=32,
    model__num_layers=2,
    model__mlp_size=48,
    optimizer__learning_rate=6e-3,
    data__num_questions=200,
    data__arithmetic__num_terms=2,
    data__arithmetic__max_number=15,
    rollouts__batch_questions=32,
  )
  loss = read(tmp_path, 'loss')
  # Untrained: ln 107 = 4.67 nats a token, and more.
  assert loss[0] > 4
  assert loss[-1] < 1.5
