"""One round of training data: roll out, grade, build pools, mask."""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from ogls_jax import hints as hints_lib
from ogls_jax import hosts
from ogls_jax.answers import Answers
from ogls_jax.batches import LossBatch
from ogls_jax.loss_masks import advantages, given_rollouts, make_loss_batch
from ogls_jax.prompts import PromptMaker, make_prompt_batch
from ogls_jax.questions import own_questions, solution_of
from ogls_jax.repetition import repeated_fractions
from ogls_jax.tasks.grading import Grader, is_correct
from ogls_jax.tasks.question import Question


@dataclasses.dataclass(frozen=True)
class RoundRules:
  """What a round needs to know of the config; names are those of its keys."""

  method: str
  group_size: int
  is_distilled: bool
  response_tokens: int
  tail_tokens: int
  bucket_tokens: int
  answer_as_solution: bool
  min_reward: float
  hints: hints_lib.HintRules


@dataclasses.dataclass(frozen=True)
class Round:
  """A loss batch, and what the host knows of it.

  Attributes:
    batch: on devices.
    values: metrics.
    samples: rollouts to log.
    ends: of its stages, by name, in order (`time.monotonic`).
    make_rows: those of inspect.jsonl, once there is time; None for none.
  """

  batch: LossBatch
  values: dict[str, float]
  samples: list[dict]
  ends: dict[str, float]
  make_rows: Callable[[], list[dict]] | None = None


def sampled_round(
  questions: list[Question],
  rollout: Callable,
  maker: PromptMaker,
  rules: RoundRules,
  mesh,
  grader: Grader,
  *,
  poll: Callable[[], None] = lambda: None,
) -> Round:
  """Samples, grades what ends while the rest goes on, and adds hints.

  Each host grades and pools the questions whose rows it holds; the metrics are
  those of all.

  Args:
    questions: B questions, the same on all hosts.
    rollout: (PromptBatch, meanwhile) -> Rollouts; the latter as for
      `rollout.make_sampler`.
    maker: renders prompts and decodes responses.
    rules: of the config.
    mesh: where the batch goes.
    grader: of the task.
    poll: called again and again while answers are graded.
  """
  questions, uids = own_questions(questions, mesh)
  prompts = make_prompt_batch(
    questions, uids, maker, bucket_tokens=rules.bucket_tokens
  )
  graded = [q for q in questions for _ in range(rules.group_size)]
  answers = Answers(graded, maker.tokenizer, grader)

  def meanwhile(so_far):
    if so_far is not None:
      answers.take_ended(so_far)

  rollouts = rollout(hosts.put_rows(prompts, mesh), meanwhile)
  rollouts = hosts.take_rows(rollouts)
  ends = {'sampling': time.monotonic()}
  with jax.profiler.TraceAnnotation('grading'):
    answers.take_all(rollouts)
    responses, grades = answers.wait(poll)
    # Where several hosts hold a row, the reward is its owner's.
    repeated_R = repeated_fractions(rollouts.response_RT, rollouts.length_R)
    lengths = [rollouts.length_R, rollouts.is_truncated_R]
    facts = [*grades, *lengths, repeated_R]
    facts_R5 = hosts.share_rows(np.stack(facts, -1).astype(np.float32), mesh)
    own_R = hosts.own_rows(len(facts_R5), mesh)
    reward_R = facts_R5[own_R, 0]
    is_correct_R = is_correct(reward_R, rules.min_reward)
  ends['grading'] = time.monotonic()
  is_correct_BG = is_correct_R.reshape(-1, rules.group_size)
  is_scored_R = np.ones_like(is_correct_R)
  hints, num_cut_B = None, np.zeros(len(questions))
  if rules.is_distilled:
    hints, is_scored_R, num_cut_B = _pool(
      questions, responses, is_correct_BG, maker, rules
    )
  advantage_R = np.zeros(is_correct_R.shape, np.float32)
  if rules.method == 'grpo':
    reward_BG = reward_R.reshape(-1, rules.group_size)
    advantage_R = advantages(reward_BG.astype(np.float64))
  batch = make_loss_batch(
    prompts=prompts,
    rollouts=rollouts,
    hints=hints,
    is_scored_R=is_scored_R,
    is_correct_R=is_correct_R,
    advantage_R=advantage_R,
    response_tokens=rules.response_tokens if rules.is_distilled else None,
    tail_tokens=rules.tail_tokens,
    bucket_tokens=rules.bucket_tokens,
  )
  values = _values(
    facts_R5.astype(np.float64), is_scored_R, num_cut_B, mesh, rules
  )
  samples = [
    {
      'id': question.id,
      'question': question.question,
      'answer': question.answer,
      'response': response,
      'reward': round(float(reward), 6),  # of the digits of a float32
      'is_correct': bool(is_so),
      'is_scored': bool(is_scored),
    }
    for question, response, reward, is_so, is_scored in zip(
      graded, responses, reward_R, is_correct_R, is_scored_R, strict=True
    )
  ]
  batch = hosts.put_rows(batch, mesh)
  ends['hints'] = time.monotonic()
  return Round(batch, values, samples, ends)


def _values(facts_R5, is_scored_R, num_cut_B, mesh, rules):
  """Metrics of the rows of all hosts.

  Args:
    facts_R5: reward, is_timeout, length, is_truncated and the repeated
      share of all rows.
    is_scored_R: of this host's.
    num_cut_B: of this host's questions.
    mesh: that of the rows.
    rules: of the config.
  """
  reward_R, is_timeout_R, length_R, is_truncated_R, repeated_R = facts_R5.T
  is_correct_R = is_correct(reward_R, rules.min_reward)
  is_correct_BG = is_correct_R.reshape(-1, rules.group_size)
  is_mixed_B = is_correct_BG.any(1) & ~is_correct_BG.all(1)
  is_scored_BG = is_scored_R.reshape(-1, rules.group_size)
  pooled_B2 = np.stack([is_scored_BG.sum(1), num_cut_B], -1)
  num_scored_B, num_cut_B = hosts.share_rows(
    pooled_B2.astype(np.float32), mesh
  ).T
  return {
    'reward_mean': float(reward_R.mean()),
    'correct_fraction': float(is_correct_R.mean()),
    'mixed_group_fraction': float(is_mixed_B.mean()),
    'steered_rollout_fraction': float(num_scored_B.sum() / len(length_R)),
    'response_tokens_mean': float(length_R.mean()),
    'truncated_fraction': float(is_truncated_R.mean()),
    'repeated_fraction': float(repeated_R.mean()),
    'hints_cut': float(num_cut_B.sum()),
    'grader_timeouts': float(is_timeout_R.sum()),
    'response_tokens': float(length_R.sum()),
  }


def _solutions(questions, rules):
  return [
    solution_of(question, answer_as_solution=rules.answer_as_solution)
    for question in questions
  ]


def _pool(questions, responses, is_correct_BG, maker, rules):
  solutions = _solutions(questions, rules)
  pools = hints_lib.build_pools(
    is_correct_BG=is_correct_BG,
    has_solution_B=np.array([text is not None for text in solutions]),
    method=rules.method,
    rules=rules.hints,
  )
  hints, num_cut_B = hints_lib.build_hints(
    questions=questions,
    solutions=solutions,
    responses=responses,
    pools=pools,
    maker=maker,
    rules=rules.hints,
    max_contexts=hints_lib.num_contexts(rules.method, rules.group_size),
    bucket_tokens=rules.bucket_tokens,
  )
  return hints, pools.is_scored_R, num_cut_B


def solution_round(
  questions: list[Question], maker: PromptMaker, rules: RoundRules, mesh
) -> Round:
  """The dataset's solutions in place of rollouts (sft, offline kd)."""
  questions, uids = own_questions(questions, mesh)
  prompts = make_prompt_batch(
    questions, uids, maker, bucket_tokens=rules.bucket_tokens
  )
  tokenizer, num_rows = maker.tokenizer, len(questions)
  texts = _solutions(questions, rules)
  rollouts = given_rollouts(
    [tokenizer.encode(text) + [tokenizer.eos_id] for text in texts],
    bucket_tokens=rules.bucket_tokens,
  )
  is_correct_R = np.zeros(num_rows, bool)
  hints, is_scored_R = None, np.ones(num_rows, bool)
  if rules.is_distilled:
    hints, is_scored_R, _ = _pool(
      questions, texts, is_correct_R[:, None], maker, rules
    )
  batch = make_loss_batch(
    prompts=prompts,
    rollouts=rollouts,
    hints=hints,
    is_scored_R=is_scored_R,
    is_correct_R=is_correct_R,
    advantage_R=np.zeros(num_rows, np.float32),
    response_tokens=rules.response_tokens if rules.is_distilled else None,
    tail_tokens=0,
    bucket_tokens=rules.bucket_tokens,
  )
  length_R1 = hosts.share_rows(
    rollouts.length_R[:, None].astype(np.float32), mesh
  )
  values = {
    'response_tokens_mean': float(length_R1.mean(dtype=np.float64)),
    'response_tokens': float(length_R1.sum(dtype=np.float64)),
  }
  return Round(hosts.put_rows(batch, mesh), values, [], {})
