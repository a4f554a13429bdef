"""How answers are graded, against math-verify and against hostile text.

    python -m benchmarks.grading --pairs=2000 --seed=0
    python -m benchmarks.grading --hostile=10000 --seed=0

The first grades references of MATH, MATH-500, AIME, AMC and GSM8K (under
$OGLS_DATA_DIR) that are rewritten or missed, see `grading_pairs.py`, with
`Grader` and with math-verify alone. It prints the agreement and every
difference, with the first of `REASONS` that holds. The second grades answers
that are all wrong, see `grading_hostile.py`: how many, the longest time, the
most memory of a worker, what was said to be right, and whether code ran.
"""

import argparse
import collections
import logging
import os
import pathlib
import re
import tempfile
import time

import psutil

from benchmarks import grading_hostile, grading_pairs
from ogls_jax.errors import UserError
from ogls_jax.tasks.grading import Grader
from ogls_jax.tasks.question import Question

# What either text of a pair has, and why the verdicts then differ.
REASONS = (
  (r'[0-9] [0-9]+/[0-9]', 'math-verify adds the parts of a mixed number'),
  (r'=.*%|%.*=', 'math-verify compares one end of a chain of equations'),
  (r'\\phantom', 'math-verify reads one number of a matrix with a phantom'),
  (r'\.$', 'math-verify reads one fraction of a text with a full stop'),
  (r'[0-9]!', 'large factorials are compared as text here'),
  (r'\\approx', 'math-verify reads no \\approx without a space'),
  (r'\\text|\\mbox|[a-z]{3}', 'math-verify takes words for units, or units'
   ' for symbols'),
  (r'[+] [a-z]$|[2-9] [a-z]$', 'math-verify takes a last letter for a unit'),
  (r'_', 'math-verify drops the base of digits'),
  (r'[0-9]\.[0-9]', 'math-verify rounds decimals'),
)  # fmt: skip


def explain(answer: str, reference: str) -> str:
  for pattern, reason in REASONS:
    if re.search(pattern, answer) or re.search(pattern, reference):
      return reason
  return 'unexplained'


def math_verify_says(answer: str, reference: str) -> bool:
  import math_verify

  gold, target = (
    math_verify.parse(f'\\boxed{{{text}}}') for text in (reference, answer)
  )
  return bool(math_verify.verify(gold, target))


def compare_with_math_verify(num_pairs: int, seed: int) -> None:
  folder = pathlib.Path(os.environ.get('OGLS_DATA_DIR', '../shared/data'))
  references = grading_pairs.load_references(folder)
  if not references:
    raise UserError(
      f'$OGLS_DATA_DIR = {folder} has none of:'
      f' {", ".join(grading_pairs.FILES)}; set it to the folder of data sets'
    )
  pairs = grading_pairs.make_pairs(references, num_pairs=num_pairs, seed=seed)
  texts = [f'\\boxed{{{answer}}}' for _, answer, _ in pairs]
  questions = [Question('', '', reference) for *_, reference in pairs]
  grader, began = Grader('math'), time.monotonic()
  grades = grader.submit(texts, questions)()
  seconds = time.monotonic() - began
  grader.close()
  logging.disable()  # what math-verify warns of
  began, differences = time.monotonic(), []
  counts = collections.Counter()
  for (kind, answer, reference), ours in zip(
    pairs, grades.reward_R == 1, strict=True
  ):
    theirs = math_verify_says(answer, reference)
    counts['the same' if kind in grading_pairs.SAME else 'others', ours] += 1
    if theirs != ours:
      reason = explain(answer, reference)
      differences.append((reason, answer, reference, ours, theirs))
  their_seconds = time.monotonic() - began
  print(f'{len(references)} references, {len(pairs)} pairs:')
  for (kind, verdict), count in sorted(counts.items()):
    print(f'  {count} of answers made {kind} graded {verdict}')
  print(
    f'seconds: {seconds:.1f}, of math-verify alone {their_seconds:.1f};'
    f' grader_timeouts: {grades.is_timeout_R.sum()}'
  )
  share = 1 - len(differences) / len(pairs)
  print(f'agreement {share:.2%}, {len(differences)} differences')
  for reason, answer, reference, ours, theirs in sorted(differences):
    verdicts = f'ours {ours}, math-verify {theirs}'
    print(f'  {reason}: {answer} | {reference} | {verdicts}')


def grade_hostile(num: int, seed: int) -> int:
  """The number of answers that were said to be right."""
  with tempfile.TemporaryDirectory() as folder:
    canary = pathlib.Path(folder) / 'ran'
    answers = grading_hostile.make(num, seed=seed, canary=str(canary))
    rows = collections.defaultdict(lambda: [0, 0.0, 0, 0])
    grader, peak = Grader('math'), 0
    for i, (kind, answer, reference) in enumerate(answers):
      began = time.monotonic()
      question = Question('', '', reference)
      grades = grader.submit([f'\\boxed{{{answer}}}'], [question])()
      seconds = time.monotonic() - began
      row = rows[kind]
      row[0] += 1
      row[1] = max(row[1], seconds)
      row[2] += int(grades.is_timeout_R[0])
      row[3] += int(grades.reward_R[0])
      if grades.reward_R[0]:
        print(f'said to be right: {answer[:200]!r} | {reference}')
      if i % 20 == 0 or seconds > 0.5:
        peak = max(peak, worker_peak())
    peak = max(peak, worker_peak())
    grader.close()
    has_run = canary.exists()
  layout = '{:14} {:>7} {:>10} {:>16} {:>12}'.format
  print(layout('kind', 'answers', 'longest s', 'grader_timeouts', 'said right'))
  for kind, (count, longest, timeouts, right) in sorted(rows.items()):
    print(layout(kind, count, f'{longest:.2f}', timeouts, right))
  total = [sum(row[i] for row in rows.values()) for i in (0, 2, 3)]
  longest = max(row[1] for row in rows.values())
  print(layout('all', total[0], f'{longest:.2f}', *total[1:]))
  print(f'most resident memory of a worker: {peak / 2**20:.0f} MiB')
  print(f'code ran: {"YES" if has_run else "no"}')
  return total[2] + has_run


def worker_peak() -> int:
  """Most resident bytes, so far, of a worker that there is now."""
  peaks = [0]
  for child in psutil.Process().children():
    try:
      status = pathlib.Path(f'/proc/{child.pid}/status').read_text()
    except OSError:
      continue
    if match := re.search(r'VmHWM:\s*(\d+)', status):
      peaks.append(int(match[1]) * 1024)
  return max(peaks)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--pairs', type=int, default=2000)
  parser.add_argument('--hostile', type=int, default=0)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  if args.hostile:
    raise SystemExit(1 if grade_hostile(args.hostile, args.seed) else 0)
  try:
    compare_with_math_verify(args.pairs, args.seed)
  except UserError as error:
    parser.error(str(error))


if __name__ == '__main__':
  main()
