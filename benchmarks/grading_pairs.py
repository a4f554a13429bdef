"""Pairs (answer, reference): references as they are, rewritten, and missed."""

import gzip
import json
import pathlib
import random
import re

FILES = (
  'math500/test.jsonl',
  'math/test.jsonl',
  'math/train.jsonl.gz',
  'aime24/test.jsonl',
  'amc23/test.jsonl',
  'gsm8k/test.jsonl',
)
_INTEGER = re.compile(r'(?<![0-9.,A-Za-z\\_^{])-?[0-9]+(?![0-9.,])')


def load_references(folder: pathlib.Path) -> list[str]:
  """Distinct reference answers of the data sets that are there, sorted."""
  answers = set()
  for name in FILES:
    path = folder / name
    if path.exists():
      opener = gzip.open if path.suffix == '.gz' else open
      with opener(path, 'rt', encoding='utf-8') as f:
        answers |= {json.loads(line)['answer'].strip() for line in f}
  return sorted(answers)


def make_pairs(
  references: list[str], *, num_pairs: int, seed: int
) -> list[tuple[str, str, str]]:
  """(kind, answer, reference), distinct; half plain integers at most.

  `kind` is the name of the change that made the answer from the reference.
  """
  rng = random.Random(seed)
  integers = [a for a in references if re.fullmatch('-?[0-9]+', a)]
  others = [a for a in references if a not in set(integers)]
  changes = {name: f for name, f in globals().items() if name in CHANGES}
  pairs = {}
  while len(pairs) < num_pairs:
    reference = rng.choice(others if rng.random() < 0.8 else integers)
    name = rng.choice(CHANGES)
    answer = changes[name](reference, rng)
    if answer is not None and answer != reference:
      pairs[answer, reference] = name
  return [(name, *pair) for pair, name in pairs.items()]


# What does not change the value.


def spaces(text, rng):
  if '\\text' in text or '\\mbox' in text or '\\!' in text or '{,}' in text:
    return None
  text = re.sub(r' ?([-+=]) ?', r' \1 ', text)
  return re.sub(r',(?![0-9]{3}) ?', ', ', text)


def no_spaces(text, rng):
  if re.search(r'[0-9], [0-9]{3}|\\ ', text):
    return None
  return re.sub(r'(?<![A-Za-z]) | (?![A-Za-z])', '', text)


def display_fractions(text, rng):
  return re.sub(r'\\[dt]?frac', r'\\dfrac', text)


def slashes(text, rng):
  pattern = r'(?<![0-9 ])\\frac\{(\d+)\}\{(\d+)\}(?=$|[,)\]])'
  return re.sub(pattern, r'\1/\2', text)


def big_brackets(text, rng):
  text = re.sub(r'\\(?:left|right)', '', text)
  if not re.match(r'[(\[].*[)\]]$', text) or '(' in text[1:]:
    return None
  return f'\\left{text[:-1]}\\right{text[-1]}'


def decimals(text, rng):
  match = re.fullmatch(r'(-?)\\frac\{(\d+)\}\{(\d+)\}', text)
  if match and 10**6 % int(match[3]) == 0:
    return f'{match[1]}{int(match[2]) / int(match[3])}'
  return f'{text}.0' if re.fullmatch('-?[0-9]+', text) else None


def thousands(text, rng):
  if re.fullmatch('-?[0-9]{4,}', text):
    return f'{int(text):,}'
  return None


def twice_the_fraction(text, rng):
  def scaled(match):
    return f'\\frac{{{2 * int(match[1])}}}{{{2 * int(match[2])}}}'

  return re.sub(r'\\frac\{(\d+)\}\{(\d+)\}', scaled, text)


def as_a_sum(text, rng):
  if not re.fullmatch('-?[0-9]+', text):
    return None
  part = rng.randint(1, 50)
  return f'{int(text) - part}+{part}'


def as_a_product(text, rng):
  if not re.fullmatch('[0-9]+', text) or int(text) % 2:
    return None
  return f'2 \\cdot {int(text) // 2}'


def root_of_the_square(text, rng):
  match = re.fullmatch(r'(\d+) ?\\sqrt\{(\d+)\}', text)
  if match:
    return f'\\sqrt{{{int(match[1]) ** 2 * int(match[2])}}}'
  return None


def with_a_name(text, rng):
  is_other = re.search(r'[=,<>:x]|\\text|\\overline|[A-Z]', text)
  return None if is_other else f'x = {text}'


def without_a_name(text, rng):
  match = re.fullmatch(r'[a-z] ?= ?(.+)', text)
  return match[1] if match else None


def reordered_list(text, rng):
  if re.search(r'[(\[{|]', text) or re.search(r'[0-9],(\\!)?[0-9]{3}', text):
    return None
  items = re.split(r', ?', text)
  return ', '.join(items[::-1]) if len(items) > 1 else None


def reordered_sum(text, rng):
  match = re.fullmatch(r'([0-9a-z^]+) ?\+ ?([0-9a-z^]+|\d*\\sqrt\{\d+\})', text)
  return f'{match[2]} + {match[1]}' if match else None


def reordered_union(text, rng):
  parts = re.split(r' ?\\cup ?', text)
  return ' \\cup '.join(parts[::-1]) if len(parts) > 1 else None


def expanded(text, rng):
  match = re.fullmatch(r'\(([a-z])([-+]\d+)\)\(\1([-+]\d+)\)', text)
  if match is None:
    return None
  x, a, b = match[1], int(match[2]), int(match[3])
  return f'{x}^2{a + b:+}{x}{a * b:+}'


def degrees(text, rng):
  match = re.fullmatch(r'([0-9.]+)\^\{?\\circ\}?', text)
  return match[1] if match else None


def units(text, rng):
  match = re.fullmatch(r'([0-9.]+) ?\\(?:text|mbox)\{ ?[a-z ]+\}', text)
  return match[1] if match else None


def percent(text, rng):
  match = re.fullmatch(r'([0-9]+)\\?%', text)
  return match and rng.choice([match[1], f'{int(match[1]) / 100:g}'])


def plain_words(text, rng):
  match = re.fullmatch(r'\\text\{\(?([A-Za-z]+)\)?\}', text)
  return match and match[1]


# What does.


def another_number(text, rng):
  return _at_one_number(text, rng, lambda n: n + rng.choice([-2, -1, 1, 2, 10]))


def another_sign(text, rng):
  return _at_one_number(text, rng, lambda n: -n)


def upside_down(text, rng):
  pattern = r'\\frac\{(\d+)\}\{(\d+)\}'
  match = re.search(pattern, text)
  if match is None or match[1] == match[2]:
    return None
  return text.replace(match[0], f'\\frac{{{match[2]}}}{{{match[1]}}}')


def another_end(text, rng):
  if not re.match(r'[(\[].*,.*[)\]]$', text):
    return None
  other = {'(': '[', '[': '(', ')': ']', ']': ')'}
  if '\\infty' not in text.partition(',')[0]:
    return other[text[0]] + text[1:]
  if '\\infty' not in text.rpartition(',')[2]:
    return text[:-1] + other[text[-1]]
  return None


def one_item_less(text, rng):
  if re.search(r'[(\[{|=]', text) or re.search(r'[0-9],(\\!)?[0-9]{3}', text):
    return None
  items = re.split(r', ?', text)
  return ', '.join(items[1:]) if len(items) > 1 else None


def swapped_pair(text, rng):
  match = re.fullmatch(r'\(([^,()]+),([^,()]+)\)', text)
  if match is None or match[1].strip() == match[2].strip():
    return None
  return f'({match[2]},{match[1]})'


def another_letter(text, rng):
  return re.sub(r'(?<![A-Za-z\\])x(?![A-Za-z])', 'y', text)


def another_root(text, rng):
  def more(match):
    return f'\\sqrt{{{int(match[1]) + 1}}}'

  return re.sub(r'\\sqrt\{(\d+)\}', more, text, count=1)


def _at_one_number(text, rng, change):
  if '\\text' in text:
    return None
  numbers = list(_INTEGER.finditer(text))
  if not numbers:
    return None
  match = rng.choice(numbers)
  number = str(change(int(match[0])))
  return text[: match.start()] + number + text[match.end() :]


SAME = (
  'spaces', 'no_spaces', 'display_fractions', 'slashes', 'big_brackets',
  'decimals', 'thousands', 'twice_the_fraction', 'as_a_sum', 'as_a_product',
  'root_of_the_square', 'with_a_name', 'without_a_name', 'reordered_list',
  'reordered_sum', 'reordered_union', 'expanded', 'degrees', 'units',
  'percent', 'plain_words',
)  # fmt: skip
OTHER = (
  'another_number', 'another_sign', 'upside_down', 'another_end',
  'one_item_less', 'swapped_pair', 'another_letter', 'another_root',
)  # fmt: skip
CHANGES = SAME + OTHER
