"""Which hints each rollout's teacher sees: pools, weights, token layout.

1. candidates of question b: [anchor, solution, rollout 1, ..., rollout G]
2. pool weights of every rollout over the candidates
3. candidates that some rollout weighs become teacher contexts, longest first
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from ogls_jax import hosts
from ogls_jax.batches import Hints, pad_rows
from ogls_jax.numerics import round_up
from ogls_jax.prompts import PromptMaker, strip_thinking
from ogls_jax.tasks.question import Question

_ANCHOR, _SOLUTION, _FIRST_ROLLOUT = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class HintRules:
  """How pools are filled.

  Attributes:
    exclude_self: leave the scored rollout out of its own pools. The paper
      does not.
    max_per_pool: at most this many members, 0 for all; the solution first,
      then rollouts in order.
    max_tokens: longer hints lose their end, which is counted.
    strip_thinking: drop thinking blocks from rollouts and solutions.
  """

  exclude_self: bool
  max_per_pool: int
  max_tokens: int
  strip_thinking: bool


@dataclasses.dataclass(frozen=True)
class Pools:
  """Weights over the G + 2 candidates; `is_scored_R` says who carries loss."""

  anchor_BGN: np.ndarray
  positive_BGN: np.ndarray
  negative_BGN: np.ndarray
  is_scored_R: np.ndarray


def _mean_weights(is_member_BGN: np.ndarray, max_per_pool: int) -> np.ndarray:
  """1 / size over each pool's members, all 0 over an empty pool."""
  if max_per_pool:
    is_member_BGN = is_member_BGN & (
      np.cumsum(is_member_BGN, axis=-1) <= max_per_pool
    )
  size_BG1 = is_member_BGN.sum(-1, keepdims=True)
  return (is_member_BGN / np.maximum(size_BG1, 1)).astype(np.float32)


def build_pools(
  *,
  is_correct_BG: np.ndarray,
  has_solution_B: np.ndarray,
  method: str,
  rules: HintRules,
) -> Pools:
  """Pool weights of every rollout.

  v1, Eqs. 8-9: P+ holds the correct rollouts and the solution, P- the
  incorrect rollouts, the scored one included unless `exclude_self`. `ogls_sd`
  scores incorrect rollouts with both pools filled; `pos_mean` and `pos_only`
  all rollouts with P+ filled; `opsd` all rollouts of a question that has a
  solution, which alone makes up its P+; `kd` all rollouts, without a hint.
  """
  num_prompts, group_size = is_correct_BG.shape
  shape = (num_prompts, group_size, group_size + 2)
  is_positive, is_negative = np.zeros(shape, bool), np.zeros(shape, bool)
  is_positive[:, :, _SOLUTION] = has_solution_B[:, None]
  if method != 'opsd':
    is_positive[:, :, _FIRST_ROLLOUT:] = is_correct_BG[:, None, :]
    is_negative[:, :, _FIRST_ROLLOUT:] = ~is_correct_BG[:, None, :]
  if rules.exclude_self:
    is_other = ~np.eye(group_size, dtype=bool)
    is_positive[:, :, _FIRST_ROLLOUT:] &= is_other
    is_negative[:, :, _FIRST_ROLLOUT:] &= is_other
  is_scored_BG = is_positive.any(-1)
  if method == 'kd':
    is_positive[:], is_scored_BG[:] = False, True
  if method == 'ogls_sd':
    is_scored_BG = is_scored_BG & is_negative.any(-1) & ~is_correct_BG
  scored = is_scored_BG[..., None]
  anchor = np.zeros(shape, np.float32)
  if reads_anchor(method):
    anchor[:, :, _ANCHOR] = 1
  if method != 'ogls_sd':
    is_negative[:] = False
  return Pools(
    anchor_BGN=anchor * scored,
    positive_BGN=_mean_weights(is_positive & scored, rules.max_per_pool),
    negative_BGN=_mean_weights(is_negative & scored, rules.max_per_pool),
    is_scored_R=is_scored_BG.reshape(-1),
  )


def reads_anchor(method: str) -> bool:
  """Whether the prompt without a hint is among the teacher's contexts."""
  return method in ('ogls_sd', 'pos_only', 'kd')


def num_contexts(method: str, group_size: int) -> int:
  """Contexts per question (M) that a method can need."""
  if method in ('opsd', 'kd'):
    return 1
  return group_size + (1 if method == 'pos_mean' else 2)


def cut_hint(
  text: str, maker: PromptMaker, rules: HintRules
) -> tuple[str, bool]:
  """A hint as the teacher will see it, and whether it was cut."""
  if rules.strip_thinking:
    text = strip_thinking(text)
  ids = maker.tokenizer.encode(text)
  if len(ids) <= rules.max_tokens:
    return text, False
  return maker.tokenizer.decode(ids[: rules.max_tokens]), True


def build_hints(
  *,
  questions: list[Question],
  solutions: list[str | None],
  responses: list[str],
  pools: Pools,
  maker: PromptMaker,
  rules: HintRules,
  max_contexts: int,
  bucket_tokens: int,
) -> tuple[Hints, np.ndarray]:
  """Lays the needed candidates out as teacher contexts.

  Args:
    questions: the B questions.
    solutions: their reference solutions, None where there is none.
    responses: decoded rollouts, R = B * G, prompt-major.
    pools: from `build_pools`.
    maker: renders and tokenizes contexts.
    rules: `max_tokens` and `strip_thinking` are applied here.
    max_contexts: M, from `num_contexts`; fixes the compiled shape.
    bucket_tokens: contexts are padded to a multiple of this.

  Returns:
    (hints, number of cut hints of each question).
  """
  group_size = pools.anchor_BGN.shape[1]
  num_cut_B = np.zeros(len(questions), np.int32)

  def make_ids(b, n):
    if n == _ANCHOR:
      return maker.anchor_ids(questions[b])
    texts = [None, solutions[b]]
    texts += responses[b * group_size : (b + 1) * group_size]
    hint, is_cut = cut_hint(texts[n], maker, rules)
    num_cut_B[b] += is_cut
    return maker.teacher_ids(questions[b], hint)

  hints = lay_out(
    pools, make_ids, max_contexts=max_contexts, bucket_tokens=bucket_tokens
  )
  return hints, num_cut_B


def lay_out(
  pools: Pools,
  make_ids: Callable[[int, int], list[int]],
  *,
  max_contexts: int,
  bucket_tokens: int,
) -> Hints:
  """The candidates that any rollout weighs, of each question the longest first.

  As wide on all hosts, each of which has to call it.

  Args:
    pools: weights of N candidates.
    make_ids: (question, candidate) to the context's token ids.
    max_contexts: as for `build_hints`.
    bucket_tokens: as for `build_hints`.
  """
  num_prompts, group_size, _ = pools.anchor_BGN.shape
  weights = [pools.anchor_BGN, pools.positive_BGN, pools.negative_BGN]
  is_needed_BN = sum(weight.any(1) for weight in weights).astype(bool)
  contexts = [[[] for _ in range(max_contexts)] for _ in range(num_prompts)]
  mixed = np.zeros((3, num_prompts, group_size, max_contexts), np.float32)
  for b in range(num_prompts):
    found = [(n, make_ids(b, n)) for n in np.flatnonzero(is_needed_BN[b])]
    found.sort(key=lambda pair: -len(pair[1]))
    for m, (n, ids) in enumerate(found):
      contexts[b][m] = ids
      for kind, weight in enumerate(weights):
        mixed[kind, b, :, m] = weight[b, :, n]
  rows = [row for group in contexts for row in group]
  (longest,) = hosts.largest(max(map(len, rows)))
  tokens = pad_rows(rows, round_up(longest, bucket_tokens))
  return Hints(
    context_BMC=tokens.reshape(num_prompts, max_contexts, -1),
    length_BM=np.array(
      [[len(row) for row in group] for group in contexts], np.int32
    ),
    anchor_BGM=mixed[0],
    positive_BGM=mixed[1],
    negative_BGM=mixed[2],
  )
