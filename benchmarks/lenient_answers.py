r"""Evaluations of choices, graded as they were and as a lenient reader would.

    python -m benchmarks.lenient_answers runs/wic/evaluations/*

The grader wants a final answer that is a choice and nothing else
(docs/tasks.md). The lenient reader, where there is none, also takes a choice
that the response begins with, or that follows "answer ... is". Choices are the
right answers that occur in the file. Samples alone, all of a file.
"""

import collections
import pathlib
import re
import sys

from ogls_jax.json_file import read_rows
from ogls_jax.tasks import superglue
from ogls_jax.tasks.question import Question


def lenient_choice(text: str, question: Question) -> str | None:
  """The choice that the response makes in any of the three ways."""
  if choice := superglue.choice_of(text, question):
    return choice
  names = '|'.join(map(re.escape, question.choices))
  said = re.match(rf'\W*({names})\b', text, re.I) or re.search(
    rf'\banswer\b[^.\n]*\bis\W+({names})\b', text, re.I
  )
  return said and next(
    x for x in question.choices if x.lower() == said[1].lower()
  )


def _shares(made, rows):
  """Of choices: the right ones, and those that were made at all."""
  right = [
    choice == row['answer'] for choice, row in zip(made, rows, strict=True)
  ]
  answered = [choice is not None for choice in made]
  return f'{sum(right) / len(rows):.1%} | {sum(answered) / len(rows):.1%}'


def main(folders: list[str]) -> None:
  """Prints a table of `folders`, each of an evaluation."""
  headings = 'right', 'answered', 'right, leniently', 'answered, leniently'
  print(f'| | {" | ".join(headings)} | says |')
  print('|---|---|---|---|---|---|')
  for folder in map(pathlib.Path, folders):
    rows = [
      row
      for row in read_rows(folder / 'generations.jsonl', key='batch')
      if row['kind'] == 'sample'
    ]
    choices = tuple(sorted({row['answer'] for row in rows}))
    question = Question('', '', choices[0], choices=choices)
    strict, lenient = (
      [read(row['response'], question) for row in rows]
      for read in (superglue.choice_of, lenient_choice)
    )
    counts = collections.Counter(filter(None, lenient)).most_common()
    says = ', '.join(f'{name} {num}' for name, num in counts)
    print(
      f'| {folder.name} | {_shares(strict, rows)} | {_shares(lenient, rows)}'
      f' | {says} |'
    )


if __name__ == '__main__':
  if not sys.argv[1:]:
    sys.exit('give the folders of evaluations')
  main(sys.argv[1:])
