"""Which questions are held out, and in what order the others come."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ogls_jax import data, errors, hosts
from tests.question_rows import make_questions


def test_questions_of_the_evaluation_do_not_train():
  questions = make_questions(5)
  held_out = [dataclasses.replace(questions[3], id='other')]
  with pytest.raises(errors.UserError, match=f'{questions[3].id}.*eval_path'):
    data.without_shared(questions, held_out, on_bad_row='error')
  kept, num = data.without_shared(questions, held_out, on_bad_row='skip')
  assert kept == questions[:3] + questions[4:] and num == 1
  with pytest.raises(errors.UserError, match='no question beyond'):
    data.without_shared(held_out, held_out, on_bad_row='skip')


def test_split_by_id_does_not_depend_on_the_other_rows():
  questions = make_questions(1000)
  train, held_out = data.split_by_id(questions, eval_fraction=0.2, seed=0)
  assert sorted(train + held_out, key=questions.index) == questions
  # The standard deviation of the count is 12.6.
  assert len(held_out) == pytest.approx(200, abs=50)
  assert train == sorted(train, key=questions.index)

  some = questions[500:][::-1]
  _, some_held_out = data.split_by_id(some, eval_fraction=0.2, seed=0)
  assert set(some_held_out) == set(held_out) & set(some)
  # A larger share keeps what was held out before.
  _, more = data.split_by_id(questions, eval_fraction=0.4, seed=0)
  assert set(held_out) < set(more)
  _, other = data.split_by_id(questions, eval_fraction=0.2, seed=1)
  assert set(other) != set(held_out)


def test_rows_that_ask_the_same_are_on_one_side():
  questions = make_questions(100)
  twins = [dataclasses.replace(q, id=f's{n}') for n, q in enumerate(questions)]
  for rows in (questions + twins, twins[::-1] + questions):
    train, held_out = data.split_by_id(rows, eval_fraction=0.5, seed=0)
    assert not {q.question for q in train} & {q.question for q in held_out}
    assert len(train) + len(held_out) == 200
    # Where those alone go: `r7` comes before `s7`.
    _, alone = data.split_by_id(questions, eval_fraction=0.5, seed=0)
    assert {q.question for q in alone} == {q.question for q in held_out}


def test_split_by_id_is_the_same_on_every_machine():
  # The first 8 bytes of SHA-256 of `0:r0`, ..., below 0.5 * 2**64; made once
  # with `printf 0:r0 | sha256sum`. Python's own hash() differs per process.
  _, held_out = data.split_by_id(make_questions(8), eval_fraction=0.5, seed=0)
  assert [q.id for q in held_out] == ['r0', 'r2', 'r3', 'r4', 'r6', 'r7']


@pytest.mark.parametrize('eval_fraction', [-0.1, 1.0, float('nan'), 1e-9])
def test_split_by_id_rejects(eval_fraction):
  with pytest.raises(errors.UserError, match='data.eval_fraction = '):
    data.split_by_id(make_questions(5), eval_fraction=eval_fraction, seed=0)


def test_split_by_id_can_hold_out_nothing():
  questions = make_questions(5)
  split = data.split_by_id(questions, eval_fraction=0.0, seed=0)
  assert split == (questions, [])
  with pytest.raises(errors.UserError, match='for training'):
    data.split_by_id([], eval_fraction=0.0, seed=0)


@pytest.mark.parametrize('size', [1, 4, 10])
def test_iterator_gives_each_question_once_an_epoch(size):
  questions = make_questions(10)
  batches = data.question_iterator(questions, batch_questions=size, seed=0)
  drawn = []
  for _ in range(40 // size):
    batch = next(batches)
    assert type(batch) is list and len(batch) == size
    drawn += batch
  epochs = [drawn[i : i + 10] for i in range(0, 40, 10)]
  for epoch in epochs:
    assert sorted(epoch, key=questions.index) == questions
  # Four orders of ten, all different, and not the file's.
  orders = {tuple(q.id for q in epoch) for epoch in [*epochs, questions]}
  assert len(orders) == 5


def test_iterator_order_follows_the_seed():
  questions = make_questions(50)
  first = [
    next(data.question_iterator(questions, batch_questions=50, seed=seed))
    for seed in (0, 0, 1)
  ]
  assert first[0] == first[1] != first[2]


def test_iterator_resumes_from_json():
  questions = make_questions(10)
  unbroken = data.question_iterator(questions, batch_questions=4, seed=3)
  for _ in range(4):
    next(unbroken)
  saved = json.dumps(unbroken.get_state())
  expected = [next(unbroken) for _ in range(6)]

  resumed = data.question_iterator(questions, batch_questions=4, seed=3)
  assert next(resumed) != expected[0]
  resumed.set_state(json.loads(saved))
  assert [next(resumed) for _ in range(6)] == expected


def test_iterator_with_a_batch_larger_than_the_data():
  questions = make_questions(3)
  batch = next(data.question_iterator(questions, batch_questions=8, seed=0))
  assert len(batch) == 8
  counts = sorted(batch.count(q) for q in questions)
  assert counts == [2, 3, 3]


def test_iterator_rejects():
  with pytest.raises(errors.UserError, match='no question'):
    data.question_iterator([], batch_questions=2, seed=0)
  with pytest.raises(errors.UserError, match='batch_questions = 0'):
    data.question_iterator(make_questions(2), batch_questions=0, seed=0)


@settings(max_examples=40, deadline=None)
@given(
  num_questions=st.integers(1, 25),
  num_shards=st.integers(1, 6),
  rows_a_shard=st.integers(1, 5),
  num_hosts=st.integers(1, 6),
  seed=st.integers(0, 2**31 - 1),
  stops=st.lists(st.integers(0, 11), max_size=3),
)
def test_hosts_and_restarts_see_every_row_once_an_epoch(
  num_questions, num_shards, rows_a_shard, num_hosts, seed, stops
):
  """Whatever the number of hosts and wherever a run was killed."""
  questions = make_questions(num_questions)
  size = num_shards * rows_a_shard
  num_batches = 12

  def iterator():
    return data.question_iterator(questions, batch_questions=size, seed=seed)

  unbroken = iterator()
  expected = [next(unbroken) for _ in range(num_batches)]
  drawn = [q for batch in expected for q in batch]
  for start in range(0, len(drawn) - num_questions + 1, num_questions):
    epoch = drawn[start : start + num_questions]
    assert {q.id for q in epoch} == {q.id for q in questions}

  # Hosts hold whole shards of the rows, in any order.
  owner_S = np.random.default_rng(seed).integers(0, num_hosts, num_shards)
  place, batches = iterator(), []
  for stop in sorted({*stops, num_batches}):
    while len(batches) < stop:
      batch = next(place)
      parts = []
      for host in range(num_hosts):
        rows = np.flatnonzero(np.repeat(owner_S == host, rows_a_shard))
        with pytest.MonkeyPatch.context() as patch:
          patch.setattr(
            hosts, '_holders', lambda _, host=host: (owner_S, owner_S == host)
          )
          own = hosts.own_of(batch, mesh=None)
        assert own == [batch[b] for b in rows]
        parts += zip(rows, own, strict=True)
      assert [q for _, q in sorted(parts, key=lambda p: p[0])] == batch
      batches.append(batch)
    # Killed: another process goes on from what the checkpoint has.
    saved, place = json.loads(json.dumps(place.get_state())), iterator()
    place.set_state(saved)
  assert batches == expected
