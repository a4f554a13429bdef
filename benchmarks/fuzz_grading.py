"""Fuzzes the comparison of answers with atheris, guided by coverage.

    pip install atheris
    python -m benchmarks.fuzz_grading -max_total_time=3600 -seed=1

All flags are those of libFuzzer. Each input is an answer and a reference. It
stops, with the input in a file, where the comparison raises, takes more than
`_MOST_SECONDS` of processor time, depends on the order of the two, or where
what math-verify may see breaks a promise of `symbolic`.
"""

import importlib.util
import sys
import time

_MOST_SECONDS = 2.0
_MAX_BYTES = 1500


def check(data: bytes) -> None:
  """Raises AssertionError for an input that breaks a promise."""
  from ogls_jax.tasks import forms, latex, math, superglue, symbolic
  from ogls_jax.tasks.question import Question

  text = data.decode('utf-8', 'surrogateescape')
  answer, _, reference = text.partition('\n')
  began = time.process_time()
  boxed = f'\\boxed{{{answer}}}'
  verdict = math.compare(boxed, Question('', '', reference))
  assert verdict in (True, False, None)
  assert math.compare(text, Question('', '', text)) in (True, False, None)
  choices = Question('', '', 'yes', choices=('yes', reference))
  assert superglue.is_correct(text, choices) in (True, False)
  pair = latex.clean(answer), latex.clean(reference)
  assert forms.compare(*pair) is forms.compare(*pair[::-1])
  for shown in symbolic.candidates(boxed, reference) or ():
    assert len(shown) <= 200 and shown.isascii() and shown.isprintable()
    assert not set('\'"`$%#;:~?') & set(shown) and '__' not in shown
  assert time.process_time() - began < _MOST_SECONDS, 'took too long'


def main():
  if importlib.util.find_spec('atheris') is None:
    raise SystemExit('error: this needs atheris: pip install atheris')
  import atheris

  with atheris.instrument_imports(include=['ogls_jax.tasks']):
    from ogls_jax.tasks import math, superglue, symbolic  # noqa: F401
  arguments = [sys.argv[0], f'-max_len={_MAX_BYTES}', *sys.argv[1:]]
  atheris.Setup(arguments, check)
  atheris.Fuzz()


if __name__ == '__main__':
  main()
