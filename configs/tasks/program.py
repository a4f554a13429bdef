r"""A program as grader: it runs what the model wrote, in a language of its own.

The response boxes a program for a stack of numbers, such as \boxed{dup +}. The
row's column `tests` is a list of [numbers to begin with, numbers to end with];
the reward is the share of tests that pass. `dup * dup * ...` doubles the digits
with each word, so that a program of a page has no end in sight: it runs in a
process of its own, with a limit of time.
"""

import json
import subprocess
import sys

SECONDS = 2
TWO = {
  '+': lambda a, b: [a + b],
  '-': lambda a, b: [a - b],
  '*': lambda a, b: [a * b],
  'swap': lambda a, b: [b, a],
}


def reward(text, question):
  from ogls_jax.tasks import latex

  job = [latex.extract_boxed(text) or '', question.fields['tests']]
  try:
    done = subprocess.run(
      [sys.executable, '-I', __file__],  # no shell; -I: only Python's own
      input=json.dumps(job),
      capture_output=True,
      text=True,
      timeout=SECONDS,
    )
  except subprocess.TimeoutExpired:
    return 0
  return float(done.stdout) if done.returncode == 0 else 0


def run(program, stack):
  """The stack at the end, None where the program is wrong."""
  stack = list(stack)
  for word in program.split():
    if word in TWO and len(stack) > 1:
      stack[-2:] = TWO[word](*stack[-2:])
    elif word == 'dup' and stack:
      stack.append(stack[-1])
    elif word.isdecimal() and len(word) < 10:
      stack.append(int(word))
    else:
      return None
  return stack


if __name__ == '__main__':
  program, tests = json.load(sys.stdin)
  passed = [run(program, begin) == end for begin, end in tests]
  print(sum(passed) / len(passed))
