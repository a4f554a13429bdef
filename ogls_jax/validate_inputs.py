"""Rejects what shows once tokenizer, model and data have been read."""

import logging

from ml_collections import config_dict

from ogls_jax.errors import UserError
from ogls_jax.questions import has_box
from ogls_jax.tasks import superglue
from ogls_jax.tasks.question import Question
from ogls_jax.validate import Sizes, get


def check_vocabulary(
  config: config_dict.ConfigDict, *, num_ids: int, num_rows: int
) -> None:
  """Rejects a tokenizer, a top-k or candidates beyond the vocabulary.

  Args:
    config: as from configs/default.py.
    num_ids: of the tokenizer; they are 0 to num_ids - 1, ends included.
    num_rows: of the model's embedding. More than ids are usual: padding.
  """
  if num_ids > num_rows:
    key = 'tokenizer_path' if config.model.tokenizer_path else 'path'
    raise UserError(
      f'model.{key} = {config.model[key]!r} holds a tokenizer of {num_ids} ids'
      f' and the model has an embedding of {num_rows}; give the tokenizer that'
      ' it was trained with in model.tokenizer_path'
    )
  if config.log.inspect_candidates > num_rows:
    raise UserError(
      f'log.inspect_candidates = {config.log.inspect_candidates} is more than'
      f' the vocabulary of {num_rows}; lower it'
    )
  if config.rollouts.top_k > num_rows:
    raise UserError(
      f'rollouts.top_k = {config.rollouts.top_k} is more than the vocabulary of'
      f' {num_rows}; 0 keeps all'
    )


def warn_of_length(
  config: config_dict.ConfigDict, context_tokens: int, *, is_trained: bool
) -> None:
  """Says which inputs may be longer than the model was made for.

  Args:
    config: as from configs/default.py.
    context_tokens: of the model; 0 if not known.
    is_trained: whether there are rollouts to train on and teacher contexts,
      or an evaluation alone.
  """
  inputs = []
  if is_trained:
    inputs = [
      ('prompt.max_tokens', 'rollouts.max_tokens'),
      ('distill.response_tokens', 'hints.max_tokens', 'prompt.max_tokens'),
    ]
  # 0 is none in training, and all in an evaluation.
  if config.eval.num_questions or not is_trained:
    key = 'eval' if config.eval.max_tokens else 'rollouts'
    inputs.append(('prompt.max_tokens', f'{key}.max_tokens'))
  for keys in dict.fromkeys(inputs):
    total = sum(get(config, key) for key in keys)
    if context_tokens and total > context_tokens:
      logging.getLogger(__name__).warning(
        '%s = %d tokens may be more than the %d that the model was made for',
        ' + '.join(keys), total, context_tokens,
      )  # fmt: skip


def check_choices(
  config: config_dict.ConfigDict, questions: list[Question]
) -> None:
  """Rejects questions that lack the choices they are graded or scored by."""
  needs = None
  if config.data.task == 'superglue':
    needs = 'data.task = superglue'
  elif config.eval.has_likelihood:
    needs = 'eval.has_likelihood = True'
  for question in questions:
    if question.choices:
      _check_superglue_fields(question)
    elif needs:
      raise UserError(
        f'row {question.id!r} has no `choices`, which {needs} needs; add them,'
        ' or choose another'
      )


def _check_superglue_fields(question):
  """What the metrics of MultiRC and ReCoRD read."""
  task, fields = superglue.task_of(question), question.fields
  why = f'row {question.id!r} is of {task}, by its id or its field `task`, and'
  if task == 'multirc':
    for name in ('paragraph_idx', 'question_idx'):
      if not isinstance(fields.get(name), int):
        raise UserError(
          f'{why} {name} = {fields.get(name)!r} is no integer; it says which'
          ' answers belong together: set it, or the field `task` to another'
        )
  if task == 'record' and not isinstance(
    fields.get('answers', []), list | tuple
  ):
    raise UserError(
      f'{why} answers = {fields["answers"]!r} is no list; give one,'
      ' or set the field `task` to another'
    )


def check_questions(
  config: config_dict.ConfigDict,
  questions: list[Question],
  held_out: list[Question],
  sizes: Sizes,
) -> None:
  """Rejects a task or method that these questions cannot serve.

  Raises:
    UserError: choices, solutions or mixed groups are needed and impossible.
  """
  check_choices(config, [*questions, *held_out])
  num_solved = sum(question.solution is not None for question in questions)
  has_solutions = num_solved > 0 or config.hints.answer_as_solution
  out = 'set hints.answer_as_solution=True, or use data with solutions'
  if (config.method == 'opsd' or not sizes.is_sampled) and not has_solutions:
    raise UserError(
      f'method = {config.method!r} needs solutions and no row of the training'
      f' data has one; {out}'
    )
  if (
    not sizes.is_sampled
    and num_solved < len(questions)
    and not (config.hints.answer_as_solution)
  ):
    lacking = next(q.id for q in questions if q.solution is None)
    raise UserError(
      f'method = {config.method!r} trains on solutions and row {lacking!r} has'
      f' none; {out}'
    )
  if not sizes.is_sampled and config.data.task == 'math':
    _warn_of_solutions(config, questions, num_solved)
  is_lonely = config.rollouts.group_size == 1 or (
    config.rollouts.group_size == 2 and config.hints.exclude_self
  )
  if config.method == 'ogls_sd' and is_lonely:
    if not has_solutions:
      raise UserError(
        f'rollouts.group_size = {config.rollouts.group_size} leaves a pool'
        f' empty for every rollout of ogls_sd; raise it, or {out}'
      )
    if config.rollouts.group_size == 1 and config.hints.exclude_self:
      raise UserError(
        'rollouts.group_size = 1 with hints.exclude_self=True leaves P- empty'
        ' for every rollout; raise rollouts.group_size'
      )
  if (
    config.method in ('pos_mean', 'pos_only')
    and config.rollouts.group_size == 1
    and config.hints.exclude_self
    and not has_solutions
  ):
    raise UserError(
      'rollouts.group_size = 1 with hints.exclude_self=True leaves P+ empty for'
      f' every rollout; raise rollouts.group_size, or {out}'
    )
  if config.method == 'grpo' and config.rollouts.group_size == 1:
    raise UserError(
      'rollouts.group_size = 1 gives grpo no group to compare with; use 2 or'
      ' more'
    )


def _warn_of_solutions(config, questions, num_solved):
  """Says what training on these solutions will not teach."""
  logger, num = logging.getLogger(__name__), len(questions)
  num_unboxed = sum(not has_box(question) for question in questions)
  if num_unboxed and not config.hints.answer_as_solution:
    logger.warning(
      '%d of %d solutions have no \\boxed{}, where answers are read: %s will'
      ' not teach to box them; --config.hints.answer_as_solution=True ends each'
      ' with its answer',
      num_unboxed, num, config.method,
    )  # fmt: skip
  if num_solved < num:
    logger.warning(
      '%d of %d questions have no solution, and %s trains on their bare'
      ' answers: it teaches to answer without working',
      num - num_solved, num, config.method,
    )  # fmt: skip
