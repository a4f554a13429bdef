"""Log-probabilities of the choices of a question, instead of a response.

A choice is scored as a response that begins with it: its tokens after the
prompt, without an end-of-sequence token. The prompt is read once for all of its
choices (`Decoder.score`).
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ogls_jax import hosts
from ogls_jax.batches import PromptBatch, flatten_rows, pad_rows
from ogls_jax.errors import UserError
from ogls_jax.loss_blocks import token_log_probs
from ogls_jax.mesh import shard
from ogls_jax.models.transformer import Decoder
from ogls_jax.numerics import round_up
from ogls_jax.prompts import PromptMaker, make_prompt_batch
from ogls_jax.questions import own_questions
from ogls_jax.tasks.question import Question

_BUCKET_TOKENS = 4  # of the choices' width, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class ChoiceScores:
  """Of one question's choices, in order.

  Attributes:
    log_prob: of all tokens of each, nats, float64.
    num_tokens: of each.
    num_bytes: of each, in UTF-8.
  """

  log_prob: np.ndarray
  num_tokens: np.ndarray
  num_bytes: np.ndarray

  def best(self, by: str = 'sum') -> int:
    """The most likely choice, the first of several.

    Args:
      by: `sum`, or the mean per `token` or per `byte`, which does not put long
        choices behind short ones.
    """
    lengths = {'sum': 1, 'token': self.num_tokens, 'byte': self.num_bytes}
    return int(np.argmax(self.log_prob / lengths[by]))


def choice_log_probs(
  decoder: Decoder,
  prompts: PromptBatch,
  choice_BGT: jax.Array,
  length_BG: jax.Array,
  *,
  block_tokens: int,
) -> jax.Array:
  """Log-probability of G choices after each of B prompts, nats, float32 [B, G].

  Args:
    decoder: the model.
    prompts: as sampled from.
    choice_BGT: token ids; what lies past a length is never read.
    length_BG: int32; 0 is an unused slot and gives -inf.
    block_tokens: columns of T whose logits, B * G of them each, are held.
  """
  hidden_BGTD = decoder.score(prompts.tokens_BP, prompts.length_B, choice_BGT)
  log_prob_RT, _ = token_log_probs(
    hidden_RTD=flatten_rows(hidden_BGTD),
    unembedding_VD=decoder.unembedding_VD,
    token_RT=flatten_rows(choice_BGT),
    block_tokens=block_tokens,
  )
  log_prob_BGT = log_prob_RT.reshape(choice_BGT.shape)
  position_11T = jnp.arange(choice_BGT.shape[-1])[None, None]
  is_choice_BGT = position_11T < length_BG[..., None]
  log_prob_BG = jnp.where(is_choice_BGT, log_prob_BGT, 0).sum(-1)
  return shard(jnp.where(length_BG > 0, log_prob_BG, -jnp.inf), 'BG')


def make_choice_scorer(
  graphdef: nnx.GraphDef, *, block_tokens: int = 1
) -> Callable[..., jax.Array]:
  """Jitted (params, frozen, prompts, choice_BGT, length_BG) -> log_prob_BG."""

  def score(
    params: Any,
    frozen: Any,
    prompts: PromptBatch,
    choice_BGT: jax.Array,
    length_BG: jax.Array,
  ) -> jax.Array:
    return choice_log_probs(
      nnx.merge(graphdef, params, frozen),
      prompts,
      choice_BGT,
      length_BG,
      block_tokens=block_tokens,
    )

  return jax.jit(score)


def score_choices(
  score: Callable[[PromptBatch, jax.Array, jax.Array], jax.Array],
  questions: list[Question],
  maker: PromptMaker,
  mesh: Mesh,
  *,
  batch_questions: int,
  bucket_tokens: int,
) -> Iterator[list[tuple[Question, ChoiceScores]]]:
  """Batches of questions with scores of their choices, the same on all hosts.

  Args:
    score: (prompts, choice_BGT, length_BG) -> log_prob_BG, as from
      `make_choice_scorer` with params and frozen filled in.
    questions: all with choices. A last batch is filled up with repeats.
    maker: renders the prompts; its template should ask for the answer alone.
    mesh: where batches go.
    batch_questions: questions scored at a time, each with as many slots as the
      question with the most choices has.
    bucket_tokens: prompts are padded to a multiple of this.

  Raises:
    UserError: a question has no choices, or one of them has no token.
    FloatingPointError: the model's logits are not finite.
  """
  ids = [_choice_ids(question, maker) for question in questions]
  num_slots = max(map(len, ids))
  longest = max(len(row) for rows in ids for row in rows)
  width = round_up(longest, _BUCKET_TOKENS)
  tokens_QGT = np.stack(
    [pad_rows(rows + [[]] * (num_slots - len(rows)), width) for rows in ids]
  )
  length_QG = np.zeros(tokens_QGT.shape[:2], np.int32)
  for lengths, rows in zip(length_QG, ids, strict=True):
    lengths[: len(rows)] = [len(row) for row in rows]
  for start in range(0, len(questions), batch_questions):
    index_B = np.arange(start, start + batch_questions)
    index_B[index_B >= len(questions)] = start
    own, uids = own_questions([questions[i] for i in index_B], mesh)
    own_B = index_B[hosts.own_rows(batch_questions, mesh)]
    batch = (
      make_prompt_batch(own, uids, maker, bucket_tokens=bucket_tokens),
      tokens_QGT[own_B],
      length_QG[own_B],
    )
    log_prob_BG = hosts.share_rows(
      hosts.take_rows(score(*hosts.put_rows(batch, mesh))), mesh
    )
    num = min(batch_questions, len(questions) - start)
    yield [
      (questions[start + b], _scores(questions[start + b], ids[start + b], row))
      for b, row in enumerate(log_prob_BG[:num])
    ]


def _scores(question, rows, log_prob_G):
  log_prob_G = log_prob_G[: len(rows)].astype(np.float64)
  if not np.isfinite(log_prob_G).all():
    raise FloatingPointError(
      f'{question.id!r}: log-probabilities of its choices are not finite:'
      f' {log_prob_G.tolist()}'
    )
  return ChoiceScores(
    log_prob=log_prob_G,
    num_tokens=np.array([len(row) for row in rows]),
    num_bytes=np.array([len(text.encode()) for text in question.choices]),
  )


def _choice_ids(question: Question, maker: PromptMaker) -> list[list[int]]:
  if not question.choices:
    raise UserError(
      f'row {question.id!r} has no `choices`, which scoring by label likelihood'
      ' needs; add them'
    )
  rows = [maker.tokenizer.encode(choice) for choice in question.choices]
  if not all(rows):
    choice = question.choices[rows.index([])]
    raise UserError(
      f'row {question.id!r}: the choice {choice!r} has no token in this'
      ' vocabulary; write it in another way'
    )
  return rows
