import numpy as np
import pytest

from ogls_jax import checkpoint, train
from ogls_jax.tasks import arithmetic, math
from ogls_jax.warmup import make_warmup_batch
from tests.small_run import small_config


def make(maker, seed=0, **rates):
  questions = arithmetic.generate(200, num_terms=4, max_number=9, seed=0)
  settings = {
    'hint_fraction': 0.0,
    'wrong_hint_fraction': 0.5,
    'slip_rate': 0.2,
    'hinted_slip_rate': 0.2,
  }
  batch = make_warmup_batch(
    questions,
    maker,
    np.random.default_rng(seed),
    bucket_tokens=8,
    **(settings | rates),
  )
  return questions, batch


def texts(maker, tokens, lengths):
  return [
    maker.tokenizer.decode(row[:length].tolist())
    for row, length in zip(tokens, lengths, strict=True)
  ]


def test_plain_examples_learn_every_token_and_slip_at_their_rate(maker):
  questions, batch = make(maker)
  lengths = batch.token_mask_RT.sum(1)
  responses = texts(maker, batch.response_RT, lengths)
  is_correct = [
    math.is_correct(text, q)
    for text, q in zip(responses, questions, strict=True)
  ]
  # 0.8 ** 3 = 0.512 have no slip; three standard deviations of 200 draws.
  assert np.mean(is_correct) == pytest.approx(0.512, abs=0.11)
  ends = batch.response_RT[np.arange(200), lengths - 1]
  assert (ends == maker.tokenizer.eos_id).all()
  prompts = texts(maker, batch.prompts.tokens_BP, batch.prompts.length_B)
  assert prompts[0] == f'Question: {questions[0].question}\nAnswer: '


def test_hinted_examples_never_learn_to_slip(maker):
  questions, batch = make(maker, hint_fraction=1.0)
  prompts = texts(maker, batch.prompts.tokens_BP, batch.prompts.length_B)
  is_right_hint = [
    f'Hint: {q.solution}\n' in prompt
    for q, prompt in zip(questions, prompts, strict=True)
  ]
  assert np.mean(is_right_hint) == pytest.approx(0.5, abs=0.11)
  first = batch.token_mask_RT.argmin(1)
  last = batch.response_RT.shape[1] - batch.token_mask_RT[:, ::-1].argmax(1)
  has_gap = first < last
  # Some step leaves its hint with probability 1 - 0.8 ** 3 = 0.488.
  assert has_gap.mean() == pytest.approx(0.488, abs=0.11)
  for row in np.flatnonzero(has_gap)[:20]:
    # What is masked first is the number after a ' = '.
    before = batch.response_RT[row, : first[row]].tolist()
    assert maker.tokenizer.decode(before).endswith(' = ')


def test_the_same_stream_gives_the_same_batch(maker):
  _, batch = make(maker, seed=3, hint_fraction=0.5)
  _, same = make(maker, seed=3, hint_fraction=0.5)
  np.testing.assert_array_equal(batch.response_RT, same.response_RT)


def test_a_save_that_failed_is_tried_again_at_the_next_step(
  tmp_path, monkeypatch, capsys
):
  config = small_config(
    warmup__num_steps=8, num_steps=1, eval__num_questions=0, method='sft'
  )
  saved, original = [], checkpoint.ocp.CheckpointManager.save

  def save(self, step, **kwargs):
    if self.directory.name == 'warmup':
      saved.append(step)
      if len(saved) == 1:
        raise OSError(28, 'No space left on device')
    return original(self, step, **kwargs)

  monkeypatch.setattr(checkpoint, '_FIRST_WAIT', 0.0)
  monkeypatch.setattr(checkpoint.ocp.CheckpointManager, 'save', save)
  train.train(config, tmp_path)
  assert saved == [2, 3, 4, 6, 8]
  assert capsys.readouterr().out.count('was not saved') == 1
