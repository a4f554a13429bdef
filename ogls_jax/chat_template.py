"""A model's own chat template: Jinja source that becomes prompt text."""

import dataclasses
import pathlib

import jinja2
import jinja2.sandbox

from ogls_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A compiled template, run in a sandbox: it is untrusted code.

  Attributes:
    template: what Jinja made of the source.
    file: where the source lies, for messages.
    bos_token, eos_token: spelled out, '' if the model has none.
  """

  template: jinja2.Template
  file: pathlib.Path
  bos_token: str
  eos_token: str

  def prompt(self, user_text: str) -> str:
    """One user message, up to where the model answers."""
    return self._render(
      [{'role': 'user', 'content': user_text}], add_generation_prompt=True
    )

  def end_of_turn(self) -> str:
    """What follows an assistant's message: its end token and maybe more."""
    text = self._render(
      [
        {'role': 'user', 'content': 'question'},
        {'role': 'assistant', 'content': 'answer'},
      ],
      add_generation_prompt=False,
    )
    return text.rpartition('answer')[2]

  def _render(self, messages, *, add_generation_prompt):
    try:
      return self.template.render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        bos_token=self.bos_token,
        eos_token=self.eos_token,
        tools=None,
      )
    # The template is a program: any exception can come out of it.
    except Exception as error:
      raise UserError(
        f'model.tokenizer_path = {self.file}: its chat template failed'
        f' ({error}); use a model with another template, or mend this one'
      ) from error


def compile_template(
  source: str, file: pathlib.Path, *, bos_token: str, eos_token: str
) -> ChatTemplate:
  """Compiles a template's source; the arguments are those of the result."""
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
      f'model.tokenizer_path = {file}: its chat template does not parse'
      f' ({error})'
    ) from error
  return ChatTemplate(template, file, bos_token, eos_token)


def read_template(folder: pathlib.Path, config: dict) -> str | None:
  """The source of a folder's template, or None.

  Args:
    folder: chat_template.jinja in it wins over `config`, as in transformers.
    config: the folder's tokenizer_config.json.
  """
  file = folder / 'chat_template.jinja'
  if file.is_file():
    return file.read_text(encoding='utf-8')
  template = config.get('chat_template')
  if isinstance(template, list):  # several, by name
    by_name = {entry['name']: entry['template'] for entry in template}
    if 'default' not in by_name:
      raise UserError(
        f'model.tokenizer_path = {folder}: chat templates {sorted(by_name)} but'
        ' no default; put the wanted one into chat_template.jinja'
      )
    return by_name['default']
  return template
