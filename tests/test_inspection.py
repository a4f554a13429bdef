"""What a run writes down of single tokens, against full logits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import own_tokens
from ogls_jax import hosts, inspect_step, inspection, mesh, step, train
from ogls_jax.batches import TrainState
from ogls_jax.tasks.grading import Grader, Grades
from tests.small import (
  SETTINGS,
  VOCAB,
  make_batch,
  make_decoder,
  naive_hidden,
)
from tests.small_run import read_rows, small_config

NAMES = inspect_step.NAMES


def make_step(objective, *, kind='base', lora_rank=0, num=3, settings=SETTINGS):
  """(inspect step, state, frozen, teacher params, student, teacher)."""
  student = make_decoder(0, lora_rank=lora_rank, settings=settings)
  if lora_rank:
    # B of an adapter begins as 0, which would hide one that is left out.
    kernel = student.layers.q.lora_b
    kernel.set_value(jnp.ones_like(kernel.get_value()) / 8)
  teacher = make_decoder(1, settings=settings)
  trained = nnx.LoRAParam if lora_rank else nnx.Param
  graphdef, params, frozen = nnx.split(student, trained, ...)
  teacher_graphdef, teacher_params = nnx.split(teacher, nnx.Param)
  state = TrainState(
    step=jnp.int32(1), key=jax.random.key(0), params=params, opt_state=(),
    ema_params=None,
  )  # fmt: skip
  made = inspect_step.make_inspect_step(
    graphdef, teacher_graphdef, objective=objective, teacher_kind=kind,
    num_candidates=num,
  )  # fmt: skip
  teaching = teacher if kind == 'base' else student
  return made, state, frozen, (teacher_params,), student, teaching


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def full_logits(decoder, context, response):
  hidden = naive_hidden(decoder, context, response)
  matrix = np.asarray(decoder.unembedding_VD, np.float64)
  return np.asarray(hidden, np.float64) @ matrix.T


def reference(batch, row, student, teacher, o, *, strength, anchor=None):
  """(log-probabilities by name, their pool sizes), by whole sequences."""
  group = len(batch.response_RT) // len(batch.prompts.length_B)
  b, g = divmod(row, group)
  length = int(batch.token_mask_RT[row].sum())
  response = batch.response_RT[row, :length].tolist()
  hints = batch.hints
  logits = [
    full_logits(teacher, ids[:size].tolist(), response)
    for ids, size in zip(hints.context_BMC[b], hints.length_BM[b], strict=True)
  ]

  def mean(weights_M):
    return sum(w * x for w, x in zip(weights_M, logits, strict=True))

  pools = {
    'anchor': mean(hints.anchor_BGM[b, g]),
    'positive': mean(hints.positive_BGM[b, g]),
    'negative': mean(hints.negative_BGM[b, g]),
  }
  if anchor is not None:
    pools['anchor'] = full_logits(teacher, anchor, response)
  pools['steered'] = {
    'ogls_sd': pools['anchor']
    + strength * (pools['positive'] - pools['negative']),
    'opsd': pools['positive'],
  }[o.method]
  prompt = batch.prompts.tokens_BP[b, : batch.prompts.length_B[b]].tolist()
  pools['student'] = full_logits(student, prompt, response)
  found = {k: log_softmax(v / o.temperature) for k, v in pools.items()}
  if o.eos_ids:
    first, *others = o.eos_ids
    for each in found.values():
      each[:, first] = np.logaddexp.reduce(each[:, o.eos_ids], axis=1)
      each[:, others] = -1e30
  return found, response


def divergence(p, q, o):
  """p the student's and q the steered log-probabilities."""
  if o.kl == 'forward':
    return (np.exp(q) * (q - p)).sum(-1)
  if o.kl == 'reverse':
    return (np.exp(p) * (p - q)).sum(-1)
  m = np.log(o.jsd_beta * np.exp(q) + (1 - o.jsd_beta) * np.exp(p) + 1e-300)
  return (
    o.jsd_beta * np.exp(q) * (q - m) + (1 - o.jsd_beta) * np.exp(p) * (p - m)
  ).sum(-1)


OPTIONS = dict(block_tokens=4, max_strength=3.0, ramp_steps=4)
CASES = {
  'forward': step.Objective(method='ogls_sd', **OPTIONS),
  'reverse': step.Objective(
    method='ogls_sd', kl='reverse', temperature=1.7, **OPTIONS
  ),
  'merged': step.Objective(method='ogls_sd', eos_ids=(3, 7, 11), **OPTIONS),
  'opsd': step.Objective(method='opsd', kl='jsd', **OPTIONS),
}


def anchors_for(o, num_prompts):
  if o.method != 'opsd':
    return None
  rng = np.random.default_rng(5)
  # Wider than the hints' contexts.
  return inspect_step.Anchors(
    tokens_BC=rng.integers(1, VOCAB, (num_prompts, 12)).astype(np.int32),
    length_B=rng.integers(9, 13, num_prompts).astype(np.int32),
  )


def compare(views, index, row, batch, parts, o, anchors):
  student, teacher = parts
  group = len(batch.response_RT) // len(batch.prompts.length_B)
  b = row // group
  anchor = None
  if anchors is not None:
    anchor = anchors.tokens_BC[b, : anchors.length_B[b]].tolist()
  # The second of four steps of the ramp.
  found, response = reference(
    batch, row, student, teacher, o, strength=1.5, anchor=anchor
  )
  close = dict(rtol=2e-4, atol=2e-5)
  n = len(response)
  p, q = found['student'], found['steered']
  np.testing.assert_allclose(
    views.divergence_RT[index, :n], divergence(p, q, o), **close
  )
  moved = (np.exp(q) * (q - found['anchor'])).sum(-1)
  np.testing.assert_allclose(views.moved_RT[index, :n], moved, **close)
  if o.eos_ids:
    response = [o.eos_ids[0] if i in o.eos_ids else i for i in response]
  for x, name in enumerate(NAMES):
    if name == 'negative' and o.method == 'opsd':
      continue
    own = np.exp(found[name][np.arange(n), response])
    np.testing.assert_allclose(views.own_RTX[index, :n, x], own, **close)
    order = np.argsort(-found[name], axis=-1)[:, :3]
    top = np.exp(np.take_along_axis(found[name], order, axis=-1))
    np.testing.assert_allclose(views.top_RTXK[index, :n, x], top, **close)
    picked = np.take_along_axis(
      np.exp(found[name]), views.top_id_RTXK[index, :n, x], axis=-1
    )
    np.testing.assert_allclose(picked, top, **close)


@pytest.mark.parametrize(
  ('case', 'kind', 'lora_rank'),
  [
    ('forward', 'base', 0),
    ('reverse', 'live', 0),
    ('merged', 'base', 2),
    ('opsd', 'base', 0),
  ],
)
def test_figures_are_those_of_full_logits(case, kind, lora_rank):
  o = CASES[case]
  inspect, state, frozen, teacher_params, *parts = make_step(
    o, kind=kind, lora_rank=lora_rank
  )
  batch = make_batch(num_tokens=7)
  if o.method == 'opsd':
    hints = batch.hints
    zero = np.zeros_like(hints.anchor_BGM)
    batch = dataclasses.replace(
      batch,
      hints=dataclasses.replace(hints, anchor_BGM=zero, negative_BGM=zero),
    )
  anchors = anchors_for(o, 4)
  rows = np.array([10, 4, 10], np.int32)
  views = jax.device_get(
    inspect(state, frozen, teacher_params, batch, anchors, rows)
  )
  assert views.strength == 1.5
  expected = [1, 2, 0, 2] if o.method == 'opsd' else [1, 2, 2, 5]
  assert views.num_hints_RX.tolist() == [expected] * 3
  for index, row in enumerate(rows[:2]):
    compare(views, index, row, batch, parts, o, anchors)


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_a_mesh_of_8_devices_gives_what_one_device_does(shape):
  assert jax.device_count() == 8
  o = CASES['opsd']
  inspect, state, frozen, teacher_params, *_ = make_step(o)
  batch, anchors = make_batch(num_prompts=8), anchors_for(o, 8)
  rows = np.resize(np.array([23, 4, 10], np.int32), 8)
  alone = jax.device_get(
    inspect(state, frozen, teacher_params, batch, anchors, rows)
  )
  grid = mesh.make_mesh(dict(zip(mesh.AXES, shape, strict=True)))
  with jax.set_mesh(grid):
    placed = jax.device_put(
      (state, frozen, teacher_params),
      mesh.shardings_of((state, frozen, teacher_params), grid),
    )
    inspect, *_ = make_step(o)
    views = inspect(
      *placed, *hosts.put_rows((batch, anchors), grid),
      hosts.put_whole(rows, grid),
    )  # fmt: skip
  assert all(x.is_fully_replicated for x in jax.tree.leaves(views))
  for one, other in zip(
    jax.tree.leaves(alone), jax.tree.leaves(jax.device_get(views)), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_no_logits_of_a_whole_rollout_are_held():
  o = step.Objective(method='ogls_sd', block_tokens=4)
  # No other dim is as wide as the vocabulary.
  settings = dataclasses.replace(SETTINGS, mlp_size=20)
  inspect, state, frozen, teacher_params, *_ = make_step(o, settings=settings)
  batch = make_batch(num_tokens=64)
  rows = np.zeros(2, np.int32)
  jaxpr = jax.make_jaxpr(inspect)(
    state, frozen, teacher_params, batch, None, rows
  )
  shapes = set()

  def walk(inner):
    for equation in inner.eqns:
      shapes.update(v.aval.shape for v in equation.outvars)
      for value in jax.tree.leaves(
        equation.params, is_leaf=lambda x: hasattr(x, 'eqns')
      ):
        inner = getattr(value, 'jaxpr', value)
        if hasattr(inner, 'eqns'):
          walk(inner)

  walk(jaxpr.jaxpr)
  logits = [shape for shape in shapes if shape[-1:] == (VOCAB,)]
  assert (2, 4, VOCAB) in logits
  assert max(np.prod(shape) for shape in logits) == 2 * 4 * VOCAB


def sample(reward, is_scored):
  return {'is_correct': reward > 0, 'is_scored': is_scored}


def test_rollouts_of_mixed_groups_come_first_and_one_of_each_question():
  samples = [
    sample(0.0, True), sample(0.0, True), sample(0.0, True),  # all wrong
    sample(1.0, False), sample(0.0, True), sample(0.0, True),  # mixed
    sample(1.0, False), sample(1.0, False), sample(1.0, False),  # all right
    sample(0.0, True), sample(1.0, False), sample(1.0, False),  # mixed
  ]  # fmt: skip
  # Rows of the batch: those with loss first, two of each question and more.
  has_loss_R = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0], bool)
  choose = inspection.choose
  chosen = choose(samples, has_loss_R, group_size=3, num=4)
  assert chosen == [(4, 3), (9, 9), (0, 0), (5, 4)]
  assert choose(samples, has_loss_R, group_size=3, num=9)[4:] == [
    (1, 1), (2, 2),
  ]  # fmt: skip
  assert choose(samples[6:9], np.zeros(3, bool), group_size=3, num=4) == []


def inspected_config(unevaluated, **changes):
  return small_config(
    eval__num_questions=0,
    warmup__workdir=str(unevaluated),
    kd__teacher_workdir=str(unevaluated)
    if changes.get('method') == 'kd'
    else '',
    log__inspect_every_steps=2,
    log__inspect_rollouts=3,
    log__inspect_candidates=4,
    **changes,
  )


@pytest.fixture
def every_other_is_right(monkeypatch):
  # A model this small answers nothing.
  def every_other(_, texts, questions):
    reward_R = (np.arange(len(texts)) % 2).astype(np.float32)
    return lambda poll: Grades(reward_R, np.zeros(len(texts), bool))

  monkeypatch.setattr(Grader, 'submit', every_other)


COLUMNS = {
  'ogls_sd': ['student', 'anchor', 'positive', 'negative', 'steered'],
  'opsd': ['student', 'anchor', 'positive', 'steered'],
  'pos_mean': ['student', 'anchor', 'positive', 'steered'],
  'pos_only': ['student', 'anchor', 'positive', 'steered'],
  'kd': ['student', 'anchor', 'steered'],
}


@pytest.mark.parametrize(
  'changes',
  [
    {'method': 'ogls_sd', 'lora__rank': 2},
    {'method': 'opsd', 'mesh__fsdp': 2},
    {'method': 'pos_mean', 'teacher': 'live'},
    {'method': 'pos_only', 'teacher': 'ema'},
    {'method': 'kd', 'kd__source': 'solutions'},
  ],
  ids=lambda changes: '-'.join(map(str, changes.values())),
)
def test_rows_of_every_method(
  unevaluated, tmp_path, changes, every_other_is_right
):
  train.train(inspected_config(unevaluated, num_steps=2, **changes), tmp_path)
  rows = read_rows(tmp_path / 'inspect.jsonl')
  assert [row['step'] for row in rows] == [1, 1, 1, 2, 2, 2]
  method = changes['method']
  for row in rows:
    assert row['is_scored'] and row['strength'] == 1.0
    n = len(row['tokens'])
    assert n == len(row['token_ids']) > 0
    assert ''.join(row['tokens']) + row['rest'] == row['response']
    assert list(row['own']) == list(row['top']) == COLUMNS[method]
    for name in COLUMNS[method]:
      assert np.shape(row['top'][name]) == np.shape(row['top_ids'][name])
      assert np.shape(row['top'][name]) == (n, 4)
      assert len(row['own'][name]) == n
      assert np.max(np.sum(row['top'][name], axis=1)) <= 1.001
    for name in ('divergence', 'moved'):
      assert len(row[name]) == n and min(row[name]) > -1e-5
    if method == 'kd':
      assert max(row['moved']) == 0
    named = {i for lists in row['top_ids'].values() for x in lists for i in x}
    assert set(map(int, row['names'])) == named | set(row['token_ids'])
  # Before the first update, student and teacher are one model.
  first = [row for row in rows if row['step'] == 1]
  if method in ('ogls_sd', 'opsd'):
    assert first[0]['own']['student'] == first[0]['own']['anchor']
  seconds = [
    r['seconds_inspection'] for r in read_rows(tmp_path / 'metrics.jsonl')
  ]
  is_sampled = changes.get('kd__source') != 'solutions'
  assert [x is not None for x in seconds] == [is_sampled] * 2


def test_means_of_the_tokens_that_a_rollout_is_made_of(tmp_path, capsys):
  first = {'anchor': [0.8, 0.4], 'steered': [0.3, 0.5]}
  second = {'anchor': [0.6], 'steered': [0.1]}
  rows = [{'step': 1, 'own': own} for own in (first, second)]
  assert own_tokens.summarize(rows) == pytest.approx(
    {'anchor': 0.6, 'steered': 0.3, 'halved': 2 / 3}
  )
  rows.append({'step': 3, 'own': second})
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (tmp_path / 'inspect.jsonl').write_text(lines)
  own_tokens.main(str(tmp_path))
  assert capsys.readouterr().out.splitlines()[-2:] == [
    '| 1 | 2 | 60.0% | 30.0% | 66.7% |', '| 3 | 1 | 60.0% | 10.0% | 100.0% |',
  ]  # fmt: skip


def test_where_nothing_is_steered_there_is_nothing_to_see(
  unevaluated, tmp_path
):
  train.train(
    inspected_config(unevaluated, num_steps=1, method='sft'), tmp_path
  )
  assert (tmp_path / 'inspect.jsonl').read_bytes() == b''


def test_it_changes_nothing_of_the_run_and_goes_on_without_gap_or_repeat(
  unevaluated, tmp_path, every_other_is_right
):
  config = inspected_config(unevaluated, num_steps=4, checkpoint__every_steps=3)
  train.train(config, tmp_path / 'whole')
  train.train(config, tmp_path / 'halves', stop_after_steps=3)
  # What was written of a step that was lost with the process.
  with (tmp_path / 'halves' / 'inspect.jsonl').open('a') as file:
    file.write('{"step": 4, "id": "lost"}\n{"step": 4, "id"')
  train.train(config, tmp_path / 'halves')
  whole, halves = (
    read_rows(tmp_path / name / 'inspect.jsonl') for name in ('whole', 'halves')
  )
  assert [row['step'] for row in whole] == [1, 1, 1, 2, 2, 2, 4, 4, 4]
  assert whole == halves
  with config.unlocked():
    config.log.inspect_every_steps = 0
  train.train(config, tmp_path / 'plain')
  losses = [
    [row['loss'] for row in read_rows(tmp_path / name / 'metrics.jsonl')]
    for name in ('whole', 'plain')
  ]
  assert losses[0] == losses[1]
