"""Prompts of chat models against transformers' apply_chat_template."""

import dataclasses
import runpy

import pytest
from tokenizer_files import (
  CONTROL,
  CORPUS,
  family_tokenizer,
  plain_ids,
  train_byte_level,
)
from tokenizers import processors

from ogls_jax import build
from ogls_jax.errors import UserError
from ogls_jax.tokenizer import load_tokenizer

pytest.importorskip('transformers')


@dataclasses.dataclass(frozen=True)
class Style:
  """How a family's template is written, and what its tokenizer declares."""

  template: str
  pre: str
  eos: str
  bos: str | None = None
  ends: tuple[str, ...] = ()  # by generation_config.json


QWEN25 = Style(
  """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {{- '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
  'qwen2',
  '<|im_end|>',
)
QWEN3 = Style(
  """{%- set seen = namespace(last=messages|length - 1) %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
  'qwen2',
  '<|im_end|>',
)
LLAMA3 = Style(
  """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today is " + date_string + ".\\n\\n<|eot_id|>" }}
{%- if tools is not none %}
    {{- tools | tojson(indent=4) }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
  'llama-bpe',
  '<|end_of_text|>',
  '<|begin_of_text|>',
  ('<|end_of_text|>', '<|eom_id|>', '<|eot_id|>'),
)
SMOLLM2 = Style(
  "{% for message in messages %}{% if loop.first and messages[0]['role'] !="
  " 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
  "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] +"
  " '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|im_start|>assistant\n' }}{% endif %}",
  'smollm',
  '<|im_end|>',
  '<|im_start|>',
)
GEMMA3 = Style(
  """{{ bos_token }}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must take turns") }}
    {%- endif -%}
    {%- set role = "model" if message.role == "assistant" else message.role -%}
    {{ '<start_of_turn>' + role + '\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
""",
  'gpt-2',
  '<eos>',
  '<bos>',
  ('<eos>', '<end_of_turn>'),
)
# What none of the above needs: a filter, a tag, a loop's end, whitespace that
# depends on how blocks are trimmed.
ODD = Style(
  """{# a comment #}
  {% for message in messages %}
    {% if loop.index0 == 1 %}{% break %}{% endif %}
    {{ message | tojson }}<&>
    {% generation %}
      {{ pad_token if pad_token is defined else 'none' }}
    {% endgeneration %}
  {% endfor %}
{{ bos_token is defined }}{{ documents is none }}{{ dict(a=1) }}
""",
  'qwen2',
  '<|im_end|>',
)
STYLES = {
  'qwen25': QWEN25,
  'qwen3': QWEN3,
  'llama3': LLAMA3,
  'smollm2': SMOLLM2,
  'gemma3': GEMMA3,
  'odd': ODD,
}


def make(folder, style, template=True):
  """transformers' tokenizer of a family, and ours from the folder it saved."""
  theirs = family_tokenizer(style.pre)
  theirs.eos_token, theirs.bos_token = style.eos, style.bos
  theirs.pad_token = None
  if style.bos and style.pre != 'smollm':
    # These tokenizers also start a text with BOS.
    theirs.backend_tokenizer.post_processor = processors.TemplateProcessing(
      single=[style.bos, '$A'],
      special_tokens=[(style.bos, theirs.bos_token_id)],
    )
  if template:
    theirs.chat_template = style.template
  theirs.save_pretrained(folder)
  if style.ends:
    ids = theirs.convert_tokens_to_ids(list(style.ends))
    text = f'{{"eos_token_id": {ids}}}'
    (folder / 'generation_config.json').write_text(text)
  return theirs, load_tokenizer(folder)


def chat_ids(theirs, text, **variables):
  return theirs.apply_chat_template(
    [{'role': 'user', 'content': text}],
    add_generation_prompt=True,
    return_dict=False,
    # Ours leave the function of today's date undefined.
    date_string='26 Jul 2024',
    **variables,
  )


@pytest.mark.parametrize('name', STYLES)
def test_prompts_are_those_of_transformers(tmp_path, name):
  theirs, ours = make(tmp_path, STYLES[name])
  for text in CORPUS:
    assert ours.encode(text) == plain_ids(theirs, text), text
    assert ours.encode_chat(text) == chat_ids(theirs, text), text
  if STYLES[name].bos and name != 'smollm2':
    ids = ours.encode_chat('a')
    assert ids.count(theirs.bos_token_id) == 1 and ids[0] == theirs.bos_token_id


@pytest.mark.parametrize(
  ('template', 'message'),
  [
    # Nested, as Jinja bounds one range by itself.
    (
      '{% for i in range(9999) %}{% for j in range(9999) %}'
      '{{ messages }}{% endfor %}{% endfor %}',
      'more than 4,000,000 characters',
    ),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", 'unsafe'),
    ('{{ messages.__init__.__globals__ }}', 'unsafe'),
    ("{{ messages.append('x') }}", 'unsafe'),
    ('{{ range(999999999) }}', 'too big'),
  ],
)
def test_a_hostile_template_is_one_line(tmp_path, template, message):
  with pytest.raises(UserError, match=f'chat template failed .*{message}'):
    make(tmp_path, dataclasses.replace(QWEN25, template=template))


def test_a_template_may_refuse(tmp_path):
  refusal = "{{ raise_exception('system first, please') }}"
  with pytest.raises(UserError, match=r'failed \(system first, please\)'):
    make(tmp_path, dataclasses.replace(QWEN25, template=refusal))


@pytest.mark.parametrize('name', ['llama3', 'smollm2', 'qwen25'])
def test_without_a_template_bos_is_the_tokenizers_own(tmp_path, name):
  theirs, ours = make(tmp_path, STYLES[name], template=False)
  for text in CORPUS:
    start = theirs('')['input_ids']
    assert ours.encode_chat(text) == start + ours.encode(text)
  assert len(start) == (name == 'llama3')


def test_ends_of_each_family(tmp_path):
  size = len(train_byte_level()[0])
  # Every family's vocabulary here holds every known end.
  known = {
    '<|endoftext|>', '<|im_end|>', '<|eot_id|>', '<|eom_id|>',
    '<|end_of_text|>', '<eos>', '<end_of_turn>',
  }  # fmt: skip
  turn = {'llama3': '<|eot_id|>', 'gemma3': '<end_of_turn>'}
  for name in ('qwen25', 'qwen3', 'llama3', 'smollm2', 'gemma3'):
    _, ours = make(tmp_path / name, STYLES[name])
    ends = sorted(size + CONTROL.index(token) for token in known)
    assert list(ours.eos_ids) == ends
    token = turn.get(name, '<|im_end|>')
    assert ours.eos_id == size + CONTROL.index(token)


def test_thinking_is_switched_off_by_the_template(tmp_path):
  theirs, ours = make(tmp_path, QWEN3)
  assert ours.has_thinking_switch
  for is_thinking in (True, False):
    ids = chat_ids(theirs, 'a b', enable_thinking=is_thinking)
    assert ours.encode_chat('a b', is_thinking=is_thinking) == ids
  more = ours.encode('<think>\n\n</think>\n\n')
  assert ours.encode_chat('a', is_thinking=False) == (
    ours.encode_chat('a') + more
  )


@pytest.mark.parametrize('key', ['student_thinking', 'teacher_thinking'])
def test_thinking_off_needs_a_template_that_can(tmp_path, key):
  config = runpy.run_path('configs/default.py')['get_config']()
  config.prompt[key] = False
  for name in ('qwen25', 'smollm2', 'none'):
    folder = tmp_path / name
    make(folder, STYLES.get(name, QWEN25), template=name != 'none')
    config.model.tokenizer_path = str(folder)
    with pytest.raises(UserError, match=f'prompt.{key} = False.*={True}'):
      build.load_maker(config)
  make(tmp_path / 'qwen3', QWEN3)
  config.model.tokenizer_path = str(tmp_path / 'qwen3')
  maker = build.load_maker(config)
  assert maker.is_student_thinking == (key != 'student_thinking')
  assert maker.is_teacher_thinking == (key != 'teacher_thinking')


def test_a_control_token_the_model_has_no_row_of_stays_text(tmp_path):
  """As Gemma 3's, which has one more for images than its text-only models."""
  theirs, _ = make(tmp_path, QWEN25)
  rows = len(theirs)
  theirs.add_special_tokens({'additional_special_tokens': ['<image>']})
  theirs.save_pretrained(tmp_path)
  assert rows in load_tokenizer(tmp_path).encode_chat('<image>')
  (tmp_path / 'config.json').write_text(f'{{"vocab_size": {rows}}}')
  ours = load_tokenizer(tmp_path)
  assert ours.vocab_size == rows
  assert max(ours.encode_chat('<image>')) < rows
  assert ours.encode_chat('a') == chat_ids(theirs, 'a')


@pytest.mark.parametrize('path', ['package:absent_package', 'absent/folder'])
def test_a_tokenizer_path_is_resolved_under_its_own_key(path):
  config = runpy.run_path('configs/default.py')['get_config']()
  config.model.tokenizer_path = path
  with pytest.raises(UserError, match='model.tokenizer_path = .*absent'):
    build.load_maker(config)
