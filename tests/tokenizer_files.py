"""Small vocabularies in every format, and text that is awkward to tokenize."""

import json
import os
import pathlib

import gguf
import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers, trainers

CORPUS = [
  '',
  ' ',
  'Hello world',
  ' leading',
  'trailing ',
  '  two   three    four ',
  ' ' * 40 + 'x' + ' ' * 33,
  '\t\ttabs\tinside\t',
  'line\nline\n\nline\n\n\n\n end\n',
  'CRLF\r\nmixed\r\r\nwith LF\n\r',
  '1234567890123456789',
  '3.14159 -2,718.28 1e-10 50% $9.99 1/2 007',
  "don't I'LL we've they'd SHE'S y'all 'tis rock'n'roll",
  'naïve café Straße ÀÉÎ',
  'cafe\u0301 A\u030a \u1100\u1161 \ufb01ne',  # not in NFC
  '你好，世界。日本語のテキスト 한국어',
  'مرحبا بالعالم \u202bRTL\u202c',
  'zero\u200bwidth\u200djoin\ufeffbom \u00a0nbsp\u2003em',
  '👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🤽',
  'a \u2581 literal \u2581\u2581block\u2581',
  'def f(x):\n    if x:\n\t\treturn {"a": [1, 2]}  # ok\n',
  '\\frac{1}{2} + \\sqrt[3]{x^2_i} = \\boxed{42} $$\\alpha$$',
  '<|im_end|> <|eot_id|><end_of_turn></s> <bos>text<|endoftext|>',
  '<think>\nx\n</think>\n<table><td> <0x0A> [PAD3]',
  '\x00\x07control\x1b[0m \ud7ff\ue000\U0001f9ff\U0010ffff',
  'hahahahaha =-=-=-=-= ...... aaaaaaa',
  'x' * 300 + ' ' + 'ab' * 99,
]
CONTROL = [
  '<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|begin_of_text|>',
  '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>', '<|eom_id|>',
  '<|end_of_text|>', '<bos>', '<eos>', '<start_of_turn>', '<end_of_turn>',
]  # fmt: skip
WHOLE = ['<think>', '</think>']

_DIR = pathlib.Path(os.environ.get('OGLS_MODELS_DIR', '../shared/models'))


def real_model(name):
  """A file of OGLS_MODELS_DIR; skips the test where it is absent."""
  if not (_DIR / name).is_file():
    pytest.skip(f'needs {name} in OGLS_MODELS_DIR')
  return _DIR / name


def train_byte_level():
  """(tokens, merges) of a byte-level BPE, the control tokens at the end.

  Its numbers and contractions were not split, so that a pre-tokenizer that
  splits them otherwise gives other ids.
  """
  fast = tokenizers.Tokenizer(models.BPE())
  fast.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(' ', 'merged_with_next'),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ])  # fmt: skip
  trainer = trainers.BpeTrainer(
    vocab_size=900,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  # Without control tokens, which would become ordinary ones.
  text = [text for text in CORPUS if '<' not in text]
  fast.train_from_iterator(text * 3, trainer)
  model = json.loads(fast.to_str())['model']
  tokens = sorted(model['vocab'], key=model['vocab'].get)
  return tokens, [tuple(merge) for merge in model['merges']]


def write_gguf(file, tokens, types, *, kind, pre='default', **fields):
  """A file with this vocabulary; `fields` are further tokenizer.ggml ones."""
  writer = gguf.GGUFWriter(file, 'llama')
  writer.add_tokenizer_model(kind)
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(tokens)
  writer.add_token_types(types)
  if 'merges' in fields:
    writer.add_token_merges([' '.join(m) for m in fields.pop('merges')])
  if 'scores' in fields:
    writer.add_token_scores(fields.pop('scores'))
  if 'template' in fields:
    writer.add_chat_template(fields.pop('template'))
  for key, value in fields.items():
    add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
    if isinstance(value, list):
      add = writer.add_array
    add(f'tokenizer.ggml.{key}', value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file


def byte_level_gguf(file, pre, *, bos=None, eos='<|im_end|>', **fields):
  """A GGUF file of kind gpt2; two last ids only fill the embedding up."""
  tokens, merges = train_byte_level()
  size = len(tokens)
  tokens = [*tokens, *CONTROL, *WHOLE, '[PAD1]', '[PAD2]']
  types = [1] * size + [3] * len(CONTROL) + [4] * len(WHOLE) + [5, 5]
  if bos:
    fields['bos_token_id'] = tokens.index(bos)
  fields['eos_token_id'] = tokens.index(eos)
  return write_gguf(
    file, tokens, types, kind='gpt2', pre=pre, merges=merges, **fields
  )


def train_sentencepiece(prefix, *, model_type='bpe', **options):
  """A .model file `prefix`.model with byte fallback."""
  options = {
    'control_symbols': ['<start_of_turn>', '<end_of_turn>'],
    'normalization_rule_name': 'identity',
    'remove_extra_whitespaces': False,
    'byte_fallback': True,
  } | options
  text = [line for text in CORPUS[1:] for line in text.split('\n') if line]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(text * 2),
    model_prefix=str(prefix),
    model_type=model_type,
    vocab_size=700,
    character_coverage=0.98,
    hard_vocab_limit=False,
    minloglevel=2,
    **options,
  )
  return prefix.with_suffix('.model')


def sentencepiece_gguf(file, model_file, **fields):
  """The GGUF file of kind llama that holds a .model's vocabulary."""
  proto = sentencepiece_model_pb2.ModelProto()
  proto.ParseFromString(model_file.read_bytes())
  return write_gguf(
    file,
    # Spaces of user-defined tokens are spelled out, as converters do.
    [p.piece.replace('▁', ' ' if p.type == 4 else '▁') for p in proto.pieces],
    [p.type for p in proto.pieces],
    kind='llama',
    scores=[p.score for p in proto.pieces],
    unknown_token_id=proto.trainer_spec.unk_id,
    bos_token_id=proto.trainer_spec.bos_id,
    eos_token_id=proto.trainer_spec.eos_id,
    add_space_prefix=proto.normalizer_spec.add_dummy_prefix,
    **fields,
  )


def sentencepiece_from_gguf(fields):
  """The SentencePiece model that a GGUF file of kind llama was made from."""
  proto = sentencepiece_model_pb2.ModelProto()
  names = ('tokens', 'token_type', 'scores')
  rows = zip(*(fields[f'tokenizer.ggml.{n}'] for n in names), strict=True)
  unknown = fields['tokenizer.ggml.unknown_token_id']
  for i, (token, kind, score) in enumerate(rows):
    kind = 2 if i == unknown else kind
    token = token.replace(' ', '▁') if kind == 4 else token
    proto.pieces.add(piece=token, type=kind, score=score)
  spec = proto.trainer_spec
  spec.model_type, spec.byte_fallback = spec.BPE, True
  for name in ('unk', 'bos', 'eos'):
    key = 'unknown' if name == 'unk' else name
    index = fields[f'tokenizer.ggml.{key}_token_id']
    setattr(spec, f'{name}_id', index)
    setattr(spec, f'{name}_piece', proto.pieces[index].piece)
  spec.pad_id = -1
  proto.normalizer_spec.name = 'identity'
  proto.normalizer_spec.add_dummy_prefix = fields[
    'tokenizer.ggml.add_space_prefix'
  ]
  proto.normalizer_spec.remove_extra_whitespaces = False
  return sentencepiece.SentencePieceProcessor(
    model_proto=proto.SerializeToString()
  )


def plain_ids(theirs, text):
  """transformers' ids of data, whose control tokens are text."""
  return theirs(text, add_special_tokens=False, split_special_tokens=True)[
    'input_ids'
  ]


def family_tokenizer(pre):
  """The tokenizer that transformers builds for a family of this name.

  Not its own reading of GGUF (5.23), which leaves NFC out for qwen2, digits
  unsplit for smollm, and a word that is a token to its merges for llama-bpe.
  """
  import transformers
  from transformers.convert_slow_tokenizer import TikTokenConverter

  tokens, merges = train_byte_level()
  vocab = {token: i for i, token in enumerate([*tokens, *CONTROL, *WHOLE])}
  names = {'vocab': vocab, 'merges': merges}
  if pre == 'qwen2':
    theirs = transformers.Qwen2Tokenizer(**names)
  elif pre == 'llama-bpe':
    fast = tokenizers.Tokenizer(models.BPE(**names, ignore_merges=True))
    pattern = tokenizers.Regex(TikTokenConverter('').pattern)
    fast.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(pattern, 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    fast.decoder = decoders.ByteLevel()
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=fast)
  else:
    theirs = transformers.GPT2Tokenizer(
      **names, unk_token=CONTROL[0], bos_token=CONTROL[0], eos_token=CONTROL[0]
    )
    if pre == 'smollm':
      theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        theirs.backend_tokenizer.pre_tokenizer,
      ])  # fmt: skip
  theirs.add_special_tokens({'additional_special_tokens': CONTROL})
  theirs.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in WHOLE])
  return theirs
