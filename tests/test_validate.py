import dataclasses
import pathlib
import runpy

import pytest

from ogls_jax import validate as validate_lib
from ogls_jax import validate_inputs
from ogls_jax.errors import UserError
from ogls_jax.questions import solution_of
from ogls_jax.tasks.question import Question

CONFIGS = sorted(pathlib.Path('configs').glob('[a-z]*.py'))
SOLVED = [Question('a', '1', '1', solution='1')]
BARE = [Question('b', '1', '1')]


def tiny(**changes):
  config = runpy.run_path('configs/tiny.py')['get_config']()
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_validates(path):
  config = runpy.run_path(str(path))['get_config']()
  if path.stem == 'default':
    config.model.path = 'some/model'
  validate_lib.validate(config, 1)
  assert runpy.run_path(str(path)).get('__doc__')


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('method', 'dpo'),
    ('teacher', 'frozen'),
    ('data__task', 'chess'),
    ('loss__kl', 'backward'),
    ('loss__clip_mode', 'both'),
    ('kd__source', 'web'),
    ('optimizer__schedule', 'step'),
    ('model__dtype', 'float8'),
    ('model__remat', 'some'),
    ('model__attention', 'flash'),
    ('num_steps', 0),
    ('rollouts__temperature', 0.0),
    ('rollouts__top_p', 1.5),
    ('rollouts__top_p', float('nan')),
    ('loss__jsd_beta', 1.0),
    ('loss__pointwise_clip', 0.0),
    ('distill__response_tokens', 0),
    ('hints__max_tokens', 0),
    ('hints__min_reward', 0.0),
    ('hints__min_reward', 1.5),
    ('grading__seconds', 0.0),
    ('optimizer__learning_rate', -1.0),
    ('eval__samples', 0),
    ('log__inspect_every_steps', -1),
    ('log__inspect_rollouts', 0),
    ('log__inspect_candidates', 0),
    ('grading__symbolic_seconds', -1.0),
    ('grading__symbolic_mib', 64),
    ('mesh__data', 3),
    ('model__num_heads', 0),
    ('model__mlp_size', -3),
    ('optimizer__b1', 1.5),
    ('lora__alpha', 0.0),
    ('rollouts__temperature', float('inf')),
  ],
)
def test_a_bad_value_is_named_with_its_key(key, value):
  config = tiny(**{key: value})
  dotted = key.replace('__', '.')
  with pytest.raises(UserError) as error:
    validate_lib.validate(config, 1)
  assert f'{dotted} = {value!r}' in str(error.value)


def test_the_table_of_ranges_names_real_keys():
  config = tiny()
  for key, low, high in validate_lib._RANGES:
    assert low <= validate_lib.get(config, key) <= high


@pytest.mark.parametrize(
  ('changes', 'text'),
  [
    ({'model__width': 130}, 'model.width = 130 must be an even multiple'),
    ({'model__num_kv_heads': 3}, 'model.num_heads = 4 must be a multiple'),
    ({'model__tokenizer_path': ''}, "model.tokenizer_path = ''"),
    ({'lora__rank': 4, 'lora__targets': 'q,z'}, "has 'z'"),
    ({'method': 'kd'}, 'kd.teacher_workdir'),
    (
      {'method': 'kd', 'kd__teacher_workdir': 'x', 'teacher': 'ema'},
      "teacher = 'ema'",
    ),
    ({'method': 'sft', 'tail__weight': 1.0}, 'tail.weight = 1.0'),
    ({'method': 'grpo', 'tail__weight': 1.0}, 'tail.weight = 1.0'),
    ({'data__task': 'math'}, 'warmup.num_steps'),
    ({'data__path': 'x.jsonl'}, "data.path = 'x.jsonl' must be empty"),
    ({'model__param_dtype': 'bfloat16'}, 'must be float32 for lora.rank = 0'),
    ({'optimizer__num_microbatches': 3}, 'try rollouts.batch_questions=18'),
  ],
)
def test_values_that_do_not_go_together(changes, text):
  with pytest.raises(UserError) as error:
    validate_lib.validate(tiny(**changes), 1)
  assert text in str(error.value)


def test_a_batch_that_does_not_divide_over_the_mesh():
  config = tiny(rollouts__batch_questions=12)
  with pytest.raises(UserError) as error:
    validate_lib.validate(config, 8)
  assert (
    'rollouts.batch_questions = 12 must be a multiple of mesh.data * mesh.fsdp'
    ' = 8; try rollouts.batch_questions=16' in str(error.value)
  )


@pytest.mark.parametrize(
  ('changes', 'questions', 'text'),
  [
    ({'rollouts__group_size': 1}, BARE, 'rollouts.group_size = 1'),
    (
      {'rollouts__group_size': 1, 'hints__exclude_self': True},
      SOLVED,
      'leaves P- empty',
    ),
    ({'method': 'opsd'}, BARE, "method = 'opsd' needs solutions"),
    ({'method': 'sft'}, BARE, "method = 'sft' needs solutions"),
    ({'method': 'sft'}, SOLVED + BARE, "row 'b' has none"),
    (
      {
        'method': 'pos_mean',
        'rollouts__group_size': 1,
        'hints__exclude_self': True,
      },
      BARE,
      'leaves P+ empty',
    ),
    (
      {'data__task': 'superglue', 'warmup__num_steps': 0},
      BARE,
      "row 'b' has no `choices`",
    ),
    (
      {'method': 'grpo', 'rollouts__group_size': 1},
      SOLVED,
      'gives grpo no group',
    ),
  ],
)
def test_methods_that_the_data_cannot_feed(changes, questions, text):
  config = tiny(**changes)
  sizes = validate_lib.validate(config, 1)
  with pytest.raises(UserError) as error:
    validate_inputs.check_questions(config, questions, [], sizes)
  assert text in str(error.value)
  config.hints.answer_as_solution = True
  if changes.get('method') in ('opsd', 'sft'):
    validate_inputs.check_questions(config, questions, [], sizes)


@pytest.mark.parametrize('task', ['superglue', 'math'])
@pytest.mark.parametrize(
  ('name', 'fields', 'text'),
  [
    ('multirc-1', {}, 'paragraph_idx = None is no integer'),
    ('multirc-1', {'paragraph_idx': 1}, 'question_idx = None is no integer'),
    ('1', {'task': 'record', 'answers': 'Bo'}, "answers = 'Bo' is no list"),
  ],
)
def test_metrics_of_superglue_find_their_fields(task, name, fields, text):
  """An evaluation of any task computes them, of rows with choices."""
  question = Question(name, '?', 'a', choices=('a', 'b'), fields=fields)
  config = tiny(data__task=task)
  with pytest.raises(UserError, match=text):
    validate_inputs.check_choices(config, [question])
  mine = dataclasses.replace(question, fields={'task': 'mine'})
  validate_inputs.check_choices(config, [mine])


def test_solutions_without_a_box_are_told_of(caplog):
  boxed = Question('a', 'q', '7', solution=r'So \boxed{7}')
  other = Question('b', 'q', '7', solution='3 + 4 = 7')
  none = Question('c', 'q', '7')
  for question, text in (
    (boxed, boxed.solution),
    (other, '3 + 4 = 7\n' + r'\boxed{7}'),
    (none, r'\boxed{7}'),
  ):
    assert solution_of(question, answer_as_solution=True) == text
    assert solution_of(question, answer_as_solution=False) == question.solution
  config = tiny(method='sft', data__task='math', warmup__num_steps=0)
  sizes = validate_lib.validate(config, 1)
  for questions, is_told in (([boxed, other], True), ([boxed], False)):
    caplog.clear()
    validate_inputs.check_questions(config, questions, [], sizes)
    assert ('1 of 2 solutions have no' in caplog.text) == is_told
  config.hints.answer_as_solution = True
  validate_inputs.check_questions(config, [boxed, other], [], sizes)
  assert not caplog.text
  validate_inputs.check_questions(config, [boxed, other, none], [], sizes)
  assert caplog.messages == [
    '1 of 3 questions have no solution, and sft trains on their bare answers:'
    ' it teaches to answer without working'
  ]
  caplog.clear()
  config.method = 'opsd'  # whose hints may be answers
  sizes = validate_lib.validate(config, 1)
  validate_inputs.check_questions(config, [other, none], [], sizes)
  assert not caplog.text


def test_derived_sizes():
  assert validate_lib.validate(tiny(), 1).group_size == 8
  sft = validate_lib.validate(tiny(method='sft'), 1)
  assert (sft.group_size, sft.is_sampled) == (1, False)


def test_a_stage_that_does_not_run_is_not_checked():
  config = tiny(
    rollouts__batch_questions=8, warmup__batch_questions=3,
    eval__batch_questions=5, warmup__num_steps=0, eval__num_questions=0,
  )  # fmt: skip
  validate_lib.validate(config, 8)
  with pytest.raises(UserError, match='eval.batch_questions = 5'):
    config.eval.num_questions = 1
    validate_lib.validate(config, 8)


@pytest.mark.parametrize('key', ['rollouts.top_k', 'log.inspect_candidates'])
def test_more_tokens_than_the_vocabulary_has(key):
  config = tiny(**{key.replace('.', '__'): 108})
  validate_inputs.check_vocabulary(config, num_ids=107, num_rows=108)
  with pytest.raises(UserError, match=f'{key} = 108 is more than'):
    validate_inputs.check_vocabulary(config, num_ids=107, num_rows=107)


@pytest.mark.parametrize('key', ['model.path', 'model.tokenizer_path'])
def test_a_tokenizer_beyond_the_embedding(key):
  config = tiny(model__path='', model__tokenizer_path='')
  config.update_from_flattened_dict({key: 'some/file'})
  validate_inputs.check_vocabulary(config, num_ids=107, num_rows=107)
  with pytest.raises(UserError, match=f"{key} = 'some/file'.*108.*107"):
    validate_inputs.check_vocabulary(config, num_ids=108, num_rows=107)


def test_a_misspelt_key_in_a_config_file_is_an_error():
  with pytest.raises(AttributeError, match='group_size'):
    tiny().rollouts.group_sise = 4


def test_inputs_longer_than_the_model_was_made_for_are_named(caplog):
  config = tiny(
    prompt__max_tokens=10, rollouts__max_tokens=20, hints__max_tokens=30,
    distill__response_tokens=5, eval__num_questions=1,
  )  # fmt: skip

  def warnings(context_tokens, *, is_trained):
    caplog.clear()
    validate_inputs.warn_of_length(
      config, context_tokens, is_trained=is_trained
    )
    return [text.partition(' = ')[0] for text in caplog.messages]

  of_teacher = 'distill.response_tokens + hints.max_tokens + prompt.max_tokens'
  of_student = 'prompt.max_tokens + rollouts.max_tokens'
  assert not warnings(0, is_trained=True) + warnings(45, is_trained=True)
  assert warnings(44, is_trained=True) == [of_teacher]
  assert caplog.messages[0].endswith(
    ' = 45 tokens may be more than the 44 that the model was made for'
  )
  assert warnings(29, is_trained=True) == [of_student, of_teacher]
  assert warnings(29, is_trained=False) == [of_student]
  assert not warnings(30, is_trained=False)
  config.eval.max_tokens = 50
  of_evaluation = 'prompt.max_tokens + eval.max_tokens'
  assert warnings(59, is_trained=True) == [of_evaluation]
  assert warnings(59, is_trained=False) == [of_evaluation]
  config.eval.num_questions = 0
  assert not warnings(59, is_trained=True)
  assert warnings(59, is_trained=False) == [of_evaluation]
