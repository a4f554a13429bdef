import json

import numpy as np
import pytest

from ogls_jax import build, data, questions, tfds_rows
from ogls_jax.errors import UserError
from tests.small_run import small_config
from tests.tfds_files import prepare_tfds


def gsm8k_columns(features):
  names = ('question', 'answer', 'annotation', 'short_answer')
  return dict.fromkeys(names, features.Text())


def gsm8k_row(i):
  solution = f'Ann has {i} + 1,000 = <<{i}+1000={i + 1000}>>{i + 1000} pins.'
  short = f'${i + 1000:,}'
  return {
    'question': f'{i} + 1000', 'answer': f'{solution}\n#### {short}',
    'annotation': solution + '\n', 'short_answer': short,
  }  # fmt: skip


def test_gsm8k(tmp_path):
  prepare_tfds(tmp_path, 'gsm8k', {'train': [gsm8k_row(5)]}, gsm8k_columns)
  (question,), num_bad = data.read_tfds(
    'gsm8k:1.0.0', split='train', data_dir=str(tmp_path)
  )
  assert num_bad == 0 and question.answer == '1005'
  assert question.solution == 'Ann has 5 + 1,000 = 1005 pins.'
  assert question.fields == {}
  with pytest.raises(ValueError, match='no ####'):
    tfds_rows.converter_of('gsm8k')({'question': b'q', 'answer': b'5'})


def test_other_columns_are_fields_of_plain_values(tmp_path):
  def columns(features):
    return {
      'question': features.Text(),
      'answer': np.int64,
      'tests': features.Sequence({'a': np.int32, 'b': features.Text()}),
      'hard': np.bool_,
    }

  row = {
    'question': 'q', 'answer': 2, 'hard': True,
    'tests': [{'a': 1, 'b': 'née'}, {'a': 2, 'b': ''}],
  }  # fmt: skip
  prepare_tfds(tmp_path, 'mine', {'train': [row]}, columns)
  (question,), _ = data.read_tfds('mine', split='train', data_dir=str(tmp_path))
  assert question.answer == '2'
  assert json.loads(json.dumps(question.fields)) == {
    'hard': True, 'tests': {'a': [1, 2], 'b': ['née', '']},
  }  # fmt: skip


def test_bytes_that_are_no_text():
  with pytest.raises(ValueError, match='utf-8'):
    tfds_rows.plain({'image': [b'\xff\xd8']})


def load(config):
  return questions.load_questions(config, build.load_maker(config))


def test_a_split_of_its_own_for_evaluation(tmp_path):
  splits = {
    'train': [gsm8k_row(i) for i in range(6)],
    'test': [gsm8k_row(i) for i in range(7, 9)],
    'seen': [gsm8k_row(5)],
  }
  prepare_tfds(tmp_path, 'gsm8k', splits, gsm8k_columns)
  config = small_config(
    data__task='math', data__tfds_name='gsm8k', data__tfds_dir=str(tmp_path),
    data__tfds_eval_split='test', eval__num_questions=2,
  )  # fmt: skip
  train, held_out, num_skipped = load(config)
  assert sorted(q.answer for q in train) == [str(1000 + i) for i in range(6)]
  assert sorted(q.answer for q in held_out) == ['1007', '1008']
  assert num_skipped == 0
  config.eval.num_questions = 3
  with pytest.raises(UserError, match='held out by data.tfds_eval_split = tes'):
    load(config)
  config.eval.num_questions = 1
  config.data.tfds_eval_split = 'seen'
  with pytest.raises(UserError, match='also held out by .*tfds_eval_split'):
    load(config)
  config.data.eval_path = 'x.jsonl'
  with pytest.raises(UserError, match="tfds_eval_split = 'seen' is for"):
    load(config)
