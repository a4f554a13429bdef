"""Tokens one by one, as people see them."""

import random

import pytest

from ogls_jax.token_texts import split_text, text_after, token_namer
from ogls_jax.tokenizer import load_tokenizer
from tests.tokenizer_files import CORPUS, byte_level_gguf, train_sentencepiece


@pytest.fixture(scope='module', params=['byte_level', 'sentencepiece', 'tiny'])
def tokenizer(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  if request.param == 'tiny':
    return load_tokenizer('configs/arithmetic.model')
  if request.param == 'byte_level':
    return load_tokenizer(byte_level_gguf(folder / 'a.gguf', 'qwen2'))
  return load_tokenizer(train_sentencepiece(folder / 'sp'))


@pytest.mark.parametrize('text', CORPUS, ids=range(len(CORPUS)))
def test_texts_of_tokens_make_up_the_text(tokenizer, text):
  ids = tokenizer.encode(text)
  texts = split_text(tokenizer, ids)
  assert len(texts) == len(ids)
  assert ''.join(texts) == tokenizer.decode(ids)
  # Of any first part: what is missing comes after it.
  for cut in range(0, len(ids), 7):
    first = split_text(tokenizer, ids[:cut])
    assert first == texts[:cut]
    rest = text_after(tokenizer.decode(ids), first)
    assert ''.join(first) + rest == tokenizer.decode(ids)


def test_a_character_comes_with_its_last_byte(tokenizer):
  ids = tokenizer.encode('a👍b')
  texts = split_text(tokenizer, ids)
  if '👍' in tokenizer.decode(ids):
    assert sum('👍' in text for text in texts) == 1
    assert '' in texts
  assert not any('\ufffd' in text for text in texts)


def test_any_ids_have_texts_in_time_that_grows_with_their_number(tokenizer):
  rng = random.Random(0)
  ids = [rng.randrange(tokenizer.vocab_size) for _ in range(400)]
  ids[200:260] = [ids[200]] * 60
  calls = []
  original = tokenizer.decode

  def decode(some):
    calls.append(len(some))
    return original(some)

  object.__setattr__(tokenizer, 'decode', decode)
  try:
    texts = split_text(tokenizer, ids)
  finally:
    object.__setattr__(tokenizer, 'decode', original)
  assert len(texts) == 400
  assert sum(calls) < 40 * len(ids)
  whole = original(ids)
  rest = text_after(whole, texts)
  # Bytes at the end that are no whole character may be missing.
  assert ''.join(texts) + rest == whole and len(rest) < 4


def test_names(tokenizer):
  name = token_namer(tokenizer)
  for text in ('a', '1', '+'):
    (index,) = tokenizer.encode('1' + text)[-1:]
    assert name(index).strip() == text
  assert name(tokenizer.eos_id) == tokenizer.token_of(tokenizer.eos_id)
  past = tokenizer.vocab_size + 5
  assert name(past) == f'<{past}>'
  # A space before a word belongs to it.
  index = tokenizer.encode('x + y')[-2]
  assert name(index) in (' +', ' + ', '+', ' ')
