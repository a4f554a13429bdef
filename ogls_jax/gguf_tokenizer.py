"""The tokenizer inside a GGUF file, rebuilt as a `tokenizers` one.

A GGUF header holds a vocabulary, the type of each token, and either merges
(kind gpt2: byte-level BPE) or scores (kind llama: SentencePiece's BPE).
"""

import dataclasses
import pathlib
from collections.abc import Callable

import gguf
import tokenizers
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from ogls_jax.errors import UserError

_SPACE = '▁'  # how SentencePiece spells a space


@dataclasses.dataclass(frozen=True)
class _ByteLevel:
  """What GGUF leaves to the reader of a byte-level BPE but its name.

  Attributes:
    split: makes the pre-tokenizer.
    is_nfc: text is normalized to NFC first.
    is_whole_word_first: a word that is a token is not merged from its bytes.
    adds_bos: where the file does not say.
  """

  split: Callable[[], pre_tokenizers.PreTokenizer]
  is_nfc: bool = False
  is_whole_word_first: bool = False
  adds_bos: bool = False


def _split_words(digits):
  """The word pattern that Qwen and Llama 3 share but for runs of digits."""
  pattern = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
  )
  return pre_tokenizers.Sequence([
    pre_tokenizers.Split(tokenizers.Regex(pattern), 'isolated'),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ])  # fmt: skip


def _split_gpt2():
  return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


# By `tokenizer.ggml.pre`; these are what the models' tokenizer.json hold.
_BYTE_LEVEL = {
  'gpt-2': _ByteLevel(_split_gpt2),
  'smollm': _ByteLevel(
    lambda: pre_tokenizers.Sequence([
      pre_tokenizers.Digits(individual_digits=True), _split_gpt2(),
    ])
  ),
  'qwen2': _ByteLevel(lambda: _split_words(r'\p{N}'), is_nfc=True),
  'llama-bpe': _ByteLevel(
    lambda: _split_words(r'\p{N}{1,3}'),
    is_whole_word_first=True,
    adds_bos=True,
  ),
}  # fmt: skip


def tokenizer_from_gguf(
  fields: dict[str, object], file: pathlib.Path
) -> tuple[tokenizers.Tokenizer, dict[str, object]]:
  """A tokenizer and what tokenizer_config.json would say of it.

  Args:
    fields: the GGUF header's.
    file: for messages.

  Raises:
    UserError: the kind is not supported, or the vocabulary is damaged.
  """
  kind, pre = (fields.get(f'tokenizer.ggml.{key}') for key in ('model', 'pre'))
  if kind == 'llama':
    build, adds_bos = _sentencepiece, True
  elif kind == 'gpt2' and pre in _BYTE_LEVEL:
    build, adds_bos = _byte_level, _BYTE_LEVEL[pre].adds_bos
  else:
    raise _error(
      file,
      f'a GGUF tokenizer of kind {kind} with pre-tokenizer {pre} is not'
      f' supported (kind llama is, and gpt2 with {", ".join(_BYTE_LEVEL)});'
      ' give tokenizer.json instead',
    )
  try:
    vocab = _Vocabulary.read(fields)
    fast = build(vocab, fields)
    config = _tokenizer_config(fields, vocab.tokens)
  except Exception as error:  # the library raises bare Exception
    raise _error(
      file, f'its vocabulary cannot be rebuilt ({error!r}); give tokenizer.json'
    ) from error
  bos = config.get('bos_token')
  if fields.get('tokenizer.ggml.add_bos_token', adds_bos) and bos is not None:
    fast.post_processor = processors.TemplateProcessing(
      single=[bos, '$A'],
      pair=[bos, '$A', '$B'],
      special_tokens=[(bos, fast.token_to_id(bos))],
    )
  return fast, config


def _error(file, problem):
  return UserError(f'model.tokenizer_path = {file}: {problem}')


@dataclasses.dataclass(frozen=True)
class _Vocabulary:
  """Tokens and their types, by id."""

  tokens: list[str]
  types: list[int]

  @classmethod
  def read(cls, fields):
    tokens = fields['tokenizer.ggml.tokens']
    types = fields['tokenizer.ggml.token_type']
    if not len(set(tokens)) == len(tokens) == len(types):
      raise ValueError(
        f'{len(tokens)} tokens, {len(set(tokens))} different ones,'
        f' {len(types)} types'
      )
    return cls(tokens, types)

  def of(self, *kinds):
    """{token: id} of the given types."""
    pairs = enumerate(zip(self.tokens, self.types, strict=True))
    return {token: i for i, (token, kind) in pairs if kind in kinds}

  def spelled(self):
    """{token: id} without the ids that only fill the embedding up."""
    padding = self.of(gguf.TokenType.UNUSED)
    return {t: i for i, t in enumerate(self.tokens) if t not in padding}


def _byte_level(vocab, fields):
  rules = _BYTE_LEVEL[fields['tokenizer.ggml.pre']]
  merges = [tuple(m.split(' ')) for m in fields['tokenizer.ggml.merges']]
  fast = tokenizers.Tokenizer(
    models.BPE(
      vocab=vocab.spelled(),
      merges=merges,
      ignore_merges=rules.is_whole_word_first,
    )
  )
  if rules.is_nfc:
    fast.normalizer = normalizers.NFC()
  fast.pre_tokenizer = rules.split()
  fast.decoder = decoders.ByteLevel()
  fast.add_special_tokens(_control_tokens(vocab))
  # Known as a whole, but ordinary text.
  fast.add_tokens([
    tokenizers.AddedToken(token, normalized=False)
    for token in vocab.of(gguf.TokenType.USER_DEFINED)
  ])  # fmt: skip
  return fast


def _control_tokens(vocab):
  return list(vocab.of(gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN))


def _sentencepiece(vocab, fields):
  """Merges in the order of scores give SentencePiece's own result.

  A prefix space is put at the start of a text and after a control token in
  it, as in these models' tokenizer.json. After a user-defined token there is
  one too, which SentencePiece itself does not put; no such model is known.
  """
  has_prefix = fields.get('tokenizer.ggml.add_space_prefix', True)
  # Their spaces are spelled out in GGUF, those of other tokens are not.
  whole = {
    token: token.replace(' ', _SPACE)
    for token in vocab.of(gguf.TokenType.USER_DEFINED)
  }
  if has_prefix and any(_SPACE in text for text in whole.values()):
    raise ValueError('user-defined tokens with spaces and a prefix space')
  unknown = fields.get('tokenizer.ggml.unknown_token_id')
  has_bytes = len(vocab.of(gguf.TokenType.BYTE)) == 256
  if unknown is None and not has_bytes:
    raise ValueError('neither an unknown token nor 256 byte tokens')
  scores = fields['tokenizer.ggml.scores']
  fast = tokenizers.Tokenizer(
    models.BPE(
      vocab={whole.get(t, t): i for t, i in vocab.spelled().items()},
      merges=_merges(vocab.of(gguf.TokenType.NORMAL), scores),
      unk_token=None if unknown is None else vocab.tokens[unknown],
      fuse_unk=True,
      byte_fallback=has_bytes,
    )
  )
  spaces = normalizers.Replace(' ', _SPACE)
  decode = [
    decoders.Replace(_SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(),
  ]  # fmt: skip
  if has_prefix:
    spaces = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
    decode.append(decoders.Strip(' ', left=1))
  fast.normalizer = spaces
  fast.decoder = decoders.Sequence(decode)
  fast.add_special_tokens(_control_tokens(vocab))
  # Found in the normalized text, where a run of spaces is spelled as they
  # are; but a prefix would become part of them.
  fast.add_tokens([
    tokenizers.AddedToken(text, normalized=not has_prefix)
    for text in whole.values()
  ])  # fmt: skip
  return fast


def _merges(pieces, scores):
  """Every way to make a piece of two others, the best score first.

  Of one piece's, the longer left half first: SentencePiece merges the leftmost
  pair of those that tie, and in a repeated text both orders are there.
  """
  found = []
  for piece, i in pieces.items():
    score = scores[i]
    for cut in range(len(piece) - 1, 0, -1):
      left, right = piece[:cut], piece[cut:]
      if left in pieces and right in pieces:
        found.append((score, left, right))
  found.sort(key=lambda merge: -merge[0])  # stable
  return [(left, right) for _, left, right in found]


def _tokenizer_config(fields, tokens):
  """The keys of tokenizer_config.json that GGUF has a word for."""
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
  }
  for name, key in (
    ('bos', 'bos'), ('eos', 'eos'), ('unk', 'unknown'), ('pad', 'padding'),
  ):  # fmt: skip
    key = f'tokenizer.ggml.{key}_token_id'
    if (index := fields.get(key)) is None:
      continue
    if index >= len(tokens):
      raise ValueError(f'{key} = {index} of {len(tokens)} tokens')
    config[f'{name}_token'] = tokens[index]
  if template := fields.get('tokenizer.chat_template'):
    config['chat_template'] = template
  return config
