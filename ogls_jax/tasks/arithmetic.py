r"""Generated multi-step arithmetic, and the small tokenizer that goes with it.

A question is a chain such as `17 + 25 - 8`; its worked solution has one running
total a line and ends in \boxed{34}. Nothing has to be downloaded.

The shipped tokenizer was made by

    python -m ogls_jax.tasks.arithmetic --out=configs/arithmetic.model
"""

import argparse
import io
import os

import numpy as np

from ogls_jax import errors
from ogls_jax.tasks.question import Question

# Chains are drawn this many at a time, whatever the number asked for: so a
# shorter list is a prefix of a longer one with the same seed.
_BLOCK = 1024
_MAX_NUMBER = 10**9  # int64 totals stay exact for any chain that fits in memory
_MAX_SLIP = 10
# SentencePiece spells a space as U+2581 inside a piece.
_PIECES = (
  '\n',
  '\\boxed{',
  'Question:',
  'Hint:',
  'Answer:',
  '\u2581=\u2581',
  '\u2581+\u2581',
  '\u2581-\u2581',
)


def generate(
  num_questions: int, *, num_terms: int, max_number: int, seed: int
) -> list[Question]:
  """Draws distinct chains of `num_terms` numbers in [1, max_number].

  Uniform over the chains whose running totals never fall below 0. The first n
  questions are the same for every num_questions >= n.
  """
  _check_sizes(num_questions, num_terms, max_number)
  rng = np.random.default_rng(seed)
  chains = {}
  while len(chains) < num_questions:
    shape = (_BLOCK, num_terms)
    numbers = rng.integers(1, max_number, shape, endpoint=True)
    signs = rng.choice([1, -1], shape)
    signs[:, 0] = 1
    terms = numbers * signs
    is_valid = (terms.cumsum(axis=1) >= 0).all(axis=1)
    # A dict is an ordered set: a chain drawn twice keeps its first place.
    chains.update((tuple(row), None) for row in terms[is_valid].tolist())
  return [_question(chain) for chain in list(chains)[:num_questions]]


def generate_splits(
  num_train: int, num_eval: int, *, num_terms: int, max_number: int, seed: int
) -> tuple[list[Question], list[Question]]:
  """Returns (train, eval), two disjoint slices of one list.

  The evaluation slice comes first in that list, so that runs with more or less
  training data are evaluated on the same questions.
  """
  if num_train < 0 or num_eval < 0:
    raise errors.UserError(
      f'data.num_questions = {num_train} for training and {num_eval} for '
      'evaluation must not be negative'
    )
  questions = generate(
    num_train + num_eval, num_terms=num_terms, max_number=max_number, seed=seed
  )
  return questions[num_eval:], questions[:num_eval]


def wrong_solution(
  question: Question, *, rng: np.random.Generator, step_error_rate: float
) -> str:
  """Writes a worked solution of a generated question with wrong steps in it.

  Each step's result is wrong with probability `step_error_rate`, and one step
  drawn at random is if none was. A wrong result is off by at most 10 or in one
  digit; the steps after it go on from it. The boxed answer is always wrong and
  no total is ever negative.
  """
  terms = _parse(question.question)
  num_steps = len(terms) - 1
  is_wrong = rng.random(num_steps) < step_error_rate
  if not is_wrong.any():
    is_wrong[rng.integers(num_steps)] = True
  last_wrong = int(np.flatnonzero(is_wrong)[-1])
  right_totals = np.cumsum(terms).tolist()

  totals = [terms[0]]
  for step in range(num_steps):
    total = totals[-1] + terms[step + 1]
    if is_wrong[step]:
      # Errors must not cancel: after the last one the difference stays.
      banned = right_totals[step + 1] if step == last_wrong else None
      total = _slip(total, terms[step + 2 :], rng, banned=banned)
    totals.append(total)
  return _write_solution(terms, totals)


def sample_solution(
  question: Question,
  *,
  rng: np.random.Generator,
  slip_rate: float,
  hint: str | None = None,
) -> list[tuple[str, bool]]:
  """Writes a solution as a solver does that slips, and that reads its hint.

  Each step's result is wrong with probability `slip_rate`. Otherwise it is what
  the hint says there, as long as all totals so far are the hint's, and the
  right result of the step where there is no hint or they are not. So a solver
  that has left its hint goes on from its own total.

  Args:
    question: a generated question.
    rng: draws the slips.
    slip_rate: share of wrong steps.
    hint: a worked solution of this question, right or wrong.

  Returns:
    The text in parts, each with whether it is the result of a slip.
  """
  terms = _parse(question.question)
  hinted = None if hint is None else _parse_totals(terms, hint)
  totals, slips = [terms[0]], []
  for step, term in enumerate(terms[1:], start=1):
    is_following = hinted is not None and totals == hinted[:step]
    total = hinted[step] if is_following else totals[-1] + term
    slips.append(bool(rng.random() < slip_rate))
    if slips[-1]:
      total = _slip(total, terms[step + 1 :], rng)
    totals.append(total)
  return _solution_parts(terms, totals, slips)


def _slip(total, rest, rng, *, banned=None) -> int:
  """A wrong result that lets the rest of the chain stay at 0 or above."""
  floor = max(0, *(-np.cumsum([0, *rest])).tolist())
  wrong = {t for t in _slips(total) if t >= floor} - {banned}
  return int(rng.choice(sorted(wrong)))


def train_tokenizer(path: str | os.PathLike) -> None:
  r"""Writes a SentencePiece model with one piece for every character.

  Printable ASCII, newline and a few longer pieces (`\boxed{`, ` + `,
  `Question:`...), so every ASCII prompt encodes without <unk> and decodes to
  itself. Ids 0..3 are pad, bos, eos, unk. The same bytes on every call.
  """
  import sentencepiece  # only this command needs it

  ascii_text = ''.join(map(chr, range(32, 127)))
  prompts = ['Question: ', 'Hint: ', 'Answer: ']
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([ascii_text, *prompts]),
    model_writer=model,
    model_type='char',
    vocab_size=4 + len(_PIECES) + len(ascii_text),
    character_coverage=1.0,
    user_defined_symbols=list(_PIECES),
    normalization_rule_name='identity',
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    pad_id=0,
    bos_id=1,
    eos_id=2,
    unk_id=3,
    num_threads=1,
    minloglevel=2,
  )
  with open(path, 'wb') as f:
    f.write(model.getvalue())


def _check_sizes(num_questions: int, num_terms: int, max_number: int) -> None:
  if num_questions < 1:
    raise errors.UserError(
      f'data.num_questions = {num_questions} must be at least 1'
    )
  if num_terms < 2:
    raise errors.UserError(
      f'data.arithmetic.num_terms = {num_terms} must be at least 2: '
      'a single number has no step to work out'
    )
  if not 1 <= max_number <= _MAX_NUMBER:
    raise errors.UserError(
      f'data.arithmetic.max_number = {max_number} must be in [1, {_MAX_NUMBER}]'
    )
  # The chains without a minus alone are often enough; if they are not, the
  # numbers are small enough to count every chain.
  if max_number**num_terms >= num_questions:
    return
  num_chains = _count_chains(num_terms, max_number)
  if num_chains < num_questions:
    raise errors.UserError(
      f'data.num_questions + eval.num_questions = {num_questions} is more than '
      f'the {num_chains} distinct questions of data.arithmetic.num_terms = '
      f'{num_terms} and data.arithmetic.max_number = {max_number}; lower one '
      'of the first two or raise one of the last'
    )


def _count_chains(num_terms: int, max_number: int) -> int:
  """Counts the chains with no negative running total, as an exact int."""
  # counts[t]: chains so far whose running total is t; Python ints, exact.
  counts = np.array([0] + [1] * max_number, dtype=object)
  for _ in range(num_terms - 1):
    # One term takes t to any other total within max_number, 0 excluded.
    sums = np.concatenate([[0], counts.cumsum()])
    totals = np.arange(len(counts) + max_number)
    high = np.minimum(totals + max_number + 1, len(counts))
    low = np.clip(totals - max_number, 0, len(counts))
    moved = sums[high] - sums[low]
    moved[: len(counts)] -= counts
    counts = moved
  return int(counts.sum())


def _question(terms: tuple[int, ...]) -> Question:
  text = ' '.join([str(terms[0])] + [_signed(term) for term in terms[1:]])
  totals = np.cumsum(terms).tolist()
  return Question(
    id=f'arithmetic-{len(terms)}-{text.replace(" ", "")}',
    question=text,
    answer=str(totals[-1]),
    solution=_write_solution(terms, totals),
  )


def _solution_parts(terms, totals, slips) -> list[tuple[str, bool]]:
  parts = []
  for before, term, after, is_slip in zip(
    totals[:-1], terms[1:], totals[1:], slips, strict=True
  ):
    head = f'{before} {_signed(term)} = '
    parts += [(head, False), (str(after), is_slip), ('\n', False)]
  return [*parts, (f'\\boxed{{{totals[-1]}}}', False)]


def _write_solution(terms, totals) -> str:
  parts = _solution_parts(terms, totals, [False] * (len(terms) - 1))
  return ''.join(text for text, _ in parts)


def _signed(term: int) -> str:
  return f'{"-" if term < 0 else "+"} {abs(term)}'


def _parse(text: str) -> list[int]:
  """Reads `17 + 25 - 8` back into [17, 25, -8]."""
  first, *rest = text.split(' ')
  pairs = zip(rest[::2], rest[1::2], strict=True)
  return [int(first)] + [int(sign + number) for sign, number in pairs]


def _parse_totals(terms: list[int], solution: str) -> list[int]:
  """Running totals of a worked solution, the first term included."""
  lines = solution.splitlines()[:-1]
  return [terms[0]] + [int(line.rpartition(' = ')[2]) for line in lines]


def _slips(total: int) -> set[int]:
  """Plausible wrong results: off by 1..10, or one digit misread."""
  slips = {total + d for d in range(-_MAX_SLIP, _MAX_SLIP + 1)}
  digits = str(total)
  for i in range(len(digits)):
    slips |= {int(digits[:i] + d + digits[i + 1 :]) for d in '0123456789'}
  return slips - {total}


def main() -> None:
  """Writes the tokenizer."""
  parser = argparse.ArgumentParser(description='Writes the small tokenizer.')
  parser.add_argument('--out', required=True, help='the .model file to write')
  train_tokenizer(parser.parse_args().out)


if __name__ == '__main__':
  main()
