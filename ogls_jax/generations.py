"""generations.jsonl: all rollouts of an evaluation, batch by batch."""

import collections
import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import config_dict

from ogls_jax import build, evaluation, hosts, label_likelihood, results, step
from ogls_jax.batches import TrainState
from ogls_jax.errors import UserError
from ogls_jax.json_file import read_rows
from ogls_jax.metrics import Lines, Progress
from ogls_jax.notice import StopNotice
from ogls_jax.programs import evaluation_options
from ogls_jax.prompts import PromptMaker
from ogls_jax.tasks import superglue
from ogls_jax.tasks.grading import Grader
from ogls_jax.tasks.question import Question


@dataclasses.dataclass(frozen=True)
class Parts:
  """What the batches need."""

  config: config_dict.ConfigDict
  mesh: jax.sharding.Mesh
  maker: PromptMaker
  model: build.Model
  questions: list[Question]
  grader: Grader
  notice: StopNotice


@dataclasses.dataclass(frozen=True)
class _Batch:
  """Rollouts of one kind (`results.KINDS`) of some questions."""

  kind: str
  start: int  # of the questions
  num_rows: int


def generate(parts: Parts, out: pathlib.Path) -> list[dict]:
  """Completes `out`/generations.jsonl; its rows, on the first host.

  Raises:
    UserError: it cannot be written, or a line of it is broken.
    FloatingPointError: the model's logits are not finite.
    Preempted: a stop is asked for; whole batches are kept.
  """
  batches, path = _batches(parts), out / 'generations.jsonl'
  num_done = _num_whole(path, batches) if hosts.is_first() else 0
  (num_done,) = hosts.largest(num_done)
  if num_done:
    hosts.say(f'{num_done} of {len(batches)} batches are in {path}')
  lines = None
  if hosts.is_first():
    lines = Lines(path, last_step=num_done, key='batch')
  rows = lines.rows if lines else []
  progress = Progress('evaluation', start=num_done, total=len(batches))
  with contextlib.closing(progress):
    for number, new in _new_rows(parts, batches, num_done):
      new = [{'batch': number} | row for row in new]
      rows += new
      if lines:
        _write(lines, new, out)
      progress.update(number, batches[number - 1].kind, is_printed=True)
  return rows


def _write(lines, rows, out):
  for row in rows:
    lines.add(row)
  try:
    lines.sync()
  except OSError as error:
    raise UserError(
      f'--out={out}: generations.jsonl cannot be written ({error.strerror});'
      ' mend the disk and give the same command, which continues'
    ) from error


def _batches(parts: Parts) -> list[_Batch]:
  e, num = parts.config.eval, len(parts.questions)
  num_rows = {
    'sample': e.samples,
    'greedy': int(e.has_greedy),
    'likelihood': int(e.has_likelihood),
  }
  return [
    _Batch(kind, start, min(e.batch_questions, num - start) * num_each)
    for kind, num_each in num_rows.items()
    for start in range(0, num if num_each else 0, e.batch_questions)
  ]


def _num_whole(path: pathlib.Path, batches: list[_Batch]) -> int:
  """How many of the first batches are all there."""
  rows = read_rows(path, len(batches), 'batch')
  num_rows = collections.Counter(row['batch'] for row in rows)
  for number, batch in enumerate(batches, start=1):
    if num_rows[number] != batch.num_rows:
      return number - 1
  return len(batches)


def _new_rows(
  parts: Parts, batches: list[_Batch], num_done: int
) -> Iterator[tuple[int, list[dict]]]:
  """(number of a batch, its rows) of those that are missing."""
  for kind in results.KINDS:
    numbers = [
      number
      for number, batch in enumerate(batches, start=1)
      if batch.kind == kind and number > num_done
    ]
    if not numbers:
      continue
    questions = parts.questions[batches[numbers[0] - 1].start :]
    if kind == 'likelihood':
      rows = _likelihoods(parts, questions)
    else:
      rows = _rollouts(parts, questions, kind)
    yield from zip(numbers, rows, strict=True)


def _rollouts(parts: Parts, questions, kind) -> Iterator[list[dict]]:
  config, model, mesh = parts.config, parts.model, parts.mesh
  options = evaluation_options(config)
  if kind == 'greedy':
    options |= {'group_size': 1, 'temperature': 0.0}
  rollout_step = step.make_rollout_step(
    model.graphdef, eos_ids=parts.maker.tokenizer.eos_ids, **options
  )
  # As evaluations in training draw theirs.
  state = TrainState(
    step=build.first_step(mesh),
    key=build.make_key(mesh, config.seed + 1),
    params=model.params,
    opt_state=None,
    ema_params=None,
  )

  def sample(prompts):
    return rollout_step(
      state, model.frozen, prompts, meanwhile=lambda _: parts.notice.check()
    )

  for batch in evaluation.graded_batches(
    sample,
    questions,
    parts.maker,
    mesh,
    grader=parts.grader,
    batch_questions=config.eval.batch_questions,
    bucket_tokens=config.prompt.bucket_tokens,
    has_responses=True,
    poll=parts.notice.poll,
  ):
    yield _rows_of(batch, kind)


def _rows_of(batch: evaluation.GradedBatch, kind: str) -> list[dict]:
  return [
    {
      'kind': kind,
      'id': question.id,
      'group': group,
      'sample': g,
      'question': question.question,
      'answer': question.answer,
      'response': response,
      'reward': float(str(np.float32(batch.reward_BG[b, g]))),  # its digits
      'is_timeout': bool(batch.is_timeout_BG[b, g]),
      'response_tokens': int(batch.length_BG[b, g]),
      'is_truncated': bool(batch.is_truncated_BG[b, g]),
      'repeated_fraction': float(batch.repeated_BG[b, g]),
    }
    for b, (question, group) in enumerate(
      zip(batch.questions, superglue.groups_of(batch.questions), strict=True)
    )
    for g, response in enumerate(batch.responses_BG[b])
  ]


def _likelihoods(parts: Parts, questions) -> Iterator[list[dict]]:
  config, model = parts.config, parts.model
  score = label_likelihood.make_choice_scorer(model.graphdef)
  for batch in label_likelihood.score_choices(
    functools.partial(score, model.params, model.frozen),
    questions,
    parts.maker,
    parts.mesh,
    batch_questions=config.eval.batch_questions,
    bucket_tokens=config.prompt.bucket_tokens,
  ):
    yield [
      {
        'kind': 'likelihood',
        'id': question.id,
        'question': question.question,
        'answer': question.answer,
        'choices': list(question.choices),
        'log_prob': choice_scores.log_prob.tolist(),
        'num_tokens': choice_scores.num_tokens.tolist(),
        'num_bytes': choice_scores.num_bytes.tolist(),
      }
      for question, choice_scores in batch
    ]
    parts.notice.check()
