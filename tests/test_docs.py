"""Commands in the documentation name files, modules and keys that exist."""

import pathlib
import re
import runpy

import pytest

from configs import default
from ogls_jax.json_file import flat

TEXTS = [
  pathlib.Path('README.md'),
  pathlib.Path('CONTRIBUTING.md'),
  *pathlib.Path('docs').glob('*.md'),
  *pathlib.Path('configs').glob('*.py'),
  *pathlib.Path('benchmarks').glob('*.py'),
]


FOLDERS = 'docs|tests|benchmarks|configs|launch'


def has_key(key):
  tree = default.get_config()
  for part in key.split('.'):
    if part not in tree:
      return False
    tree = tree[part]
  return True


@pytest.mark.parametrize('path', TEXTS, ids=str)
def test_what_a_text_names_exists(path):
  text = path.read_text(encoding='utf-8')
  for key in re.findall(r'--config\.([a-z0-9_.]+)=', text):
    assert has_key(key), key
  files = re.findall(r'--config=([\w/.]+\.py)', text)
  files += re.findall(rf'`((?:{FOLDERS})/[\w/.]+)', text)
  modules = re.findall(r'python -m ((?:ogls_jax|benchmarks)[\w.]*)', text)
  files += [module.replace('.', '/') + '.py' for module in modules]
  for file in files:
    assert pathlib.Path(file).exists(), file


def test_readme_has_the_two_commands_that_check_runs():
  readme = pathlib.Path('README.md').read_text(encoding='utf-8')
  check = pathlib.Path('launch/check.sh').read_text(encoding='utf-8')
  main = 'python -m ogls_jax.train --config=configs/tiny.py --workdir='
  assert f'pip install -r requirements.txt && {main}runs/tiny' in readme
  assert 'pip install -r requirements-test.txt && python -m pytest' in readme
  assert main in check
  assert 'pip install -q -r requirements-test.txt' in check
  assert '\npython -m pytest -n 2 --dist loadfile\n' in check


def test_the_page_of_keys_is_that_of_the_defaults():
  make_page = runpy.run_path('docs/make_configs.py')['make_page']
  page = pathlib.Path('docs/configs.md').read_text(encoding='utf-8')
  assert page == make_page(), 'run python docs/make_configs.py'
  keys = flat(default.get_config().to_dict())
  assert sorted(re.findall(r'(?m)^\| `([\w.]+)` \|', page)) == sorted(keys)
  unexplained = re.findall(r'(?m)^\| `([\w.]+)` \| .* \| +\|$', page)
  assert unexplained == []
