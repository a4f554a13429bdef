r"""Evaluations of choices, graded as they were and as a lenient reader would.

    python -m benchmarks.lenient_answers runs/wic/evaluations/*

The grader wants a final answer that is a choice and nothing else
(docs/tasks.md). The lenient reader, where there is none, also takes a choice
that the response begins with, or that follows "answer ... is". Choices are the
right answers that occur in the file. Samples alone, all of a file.
"""

import collections
import json
import pathlib
import re
import sys

from ogls_jax.tasks import superglue
from ogls_jax.tasks.question import Question


def lenient_choice(text: str, question: Question) -> str | None:
  """The choice that the response makes in any of the three ways."""
  choice = superglue.choice_of(text, question)
  if choice is None:
    names = '|'.join(map(re.escape, question.choices))
    for pattern in (
      rf'\W*({names})\b', rf'(?:.*\b)?answer\b[^.\n]*\bis\W+({names})\b',
    ):  # fmt: skip
      if match := re.match(pattern, text, re.IGNORECASE | re.DOTALL):
        return match[1].lower()
  return choice


def main(folders: list[str]) -> None:
  """Prints a table of `folders`, each of an evaluation."""
  print(
    '| | right | answered | right, leniently | answered, leniently | says |'
  )
  print('|---|---|---|---|---|---|')
  for folder in folders:
    path = pathlib.Path(folder) / 'generations.jsonl'
    rows = map(json.loads, path.read_text().splitlines())
    rows = [row for row in rows if row['kind'] == 'sample']
    choices = tuple(sorted({row['answer'] for row in rows}))
    strict, lenient = (
      [
        read(row['response'], Question('', '', row['answer'], choices=choices))
        for row in rows
      ]
      for read in (superglue.choice_of, lenient_choice)
    )
    shares = [
      sum(found) / len(rows)
      for made in (strict, lenient)
      for found in (
        [c == row['answer'] for c, row in zip(made, rows, strict=True)],
        [c is not None for c in made],
      )
    ]
    counts = collections.Counter(c for c in lenient if c is not None)
    says = ', '.join(f'{name} {num}' for name, num in counts.most_common())
    cells = ' | '.join(f'{share:.1%}' for share in shares)
    print(f'| {path.parent.name} | {cells} | {says} |')


if __name__ == '__main__':
  main(sys.argv[1:])
