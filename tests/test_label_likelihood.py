import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ogls_jax import label_likelihood, mesh
from ogls_jax.batches import PromptBatch
from ogls_jax.errors import UserError
from ogls_jax.label_likelihood import ChoiceScores
from ogls_jax.models.transformer import project
from ogls_jax.numerics import log_probs
from ogls_jax.tasks.question import Question
from tests.small import SETTINGS, VOCAB, make_decoder, naive_hidden


def naive(decoder, prompt, choice):
  """One unpadded forward over prompt and choice."""
  hidden_TD = naive_hidden(decoder, prompt, choice)
  log_prob_TV = log_probs(project(hidden_TD[None], decoder.unembedding_VD))[0]
  return float(log_prob_TV[np.arange(len(choice)), np.array(choice)].sum())


def test_it_equals_a_full_forward_of_each_choice():
  rng = np.random.default_rng(0)
  decoder = make_decoder()
  prompts = PromptBatch(
    rng.integers(1, VOCAB, (2, 6)).astype(np.int32),
    np.array([6, 3], np.int32),
    np.zeros(2, np.uint32),
  )
  choices = rng.integers(1, VOCAB, (2, 3, 4)).astype(np.int32)
  lengths = np.array([[4, 1, 2], [3, 4, 0]], np.int32)
  got = [
    jax.jit(
      functools.partial(
        label_likelihood.choice_log_probs, decoder, block_tokens=block
      )
    )(prompts, choices, lengths)
    for block in (1, 3)
  ]
  np.testing.assert_allclose(*got, rtol=1e-6)
  for b, g in np.ndindex(2, 3):
    if not lengths[b, g]:
      assert got[0][b, g] == -jnp.inf
      continue
    prompt = prompts.tokens_BP[b, : prompts.length_B[b]].tolist()
    choice = choices[b, g, : lengths[b, g]].tolist()
    assert got[0][b, g] == pytest.approx(
      naive(decoder, prompt, choice), rel=1e-4
    )


QUESTIONS = [
  Question('a', '1 + 1', '2', choices=('2', '3')),
  Question('b', '7 + 5', '12', choices=('12', '2', '128')),
  Question('c', '9', '9', choices=('9',)),
]


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_questions_are_scored_on_any_mesh(maker, shape):
  assert jax.device_count() == 8
  size = -(-maker.tokenizer.vocab_size // 8) * 8
  settings = dataclasses.replace(
    SETTINGS, vocab_size=size, num_heads=8, num_kv_heads=8
  )
  decoder = make_decoder(settings=settings)
  graphdef, params, frozen = nnx.split(decoder, nnx.Param, ...)
  score = label_likelihood.make_choice_scorer(graphdef)
  grid = mesh.make_mesh(dict(zip(mesh.AXES, shape, strict=True)))
  with jax.set_mesh(grid):
    placed = jax.device_put(params, mesh.shardings_of(params, grid))
    batches = list(
      label_likelihood.score_choices(
        functools.partial(score, placed, frozen),
        QUESTIONS,
        maker,
        grid,
        batch_questions=max(2, shape[0] * shape[1]),
        bucket_tokens=4,
      )
    )
  assert len(batches) == -(-3 // max(2, shape[0] * shape[1]))
  pairs = [pair for batch in batches for pair in batch]
  assert [question for question, _ in pairs] == QUESTIONS
  scores = [found for _, found in pairs]
  encode = maker.tokenizer.encode
  for question, found in zip(QUESTIONS, scores, strict=True):
    prompt = maker.student_ids(question)
    expected = [
      naive(decoder, prompt, encode(choice)) for choice in question.choices
    ]
    np.testing.assert_allclose(found.log_prob, expected, rtol=1e-4)
    assert found.best() == np.argmax(expected)
    assert found.num_tokens.tolist() == [
      len(encode(choice)) for choice in question.choices
    ]
    assert found.num_bytes.tolist() == [
      len(choice.encode()) for choice in question.choices
    ]


def test_normalizations_by_hand():
  scores = ChoiceScores(
    log_prob=np.array([-2.0, -3.0, -3.5]),
    num_tokens=np.array([1, 2, 2]),
    num_bytes=np.array([4, 5, 9]),
  )
  assert scores.best() == 0
  assert scores.best('token') == 1  # -2, -1.5, -1.75
  assert scores.best('byte') == 2  # -0.5, -0.6, -0.39


def test_a_question_without_choices(maker):
  with pytest.raises(UserError, match="'a' has no `choices`"):
    label_likelihood._choice_ids(Question('a', '1', '1'), maker)


def test_a_choice_without_a_token(maker):
  question = Question('a', '1', '1', choices=('1', ' '))
  tokenizer = dataclasses.replace(
    maker.tokenizer, encode=lambda text: [5] * len(text.strip())
  )
  maker = dataclasses.replace(maker, tokenizer=tokenizer)
  with pytest.raises(UserError, match="'a': the choice ' ' has no token"):
    label_likelihood._choice_ids(question, maker)
