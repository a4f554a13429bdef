"""SuperGLUE: rows as TFDS has them, wording, grading and metrics."""

import gzip
import json
import os
import pathlib
import sys

import numpy as np
import pytest

from benchmarks.lenient_answers import lenient_choice
from ogls_jax import data, tfds_rows
from ogls_jax.errors import UserError
from ogls_jax.tasks import superglue, superglue_metrics, superglue_rows
from ogls_jax.tasks.question import Question
from tests.question_rows import superglue_scores
from tests.tfds_files import prepare_tfds

DATA_DIR = pathlib.Path(os.environ.get('OGLS_DATA_DIR', '../shared/data'))
BOOL = ['False', 'True']

# A row of our own in the layout of tfds.text.SuperGlue, its classes, and what
# it becomes: (the end of the question, answer, choices).
ROWS = {
  'boolq': (
    {'question': 'is tin a metal', 'passage': 'Tin -- Tin melts.',
     'idx': 4, 'label': 1},
    BOOL,
    ('Tin melts.\nQuestion: is tin a metal?\nAnswer yes or no.', 'yes',
     ('yes', 'no')),
  ),
  'cb': (
    {'premise': 'He may come.', 'hypothesis': 'he comes', 'idx': 0,
     'label': 2},
    ['entailment', 'contradiction', 'neutral'],
    ('"he comes"? Answer yes, no or maybe.', 'maybe', ('yes', 'no', 'maybe')),
  ),
  'copa': (
    {'premise': 'It rained.', 'choice1': 'I got wet.', 'choice2': 'I sang.',
     'question': 'effect', 'idx': 1, 'label': 0},
    ['choice1', 'choice2'],
    ('It rained.\nQuestion: What happened as a result?\n1. I got wet.\n'
     '2. I sang.\nAnswer 1 or 2.', '1', ('1', '2')),
  ),
  'multirc': (
    {'paragraph': 'A b.', 'question': 'Who?', 'answer': 'B',
     'idx': {'paragraph': 3, 'question': 1, 'answer': 2}, 'label': 0},
    BOOL,
    ('Question: Who?\nProposed answer: B\nIs the proposed answer correct?'
     ' Answer yes or no.', 'no', ('yes', 'no')),
  ),
  'record': (
    {'passage': 'Ann met Bo.\n@highlight\nBo left\n@highlight\nAnn won',
     'query': 'Then @placeholder won.', 'entities': ['Ann', 'Bo'],
     'answers': ['Bo'], 'idx': {'passage': 1, 'query': 9}},
    None,
    ('Ann met Bo.\n- Bo left\n- Ann won\nFill in the blank: Then _____ won.\n'
     'Answer with one of: Ann; Bo.', 'Bo', ('Ann', 'Bo')),
  ),
  'rte': (
    {'premise': 'It is so.', 'hypothesis': 'So it is.', 'idx': 2, 'label': 1},
    ['entailment', 'not_entailment'],
    ('that "So it is."? Answer yes or no.', 'no', ('yes', 'no')),
  ),
  'wic': (
    {'word': 'bank', 'sentence1': 'A bank.', 'sentence2': 'The banks.',
     'start1': 2, 'start2': 4, 'end1': 6, 'end2': 9, 'idx': 7, 'label': 1},
    BOOL,
    ('A bank.\nThe banks.\nQuestion: Is the word "bank" used in the same sense'
     ' in the two sentences? Answer yes or no.', 'yes', ('yes', 'no')),
  ),
  'wsc.fixed': (
    {'text': 'It fell. Ann said "it broke", and it did.', 'span1_index': 2,
     'span2_index': 7, 'span1_text': 'Ann', 'span2_text': 'it', 'idx': 5,
     'label': 0},
    BOOL,
    ('It fell. Ann said "it broke", and *it* did.\nQuestion: Does "it" between'
     ' the asterisks refer to "Ann"? Answer yes or no.', 'no', ('yes', 'no')),
  ),
}  # fmt: skip


def columns_of(row, classes):
  """The features that tfds.text.SuperGlue declares for such a row."""

  def columns(features):
    kinds = {}
    for name, value in row.items():
      if isinstance(value, dict):
        kinds[name] = features.FeaturesDict(dict.fromkeys(value, np.int32))
      elif isinstance(value, list):
        kinds[name] = features.Sequence(features.Text())
      elif isinstance(value, int):
        kinds[name] = np.int32
      else:
        kinds[name] = features.Text()
    if classes:
      kinds['label'] = features.ClassLabel(names=classes)
    return kinds

  return columns


@pytest.mark.parametrize('config', ROWS)
def test_rows_of_tfds_become_questions(tmp_path, config):
  row, classes, (end, answer, choices) = ROWS[config]
  splits = {'train': [row], 'test': [row | {'answers': [], 'label': -1}]}
  if not classes:
    del splits['test'][0]['label']
  elif config != 'record':
    del splits['test'][0]['answers']
  prepare_tfds(
    tmp_path, 'super_glue', splits, columns_of(row, classes), config=config
  )
  where = {'data_dir': str(tmp_path)}
  name = f'super_glue/{config}'
  (question,), num_bad = data.read_tfds(name, split='train', **where)
  assert question.question.endswith(end) and num_bad == 0
  assert (question.answer, question.choices) == (answer, choices)
  assert question.id == f'{name}-train-0'
  assert superglue.task_of(question) == config.partition('.')[0]
  for choice in choices:
    is_right = superglue.is_correct(f'\\boxed{{{choice}}}', question)
    assert is_right == (choice == answer)
  with pytest.raises(UserError, match='row 0: .*test split has no'):
    data.read_tfds(name, split='test', **where)
  assert 'tensorflow' not in sys.modules


def test_the_fields_are_there_for_metrics(tmp_path):
  row, classes, _ = ROWS['multirc']
  prepare_tfds(
    tmp_path, 'super_glue', {'train': [row]}, columns_of(row, classes),
    config='multirc',
  )  # fmt: skip
  (question,), _ = data.read_tfds(
    'super_glue/multirc:1.0.0', split='train', data_dir=str(tmp_path)
  )
  assert question.fields == {
    'task': 'multirc', 'question': 'Who?', 'answer': 'B', 'label': 'False',
    'paragraph_idx': 3, 'question_idx': 1, 'answer_idx': 2,
  }  # fmt: skip
  json.dumps(question.fields)


@pytest.mark.parametrize('name', ['super_glue', 'super_glue/axb:1.0.2'])
def test_other_configs_are_refused(name):
  with pytest.raises(UserError, match=f'{name} is none of: super_glue/boolq'):
    tfds_rows.converter_of(name)


@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    ({'span2_index': 8}, "'it' is not at word 8"),
    ({'span2_index': 99}, 'at word 99'),
    ({'span2_index': -2}, 'at word -2'),
    ({'span2_index': 1}, 'at word 1'),
    ({'span2_text': 'i'}, "'i' is not at word"),
    ({'span2_text': ''}, "'' is not at word"),
  ],
)
def test_a_pronoun_that_is_not_where_it_should_be(changes, problem):
  with pytest.raises(ValueError, match=problem):
    superglue_rows.make_row('wsc', ROWS['wsc.fixed'][0] | changes)


def test_the_first_word_and_a_quoted_one_can_be_the_pronoun():
  row = ROWS['wsc.fixed'][0]
  texts = [
    superglue_rows.make_row('wsc', row | {'span2_index': index})['question']
    for index in (0, 4)
  ]
  assert texts[0].startswith('*It* fell. Ann said "it')
  assert texts[1].startswith('It fell. Ann said "*it* broke", and it')


def test_an_entity_that_is_not_in_the_list_is_passed_over():
  row = ROWS['record'][0]
  made = superglue_rows.make_row('record', row | {'answers': ['x', 'Ann']})
  assert made['answer'] == 'Ann'
  with pytest.raises(ValueError, match='none of `entities`'):
    superglue_rows.make_row('record', row | {'answers': ['x']})
  with pytest.raises(ValueError, match="'why' is neither cause"):
    superglue_rows.make_row('copa', ROWS['copa'][0] | {'question': 'why'})


def local_rows(name):
  for suffix, opener in (('.jsonl', open), ('.jsonl.gz', gzip.open)):
    file = DATA_DIR / f'superglue_{name}' / f'validation{suffix}'
    if file.exists():
      with opener(file, 'rt', encoding='utf-8') as f:
        return file, [json.loads(line) for line in f]
  pytest.skip(f'no superglue_{name} in {DATA_DIR}; set OGLS_DATA_DIR')


@pytest.mark.parametrize('task', ['boolq', 'cb', 'multirc', 'rte', 'wic'])
def test_the_wording_is_that_of_the_jsonl_files(task):
  _, rows = local_rows(task)
  for row in rows:
    fields = row['fields']
    text = row['question'].rpartition('\nQuestion: ')[0]
    record = {'passage': text, 'paragraph': text, 'idx': 0} | fields
    label = row['label']
    if isinstance(label, str):
      names = [name for name, _ in superglue_rows._LABELS[task]]
      label = names.index(label)
    made = superglue_rows.make_row(task, record | {'label': int(label)})
    assert made['question'] == row['question']
    assert (made['answer'], made['choices']) == (row['answer'], row['choices'])


@pytest.mark.parametrize('task', ['boolq', 'cb', 'multirc', 'rte', 'wic'])
def test_right_answers_of_the_jsonl_files_score_1(task):
  file, _ = local_rows(task)
  questions, _ = data.read_jsonl(str(file))
  scores = superglue_scores((q, q.answer) for q in questions)
  assert len(scores) > 1 and set(scores.values()) == {1}
  assert all(name.startswith((task, 'average')) for name in scores)


def pairs(*rows, task='cb', choices=('yes', 'no', 'maybe')):
  """(question, response) of (right answer, response)."""
  return [
    (Question(f'{task}-{i}', '?', right, choices=choices), text)
    for i, (right, text) in enumerate(rows)
  ]


def test_macro_f1_by_hand():
  # yes: 2 hits of 3 right, 3 chosen: 2 * 2 / 6. no: 1 hit of 2 right, 1 chosen:
  # 2 / 3. maybe: right once, chosen once, no hit. One is unanswered.
  scores = superglue_scores(
    pairs(
      ('yes', '\\boxed{yes}'), ('yes', 'Yes.'), ('yes', 'maybe'),
      ('no', 'no'), ('no', 'I do not know'), ('maybe', 'The answer is yes.'),
    )
  )  # fmt: skip
  assert scores['cb/accuracy'] == pytest.approx(3 / 6)
  assert scores['cb/f1'] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
  assert scores['average'] == pytest.approx((1 / 2 + 4 / 9) / 2)


def test_a_class_that_never_occurs_is_left_out_of_macro_f1():
  scores = superglue_scores(pairs(('yes', 'yes'), ('no', '?')))
  assert scores['cb/f1'] == pytest.approx((1 + 0) / 2)


def multirc(*rows):
  """(paragraph, question, right, response)."""
  return [
    (
      Question(
        f'multirc-{i}', '?', right, choices=('yes', 'no'),
        fields={'paragraph_idx': paragraph, 'question_idx': number},
      ),
      text,
    )
    for i, (paragraph, number, right, text) in enumerate(rows)
  ]  # fmt: skip


def test_multirc_by_hand():
  scores = superglue_scores(
    multirc(
      (0, 0, 'yes', 'yes'), (0, 0, 'no', 'no'), (0, 0, 'no', 'no'),  # right
      (0, 1, 'yes', 'yes'), (0, 1, 'yes', 'no'),  # one of two
      (1, 0, 'no', 'yes'), (1, 0, 'no', 'no'),
      (1, 1, 'no', 'hm'),  # unanswered: not exact, no false alarm
      (1, 2, 'yes', 'hm'),  # unanswered: not exact, a miss
    )
  )  # fmt: skip
  # yes: 2 hits, 4 right, 3 chosen.
  assert scores['multirc/f1a'] == pytest.approx(2 * 2 / 7)
  assert scores['multirc/em'] == pytest.approx(1 / 5)


def test_questions_that_lose_answers_are_counted(tmp_path, caplog):
  rows = [(q // 6, q // 3, 'yes', '') for q in range(18)]
  questions = [question for question, _ in multirc(*rows)]
  assert superglue.num_parted(questions, questions) == 0
  assert superglue.num_parted(questions, questions[3:]) == 0  # one is gone
  assert superglue.num_parted(questions, questions[1:-1]) == 2
  others = [question for question, _ in pairs(*[('yes', 'yes')] * 3)]
  assert superglue.num_parted(others, others[1:]) == 0


def record(*rows):
  """(right entities, response)."""
  choices = ('the U.S. Army', 'Army', 'Bo', 'A. Bo')
  return [
    (
      Question(
        f'record-{i}', '?', golds[0], choices=choices,
        fields={'answers': golds},
      ),
      text,
    )
    for i, (golds, text) in enumerate(rows)
  ]  # fmt: skip


def test_record_by_hand():
  scores = superglue_scores(
    record(
      (['Bo'], 'Bo'),
      (['Army', 'Bo'], 'The answer is Bo.'),  # any of them
      (['Bo'], 'A. Bo'),  # an article and punctuation
      (['the U.S. Army'], 'Army'),  # of `us army` one token: 2 / (1 + 2)
      (['Army'], 'Bo'),
      (['Bo'], 'I think it was Bo'),  # no final answer
    )
  )
  assert scores['record/em'] == pytest.approx(3 / 6)
  assert scores['record/f1'] == pytest.approx((3 + 2 / 3) / 6)
  question = record((['Army', 'Bo'], ''))[0][0]
  assert superglue.is_correct('\\boxed{Bo}', question)
  assert superglue.is_correct('\\boxed{Army}', question)
  assert not superglue.is_correct('\\boxed{A. Bo}', question)


def test_the_average_is_over_tasks():
  yes_no = ('yes', 'no')
  rows = [
    *pairs(('yes', 'yes'), ('no', 'no'), task='cb'),  # 1 and 1
    *pairs(('yes', 'no'), task='wsc', choices=yes_no),  # 0
    *pairs(*[('yes', 'yes')] * 3, ('no', ''), task='rte', choices=yes_no),
  ]
  scores = superglue_scores(rows)
  assert scores['average'] == pytest.approx((1 + 0 + 3 / 4) / 3)


def test_the_metrics_are_those_of_the_eight_tasks():
  assert set(superglue_metrics.METRICS) == set(superglue_rows.TASKS)


def test_a_lenient_reader_takes_sentences_too():
  question = Question('1', '?', 'yes', choices=('yes', 'no'))
  texts = [
    'No', r'It is so. \boxed{yes}', 'Yes, it is.', 'The answer to this is no.',
    'Nothing says yes.', 'The answer is that I know.',
  ]  # fmt: skip
  assert [lenient_choice(text, question) for text in texts] == [
    'no', 'yes', 'yes', 'no', None, None,
  ]  # fmt: skip
  strict = [superglue.choice_of(text, question) for text in texts]
  assert strict == ['no', 'yes', None, None, None, None]
