"""One step of the Qwen3 configs with a small random Qwen3 in their place."""

import json
import os
import pathlib
import runpy

import pytest

from ogls_jax import train
from tests.small_run import read_rows
from tests.test_export import write_source

DATA = pathlib.Path(os.environ.get('OGLS_DATA_DIR', '../shared/data'))
# In the manner of Qwen3's: thinking is turned off by an empty block.
TEMPLATE = (
  '{%- for m in messages %}'
  '<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n'
  '{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n'
  '{%- if enable_thinking is defined and not enable_thinking %}'
  '<think>\n\n</think>\n\n{%- endif %}{%- endif %}'
)


@pytest.fixture
def source(tmp_path):
  folder = write_source(tmp_path / 'source', 'qwen3')
  (folder / 'chat_template.jinja').write_text(TEMPLATE)
  return folder


def get_config(name):
  return runpy.run_path(f'configs/{name}.py')['get_config']()


def test_the_larger_one_differs_in_its_model_alone():
  small, large = map(get_config, ('qwen3_1p7b', 'qwen3_4b'))
  assert (small.model.path, large.model.path) == (
    'hub:Qwen/Qwen3-1.7B', 'hub:Qwen/Qwen3-4B'
  )  # fmt: skip
  large.model.path = small.model.path
  assert large.to_dict() == small.to_dict()


@pytest.mark.skipif(
  not (DATA / 'math').is_dir(), reason='needs the files of OGLS_DATA_DIR'
)
def test_one_step(tmp_path, monkeypatch, source):
  monkeypatch.setenv('OGLS_DATA_DIR', str(DATA.absolute()))
  config = get_config('qwen3_1p7b')
  config.update_from_flattened_dict(
    {
      'model.path': str(source),
      'method': 'opsd',  # all rollouts carry loss, though none is right
      'num_steps': 1,
      'rollouts.batch_questions': 8,
      'rollouts.group_size': 2,
      'rollouts.max_tokens': 8,
      'hints.max_tokens': 64,
      'distill.response_tokens': 8,
      'eval.batch_questions': 8,
      'eval.num_questions': 8,
      'eval.samples': 1,
      'eval.max_tokens': 8,
    }
  )
  train.train(config, tmp_path / 'run')
  (row,) = read_rows(tmp_path / 'run' / 'metrics.jsonl')
  assert row['steered_rollout_fraction'] == 1
  assert row['loss'] is not None and row['grad_norm'] > 0
  saved = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert saved['lora']['rank'] == 64 and saved['optimizer']['b1'] == 0.9
