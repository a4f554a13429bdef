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
import shutil
from collections.abc import Callable, Sequence

import sentencepiece
import tokenizers

from ogls_jax.chat_template import compile_template, read_template
from ogls_jax.errors import UserError
from ogls_jax.gguf_file import read_gguf_header
from ogls_jax.gguf_tokenizer import tokenizer_from_gguf
from ogls_jax.json_file import read_json, save_json
from ogls_jax.sentencepiece_file import gguf_fields

# Control tokens that end a turn or a document in the families we know. A file
# declares one or two of them, but a model may sample any that it has.
_END_TOKENS = (
  '<|im_end|>', '<|endoftext|>', '<|eot_id|>', '<|eom_id|>',
  '<|end_of_text|>', '<end_of_turn>', '<eos>', '</s>',
)  # fmt: skip
# What a folder's tokenizer is spread over.
_FILES = (
  'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json',
  'vocab.json', 'merges.txt', 'tokenizer.model', 'chat_template.jinja',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text to token ids and back, and how the model is spoken to.

  Attributes:
    vocab_size: number of ids; a model's embedding may have more rows.
    eos_ids: every id that ends a response, ascending.
    eos_id: the one of them that is appended to a solution: what the chat
      template puts after an assistant's turn, else the declared one.
    has_thinking_switch: whether the chat template can turn thinking off.
    encode: text to ids and nothing added. A control token spelled out in the
      text stays plain text, so that data cannot end or open a turn.
    encode_chat: (text, *, is_thinking=True) to the ids of a prompt with one
      user message, up to where the model answers. Without a chat template:
      the text itself, after BOS if the file adds one. With a template, control
      tokens are recognised in the user's text too, as everywhere where such
      templates are used.
    decode: ids to text, control tokens dropped.
    token_of: an id as its vocabulary spells it; None if it is not in use.
    save: writes files to a folder from which transformers' AutoTokenizer, and
      we, load a tokenizer with these ids: a folder's own, or a tokenizer.json
      rebuilt from GGUF or .model (UserError for a .model that has no such
      form: unigram, or text rules like NFKC).
  """

  vocab_size: int
  eos_ids: tuple[int, ...]
  eos_id: int
  has_thinking_switch: bool
  encode: Callable[[str], list[int]]
  encode_chat: Callable[..., list[int]]
  decode: Callable[[Sequence[int]], str]
  token_of: Callable[[int], str | None]
  save: Callable[[pathlib.Path], None]


def has_same_ids(a: Tokenizer, b: Tokenizer) -> bool:
  """Whether every id is the same token to both."""
  return (
    a.vocab_size == b.vocab_size
    and a.eos_ids == b.eos_ids
    and all(a.token_of(i) == b.token_of(i) for i in range(a.vocab_size))
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


def _is_end(token, *, is_control):
  # Text may hold </s>, the end of what is struck out; Gemma's vocabulary does.
  return token in _END_TOKENS and (is_control or token != '</s>')  # noqa: S105


def _no_eos(file, way_out):
  return _error(file, f'it declares no end-of-sequence token; {way_out}')


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


def _read_json(file):
  """A JSON object, or {} where there is no such file."""
  return read_json(file, flag=f'model.tokenizer_path = {file.parent}') or {}


def _load_sentencepiece(file):
  try:
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
  except (OSError, RuntimeError) as error:
    raise _error(file, 'not a SentencePiece model') from error
  size = model.get_piece_size()
  eos_id = model.eos_id()
  if eos_id < 0:
    raise _no_eos(file, 'train it with one, or give another tokenizer')
  ends = {eos_id}
  for token in _END_TOKENS:
    index = model.piece_to_id(token)  # that of <unk> if there is none
    if model.id_to_piece(index) == token and _is_end(
      token, is_control=model.is_control(index)
    ):
      ends.add(index)
  bos = [model.bos_id()] if model.bos_id() >= 0 else []

  def encode_chat(text, *, is_thinking=True):
    assert is_thinking  # has_thinking_switch says so
    return bos + model.encode(text)

  def save(folder):
    _save_built(*tokenizer_from_gguf(gguf_fields(file), file), folder)

  return Tokenizer(
    vocab_size=size,
    eos_ids=tuple(sorted(ends)),
    eos_id=eos_id,
    has_thinking_switch=False,
    encode=model.encode,
    encode_chat=encode_chat,
    # Ids past the vocabulary exist where the embedding is padded.
    decode=lambda ids: model.decode(
      [int(i) for i in ids if i < size and not model.is_control(int(i))]
    ),
    token_of=model.id_to_piece,
    save=save,
  )


def _save_built(fast, config, folder):
  folder.mkdir(parents=True, exist_ok=True)
  fast.save(str(folder / 'tokenizer.json'))
  save_json(folder / 'tokenizer_config.json', config)


def _load_gguf(file):
  fields = read_gguf_header(file).fields
  fast, config = tokenizer_from_gguf(fields, file)
  ids = [fields.get(f'tokenizer.ggml.{x}_token_id') for x in ('eot', 'eom')]
  ids += fields.get('tokenizer.ggml.eos_token_ids', [])
  return _make(
    fast,
    file,
    config=config,
    more_eos_ids=ids,
    template=config.get('chat_template'),
    save=functools.partial(_save_built, fast, config),
  )


def _load_json(file):
  try:
    fast = tokenizers.Tokenizer.from_file(str(file))
  except Exception as error:  # the library raises bare Exception
    raise _error(file, f'not a tokenizer.json ({error})') from error
  fast.no_truncation()  # a file may carry either; both would change our ids
  fast.no_padding()
  folder = file.parent
  config = _read_json(folder / 'tokenizer_config.json')
  if 'added_tokens_decoder' not in config:  # as old files are read
    config |= _read_json(folder / 'special_tokens_map.json')
  ids = []
  for name in ('generation_config.json', 'config.json'):
    model = _read_json(folder / name)
    declared = model.get('eos_token_id')
    declared = declared if isinstance(declared, list) else [declared]
    if not all(i is None or type(i) is int for i in declared):
      raise _error(folder / name, f'eos_token_id = {declared} are no ids')
    ids += declared
  rows = (model.get('text_config') or model).get('vocab_size')

  def save(target):
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target / 'tokenizer.json')
    for name in _FILES:
      if (folder / name).is_file():
        shutil.copyfile(folder / name, target / name)

  return _make(
    _without_rowless(fast, rows),
    file,
    config=config,
    more_eos_ids=ids,
    template=read_template(folder, config),
    save=save,
  )


def _without_rowless(fast, rows):
  """Leaves control tokens out that the model has no embedding of.

  Gemma 3's text-only models share a tokenizer with those that see images, and
  so have one. Spelled out in a prompt it would be an id past the embedding.
  """
  if rows is None or max(fast.get_added_tokens_decoder(), default=0) < rows:
    return fast
  content = json.loads(fast.to_str())
  content['added_tokens'] = [
    token
    for token in content['added_tokens']
    if token['id'] < rows or not token['special']
  ]
  return tokenizers.Tokenizer.from_str(json.dumps(content))


def _special_tokens(config):
  """{'bos_token': '<s>', ...} from a tokenizer_config.json."""
  named = {}
  for key, value in config.items():
    # Either the token or the fields of an AddedToken; flags end alike.
    value = value.get('content') if isinstance(value, dict) else value
    if key.endswith('_token') and isinstance(value, str):
      named[key] = value
  return named


def _make(fast, file, *, config, more_eos_ids, template, save):
  """A Tokenizer from a `tokenizers` one and what its file declares."""
  named = _special_tokens(config)
  for key in ('bos_token', 'eos_token'):
    if key in named and fast.token_to_id(named[key]) is None:
      raise _error(file, f'{key} {named[key]!r} is not in its vocabulary')
  # A file may name a token special that its vocabulary holds as plain text.
  added = {t.content for t in fast.get_added_tokens_decoder().values()}
  fast.add_special_tokens([
    token
    for token in named.values()
    if token not in added and fast.token_to_id(token) is not None
  ])  # fmt: skip
  size = max(fast.get_vocab().values(), default=-1) + 1
  eos_ids, eos_id = _end_ids(fast, file, named, more_eos_ids, size)
  plain = tokenizers.Tokenizer.from_str(fast.to_str())
  plain.encode_special_tokens = True  # spelled-out control tokens stay text
  encode = functools.partial(_ids, plain)
  has_switch = False
  if template:
    chat = compile_template(template, file, special_tokens=named)
    has_switch = chat.has_thinking_switch()
    end = chat.end_of_turn()
    found = [(end.find(fast.id_to_token(i)), i) for i in eos_ids]
    found = [pair for pair in found if pair[0] >= 0]
    eos_id = min(found, default=(0, eos_id))[1]
  # What the file's own post-processor starts a text with.
  bos = fast.token_to_id(named.get('bos_token', ''))
  start = [i for i in fast.encode('').ids[:1] if i == bos]

  def encode_chat(text, *, is_thinking=True):
    assert is_thinking or has_switch
    if not template:
      return start + encode(text)
    # The template writes BOS itself where the model wants one.
    return _ids(fast, chat.prompt(text, is_thinking=is_thinking))

  return Tokenizer(
    vocab_size=size,
    eos_ids=eos_ids,
    eos_id=eos_id,
    has_thinking_switch=has_switch,
    encode=encode,
    encode_chat=encode_chat,
    decode=lambda ids: fast.decode([int(i) for i in ids]),
    token_of=fast.id_to_token,
    save=save,
  )


def _end_ids(fast, file, named, more_eos_ids, size):
  """(every id that ends a response, the declared one)."""
  declared = (
    [fast.token_to_id(named['eos_token'])] if 'eos_token' in named else []
  )
  declared += [i for i in more_eos_ids if i is not None]
  if not declared:
    raise _no_eos(
      file,
      'set eos_token in the tokenizer_config.json beside it, or give a folder'
      ' that has one',
    )
  for index in declared:
    if not 0 <= index < size:
      raise _error(
        file, f'its end token {index} is past its vocabulary of {size}'
      )
  ends = {
    index
    for index, token in fast.get_added_tokens_decoder().items()
    if _is_end(token.content, is_control=token.special)
  }
  return tuple(sorted(ends.union(declared))), declared[0]


def _ids(fast, text):
  return fast.encode(text, add_special_tokens=False).ids
