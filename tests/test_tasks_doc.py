"""The tasks that docs/tasks.md shows are those files, and grade as it says."""

import pathlib
import re
import time

import pytest

from ogls_jax.tasks import grading, superglue_metrics
from ogls_jax.tasks.grading import Grader
from ogls_jax.tasks.question import Question

DOC = pathlib.Path('docs/tasks.md').read_text(encoding='utf-8')
FILES = sorted(pathlib.Path('configs/tasks').glob('*.py'))
SQUARES = '\\boxed{' + 'dup * ' * 60 + '}'


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_the_text_shows_the_file(file):
  shown = re.findall(r'```python\n(.*?)```', DOC, re.DOTALL)
  assert file.read_text(encoding='utf-8') in shown
  assert f'`{file}`' in DOC


def test_all_tasks_and_metrics_are_named():
  assert len(FILES) == 4
  for name in (*grading.TASKS, *superglue_metrics.METRICS):
    assert f'`{name}`' in DOC, name


CASES = {
  'date': (
    Question('q', '?', '1969-07-20'),
    {
      'It was\nAnswer: 1969-07-20': 1,
      'Answer: 1969-07-20\nAnswer: 1969-07-21\n': 0.5,
      'Answer: 20 July 1969': 0,
      'In 1969-07-20': 0,
    },
  ),
  'choice': (
    Question('q', '?', 'A', choices=(*'ABCD',), fields={'right': ['A', 'C']}),
    {
      '\\boxed{C, A}': 1,
      '\\boxed{A}': 1 / 2,
      '\\boxed{A, B, C}': 2 / 3,
      '\\boxed{B}': 0,
      '\\boxed{A, C, E}': 0,
      'A, C': 0,
    },
  ),
  'number': (
    Question('q', '?', '-200'),
    {
      '\\boxed{-199}': 1,
      '\\boxed{-2.1e2}': 0.5,
      '\\boxed{200}': 0,
      '\\boxed{nan}': 0,
      '\\boxed{int(-200)}': 0,
      '-200': 0,
    },
  ),
  'program': (
    Question('q', '?', 'dup +', fields={'tests': [[[3], [6]], [[2], [4]]]}),
    {
      '\\boxed{dup +}': 1,
      '\\boxed{2 *}': 1,
      '\\boxed{dup *}': 0.5,  # 2 * 2 is 4 as well
      '\\boxed{swap}': 0,
      '\\boxed{__import__("os").abort()}': 0,
      SQUARES: 0,
    },
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_the_examples_grade(name):
  question, rewards = CASES[name]
  grader = Grader(f'configs/tasks/{name}.py', seconds=30)
  began = time.monotonic()
  try:
    grader.check(question)
    grades = grader.submit(list(rewards), [question] * len(rewards))()
  finally:
    grader.close()
  assert grades.reward_R.tolist() == pytest.approx(list(rewards.values()))
  assert not grades.is_timeout_R.any()
  assert time.monotonic() - began < 25  # the squares alone take hours
