"""A regular expression: the last `Answer:` line must be the row's date.

Half a point for a date of that form, so that the form is learned first.
"""

import re

ANSWER = re.compile(r'^Answer: ([0-9]{4}-[0-9]{2}-[0-9]{2})$', re.MULTILINE)


def reward(text, question):
  dates = ANSWER.findall(text)
  if not dates:
    return 0
  return 1 if dates[-1] == question.answer else 0.5
