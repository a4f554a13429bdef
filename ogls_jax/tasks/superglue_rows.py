"""The eight tasks of SuperGLUE as questions: official fields to a row.

A row has the columns of a jsonl file: question, answer, choices and fields. The
wording ends with the allowed answers; a prompt template asks for their form.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

_YES_NO = ('yes', 'no')
_BLANK = '_____'


def _boolq(r):
  text = f'{r["passage"]}\nQuestion: {r["question"]}?\nAnswer yes or no.'
  return text, _YES_NO, ('question',)


def _entailment(r):
  return f'{r["premise"]}\nQuestion: Does this entail that "{r["hypothesis"]}"?'


def _cb(r):
  text = f'{_entailment(r)} Answer yes, no or maybe.'
  return text, (*_YES_NO, 'maybe'), ('premise', 'hypothesis')


def _rte(r):
  text = f'{_entailment(r)} Answer yes or no.'
  return text, _YES_NO, ('premise', 'hypothesis')


def _copa(r):
  asked = {
    'cause': 'What was the cause of this?',
    'effect': 'What happened as a result?',
  }
  if r['question'] not in asked:
    raise ValueError(
      f'`question` {r["question"]!r} is neither cause nor effect'
    )
  text = (
    f'{r["premise"]}\nQuestion: {asked[r["question"]]}\n1. {r["choice1"]}\n'
    f'2. {r["choice2"]}\nAnswer 1 or 2.'
  )
  return text, ('1', '2'), ('premise', 'choice1', 'choice2', 'question')


def _multirc(r):
  text = (
    f'{r["paragraph"]}\nQuestion: {r["question"]}\nProposed answer:'
    f' {r["answer"]}\nIs the proposed answer correct? Answer yes or no.'
  )
  return text, _YES_NO, ('question', 'answer')


def _record(r):
  passage = re.sub(r'\s*@highlight\s*', '\n- ', r['passage'])
  query = r['query'].replace('@placeholder', _BLANK)
  text = (
    f'{passage}\nFill in the blank: {query}\nAnswer with one of:'
    f' {"; ".join(r["entities"])}.'
  )
  return text, tuple(r['entities']), ('query', 'answers')


def _wic(r):
  text = (
    f'{r["sentence1"]}\n{r["sentence2"]}\nQuestion: Is the word "{r["word"]}"'
    ' used in the same sense in the two sentences? Answer yes or no.'
  )
  return text, _YES_NO, ('word', 'sentence1', 'sentence2')


def _wsc(r):
  pronoun = r['span2_text']
  text = (
    f'{_marked(r["text"], pronoun, r["span2_index"])}\nQuestion: Does'
    f' "{pronoun}" between the asterisks refer to "{r["span1_text"]}"? Answer'
    ' yes or no.'
  )
  return text, _YES_NO, ('text', 'span1_text', 'span2_text')


def _marked(text: str, span: str, index: int) -> str:
  """*...* around the span that begins with word `index` of the text.

  Raises:
    ValueError: it does not; the set wsc has such rows, wsc.fixed fewer.
  """
  words = list(re.finditer(r'\S+', text))
  start = words[index].start() if 0 <= index < len(words) else len(text)
  span_text = re.compile(rf'{re.escape(span)}(?!\w)', re.IGNORECASE)
  found = span_text.search(text, start)
  if not span or found is None or text[start : found.start()].strip('"\'(`'):
    raise ValueError(f'`span2_text` {span!r} is not at word {index} of `text`')
  return f'{text[: found.start()]}*{found[0]}*{text[found.end() :]}'


_RENDER: dict[str, Callable[[Mapping], tuple[str, tuple, tuple]]] = {
  'boolq': _boolq, 'cb': _cb, 'copa': _copa, 'multirc': _multirc,
  'record': _record, 'rte': _rte, 'wic': _wic, 'wsc': _wsc,
}  # fmt: skip
TASKS = tuple(_RENDER)
# What a label number of TFDS is called, and the answer that it stands for.
_NO_YES = (('False', 'no'), ('True', 'yes'))
_LABELS = dict.fromkeys(TASKS, _NO_YES) | {
  'cb': (('entailment', 'yes'), ('contradiction', 'no'), ('neutral', 'maybe')),
  'copa': (('choice1', '1'), ('choice2', '2')),
  'rte': (('entailment', 'yes'), ('not_entailment', 'no')),
}


def make_row(task: str, record: Mapping[str, Any]) -> dict:
  """A row of one of `TASKS` from the fields that TFDS gives it.

  Args:
    task: as in `super_glue/<task>`; wsc stands for wsc.fixed too.
    record: text as str, `label` as a number. Of ReCoRD any of `answers` is
      right; `answer` of the row is the first that is among the entities.

  Raises:
    ValueError: what is wrong with the record.
  """
  text, choices, kept = _RENDER[task](record)
  fields = {'task': task} | {name: record[name] for name in kept}
  if isinstance(record['idx'], Mapping):
    for name, number in record['idx'].items():
      fields[f'{name}_idx'] = number
  if task == 'record':
    known = [answer for answer in record['answers'] if answer in choices]
    if not known:
      raise ValueError(
        '`answers` has none of `entities`; a test split has no answers'
      )
    answer = known[0]
  else:
    label = record['label']
    if not 0 <= label < len(_LABELS[task]):
      raise ValueError(f'`label` is {label}; a test split has no labels')
    fields['label'], answer = _LABELS[task][label]
  return {
    'question': text,
    'answer': answer,
    'choices': list(choices),
    'fields': fields,
  }
