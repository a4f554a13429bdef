"""What `Tokenizer.save` writes is the same tokenizer to transformers."""

import pytest
from test_chat_template import GEMMA3, LLAMA3, QWEN3, QWEN25, chat_ids, make
from tokenizer_files import (
  CORPUS,
  byte_level_gguf,
  plain_ids,
  real_model,
  sentencepiece_gguf,
  train_sentencepiece,
)

from ogls_jax.errors import UserError
from ogls_jax.tokenizer import load_tokenizer

transformers = pytest.importorskip('transformers')


def check_saved(tokenizer, folder, model_type=None, texts=CORPUS):
  """Saves; transformers and we read the same ids from what was written."""
  tokenizer.save(folder)
  if model_type:
    # transformers chooses its class by the model too.
    (folder / 'config.json').write_text(f'{{"model_type": "{model_type}"}}')
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  again = load_tokenizer(folder)
  assert again.vocab_size == tokenizer.vocab_size
  assert again.eos_ids == tokenizer.eos_ids
  assert again.eos_id == tokenizer.eos_id
  for text in texts:
    ids = tokenizer.encode(text)
    assert plain_ids(theirs, text) == ids, text
    assert again.encode(text) == ids
    chat = tokenizer.encode_chat(text)
    assert again.encode_chat(text) == chat
    if theirs.chat_template:
      assert chat_ids(theirs, text) == chat
    else:
      # The libraries differ on control tokens in a text, which is not a chat.
      assert theirs(text, split_special_tokens=True)['input_ids'] == chat
    if theirs.unk_token_id not in ids:  # SentencePiece shows a sign for it
      assert theirs.decode(ids) == again.decode(ids) == tokenizer.decode(ids)
  return theirs


@pytest.mark.parametrize(
  ('style', 'model_type'),
  [
    (QWEN25, 'qwen2'),
    (QWEN25, None),
    (QWEN3, 'qwen3'),
    (LLAMA3, 'llama'),
    (GEMMA3, 'gemma3_text'),
  ],
)
def test_byte_level_gguf(tmp_path, style, model_type):
  names = {'eos': style.eos, 'bos': style.bos}
  file = byte_level_gguf(
    tmp_path / 'a.gguf', style.pre, template=style.template, **names
  )
  theirs = check_saved(load_tokenizer(file), tmp_path / 'out', model_type)
  assert (theirs.eos_token, theirs.bos_token) == (style.eos, style.bos)
  file = byte_level_gguf(tmp_path / 'a.gguf', style.pre, **names)
  check_saved(load_tokenizer(file), tmp_path / 'base', model_type)


@pytest.mark.parametrize(
  ('has_prefix', 'model_type'), [(True, 'llama'), (False, 'gemma3_text')]
)
def test_sentencepiece_gguf(tmp_path, has_prefix, model_type):
  model_file = train_sentencepiece(
    tmp_path / 'sp',
    add_dummy_prefix=has_prefix,
    user_defined_symbols=[] if has_prefix else ['▁▁', '\n', '\n\n'],
  )
  file = sentencepiece_gguf(tmp_path / 'a.gguf', model_file)
  check_saved(load_tokenizer(file), tmp_path / 'base', model_type)
  template = GEMMA3.template
  file = sentencepiece_gguf(tmp_path / 'b.gguf', model_file, template=template)
  check_saved(load_tokenizer(file), tmp_path / 'chat', model_type)


def test_folder(tmp_path):
  make(tmp_path / 'in', QWEN3)
  (tmp_path / 'in' / 'model.safetensors').write_text('not a tokenizer file')
  check_saved(load_tokenizer(tmp_path / 'in'), tmp_path / 'out')
  names = {file.name for file in (tmp_path / 'out').iterdir()}
  assert names == {
    'tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja',
  }  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'model_type'),
  [
    ('gemma3-270m-q4_k_m', 'gemma3_text'),
    ('qwen2.5-coder-0.5b-instruct-q4', 'qwen2'),
  ],
)
def test_real_models(tmp_path, name, model_type):
  tokenizer = load_tokenizer(real_model(f'{name}.gguf'))
  check_saved(tokenizer, tmp_path, model_type)


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'add_dummy_prefix': False, 'user_defined_symbols': ['▁▁', '\n', '▁=▁']},
    {'model_type': 'char', 'byte_fallback': False},
  ],
)
def test_sentencepiece_model(tmp_path, options):
  model_file = train_sentencepiece(tmp_path / 'sp', **options)
  check_saved(load_tokenizer(model_file), tmp_path / 'out')


def test_arithmetic_model(tmp_path):
  texts = [*CORPUS, 'Question: 1 + 2 - 3\nAnswer: 1 + 2 = 3\n\\boxed{0}']
  tokenizer = load_tokenizer('configs/arithmetic.model')
  check_saved(tokenizer, tmp_path / 'out', texts=texts)


@pytest.mark.parametrize(
  'options',
  [
    {'model_type': 'unigram'},
    {'normalization_rule_name': 'nfkc'},
    {'remove_extra_whitespaces': True},
    {'treat_whitespace_as_suffix': True},
    {'user_defined_symbols': ['<td>']},
  ],
)
def test_a_model_that_only_sentencepiece_reads(tmp_path, options):
  model_file = train_sentencepiece(tmp_path / 'sp', **options)
  with pytest.raises(UserError, match='cannot be saved') as caught:
    load_tokenizer(model_file).save(tmp_path / 'out')
  assert f'model.tokenizer_path = {model_file}: ' in str(caught.value)
