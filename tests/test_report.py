"""The page of a run: what it holds, and how bad input is told."""

import base64
import gzip
import json
import re
import subprocess
import sys

import pytest

from ogls_jax import report, report_data
from ogls_jax.errors import UserError
from tests.report_runs import (
  inspected_row,
  make_run,
  metrics_row,
  sample_row,
  write_lines,
)


def read_page(path):
  """(text of the page, what it was given)."""
  text = path.read_text(encoding='utf-8')
  (data,) = re.findall(r'id="data">([A-Za-z0-9+/=]*)</script>', text)
  return text, json.loads(gzip.decompress(base64.b64decode(data)))


def report_of(workdir):
  assert report.main([str(workdir)]) == 0
  return read_page(workdir / 'report.html')


def test_it_holds_the_run(tmp_path):
  inspected = [inspected_row(10, ['1', ' + ', '2'], seed=k) for k in range(3)]
  samples = [
    sample_row(10, 0),
    {k: inspected[0][k] for k in sample_row(1, 1)},  # the same rollout
  ]
  make_run(tmp_path, inspected=inspected, samples=samples, seed=3)
  _, run = report_of(tmp_path)
  assert (run['method'], run['last_step'], run['num_steps']) == (
    'ogls_sd', 40, 40,
  )  # fmt: skip
  assert run['summary']['accuracy_gain']['mean'] == 0.434
  assert run['curves']['every'] == 1 and len(run['curves']['step']) == 40
  assert run['curves']['loss'][-1] == pytest.approx(0.2, abs=0.03)
  found = run['rollouts']
  assert (found['num_inspected'], found['num_samples']) == (3, 1)
  assert [row.get('tokens') for row in found['list']] == [
    *(row['tokens'] for row in inspected), None,
  ]  # fmt: skip
  top = inspected[0]['top']['steered'][0]
  assert found['list'][0]['top']['steered'][0] == [round(p * 1e4) for p in top]
  settings = {row['key']: row for row in run['config']}
  assert settings['seed'] == {'key': 'seed', 'value': 3, 'default': 0}
  assert (
    settings['optimizer.b1']['value'] == settings['optimizer.b1']['default']
  )


def test_nothing_of_it_comes_from_elsewhere(tmp_path):
  make_run(tmp_path, inspected=[inspected_row(1, ['https://a.b/c.js'])])
  text, _ = report_of(tmp_path)
  assert not re.search(r'\b(src|href)="(?!#)', text)
  links = set(re.findall(r'https?://[^\s\'"]+', text))
  assert links == {'http://www.w3.org/2000/svg'}
  (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
  assert policy.startswith("default-src 'none'; script-src &#39;sha256-") or (
    policy.startswith("default-src 'none'; script-src 'sha256-")
  )
  assert 'unsafe' not in policy and '*' not in policy


@pytest.mark.parametrize(
  'name',
  ['</title><script>alert(1)</script>', 'a"onload="x', "it's", '&amp;<b>'],
)
def test_a_folder_may_have_any_name(tmp_path, name):
  folder = tmp_path / name.replace('/', '\u2215')
  make_run(folder)
  text, run = report_of(folder)
  assert run['name'] == folder.name
  assert text.count('<script') == 2
  assert '"onload=' not in text and '<b>' not in text.partition('<style>')[0]


def test_warnings_are_those_of_the_training(tmp_path):
  make_run(tmp_path)
  rows = [metrics_row(step, 60) for step in range(1, 61)]
  for row in rows:
    row['reward_mean'] = 0.6 if row['step'] < 41 else 0.1
    row['updates_skipped'] = float(row['step'] >= 50)
  write_lines(tmp_path / 'metrics.jsonl', rows)
  _, run = report_of(tmp_path)
  found = [
    (row['step'], row['text'].split(' is ')[0]) for row in run['warnings']
  ]
  assert (41, 'reward_mean = 0.1') in found
  assert (50, 'the update') in found
  assert run['num_warnings'] == len(found) == 2


def test_a_large_run_stays_under_5_mb_and_says_what_it_leaves_out(tmp_path):
  # 1,024 tokens each, as the paper's window has, of a vocabulary of 151,936.
  texts = [f' word{k}' for k in range(1024)]
  inspected = [
    inspected_row(
      step, texts, seed=seed, rest=' and so on' * 2000, vocabulary=151_936
    )
    for step in range(25, 275, 25)
    for seed in range(4)
  ]
  samples = [
    sample_row(step, seed, response='word ' * 8000)
    for step in range(10, 5000, 10)
    for seed in range(2)
  ]
  make_run(tmp_path, num_steps=20_000, inspected=inspected, samples=samples)
  raw = (tmp_path / 'inspect.jsonl').stat().st_size
  assert raw > 2 * report.MOST_BYTES
  _, run = report_of(tmp_path)
  size = (tmp_path / 'report.html').stat().st_size
  assert report.MOST_BYTES / 2 < size < report.MOST_BYTES
  found = run['rollouts']
  assert 15 < found['num_inspected_shown'] < found['num_inspected'] == 40
  assert 0 < found['num_samples_shown'] <= found['num_samples'] == 998
  # From all over the run, and in order.
  steps = [row['step'] for row in found['list'] if 'tokens' in row]
  assert steps == sorted(steps) and steps[0] == 25 and steps[-1] == 250
  assert len(set(steps)) == 10
  curves = run['curves']
  assert curves['every'] == 40 and len(curves['step']) == 500
  assert curves['step'][-1] == 20_000


def test_one_rollout_that_does_not_fit_hides_no_other(tmp_path):
  inspected = [inspected_row(step, ['1', '2']) for step in range(1, 40)]
  # At the last step, which comes first.
  texts = [f' w{k}' for k in range(3000)]
  inspected.append(inspected_row(40, texts, vocabulary=151_936))
  make_run(tmp_path, inspected=inspected)
  found = report_data.read_run(tmp_path, most_bytes=100_000)['rollouts']
  assert found['num_inspected'] == 40 and found['num_inspected_shown'] == 39


def test_a_sample_is_left_out_for_its_twin_with_tokens_alone(tmp_path):
  """Three rollouts with one text, of which one has tokens; one is shown so."""
  inspected = [inspected_row(1, ['1', '2'])]
  twin = {k: inspected[0][k] for k in sample_row(1, 1)}
  make_run(tmp_path, inspected=inspected, samples=[twin] * 3)
  found = report_data.read_run(tmp_path, most_bytes=10**6)['rollouts']
  assert (found['num_inspected_shown'], found['num_samples_shown']) == (1, 2)
  # And none is, where that with tokens does not fit.
  large = [inspected_row(1, [f' w{k}' for k in range(3000)])]
  twin = {k: large[0][k] for k in sample_row(1, 1)}
  make_run(tmp_path / 'large', inspected=large, samples=[twin] * 2)
  found = report_data.read_run(tmp_path / 'large', most_bytes=70_000)[
    'rollouts'
  ]
  assert (found['num_inspected_shown'], found['num_samples_shown']) == (0, 2)


def test_points_are_means_of_updates_in_a_row():
  rows = [{'step': n, 'time': 0.0, 'loss': float(n)} for n in range(1, 1002)]
  rows[1]['loss'] = None
  rows[4]['later'] = 7.0  # of a version that measures more
  curves = report_data._curves(rows)
  assert curves['every'] == 3
  assert curves['step'][:2] == [3, 6] and curves['step'][-1] == 1001
  # 1, None, 3; 4, 5, 6; ...; 1000, 1001
  assert curves['loss'][:2] == [2.0, 5.0] and curves['loss'][-1] == 1000.0
  assert 'time' not in curves
  assert curves['later'][:3] == [None, 7.0, None]


def test_a_run_that_goes_on_is_only_read(tmp_path):
  make_run(
    tmp_path, is_finished=False, inspected=[inspected_row(1, ['1', '2'])]
  )
  for name in ('metrics.jsonl', 'inspect.jsonl', 'samples.jsonl'):
    with (tmp_path / name).open('ab') as file:
      file.write('{"step": 41, "x": "é'.encode()[:-1])
  before = {x.name: x.read_bytes() for x in tmp_path.iterdir()}
  out = tmp_path / 'out' / 'page.html'
  out.parent.mkdir()
  assert report.main([str(tmp_path), f'--out={out}']) == 0
  _, run = read_page(out)
  assert run['last_step'] == 40 and run['summary'] is None
  assert run['rollouts']['num_inspected_shown'] == 1
  after = {x.name: x.read_bytes() for x in tmp_path.iterdir() if x.is_file()}
  assert after == before
  assert [x.name for x in out.parent.iterdir()] == ['page.html']


def test_a_run_without_a_line_yet(tmp_path):
  make_run(tmp_path, is_finished=False)
  for name in ('metrics.jsonl', 'inspect.jsonl', 'samples.jsonl'):
    (tmp_path / name).unlink()
  _, run = report_of(tmp_path)
  assert run['curves'] == {'every': 1, 'step': []} and run['last_step'] == 0
  assert run['rollouts']['list'] == []


def test_what_is_not_finite_is_no_number(tmp_path):
  row = inspected_row(1, ['1', '2'], divergence=[None, 0.5])
  make_run(tmp_path, inspected=[row])
  (tmp_path / 'summary.json').write_text('{"a": NaN, "b": [Infinity]}')
  _, run = report_of(tmp_path)
  assert run['summary'] == {'a': None, 'b': [None]}
  assert run['rollouts']['list'][0]['divergence'] == [None, 0.5]


@pytest.mark.parametrize(
  ('name', 'content', 'text'),
  [
    ('config.json', None, 'has no config.json'),
    ('config.json', '[]', 'config.json holds no JSON object'),
    ('metrics.jsonl', '{"step": 1}\n{"loss"\n', 'metrics.jsonl:2'),
    ('inspect.jsonl', '{"stop": 1}\n', 'inspect.jsonl:1'),
    ('inspect.jsonl', '{"step": 1, "tokens": []}\n', 'row of step 1'),
    ('samples.jsonl', '3\n', 'samples.jsonl:1'),
    ('samples.jsonl', '{"step": 1, "id": "1"}\n', 'samples.jsonl: a row of'),
    ('samples.jsonl', '{"step": 1, "id": [1]}\n', 'samples.jsonl: a row of'),
    ('metrics.jsonl', '{"step": null}\n', 'step = None is no integer'),
    ('metrics.jsonl', '{"step": NaN}\n', 'step = nan is no integer'),
    ('metrics.jsonl', '{"step": "1"}\n', "step = '1' is no integer"),
    ('summary.json', '{', 'summary.json is not readable'),
  ],
)
def test_a_broken_file_is_one_line(tmp_path, capsys, name, content, text):
  make_run(tmp_path)
  (tmp_path / name).unlink()
  if content is not None:
    (tmp_path / name).write_text(content)
  assert report.main([str(tmp_path)]) == 2
  said = capsys.readouterr().err
  assert said.startswith('error: ') and said.count('\n') == 1 and text in said
  assert not (tmp_path / 'report.html').exists()


def test_what_is_missing_is_no_run_without_updates(tmp_path, capsys):
  make_run(tmp_path)
  (tmp_path / 'summary.json').write_text('{}')
  (tmp_path / 'metrics.jsonl').unlink()
  assert report.main([str(tmp_path)]) == 2
  assert 'a summary.json and no metrics.jsonl' in capsys.readouterr().err
  (tmp_path / 'config.json').rename(tmp_path / 'comparison.json')
  assert report.main([str(tmp_path)]) == 2
  assert 'such as one in its runs/' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['divergence', 'token_ids', 'top', 'own'])
def test_a_row_that_lacks_tokens_is_one_line(tmp_path, capsys, name):
  row = inspected_row(1, ['1', '2'])
  of_tokens = row[name]
  if isinstance(of_tokens, dict):
    of_tokens = next(iter(of_tokens.values()))
  of_tokens.pop()
  make_run(tmp_path, inspected=[row])
  assert report.main([str(tmp_path)]) == 2
  assert 'inspect.jsonl: a row of step 1' in capsys.readouterr().err


def test_bad_arguments_are_one_line_and_exit_code_2(tmp_path):
  make_run(tmp_path)
  for arguments, text in [
    ([], 'WORKDIR'),
    (['absent'], 'absent: no such folder'),
    ([str(tmp_path), '--out=absent/page.html'], '--out=absent/page.html'),
    ([str(tmp_path), '--open'], '--open'),
  ]:
    done = subprocess.run(
      [sys.executable, '-m', 'ogls_jax.report', *arguments],
      capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert text in done.stderr


def test_it_starts_without_jax():
  code = 'import sys, ogls_jax.report; print("jax" in sys.modules)'
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout == 'False\n'


def test_a_page_that_is_not_written_leaves_nothing(tmp_path):
  make_run(tmp_path)
  (tmp_path / 'page').mkdir()
  with pytest.raises(UserError, match='--out='):
    report.write_report(tmp_path, tmp_path / 'page')
  assert not list(tmp_path.glob('*.partial'))
