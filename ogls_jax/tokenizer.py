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
import jinja2
import jinja2.sandbox
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ogls_jax.errors import UserError

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
class ChatTemplate:
  """A model's own Jinja template, run in a sandbox: it is untrusted code."""

  template: jinja2.Template
  file: str
  has_thinking_switch: bool
  bos_token: str
  eos_token: str

  def render(
    self,
    messages: list[dict[str, str]],
    *,
    add_generation_prompt: bool,
    thinking: bool | None = None,
  ) -> str:
    """The conversation as text, control tokens spelled out."""
    switch = {} if thinking is None else {'enable_thinking': thinking}
    try:
      return self.template.render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        bos_token=self.bos_token,
        eos_token=self.eos_token,
        tools=None,
        **switch,
      )
    # The template is a program: any exception can come out of it.
    except Exception as error:
      raise UserError(
        f'tokenizer.path = {self.file}: its chat template failed ({error});'
        ' use a model with another template, or mend this one'
      ) from error


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text to token ids and back, and how the model is spoken to.

  Attributes:
    vocab_size: number of ids; a model's embedding may have more rows.
    eos_ids: every id that ends a response, ascending.
    eos_id: the one of them that is appended to a solution: what the chat
      template puts after an assistant's turn, else the declared one.
    pad_id: the declared one, else `eos_id`; masks come from lengths, never
      from comparing ids with it.
    bos_id: what a text starts with; None if the file adds nothing there.
    encode: text to ids and nothing added. A control token spelled out in the
      text stays plain text, so that data cannot end or open a turn.
    decode: ids to text, control tokens dropped.
  """

  vocab_size: int
  eos_ids: tuple[int, ...]
  eos_id: int
  pad_id: int
  bos_id: int | None
  encode: Callable[[str], list[int]]
  decode: Callable[[Sequence[int]], str]
  _encode_rendered: Callable[[str], list[int]] | None = None
  _chat: ChatTemplate | None = None

  @property
  def has_chat_template(self) -> bool:
    """Whether `encode_chat` wraps the text in a conversation."""
    return self._chat is not None

  def encode_chat(
    self, user_text: str, *, thinking: bool | None = None
  ) -> list[int]:
    """Ids of a prompt with one user message, up to where the model answers.

    Without a chat template: the text itself, after BOS if there is one. With
    one, control tokens are recognised in the user's text too, as everywhere
    where such templates are used.

    Args:
      user_text: the message.
      thinking: the template's `enable_thinking`; None leaves its default.
    """
    if thinking and not (self._chat and self._chat.has_thinking_switch):
      raise UserError(
        'thinking = True: this tokenizer has no chat template that knows'
        ' enable_thinking; leave it unset'
      )
    if self._chat is None:
      bos = [] if self.bos_id is None else [self.bos_id]
      return bos + self.encode(user_text)
    text = self._chat.render(
      [{'role': 'user', 'content': user_text}],
      add_generation_prompt=True,
      thinking=thinking,
    )
    return self._encode_rendered(text)


@dataclasses.dataclass(frozen=True)
class GgufHeader:
  """What a GGUF file says before its data.

  `tensors` has each one's shape in numpy's order, which GGUF reverses.
  """

  fields: dict[str, object]
  tensors: dict[str, tuple[int, ...]]


def open_gguf(file: pathlib.Path) -> gguf.GGUFReader:
  """Opens a GGUF file of a model, its tokenizer or both."""
  try:
    return gguf.GGUFReader(file)
  # A damaged file fails anywhere in the parser, with any exception.
  except Exception as error:
    raise UserError(
      f'model.path or tokenizer.path = {file}: not a readable GGUF file'
      f' ({error})'
    ) from error


def read_gguf_header(file: pathlib.Path) -> GgufHeader:
  """The header, kept for the last file: parsing a vocabulary takes seconds."""
  stat = os.stat(file)
  return _read_gguf_header(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)
def _read_gguf_header(file, mtime_ns, size):
  del mtime_ns, size  # only part of the cache's key
  reader = open_gguf(file)
  fields = {name: field.contents() for name, field in reader.fields.items()}
  shapes = {
    tensor.name: tuple(int(size) for size in reversed(tensor.shape))
    for tensor in reader.tensors
  }
  return GgufHeader(fields, shapes)


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
  """Loads a tokenizer by kind of file; UserError says what is wrong with it."""
  path = pathlib.Path(path).expanduser()
  if path.is_dir():
    return _load_folder(path)
  if not path.is_file():
    raise UserError(
      f'tokenizer.path = {path}: no such file; give a .model, .gguf or'
      ' tokenizer.json file, or a folder that holds one'
    )
  if path.suffix == '.gguf':
    return _load_gguf(path)
  if path.suffix == '.model':
    return _load_sentencepiece(path)
  if path.suffix == '.json':
    return _load_json(path)
  raise UserError(
    f'tokenizer.path = {path}: unknown kind of file; give a .model, .gguf or'
    ' tokenizer.json file'
  )


def _load_folder(folder):
  if (folder / 'tokenizer.json').is_file():
    return _load_json(folder / 'tokenizer.json')
  model = folder / 'tokenizer.model'
  if not model.is_file():
    raise UserError(
      f'tokenizer.path = {folder}: holds neither tokenizer.json nor'
      ' tokenizer.model'
    )
  if _read_template(folder, _read_json(folder / 'tokenizer_config.json')):
    raise UserError(
      f'tokenizer.path = {folder}: a chat template needs tokenizer.json; add'
      f' it, or give {model} to do without the template'
    )
  return _load_sentencepiece(model)


def _load_sentencepiece(file):
  try:
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
  except (OSError, RuntimeError) as error:
    raise UserError(
      f'tokenizer.path = {file}: not a SentencePiece model'
    ) from error
  size = model.get_piece_size()
  eos_id = model.eos_id()
  if eos_id < 0:
    raise _no_eos(file)
  known = {model.piece_to_id(token) for token in _END_TOKENS}
  return Tokenizer(
    vocab_size=size,
    eos_ids=tuple(sorted({eos_id} | {i for i in known if model.is_control(i)})),
    eos_id=eos_id,
    pad_id=model.pad_id() if model.pad_id() >= 0 else eos_id,
    bos_id=model.bos_id() if model.bos_id() >= 0 else None,
    encode=model.encode,
    # Ids past the vocabulary exist where the embedding is padded.
    decode=lambda ids: model.decode(
      [int(i) for i in ids if i < size and not model.is_control(int(i))]
    ),
  )


def _load_json(file):
  try:
    fast = tokenizers.Tokenizer.from_file(str(file))
  except Exception as error:  # the library raises bare Exception
    raise UserError(
      f'tokenizer.path = {file}: not a tokenizer.json ({error})'
    ) from error
  fast.no_truncation()  # a file may carry either; both would change our ids
  fast.no_padding()
  config = _read_json(file.parent / 'tokenizer_config.json')
  declared = []
  for name in ('generation_config.json', 'config.json'):
    ids = _read_json(file.parent / name).get('eos_token_id')
    declared += ids if isinstance(ids, list) else [ids]
  names = {}
  for kind in ('bos', 'eos', 'pad'):
    token = config.get(f'{kind}_token')
    # Either the token or the fields of an AddedToken.
    names[kind] = token['content'] if isinstance(token, dict) else token
  has_bos = config.get('add_bos_token')
  if has_bos is None:
    # The file's own post-processor says what a text starts with.
    bos_id = fast.token_to_id(names['bos']) if names['bos'] else None
    has_bos = bos_id is not None and bos_id in fast.encode('').ids[:1]
  return _make(
    fast,
    file,
    names=names,
    more_eos_ids=[i for i in declared if i is not None],
    has_bos=has_bos,
    template=_read_template(file.parent, config),
  )


def _load_gguf(file):
  fields = read_gguf_header(file).fields
  kind, pre = (fields.get(f'tokenizer.ggml.{key}') for key in ('model', 'pre'))
  if kind != 'gpt2' or pre not in _PRE_TOKENIZERS:
    raise UserError(
      f'tokenizer.path = {file}: a GGUF tokenizer of kind {kind} with'
      f' pre-tokenizer {pre} is not supported yet (kind gpt2 with'
      f' {", ".join(_PRE_TOKENIZERS)} is); give tokenizer.json instead'
    )
  try:
    tokens = fields['tokenizer.ggml.tokens']
    types = fields['tokenizer.ggml.token_type']
    merges = [tuple(m.split(' ')) for m in fields['tokenizer.ggml.merges']]
    vocab = {token: i for i, token in enumerate(tokens)}
    fast = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
  except Exception as error:  # the library raises bare Exception
    raise UserError(
      f'tokenizer.path = {file}: its vocabulary is damaged ({error!r})'
    ) from error
  if not len(vocab) == len(tokens) == len(types):
    raise UserError(
      f'tokenizer.path = {file}: {len(tokens)} tokens, {len(vocab)} different'
      f' ones, {len(types)} types'
    )
  fast.pre_tokenizer = _PRE_TOKENIZERS[pre]()
  fast.decoder = decoders.ByteLevel()
  control = (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN)
  typed = list(zip(tokens, types, strict=True))
  fast.add_special_tokens([token for token, kind in typed if kind in control])
  # Known as a whole, but ordinary text.
  user_defined = gguf.TokenType.USER_DEFINED
  fast.add_tokens(
    [
      tokenizers.AddedToken(token, normalized=False)
      for token, kind in typed
      if kind == user_defined
    ]
  )

  def token(name):
    index = fields.get(f'tokenizer.ggml.{name}_token_id')
    return None if index is None else fast.id_to_token(index)

  return _make(
    fast,
    file,
    names={'bos': token('bos'), 'eos': token('eos'), 'pad': token('padding')},
    more_eos_ids=[],
    has_bos=bool(fields.get('tokenizer.ggml.add_bos_token', False)),
    template=fields.get('tokenizer.chat_template'),
  )


def _make(fast, file, *, names, more_eos_ids, has_bos, template):
  """A Tokenizer from a `tokenizers` one and what its file declares."""
  size = max(fast.get_vocab().values(), default=-1) + 1
  ids = {}
  for kind, token in names.items():
    ids[kind] = None if token is None else fast.token_to_id(token)
    if token is not None and ids[kind] is None:
      raise UserError(
        f'tokenizer.path = {file}: {kind}_token {token!r} is not in its'
        ' vocabulary'
      )
  special = {
    token.content: index
    for index, token in fast.get_added_tokens_decoder().items()
    if token.special
  }
  declared = [i for i in (ids['eos'], *more_eos_ids) if i is not None]
  if not declared or not all(0 <= i < size for i in declared):
    raise _no_eos(file)
  ends = {special[token] for token in _END_TOKENS if token in special}
  eos_ids = tuple(sorted(ends.union(declared)))
  eos_id = declared[0]
  chat = None
  if template:
    chat = _compile_template(template, file, names)
    eos_id = _turn_end(chat, {fast.id_to_token(i): i for i in eos_ids}, eos_id)
  plain = tokenizers.Tokenizer.from_str(fast.to_str())
  plain.encode_special_tokens = True  # spelled-out control tokens stay text
  return Tokenizer(
    vocab_size=size,
    eos_ids=eos_ids,
    eos_id=eos_id,
    pad_id=eos_id if ids['pad'] is None else ids['pad'],
    bos_id=ids['bos'] if has_bos else None,
    encode=lambda text: plain.encode(text, add_special_tokens=False).ids,
    decode=lambda ids: fast.decode([int(i) for i in ids]),
    # The template writes BOS itself where the model wants one.
    _encode_rendered=lambda text: (
      fast.encode(text, add_special_tokens=False).ids
    ),
    _chat=chat,
  )


def _turn_end(chat, end_tokens, default):
  """The id that the template puts after an assistant's message."""
  text = chat.render(
    [
      {'role': 'user', 'content': 'question'},
      {'role': 'assistant', 'content': 'answer'},
    ],
    add_generation_prompt=False,
  )
  after = text.rpartition('answer')[2]
  found = [(after.find(token), i) for token, i in end_tokens.items()]
  return min((pair for pair in found if pair[0] >= 0), default=(0, default))[1]


def _compile_template(source, file, names):
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=['jinja2.ext.loopcontrols'],
  )

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  # Dates (`strftime_now`) stay undefined: templates then use a fixed one, and
  # the same question gives the same ids every day.
  environment.globals['raise_exception'] = raise_exception
  try:
    template = environment.from_string(source)
  except jinja2.TemplateError as error:
    raise UserError(
      f'tokenizer.path = {file}: its chat template does not parse ({error})'
    ) from error
  return ChatTemplate(
    template=template,
    file=str(file),
    has_thinking_switch='enable_thinking' in source,
    bos_token=names['bos'] or '',
    eos_token=names['eos'] or '',
  )


def _read_template(folder, config):
  """The template's source, or None. The file wins, as in transformers."""
  file = folder / 'chat_template.jinja'
  if file.is_file():
    return file.read_text(encoding='utf-8')
  template = config.get('chat_template')
  if isinstance(template, list):  # several, by name
    by_name = {entry['name']: entry['template'] for entry in template}
    if 'default' not in by_name:
      raise UserError(
        f'tokenizer.path = {folder}: chat templates {sorted(by_name)} but no'
        ' default; put the wanted one into chat_template.jinja'
      )
    return by_name['default']
  return template


def _read_json(file):
  """A JSON object, or {} where there is no such file."""
  if not file.is_file():
    return {}
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
  except ValueError as error:
    raise UserError(
      f'tokenizer.path = {file}: not JSON ({error}); mend or remove it'
    ) from error
  if not isinstance(content, dict):
    raise UserError(f'tokenizer.path = {file}: not a JSON object')
  return content


def _no_eos(file):
  return UserError(
    f'tokenizer.path = {file}: it declares no end-of-sequence token of its'
    ' vocabulary; set eos_token in the tokenizer_config.json beside it'
  )
