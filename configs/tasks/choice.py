r"""Several choices are right: \boxed{A, C}, graded by the share they have.

The row has `choices` of letters, and the right ones in a column `right`.
"""

from ogls_jax.tasks import latex


def reward(text, question):
  boxed = latex.extract_boxed(text)
  if boxed is None:
    return 0
  chosen = {letter.strip() for letter in boxed.split(',')}
  if not chosen <= set(question.choices):
    return 0
  right = set(question.fields['right'])
  return len(chosen & right) / len(chosen | right)
