"""One interface over SentencePiece models, tokenizer.json and GGUF files.

  load_tokenizer(path) -> Tokenizer

The kind of file decides: *.model, *.gguf, tokenizer.json, or a folder that
holds tokenizer.json (with its configs beside it) or tokenizer.model.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Sequence

import gguf
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ogls_jax.chat_template import compile_template, read_template
from ogls_jax.errors import UserError
from ogls_jax.gguf_file import read_gguf_header

# Control tokens that end a turn or a document in the families we know. A file
# declares one or two of them, but a model may sample any that it has.
_END_TOKENS = (
  '<|im_end|>', '<|endoftext|>', '<|eot_id|>', '<|end_of_text|>',
  '<end_of_turn>', '<eos>', '</s>',
)  # fmt: skip

# GGUF names the split that precedes byte-level BPE and leaves its definition
# to the reader; these are what the tokenizer.json of the same models holds.
_PRE_TOKENIZERS = {
  'smollm': lambda: pre_tokenizers.Sequence([
    pre_tokenizers.Digits(individual_digits=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
  ]),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text to token ids and back, and how the model is spoken to.

  Attributes:
    vocab_size: number of ids; a model's embedding may have more rows.
    eos_ids: every id that ends a response, ascending.
    eos_id: the one of them that is appended to a solution: what the chat
      template puts after an assistant's turn, else the declared one.
    encode: text to ids and nothing added. A control token spelled out in the
      text stays plain text, so that data cannot end or open a turn.
    encode_chat: ids of a prompt with one user message, up to where the model
      answers. Without a chat template: the text itself, after BOS if the file
      adds one. With a template, control tokens are recognised in the user's
      text too, as everywhere where such templates are used.
    decode: ids to text, control tokens dropped.
  """

  vocab_size: int
  eos_ids: tuple[int, ...]
  eos_id: int
  encode: Callable[[str], list[int]]
  encode_chat: Callable[[str], list[int]]
  decode: Callable[[Sequence[int]], str]


def has_same_ids(a: Tokenizer, b: Tokenizer) -> bool:
  """Whether every id means the same text to both."""
  return (
    a.vocab_size == b.vocab_size
    and a.eos_ids == b.eos_ids
    and all(a.decode([i]) == b.decode([i]) for i in range(a.vocab_size))
  )


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
  """Loads a tokenizer by kind of file; UserError says what is wrong with it."""
  path = pathlib.Path(path).expanduser()
  if path.is_dir():
    return _load_folder(path)
  if not path.is_file():
    raise _error(
      path,
      'no such file; give a .model, .gguf or tokenizer.json file, or a folder'
      ' that holds one',
    )
  if path.suffix == '.gguf':
    return _load_gguf(path)
  if path.suffix == '.model':
    return _load_sentencepiece(path)
  if path.suffix == '.json':
    return _load_json(path)
  raise _error(
    path, 'unknown kind of file; give a .model, .gguf or tokenizer.json file'
  )


def _error(file, problem):
  return UserError(f'model.tokenizer_path = {file}: {problem}')


def _no_eos(file):
  return _error(
    file,
    'it declares no end-of-sequence token of its vocabulary; set eos_token in'
    ' the tokenizer_config.json beside it',
  )


def _load_folder(folder):
  if (folder / 'tokenizer.json').is_file():
    return _load_json(folder / 'tokenizer.json')
  model = folder / 'tokenizer.model'
  if not model.is_file():
    raise _error(folder, 'holds neither tokenizer.json nor tokenizer.model')
  if read_template(folder, _read_json(folder / 'tokenizer_config.json')):
    raise _error(
      folder,
      f'a chat template needs tokenizer.json; add it, or give {model} to do'
      ' without the template',
    )
  return _load_sentencepiece(model)


def _load_sentencepiece(file):
  try:
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
  except (OSError, RuntimeError) as error:
    raise _error(file, 'not a SentencePiece model') from error
  size = model.get_piece_size()
  eos_id = model.eos_id()
  if eos_id < 0:
    raise _no_eos(file)
  known = {model.piece_to_id(token) for token in _END_TOKENS}
  bos = [model.bos_id()] if model.bos_id() >= 0 else []
  return Tokenizer(
    vocab_size=size,
    eos_ids=tuple(sorted({eos_id} | {i for i in known if model.is_control(i)})),
    eos_id=eos_id,
    encode=model.encode,
    encode_chat=lambda text: bos + model.encode(text),
    # Ids past the vocabulary exist where the embedding is padded.
    decode=lambda ids: model.decode(
      [int(i) for i in ids if i < size and not model.is_control(int(i))]
    ),
  )


def _load_json(file):
  try:
    fast = tokenizers.Tokenizer.from_file(str(file))
  except Exception as error:  # the library raises bare Exception
    raise _error(file, f'not a tokenizer.json ({error})') from error
  fast.no_truncation()  # a file may carry either; both would change our ids
  fast.no_padding()
  config = _read_json(file.parent / 'tokenizer_config.json')
  declared = []
  for name in ('generation_config.json', 'config.json'):
    ids = _read_json(file.parent / name).get('eos_token_id')
    declared += ids if isinstance(ids, list) else [ids]

  def token(kind):
    # Either the token or the fields of an AddedToken.
    value = config.get(f'{kind}_token')
    return value['content'] if isinstance(value, dict) else value

  bos = token('bos')
  has_bos = config.get('add_bos_token')
  if has_bos is None:
    # The file's own post-processor says what a text starts with.
    bos_id = fast.token_to_id(bos) if bos else None
    has_bos = bos_id is not None and bos_id in fast.encode('').ids[:1]
  return _make(
    fast,
    file,
    bos=bos,
    eos=token('eos'),
    more_eos_ids=[i for i in declared if i is not None],
    has_bos=has_bos,
    template=read_template(file.parent, config),
  )


def _read_json(file):
  """A JSON object, or {} where there is no such file."""
  if not file.is_file():
    return {}
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
  except ValueError as error:
    raise _error(file, f'not JSON ({error}); mend or remove it') from error
  if not isinstance(content, dict):
    raise _error(file, 'not a JSON object')
  return content


def _load_gguf(file):
  fields = read_gguf_header(file).fields
  fast = _bpe_from_gguf(fields, file)

  def token(kind):
    index = fields.get(f'tokenizer.ggml.{kind}_token_id')
    return None if index is None else fast.id_to_token(index)

  return _make(
    fast,
    file,
    bos=token('bos'),
    eos=token('eos'),
    more_eos_ids=[],
    has_bos=bool(fields.get('tokenizer.ggml.add_bos_token', False)),
    template=fields.get('tokenizer.chat_template'),
  )


def _bpe_from_gguf(fields, file):
  kind, pre = (fields.get(f'tokenizer.ggml.{key}') for key in ('model', 'pre'))
  if kind != 'gpt2' or pre not in _PRE_TOKENIZERS:
    raise _error(
      file,
      f'a GGUF tokenizer of kind {kind} with pre-tokenizer {pre} is not'
      f' supported yet (kind gpt2 with {", ".join(_PRE_TOKENIZERS)} is); give'
      ' tokenizer.json instead',
    )
  try:
    tokens = fields['tokenizer.ggml.tokens']
    types = fields['tokenizer.ggml.token_type']
    merges = [tuple(m.split(' ')) for m in fields['tokenizer.ggml.merges']]
    vocab = {token: i for i, token in enumerate(tokens)}
    fast = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
  except Exception as error:  # the library raises bare Exception
    raise _error(file, f'its vocabulary is damaged ({error!r})') from error
  if not len(vocab) == len(tokens) == len(types):
    raise _error(
      file,
      f'{len(tokens)} tokens, {len(vocab)} different ones, {len(types)} types',
    )
  fast.pre_tokenizer = _PRE_TOKENIZERS[pre]()
  fast.decoder = decoders.ByteLevel()

  def of_types(*kinds):
    pairs = zip(tokens, types, strict=True)
    return [token for token, kind in pairs if kind in kinds]

  fast.add_special_tokens(
    of_types(gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN)
  )
  # Known as a whole, but ordinary text.
  whole = of_types(gguf.TokenType.USER_DEFINED)
  fast.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in whole])
  return fast


def _make(fast, file, *, bos, eos, more_eos_ids, has_bos, template):
  """A Tokenizer from a `tokenizers` one and what its file declares."""
  size = max(fast.get_vocab().values(), default=-1) + 1
  for kind, token in (('bos', bos), ('eos', eos)):
    if token is not None and fast.token_to_id(token) is None:
      raise _error(file, f'{kind}_token {token!r} is not in its vocabulary')
  declared = [] if eos is None else [fast.token_to_id(eos)]
  declared += more_eos_ids
  if not declared or not all(0 <= i < size for i in declared):
    raise _no_eos(file)
  ends = {
    index
    for index, token in fast.get_added_tokens_decoder().items()
    if token.special and token.content in _END_TOKENS
  }
  eos_ids = tuple(sorted(ends.union(declared)))
  eos_id = declared[0]
  plain = tokenizers.Tokenizer.from_str(fast.to_str())
  plain.encode_special_tokens = True  # spelled-out control tokens stay text
  encode = functools.partial(_ids, plain)
  if template:
    chat = compile_template(
      template, file, bos_token=bos or '', eos_token=eos or ''
    )
    end = chat.end_of_turn()
    found = [(end.find(fast.id_to_token(i)), i) for i in eos_ids]
    found = [pair for pair in found if pair[0] >= 0]
    eos_id = min(found, default=(0, eos_id))[1]
    # The template writes BOS itself where the model wants one.
    encode_chat = lambda text: _ids(fast, chat.prompt(text))  # noqa: E731
  else:
    start = [fast.token_to_id(bos)] if has_bos and bos is not None else []
    encode_chat = lambda text: start + encode(text)  # noqa: E731
  return Tokenizer(
    vocab_size=size,
    eos_ids=eos_ids,
    eos_id=eos_id,
    encode=encode,
    encode_chat=encode_chat,
    decode=lambda ids: fast.decode([int(i) for i in ids]),
  )


def _ids(fast, text):
  return fast.encode(text, add_special_tokens=False).ids
