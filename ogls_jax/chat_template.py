"""A model's own chat template: Jinja source that becomes prompt text."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import jinja2
import jinja2.ext
import jinja2.sandbox

from ogls_jax.errors import UserError

# Of a prompt; the longest context of a model has fewer.
MAX_CHARS = 4_000_000


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A compiled template, run in a sandbox: it is untrusted code.

  Attributes:
    template: what Jinja made of the source.
    file: where the source lies, for messages.
    special_tokens: spelled out by name (`bos_token`); those the model has.
  """

  template: jinja2.Template
  file: pathlib.Path
  special_tokens: Mapping[str, str]

  def prompt(self, user_text: str, *, is_thinking: bool = True) -> str:
    """One user message, up to where the model answers."""
    return self._render(
      [{'role': 'user', 'content': user_text}],
      add_generation_prompt=True,
      is_thinking=is_thinking,
    )

  def has_thinking_switch(self) -> bool:
    """Whether a prompt without thinking differs from one with it."""
    return self.prompt('question') != self.prompt('question', is_thinking=False)

  def end_of_turn(self) -> str:
    """What follows an assistant's message: its end token and maybe more."""
    text = self._render(
      [
        {'role': 'user', 'content': 'question'},
        {'role': 'assistant', 'content': 'answer'},
      ],
      add_generation_prompt=False,
      is_thinking=True,
    )
    return text.rpartition('answer')[2]

  def _render(self, messages, *, add_generation_prompt, is_thinking):
    pieces, size = [], 0
    try:
      for piece in self.template.generate(
        **self.special_tokens,
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=is_thinking,
        tools=None,
        documents=None,
      ):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_CHARS:
          raise jinja2.TemplateError(f'more than {MAX_CHARS:,} characters')
    # The template is a program: any exception can come out of it.
    except Exception as error:
      raise UserError(
        f'model.tokenizer_path = {self.file}: its chat template failed'
        f' ({error}); use a model with another template, or mend this one'
      ) from error
    return ''.join(pieces)


class _Generation(jinja2.ext.Extension):
  """{% generation %} marks what an assistant wrote and shows it as it is."""

  tags = {'generation'}

  def parse(self, parser):
    """Called by Jinja at the tag."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return jinja2.nodes.Scope(body).set_lineno(line)


def _raise_exception(message):
  raise jinja2.TemplateError(message)


def _to_json(
  value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
):
  # Jinja's own escapes what HTML would read.
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def compile_template(
  source: str, file: pathlib.Path, *, special_tokens: Mapping[str, str]
) -> ChatTemplate:
  """Compiles a template's source; the arguments are those of the result."""
  # Whitespace, filters and tags as templates are written for: those of
  # transformers' apply_chat_template.
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, 'jinja2.ext.loopcontrols'],
  )
  # Dates (`strftime_now`) stay undefined: templates then use a fixed one, and
  # the same question gives the same ids every day.
  environment.globals['raise_exception'] = _raise_exception
  environment.filters['tojson'] = _to_json
  try:
    template = environment.from_string(source)
  except jinja2.TemplateError as error:
    raise UserError(
      f'model.tokenizer_path = {file}: its chat template does not parse'
      f' ({error})'
    ) from error
  return ChatTemplate(template, file, special_tokens)


def read_template(folder: pathlib.Path, config: dict) -> str | None:
  """The source of a folder's template, or None.

  Args:
    folder: chat_template.jinja in it wins over `config`, as in transformers.
    config: the folder's tokenizer_config.json.
  """
  file = folder / 'chat_template.jinja'
  if file.is_file():
    try:
      return file.read_text(encoding='utf-8')
    except (OSError, UnicodeError) as error:
      raise UserError(
        f'model.tokenizer_path = {file}: not readable as UTF-8 ({error})'
      ) from error
  template = config.get('chat_template')
  if isinstance(template, list):  # several, by name
    try:
      by_name = {entry['name']: entry['template'] for entry in template}
    except (KeyError, TypeError) as error:
      raise _no_template(folder, template) from error
    if 'default' not in by_name:
      raise UserError(
        f'model.tokenizer_path = {folder}: chat templates {sorted(by_name)} but'
        ' no default; put the wanted one into chat_template.jinja'
      )
    template = by_name['default']
  if not isinstance(template, str | None):
    raise _no_template(folder, template)
  return template


def _no_template(folder, found):
  return UserError(
    f'model.tokenizer_path = {folder}: chat_template = {found!r:.60} is no'
    ' template; mend tokenizer_config.json'
  )
