"""Writes docs/configs.md from the keys and comments of configs/default.py.

python docs/make_configs.py
"""

import ast
import io
import json
import pathlib
import runpy
import sys
import tokenize

ROOT = pathlib.Path(__file__).parent.parent
SOURCE = ROOT / 'configs' / 'default.py'


def comments_of(source: str) -> dict[int, tuple[str, bool]]:
  """By line: the comment, and whether it has the line to itself."""
  found = {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      is_alone = not token.line[: token.start[1]].strip()
      found[token.start[0]] = token.string.lstrip('# '), is_alone
  return found


def keys_of(tree: ast.Module):
  """(dotted key, first line, last line) of every key, in order."""
  functions = {
    node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)
  }

  def of_value(prefix, value, first):
    if isinstance(value, ast.Call) and ast.unparse(value.func) in (
      'config_dict.create', *functions,
    ):  # fmt: skip
      yield prefix, first, first
      name = ast.unparse(value.func)
      if name in functions:
        returned = functions[name].body[-1]
        value = returned.value
      for keyword in value.keywords:
        yield from of_value(
          f'{prefix}.{keyword.arg}', keyword.value, keyword.lineno
        )
    else:
      yield prefix, first, value.end_lineno

  for node in functions['get_config'].body:
    if isinstance(node, ast.Assign):
      target = ast.unparse(node.targets[0])
      if target.startswith('config.'):
        key = target.removeprefix('config.')
        yield from of_value(key, node.value, node.lineno)


def make_page() -> str:
  """docs/configs.md."""
  source = SOURCE.read_text(encoding='utf-8')
  comments, tree = comments_of(source), ast.parse(source)
  values = json.loads(runpy.run_path(str(SOURCE))['get_config']().to_json())
  lines = [
    '# Config keys',
    '',
    'Every key of `configs/default.py` with its default. Any can be set:',
    '`--config.KEY=VALUE`. Other configs change some of them.',
    '(`python docs/make_configs.py` makes this page.)',
  ]
  lines += ['', '| key | default | |', '|---|---|---|']
  for key, first, last in keys_of(tree):
    above = []
    line = first - 1
    while line in comments and comments[line][1]:
      above.insert(0, comments[line][0])
      line -= 1
    text = ' '.join(above)
    if last in comments and not comments[last][1]:
      text = f'{text} {comments[last][0]}'.strip()
    value = values
    for part in key.split('.'):
      value = value[part]
    if isinstance(value, dict):
      lines += ['', f'## {key}', '']
      lines += [text, ''] if text else []
      lines += ['| key | default | |', '|---|---|---|']
    else:
      shown = json.dumps(value).replace('|', '\\|')
      lines.append(f'| `{key}` | `{shown}` | {_cell(text)} |')
  return '\n'.join(lines) + '\n'


def _cell(text):
  return text.replace('|', '\\|').replace('<', '&lt;')


if __name__ == '__main__':
  (ROOT / 'docs' / 'configs.md').write_text(make_page(), encoding='utf-8')
  sys.stdout.write('wrote docs/configs.md\n')
