r"""An estimate: \boxed{} within 1% of the answer is right, within 10% half so.

`float` reads a number and evaluates nothing.
"""

from ogls_jax.tasks import latex


def reward(text, question):
  try:
    number = float(latex.extract_boxed(text) or '')
  except ValueError:
    return 0
  answer = float(question.answer)
  error = abs(number - answer) / abs(answer)
  if error <= 0.01:
    return 1
  return 0.5 if error <= 0.1 else 0
