"""Prompt text for student and teacher, and its token ids."""

import dataclasses
import logging
import pathlib
import re

import jinja2.sandbox
import numpy as np

from ogls_jax import hosts
from ogls_jax.batches import PromptBatch, pad_rows
from ogls_jax.errors import UserError
from ogls_jax.numerics import round_up
from ogls_jax.tasks.question import Question
from ogls_jax.tokenizer import Tokenizer

_TEMPLATES = pathlib.Path(__file__).parent / 'templates'
_THINKING = re.compile(r'<think>.*?(</think>|\Z)\s*', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class PromptMaker:
  """Renders questions, with or without a hint, to token ids.

  Attributes:
    tokenizer: its chat template, if it has one, wraps the rendered text.
    student: template of the student's message; sees `question`.
    teacher: template of the teacher's; sees `question` and `hint`.
    is_student_thinking, is_teacher_thinking: what the chat template is told;
      False needs `tokenizer.has_thinking_switch`.
  """

  tokenizer: Tokenizer
  student: jinja2.Template
  teacher: jinja2.Template
  is_student_thinking: bool = True
  is_teacher_thinking: bool = True

  def student_ids(self, question: Question) -> list[int]:
    """The student's prompt."""
    text = self.student.render(question=question.question)
    return self.tokenizer.encode_chat(
      text, is_thinking=self.is_student_thinking
    )

  def anchor_ids(self, question: Question) -> list[int]:
    """The teacher's prompt without a hint (z0): the student's message."""
    text = self.student.render(question=question.question)
    return self.tokenizer.encode_chat(
      text, is_thinking=self.is_teacher_thinking
    )

  def teacher_ids(self, question: Question, hint: str) -> list[int]:
    """The teacher's prompt with one hint; one wording for right and wrong."""
    text = self.teacher.render(question=question.question, hint=hint)
    return self.tokenizer.encode_chat(
      text, is_thinking=self.is_teacher_thinking
    )


def template_path(name: str) -> pathlib.Path:
  """Where a template is: a path, or a name among the packaged ones."""
  if '.' in name or '/' in name:
    return pathlib.Path(name)
  return _TEMPLATES / f'{name}.jinja'


def load_template(
  key: str, name: str, fields: tuple[str, ...] = ('question',)
) -> jinja2.Template:
  """A template by path, or by name among the packaged ones.

  Raises:
    UserError: `name` is neither, is not a Jinja template, does not show every
      one of `fields`, or asks for more.
  """
  path = template_path(name)
  if not path.is_file():
    known = ', '.join(sorted(p.stem for p in _TEMPLATES.glob('*.jinja')))
    raise UserError(f'{key} = {name!r} is no file and none of: {known}')
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined
  )
  marks = {field: f'<{field}>' for field in fields}
  try:
    template = environment.from_string(path.read_text(encoding='utf-8'))
    text = template.render(marks)
  except jinja2.TemplateSyntaxError as error:
    raise UserError(f'{key} = {str(path)!r}:{error.lineno}: {error}') from error
  except (OSError, UnicodeError, jinja2.TemplateError) as error:
    raise UserError(f'{key} = {str(path)!r}: {error}') from error
  for field, mark in marks.items():
    if mark not in text:
      raise UserError(f'{key} = {str(path)!r} does not show {{{{ {field} }}}}')
  return template


def strip_thinking(text: str) -> str:
  """Drops <think> blocks, an unclosed one up to the end of the text."""
  return _THINKING.sub('', text)


def check_prompt_lengths(
  questions: list[Question],
  maker: PromptMaker,
  *,
  max_tokens: int,
  on_bad_row: str,
) -> tuple[list[Question], int]:
  """Questions whose prompt fits the budget, and how many did not.

  Raises:
    UserError: a prompt is longer than `max_tokens` and `on_bad_row` is
      'error', or no question fits.
  """
  kept, longest, long_ids = [], 0, []
  for question in questions:
    length = len(maker.student_ids(question))
    longest = max(longest, length)
    if length <= max_tokens:
      kept.append(question)
      continue
    long_ids.append(question.id)
    if on_bad_row == 'error':
      raise UserError(
        f'question {question.id!r} takes {length} prompt tokens, more than'
        f' prompt.max_tokens = {max_tokens}; raise it, or set'
        ' data.on_bad_row=skip to leave such questions out'
      )
  if not kept:
    raise UserError(
      f'no question fits prompt.max_tokens = {max_tokens}; the longest takes'
      f' {longest}'
    )
  if long_ids:
    logging.getLogger(__name__).warning(
      'left out %d questions longer than prompt.max_tokens = %d, the first %r',
      len(long_ids), max_tokens, long_ids[0],
    )  # fmt: skip
  return kept, len(long_ids)


def make_prompt_batch(
  questions: list[Question],
  uids: list[int],
  maker: PromptMaker,
  *,
  bucket_tokens: int,
) -> PromptBatch:
  """Tokenizes a batch on the host, padded to a multiple of `bucket_tokens`.

  To the same one on all hosts, each of which has to call it.
  """
  rows = [maker.student_ids(question) for question in questions]
  (longest,) = hosts.largest(max(map(len, rows)))
  return PromptBatch(
    tokens_BP=pad_rows(rows, round_up(longest, bucket_tokens)),
    length_B=np.array([len(row) for row in rows], np.int32),
    uid_B=np.array(uids, np.uint32),
  )
