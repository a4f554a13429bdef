"""Tokenizers inside GGUF files against the libraries that define them."""

import random

import pytest
import sentencepiece
from tokenizer_files import (
  CONTROL,
  CORPUS,
  byte_level_gguf,
  family_tokenizer,
  plain_ids,
  real_model,
  sentencepiece_from_gguf,
  sentencepiece_gguf,
  train_byte_level,
  train_sentencepiece,
  write_gguf,
)
from tokenizers import pre_tokenizers

from ogls_jax.errors import UserError
from ogls_jax.gguf_file import read_gguf_header
from ogls_jax.tokenizer import load_tokenizer

transformers = pytest.importorskip('transformers')

GPT2 = {'kind': 'gpt2', 'pre': 'qwen2', 'merges': [('a', 'a')]}


@pytest.mark.parametrize('pre', ['gpt-2', 'smollm', 'qwen2', 'llama-bpe'])
def test_byte_level_gives_the_ids_of_the_family(tmp_path, pre):
  ours = load_tokenizer(byte_level_gguf(tmp_path / 'a.gguf', pre))
  theirs = family_tokenizer(pre)
  for text in CORPUS:
    ids = ours.encode(text)
    assert ids == plain_ids(theirs, text), text
    kept = theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert ours.decode(ids) == kept
  assert ours.vocab_size == len(theirs)  # without what fills the rows up


def test_each_family_splits_in_its_own_way(tmp_path):
  """What the comparison above would not see if the vocabulary hid it."""
  ids = {}
  for pre in ('gpt-2', 'smollm', 'qwen2', 'llama-bpe'):
    tokenizer = load_tokenizer(byte_level_gguf(tmp_path / 'a.gguf', pre))
    ids[pre] = [tokenizer.encode(text) for text in CORPUS]
  pairs = [('gpt-2', 'smollm'), ('gpt-2', 'qwen2'), ('qwen2', 'llama-bpe')]
  assert all(ids[a] != ids[b] for a, b in pairs)


def test_llama3_takes_a_word_that_is_a_token_as_it_is(tmp_path):
  # 'abc' has no merge that leads to it.
  tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), 'bc', 'abc', '<s>']
  types = [1] * (len(tokens) - 1) + [3]
  for pre, expected in (('llama-bpe', ['abc']), ('qwen2', ['a', 'bc'])):
    file = write_gguf(
      tmp_path / 'a.gguf', tokens, types, kind='gpt2', pre=pre,
      merges=[('b', 'c')], eos_token_id=len(tokens) - 1,
    )  # fmt: skip
    ids = load_tokenizer(file).encode('abc')
    assert ids == [tokens.index(token) for token in expected]


@pytest.mark.parametrize(
  ('pre', 'says', 'adds'),
  [
    ('llama-bpe', {}, True),
    ('llama-bpe', {'add_bos_token': False}, False),
    ('qwen2', {}, False),
    ('qwen2', {'add_bos_token': True}, True),
  ],
)
def test_bos_where_the_file_or_the_family_says(tmp_path, pre, says, adds):
  file = byte_level_gguf(tmp_path / 'a.gguf', pre, bos='<bos>', **says)
  ours = load_tokenizer(file)
  bos = ours.encode_chat('a')[:-1]
  assert len(bos) == adds and ours.decode(bos) == ''


def test_every_end_token_is_an_end(tmp_path):
  size = len(train_byte_level()[0])
  file = byte_level_gguf(
    tmp_path / 'a.gguf',
    'qwen2',
    eos='<bos>',  # no known end
    eot_token_id=3,
    eom_token_id=4,
    eos_token_ids=[5, 6],
  )
  tokenizer = load_tokenizer(file)
  known = [
    '<|endoftext|>', '<|im_end|>', '<bos>', '<|eot_id|>', '<|eom_id|>',
    '<|end_of_text|>', '<eos>', '<end_of_turn>',
  ]  # fmt: skip
  expected = sorted([3, 4, 5, 6, *(size + CONTROL.index(t) for t in known)])
  assert list(tokenizer.eos_ids) == expected
  assert tokenizer.eos_id == size + CONTROL.index('<bos>')


@pytest.mark.parametrize('has_prefix', [False, True])
def test_sentencepiece_gives_its_own_ids(tmp_path, has_prefix):
  whole = [] if has_prefix else ['▁▁', '▁▁▁', '\n', '\n\n', '<td>']
  model_file = train_sentencepiece(
    tmp_path / 'sp',
    add_dummy_prefix=has_prefix,
    user_defined_symbols=whole,
  )
  theirs = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
  ours = load_tokenizer(sentencepiece_gguf(tmp_path / 'a.gguf', model_file))
  for text in CORPUS:
    ids = ours.encode(text)
    assert ids == theirs.encode(text), text
    assert ours.decode(ids) == theirs.decode(ids)
  assert theirs.encode('🤽')[-4:] != [theirs.unk_id()] * 4  # bytes
  assert ours.vocab_size == theirs.get_piece_size()
  ends = [theirs.piece_to_id(token) for token in ('</s>', '<end_of_turn>')]
  assert ours.eos_ids == tuple(sorted(ends))
  assert ours.encode_chat('ab') == [theirs.bos_id(), *theirs.encode('ab')]


def test_spaces_of_a_token_cannot_follow_a_prefix(tmp_path):
  model_file = train_sentencepiece(tmp_path / 'sp', user_defined_symbols=['▁▁'])
  file = sentencepiece_gguf(tmp_path / 'a.gguf', model_file)
  with pytest.raises(UserError, match='cannot be rebuilt.*prefix space'):
    load_tokenizer(file)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'kind': 'gpt2', 'pre': 'other'}, 'with pre-tokenizer other is not'),
    ({'kind': 'bert'}, 'kind bert with'),
    ({'kind': 'llama'}, 'neither an unknown token nor'),
    ({'kind': 'llama', 'unknown_token_id': 0}, 'cannot be rebuilt.*scores'),
    (GPT2 | {'merges': [('a', 'x')]}, 'cannot be rebuilt.*out of vocabulary'),
    (GPT2 | {'bos_token_id': 9}, 'cannot be rebuilt.*bos_token_id = 9'),
    (GPT2, 'no end-of-sequence'),
    (GPT2 | {'eot_token_id': 9}, 'end token 9 is past'),
    ({'kind': 'gpt2', 'pre': 'qwen2'}, 'cannot be rebuilt.*merges'),
  ],
)
def test_errors_say_what_is_wrong(tmp_path, fields, message):
  tokens, types = ['<u>', 'a', 'aa'], [2, 1, 1]
  file = write_gguf(tmp_path / 'a.gguf', tokens, types, **fields)
  with pytest.raises(UserError, match=message) as caught:
    load_tokenizer(file)
  assert f'model.tokenizer_path = {file}: ' in str(caught.value)
  assert '\n' not in str(caught.value)


def random_texts(pieces, count):
  """Joined pieces, repeats (whose merges tie) and any characters."""
  rng = random.Random(0)
  for i in range(count):
    if i % 3 == 0:
      yield ''.join(rng.choice(pieces) for _ in range(rng.randint(1, 12)))
    elif i % 3 == 1:
      unit = ''.join(rng.choices('abehi=-.! \n\t01', k=rng.randint(1, 4)))
      yield unit * rng.randint(2, 30)
    else:
      codes = [rng.randrange(0x20, 0x2FFFF) for _ in range(rng.randint(1, 9))]
      yield ''.join(map(chr, codes)).encode(errors='ignore').decode()


def test_gemma3_against_sentencepiece():
  file = real_model('gemma3-270m-q4_k_m.gguf')
  ours = load_tokenizer(file)
  fields = read_gguf_header(file).fields
  theirs = sentencepiece_from_gguf(fields)
  pieces = [
    token.replace('▁', ' ')
    for token, kind in zip(
      fields['tokenizer.ggml.tokens'],
      fields['tokenizer.ggml.token_type'],
      strict=True,
    )
    if kind in (1, 4)
  ]
  for text in [*CORPUS, *random_texts(pieces, 3000)]:
    ids = ours.encode(text)
    assert ids == theirs.encode(text), text
    assert ours.decode(ids) == theirs.decode(ids)
  assert ours.vocab_size == 262_144
  assert (ours.eos_ids, ours.eos_id) == ((1, 106), 1)  # <eos>, <end_of_turn>
  assert ours.encode_chat('Hi') == [2, *ours.encode('Hi')]


def test_qwen2_against_transformers():
  file = real_model('qwen2.5-coder-0.5b-instruct-q4.gguf')
  ours = load_tokenizer(file)
  fields = read_gguf_header(file).fields
  names = ('tokens', 'token_type', 'merges')
  tokens, types, merges = (fields[f'tokenizer.ggml.{n}'] for n in names)
  theirs = transformers.Qwen2Tokenizer(
    vocab={t: i for i, t in enumerate(tokens) if types[i] != 5},
    merges=[tuple(merge.split(' ')) for merge in merges],
  )
  control = [t for t, kind in zip(tokens, types, strict=True) if kind == 3]
  theirs.add_special_tokens({'additional_special_tokens': control})
  theirs.add_tokens(['<tool_call>', '</tool_call>'])
  theirs.chat_template = fields['tokenizer.chat_template']
  for text in CORPUS:
    assert ours.encode(text) == plain_ids(theirs, text), text
    expected = theirs.apply_chat_template(
      [{'role': 'user', 'content': text}],
      add_generation_prompt=True,
      return_dict=False,
    )
    assert ours.encode_chat(text) == expected
  assert ours.vocab_size == len(theirs) == 151_665
  # <|endoftext|> and <|im_end|>
  assert (ours.eos_ids, ours.eos_id) == ((151_643, 151_645), 151_645)


def test_smollm2_against_transformers():
  file = real_model('smollm2-135m-instruct-q4_1.gguf')
  ours = load_tokenizer(file)
  theirs = transformers.AutoTokenizer.from_pretrained(
    file.parent, gguf_file=file.name
  )
  # Its reading of GGUF leaves out that this family splits digits.
  theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Digits(individual_digits=True),
    theirs.backend_tokenizer.pre_tokenizer,
  ])  # fmt: skip
  for text in CORPUS:
    assert ours.encode(text) == plain_ids(theirs, text), text
