"""From a config to questions: what is trained on and what is held out."""

import collections
import logging
import zlib

from jax.sharding import Mesh
from ml_collections import config_dict

from ogls_jax import data, hosts
from ogls_jax.errors import UserError
from ogls_jax.inputs import digest_of
from ogls_jax.prompts import PromptMaker, check_prompt_lengths
from ogls_jax.tasks import arithmetic, latex, superglue
from ogls_jax.tasks.question import Question


def load_questions(
  config: config_dict.ConfigDict, maker: PromptMaker
) -> tuple[list[Question], list[Question], int]:
  """(training questions, held-out questions, rows skipped)."""
  d = config.data
  train, held_out, num_skipped = _split_of(config)
  if config.eval.num_questions > len(held_out):
    raise UserError(
      f'eval.num_questions = {config.eval.num_questions}, but only'
      f' {len(held_out)} questions are held out by {_held_out_by(d)}; lower it,'
      ' or hold out more'
    )
  if num_held_out := len(held_out) - config.eval.num_questions:
    logging.getLogger(__name__).warning(
      '%d questions to train on; %d more are held out by %s and not evaluated'
      ' (eval.num_questions = %d)',
      len(train), num_held_out, _held_out_by(d), config.eval.num_questions,
    )  # fmt: skip
  train, num_long = _fitting(train, maker, config)
  num_skipped += num_long
  if config.eval.num_questions:
    held_out, num_long = _first(held_out, maker, config)
    num_skipped += num_long
  else:
    held_out = []
  return train, held_out, num_skipped


def load_evaluated(
  config: config_dict.ConfigDict, maker: PromptMaker
) -> tuple[list[Question], int]:
  """(questions to evaluate, rows skipped): all held-out ones, or the first.

  As many as eval.num_questions says; 0 for all. Of a file in data.eval_path
  alone, without data to train on, all are held out.
  """
  d, num = config.data, config.eval.num_questions
  _check_sources(d)
  if d.eval_path:
    questions, num_skipped = data.read_jsonl(
      d.eval_path, on_bad_row=d.on_bad_row, key='data.eval_path'
    )
  elif d.tfds_eval_split:
    questions, num_skipped = _read_tfds(d, d.tfds_eval_split)
  elif d.path or d.tfds_name or (d.task == 'arithmetic' and num):
    _, questions, num_skipped = _split_of(config)
  else:
    raise UserError(
      "data.eval_path = '' must name a .jsonl file for data.task ="
      f' {d.task!r}, or eval.num_questions = {num} say how many are generated'
    )
  if not questions or num > len(questions):
    raise UserError(
      f'eval.num_questions = {num}, but there are {len(questions)} questions to'
      ' evaluate; lower it, or name other data'
    )
  questions, num_long = _first(questions, maker, config)
  return questions, num_skipped + num_long


def num_trained_on(
  questions: list[Question],
  config: config_dict.ConfigDict,
  maker: PromptMaker,
  *,
  digest: str | None,
) -> int | None:
  """How many of `questions` are among those that a run trains on.

  Word for word, whatever their ids.

  Args:
    questions: any.
    config: of the run.
    maker: of the run.
    digest: of what it trains on (`inputs.digest_of`); None if not known.

  Returns:
    None where its data are others today.

  Raises:
    UserError: its data cannot be read.
  """
  trained, _, _ = _split_of(config)
  most = config.prompt.max_tokens
  trained = [q for q in trained if len(maker.student_ids(q)) <= most]
  if digest not in (None, digest_of(trained)):
    return None
  texts = {question.question for question in trained}
  return sum(question.question in texts for question in questions)


def _fitting(questions, maker, config):
  return check_prompt_lengths(
    questions, maker, max_tokens=config.prompt.max_tokens,
    on_bad_row=config.data.on_bad_row,
  )  # fmt: skip


def _first(held_out, maker, config):
  """(the first eval.num_questions, or all, that fit; how many do not)."""
  num = config.eval.num_questions or None
  kept, num_long = _fitting(held_out[:num], maker, config)
  if num_parted := superglue.num_parted(held_out, kept):
    logging.getLogger(__name__).warning(
      'MultiRC questions without some of their answers, which'
      ' prompt.max_tokens = %d or eval.num_questions = %d left out: %d;'
      ' multirc/em counts them by the others',
      config.prompt.max_tokens, config.eval.num_questions, num_parted,
    )  # fmt: skip
  return kept, num_long


def _held_out_by(d):
  """The key that says which questions are, and its value."""
  keys = ['eval_path', 'tfds_eval_split']
  key = next((k for k in keys if d[k]), 'eval_fraction')
  return f'data.{key} = {d[key]}'


def _check_sources(d):
  """Rejects data keys that name more than one source."""
  if d.tfds_name and d.path:
    raise UserError(
      f'data.path = {d.path!r} and data.tfds_name = {d.tfds_name!r}: set one'
    )
  if d.tfds_eval_split and (d.eval_path or not d.tfds_name):
    raise UserError(
      f'data.tfds_eval_split = {d.tfds_eval_split!r} is for data.tfds_name ='
      f' {d.tfds_name!r} without data.eval_path = {d.eval_path!r}'
    )


def _split_of(config):
  """(to train on, held out, bad rows), whatever the length of their prompts."""
  d = config.data
  _check_sources(d)
  if not (d.tfds_name or d.path):
    if d.task != 'arithmetic':
      raise UserError(
        f"data.path = '' must name a .jsonl file for data.task = {d.task!r}"
      )
    train, held_out = arithmetic.generate_splits(
      d.num_questions, config.eval.num_questions,
      num_terms=d.arithmetic.num_terms, max_number=d.arithmetic.max_number,
      seed=d.seed,
    )  # fmt: skip
    return train, held_out, 0
  if d.tfds_name:
    questions, num_skipped = _read_tfds(d, d.tfds_split)
  else:
    questions, num_skipped = data.read_jsonl(d.path, on_bad_row=d.on_bad_row)
  if not (d.eval_path or d.tfds_eval_split):
    train, held_out = data.split_by_id(
      questions, eval_fraction=d.eval_fraction, seed=d.seed
    )
    return train, held_out, num_skipped
  if d.tfds_eval_split:
    held_out, more = _read_tfds(d, d.tfds_eval_split)
  else:
    held_out, more = data.read_jsonl(
      d.eval_path, on_bad_row=d.on_bad_row, key='data.eval_path'
    )
  train, num_shared = data.without_shared(
    questions, held_out, on_bad_row=d.on_bad_row
  )
  return train, held_out, num_skipped + more + num_shared


def _read_tfds(d, split):
  return data.read_tfds(
    d.tfds_name, split=split, data_dir=d.tfds_dir, on_bad_row=d.on_bad_row
  )


def solution_of(question: Question, *, answer_as_solution: bool) -> str | None:
  """The row's solution.

  Args:
    question: the row.
    answer_as_solution: whether its boxed answer stands for a solution that is
      missing, and ends one that has no box.
  """
  if not answer_as_solution or has_box(question):
    return question.solution
  boxed = rf'\boxed{{{question.answer}}}'
  return f'{question.solution}\n{boxed}' if question.solution else boxed


def has_box(question: Question) -> bool:
  """Whether the row's solution says its final answer in a box."""
  return latex.extract_boxed(question.solution or '') is not None


def own_questions(
  questions: list[Question], mesh: Mesh
) -> tuple[list[Question], list[int]]:
  """This process's questions of a batch, and what `uids_of` calls them.

  The names are those within the whole batch, however many hosts share it.
  """
  return hosts.own_of(questions, mesh), hosts.own_of(uids_of(questions), mesh)


def uids_of(questions: list[Question]) -> list[int]:
  """Names questions in the sampling key, whatever their place in the data.

  A question that comes again in one batch gets another name, and so draws
  other rollouts.
  """
  seen, uids = collections.Counter(), []
  for question in questions:
    name = question.id
    if seen[name]:
      name = f'{name}#{seen[name]}'
    seen[question.id] += 1
    uids.append(zlib.crc32(name.encode()))
  return uids
