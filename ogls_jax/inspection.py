"""Rows of inspect.jsonl: what student and teacher made of single tokens.

1. choose a few rollouts that carry loss, of the first host's
2. run `inspect_step` on them, on all hosts, before the update
3. turn its figures into rows, once the update has been dispatched
"""

import dataclasses
import math
import time

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import config_dict

from ogls_jax import build, hosts
from ogls_jax.batches import TrainState, pad_rows
from ogls_jax.hints import reads_anchor
from ogls_jax.inspect_step import NAMES, TEACHERS, Anchors, TokenViews
from ogls_jax.mesh import num_row_shards_of
from ogls_jax.numerics import round_up
from ogls_jax.programs import Programs
from ogls_jax.prompts import PromptMaker
from ogls_jax.questions import solution_of
from ogls_jax.rounds import Round, RoundRules
from ogls_jax.tasks.question import Question
from ogls_jax.token_texts import split_text, text_after, token_namer


def choose(
  samples: list[dict], has_loss_R: np.ndarray, *, group_size: int, num: int
) -> list[tuple[int, int]]:
  """(sample, row) of up to `num` rollouts that carry loss.

  One of each question first, and questions with right and wrong answers first.

  Args:
    samples: as in `Round`, G = `group_size` of each question.
    has_loss_R: of the loss batch, which may have fewer rows of a question:
      those with loss in their order, then others.
    group_size: of the samples.
    num: at most so many.
  """
  num_questions = len(samples) // group_size
  has_loss_BG = has_loss_R.reshape(num_questions, -1)
  options = []
  for b, has_loss_G in enumerate(has_loss_BG):
    places = range(b * group_size, (b + 1) * group_size)
    is_mixed = len({samples[place]['is_correct'] for place in places}) > 1
    scored = [place for place in places if samples[place]['is_scored']]
    rows = b * has_loss_BG.shape[1] + np.flatnonzero(has_loss_G)
    pairs = zip(scored, rows.tolist(), strict=True)
    options += [
      (rank, not is_mixed, place, row)
      for rank, (place, row) in enumerate(pairs)
    ]
  return [(place, row) for _, _, place, row in sorted(options)[:num]]


class Inspector:
  """Looks at a few rollouts of some updates, as config.log says."""

  def __init__(
    self,
    config: config_dict.ConfigDict,
    programs: Programs,
    *,
    student: build.Model,
    teacher: build.Model,
    maker: PromptMaker,
    rules: RoundRules,
    mesh: Mesh,
  ):
    self._log, self._inspect = config.log, programs.inspect
    self._student, self._teacher = student, teacher
    self._maker, self._rules, self._mesh = maker, rules, mesh
    self._name = token_namer(maker.tokenizer)

  def look(
    self,
    number: int,
    state: TrainState,
    round_: Round,
    questions: list[Question],
  ) -> Round:
    """The round of update `number`, with `make_rows` if it is looked at.

    Every host has to call it, and before the update: that takes `state`.
    `questions` are those of the round, of all hosts.
    """
    every, num = self._log.inspect_every_steps, self._log.inspect_rollouts
    is_due = every and (number == 1 or number % every == 0)
    if not (self._inspect and num and is_due):
      return round_
    batch, own = round_.batch, hosts.own_of(questions, self._mesh)
    samples, group_size = round_.samples, self._rules.group_size
    if not samples:
      samples, group_size = self._solutions(own), 1
    mask_RT = hosts.take_rows(batch.token_mask_RT)
    chosen = choose(samples, mask_RT.any(1), group_size=group_size, num=num)
    own_R = hosts.own_rows(batch.response_RT.shape[0], self._mesh)
    rows = [int(own_R[row]) for _, row in chosen] if hosts.is_first() else []
    rows = hosts.largest(*rows, *[-1] * (num - len(rows)))
    rows = [row for row in rows if row >= 0]
    if not rows:
      return round_
    views = self._views(state, batch, own, rows)
    if round_.ends:
      round_.ends['inspection'] = time.monotonic()
    if not hosts.is_first():
      return round_
    response_RT = hosts.take_rows(batch.response_RT)
    found = [
      (samples[place], response_RT[row, : mask_RT[row].sum()].tolist())
      for place, row in chosen
    ]
    return dataclasses.replace(
      round_, make_rows=lambda: self._make_rows(found, views)
    )

  def _solutions(self, questions):
    is_allowed = self._rules.answer_as_solution
    tokenizer = self._maker.tokenizer
    return [
      {
        'id': question.id,
        'question': question.question,
        'answer': question.answer,
        # As its tokens spell it.
        'response': tokenizer.decode(
          tokenizer.encode(solution_of(question, answer_as_solution=is_allowed))
        ),
        'reward': None,
        'is_correct': None,
        'is_scored': True,
      }
      for question in questions
    ]

  def _views(self, state, batch, own, rows) -> TokenViews:
    anchors = None
    if not reads_anchor(self._rules.method):
      prompts = [self._maker.anchor_ids(question) for question in own]
      (longest,) = hosts.largest(max(map(len, prompts)))
      width = round_up(longest, self._rules.bucket_tokens)
      anchors = hosts.put_rows(
        Anchors(
          tokens_BC=pad_rows(prompts, width),
          length_B=np.array([len(ids) for ids in prompts], np.int32),
        ),
        self._mesh,
      )
    # As many for every update, so that there is one program.
    num = round_up(self._log.inspect_rollouts, num_row_shards_of(self._mesh))
    row_R = np.resize(np.array(rows, np.int32), num)
    return jax.device_get(
      self._inspect(
        state,
        self._student.frozen,
        (self._teacher.params, self._teacher.frozen),
        batch,
        anchors,
        hosts.put_whole(row_R, self._mesh),
      )
    )

  def _make_rows(self, found, views):
    rows = []
    for r, (sample, ids) in enumerate(found):
      texts = split_text(self._maker.tokenizer, ids)
      num_X = views.num_hints_RX[r].tolist()
      columns = ['student'] + [
        name for name, num in zip(TEACHERS, num_X, strict=True) if num
      ]
      top_ids = {
        name: views.top_id_RTXK[r, : len(ids), NAMES.index(name)].tolist()
        for name in columns
      }
      seen = {i for lists in top_ids.values() for each in lists for i in each}
      rows.append(
        sample
        | {
          'strength': float(views.strength),
          'num_hints': dict(zip(TEACHERS, num_X, strict=True)),
          'token_ids': ids,
          'tokens': texts,
          'rest': text_after(sample['response'], texts),
          'divergence': _rounded(views.divergence_RT[r, : len(ids)]),
          'moved': _rounded(views.moved_RT[r, : len(ids)]),
          'own': self._by_name(views.own_RTX[r], columns, len(ids)),
          'top': self._by_name(views.top_RTXK[r], columns, len(ids)),
          'top_ids': top_ids,
          'names': {str(i): self._name(i) for i in sorted({*seen, *ids})},
        }
      )
    return rows

  def _by_name(self, array_TX, columns, num_tokens):
    return {
      name: _rounded(array_TX[:num_tokens, NAMES.index(name)])
      for name in columns
    }


def _rounded(values: np.ndarray) -> list:
  """Four digits, as nested lists; None for what is not finite."""
  if values.ndim > 1:
    return [_rounded(each) for each in values]
  return [
    float(f'{value:.4g}') if math.isfinite(value) else None
    for value in values.tolist()
  ]
