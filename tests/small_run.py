"""Runs of configs/tiny.py in its smallest form, and what they leave."""

import json
import runpy
import zlib

import jax
import numpy as np

from ogls_jax import checkpoint
from ogls_jax.tasks.grading import Grader, Grades


def small_config(**changes):
  config = runpy.run_path('configs/tiny.py')['get_config']()
  config.update_from_flattened_dict(
    {
      'model.width': 32,
      'model.num_layers': 2,
      'model.mlp_size': 48,
      'data.num_questions': 64,
      'data.arithmetic.num_terms': 2,
      'data.arithmetic.max_number': 9,
      'warmup.num_steps': 6,
      'warmup.batch_questions': 8,
      'num_steps': 4,
      'rollouts.batch_questions': 8,
      'rollouts.group_size': 2,
      'rollouts.max_tokens': 16,
      'optimizer.learning_rate': 1e-3,
      'hints.exclude_self': False,
      'steering.max_strength': 1.0,
      'eval.num_questions': 9,
      'eval.samples': 2,
      'eval.batch_questions': 8,
      'checkpoint.every_steps': 2,
      'log.samples_every_steps': 2,
      'log.samples_rollouts': 3,
    }
    | {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return config


def read_rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def final_state(workdir, step=None):
  """What the newest checkpoint, or one, holds, as numpy arrays by path."""
  folder = sorted(
    (workdir / 'checkpoints').glob('[0-9]*'), key=lambda path: int(path.name)
  )[-1]
  folder = folder if step is None else workdir / 'checkpoints' / str(step)
  restored = checkpoint.ocp.StandardCheckpointer().restore(
    (folder / 'state').absolute()
  )
  return jax.tree.map(np.asarray, restored)


def reward_texts(monkeypatch):
  """A model this small answers nothing: a reward that depends on the text."""

  def submit(_, texts, questions):
    reward_R = [
      zlib.crc32((text + q.id).encode()) % 3 / 2
      for text, q in zip(texts, questions, strict=True)
    ]
    none_R = np.zeros(len(texts), bool)
    return lambda poll=None: Grades(np.array(reward_R, np.float32), none_R)

  monkeypatch.setattr(Grader, 'submit', submit)
