"""What an evaluation found, from its generations, with 95% intervals."""

import collections
import zlib
from collections.abc import Sequence

import numpy as np

from ogls_jax import scores
from ogls_jax.intervals import (
  Interval,
  draw_weights,
  group_sums,
  interval_of,
  mean_interval,
)
from ogls_jax.label_likelihood import ChoiceScores
from ogls_jax.tasks import superglue, superglue_metrics
from ogls_jax.tasks.grading import is_correct
from ogls_jax.tasks.question import Question

KINDS = ('sample', 'greedy', 'likelihood')
LIKELIHOODS = ('sum', 'token', 'byte')


def summarize(
  questions: Sequence[Question],
  rows: Sequence[dict],
  min_reward: float,
  *,
  has_votes: bool = True,
) -> dict[str, Interval]:
  """Figures by name; shares in [0, 1], means over questions but for F1s.

  Args:
    questions: Q of them.
    rows: of generations.jsonl, all of each question.
    min_reward: a rollout of at least this reward is correct.
    has_votes: whether responses say what their answer is (`scores.answer_of`);
      of a task of one's own nothing is known.
  """
  by_kind = {kind: collections.defaultdict(list) for kind in KINDS}
  for row in rows:
    by_kind[row['kind']][row['id']].append(row)
  found = {}
  if by_kind['sample']:
    rows_QG = [by_kind['sample'][q.id] for q in questions]
    found |= _of_samples(questions, rows_QG, min_reward, has_votes)
  if by_kind['greedy']:
    rows_Q1 = [by_kind['greedy'][q.id] for q in questions]
    found |= _of_greedy(questions, rows_Q1, min_reward)
  if by_kind['likelihood']:
    rows_Q = [by_kind['likelihood'][q.id][0] for q in questions]
    found |= _of_likelihoods(questions, rows_Q)
  return found


def correct_shares(rows_QG: list[list[dict]], min_reward: float) -> np.ndarray:
  """Share of correct rollouts of each question, float64 [Q]."""
  return _correct(rows_QG, min_reward).mean(1)


def _correct(rows_QG, min_reward):
  return is_correct(_values(rows_QG, 'reward'), min_reward)


def _values(rows_QG, name):
  return np.array([[row[name] for row in rows] for rows in rows_QG], float)


def _of_samples(questions, rows_QG, min_reward, has_votes):
  correct_QG = _correct(rows_QG, min_reward)
  num = correct_QG.shape[1]
  values = {f'avg@{num}': correct_QG.mean(1)}
  ks = [2**i for i in range(1, num.bit_length()) if 2**i < num]
  for k in [*ks, num][: num - 1]:  # of one rollout they are the average
    values[f'pass@{k}'] = scores.pass_at(num, correct_QG.sum(1), k)
  if has_votes:
    answers_QG = [
      [scores.answer_of(row['response'], question) for row in rows]
      for question, rows in zip(questions, rows_QG, strict=True)
    ]
    if num > 2:
      values[f'maj@{num}'] = np.array(
        [
          scores.majority(scores.votes_of(answers, correct, question), correct)
          for answers, correct, question in zip(
            answers_QG, correct_QG.tolist(), questions, strict=True
          )
        ]
      )
    values['answered_fraction'] = np.array(
      [np.mean([x is not None for x in answers]) for answers in answers_QG]
    )
  reward_QG = _values(rows_QG, 'reward')
  if (reward_QG != correct_QG).any():
    values['reward'] = reward_QG.mean(1)
  values['response_tokens'] = _values(rows_QG, 'response_tokens').mean(1)
  values['truncated_fraction'] = _values(rows_QG, 'is_truncated').mean(1)
  values['repeated_fraction'] = _values(rows_QG, 'repeated_fraction').mean(1)
  values['reflection_markers'] = np.array(
    [
      np.mean([scores.num_markers(row['response']) for row in rows])
      for rows in rows_QG
    ]
  )
  values['grader_timeouts'] = _values(rows_QG, 'is_timeout').mean(1)
  groups = superglue.groups_of(questions)
  found = {name: mean_interval(of, groups) for name, of in values.items()}
  return found | _superglue(questions, rows_QG, '')


def _of_greedy(questions, rows_Q1, min_reward):
  correct_Q = _correct(rows_Q1, min_reward)[:, 0]
  groups = superglue.groups_of(questions)
  found = {'greedy': mean_interval(correct_Q, groups)}
  return found | _superglue(questions, rows_Q1, 'greedy/')


def _of_likelihoods(questions, rows_Q):
  found = {}
  for by in LIKELIHOODS:
    rows_Q1, correct_Q = [], []
    for question, row in zip(questions, rows_Q, strict=True):
      names = ('log_prob', 'num_tokens', 'num_bytes')
      choice_scores = ChoiceScores(*(np.array(row[name]) for name in names))
      choice = question.choices[choice_scores.best(by)]
      rows_Q1.append([{'response': choice}])
      correct_Q.append(choice in superglue.right_answers(question))
    groups = superglue.groups_of(questions)
    found[f'likelihood_{by}'] = mean_interval(correct_Q, groups)
    found |= _superglue(questions, rows_Q1, f'likelihood_{by}/')
  return found


def _superglue(questions, rows_QG, prefix) -> dict[str, Interval]:
  """Each task's metrics, means over the rollouts, and the average."""
  pairs_G = []
  for rows_Q in zip(*rows_QG, strict=True):
    known = [
      (question, row['response'])
      for question, row in zip(questions, rows_Q, strict=True)
      if question.choices and superglue.task_of(question)
    ]
    pairs_G.append(superglue_metrics.pairs_of(known))
  found, means = {}, []
  for task in sorted(pairs_G[0]):
    groups = superglue.groups_of([q for q, _ in pairs_G[0][task]])
    weights_NP = draw_weights(len(set(groups)), seed=zlib.crc32(task.encode()))
    of_metrics = []
    for name, metric in superglue_metrics.METRICS[task].items():
      sums_G = [
        group_sums(metric.counts(pairs[task]), groups) for pairs in pairs_G
      ]
      value = np.mean([metric.value(sums_PC.sum(0)) for sums_PC in sums_G])
      drawn_N = np.mean(
        [metric.value(weights_NP @ sums_PC) for sums_PC in sums_G], 0
      )
      found[f'{prefix}{task}/{name}'] = interval_of(value, drawn_N)
      of_metrics.append(np.append(drawn_N, value))
    means.append(np.mean(of_metrics, 0))
  if len(means) > 1:
    *drawn_N, value = np.mean(means, 0)
    found[f'{prefix}average'] = interval_of(value, drawn_N)
  return found


def table(found: dict[str, Interval]) -> str:
  """Markdown: name, value and 95% interval."""
  rows = ['| | value | 95% interval |', '|---|---|---|']
  for name, interval in found.items():
    is_count = name in ('response_tokens', 'reflection_markers')
    form = '{:.1f}' if is_count else '{:.1%}'
    mean, low, high = (
      form.format(x) for x in (interval.mean, interval.low, interval.high)
    )
    rows.append(f'| {name} | {mean} | {low} to {high} |')
  return '\n'.join(rows)
