"""The comparison command: what it trains, continues, measures and says."""

import dataclasses
import html.parser
import json
import shutil

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from ogls_jax import (
  checkpoint,
  compare,
  comparison_plan,
  notice,
  train,
  variants,
)
from ogls_jax.errors import Preempted, UserError
from tests.small import tree_max_difference
from tests.small_run import (
  final_state,
  read_rows,
  reward_texts,
  small_config,
)

METHODS = 'base,sft,opsd:distill.response_tokens=8'
REFERENCE = 'opsd:distill.response_tokens=8'


@pytest.fixture(scope='module', autouse=True)
def kept_programs(tmp_path_factory):
  """Programs are the same for all seeds, and compiling them is most of it."""
  names = (
    'jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs'
  )  # fmt: skip
  earlier = {name: getattr(jax.config, name) for name in names}
  folder = str(tmp_path_factory.mktemp('programs'))
  for name, value in zip(names, (folder, 0.05), strict=True):
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in earlier.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def rewards(monkeypatch):
  reward_texts(monkeypatch)


def make_plan(
  out, methods=METHODS, seeds='1', budget='', reference=REFERENCE, **changes
):
  config = small_config(num_steps=3, **changes)
  found = variants.parse_variants(methods, config)
  return comparison_plan.Plan(
    config=config, out=out, variants=found, seeds=variants.parse_seeds(seeds),
    reference=variants.reference_of(found, reference), budget=budget,
  )  # fmt: skip


class StopAfter(notice.StopNotice):
  """Asks for a stop once it has been asked so often."""

  def __init__(self, num):
    super().__init__()
    self._num_left = num

  def is_asked(self):
    self._num_left -= 1
    return self._num_left < 0


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
  """Two seeds, stopped within a run; what has been saved by then; and on."""
  assert jax.device_count() == 8
  with pytest.MonkeyPatch.context() as patch:
    rewards.__wrapped__(patch)
    plan = make_plan(tmp_path_factory.mktemp('compare') / 'two', seeds='2')
    original, trained = train.train, []

    def once(config, workdir, **kwargs):
      trained.append(workdir.name)
      stop = kwargs['notice']
      if workdir.name == 'sft_0' and trained.count('sft_0') == 1:
        stop = StopAfter(1)
      return original(config, workdir, **kwargs | {'notice': stop})

    patch.setattr(train, 'train', once)
    with pytest.raises(Preempted):
      compare.compare(plan)
    assert not (plan.out / 'compare.json').exists()
    assert final_state(plan.out / 'runs' / 'sft_0')['step'] == 2
    content = compare.compare(plan)
  return plan, content


def test_a_stop_in_the_middle_changes_nothing_but_times(stopped, tmp_path):
  _, resumed = stopped
  whole = compare.compare(make_plan(tmp_path / 'one'))
  for label, found in whole['variants'].items():
    other = resumed['variants'][label]
    for name in ('accuracy', 'difference'):
      if name in found:
        assert found[name]['by_seed'] == other[name]['by_seed'][:1]
        assert found[name]['interval'] is None
    for name in (
      'updates', 'rollouts', 'training_tokens', 'response_tokens',
      'truncated_fraction', 'repeated_fraction',
    ):  # fmt: skip
      assert (name in found) == (name in other)
      if name in found:
        assert found[name] == other[name][:1]
  assert len(whole['variants']) == 3


def test_all_start_from_the_same_weights_and_questions(stopped):
  plan, _ = stopped
  states = {}
  for seed in plan.seeds:
    folders = {
      json.loads((plan.workdir(v, seed) / 'config.json').read_text())['warmup'][
        'workdir'
      ]
      for v in plan.variants
    }
    assert folders == {str(plan.out / f'stage1_{seed}')}
    assert (plan.out / f'stage1_{seed}' / 'inputs.json').is_file()
    assert not (plan.out / 'runs' / f'sft_{seed}' / 'warmup').exists()
    path = plan.out / f'stage1_{seed}' / 'warmup' / '6' / 'state'
    states[seed] = checkpoint.ocp.StandardCheckpointer().restore(
      path.absolute()
    )['params']
  assert tree_max_difference(states[0], states[1]) > 0
  asked = [
    [
      (row['id'], row['question'])
      for row in read_rows(plan.evaluation(v, seed) / 'generations.jsonl')
    ]
    for v in plan.variants
    for seed in plan.seeds
  ]
  assert len(asked) == 6 and all(rows == asked[0] for rows in asked)


def test_figures_are_those_of_the_runs(stopped):
  plan, content = stopped
  assert json.loads((plan.out / 'compare.json').read_text()) == json.loads(
    json.dumps(content)
  ) | {'methods': METHODS.split(',')}
  found = content['variants']
  by_seed = [found[v.label]['accuracy']['by_seed'] for v in plan.variants]
  assert by_seed[0] != by_seed[1] != by_seed[2]
  for v in plan.variants:
    for s, seed in enumerate(plan.seeds):
      rows = read_rows(plan.evaluation(v, seed) / 'generations.jsonl')
      share = np.mean([row['reward'] == 1 for row in rows])
      np.testing.assert_allclose(
        found[v.label]['accuracy']['by_seed'][s], share
      )
      metrics = json.loads(
        (plan.evaluation(v, seed) / 'results.json').read_text()
      )['metrics']
      for name in ('answered_fraction', 'response_tokens'):
        assert found[v.label][name][s] == metrics[name]['mean']
  for label, num_rows in (('sft', 8), (REFERENCE, 16)):
    variant = next(v for v in plan.variants if v.label == label)
    rows = read_rows(plan.workdir(variant, 1) / 'metrics.jsonl')
    tokens = sum(row['response_tokens_mean'] for row in rows) * num_rows
    assert found[label]['training_tokens'][1] == round(tokens)
    assert found[label]['updates'] == [3, 3]
  assert found['sft']['rollouts'] == [0, 0]
  assert found[REFERENCE]['rollouts'] == [48, 48]
  ours, theirs = (
    np.array(found[name]['accuracy']['by_seed']) for name in ('sft', REFERENCE)
  )
  assert found['sft']['difference']['by_seed'] == (ours - theirs).tolist()
  assert 'difference' not in found[REFERENCE]
  # Accuracy is measured once, by the comparison.
  summary = plan.out / 'runs' / 'sft_0' / 'summary.json'
  assert json.loads(summary.read_text())['eval_questions'] == 0


def test_tables_curves_and_page(stopped):
  plan, _ = stopped
  text = (plan.out / 'compare.md').read_text()
  for v in plan.variants:
    assert text.count(f'| `{v.label}` |') == 2
  png = (plan.out / 'compare.png').read_bytes()
  assert png.startswith(b'\x89PNG') and len(png) > 20_000
  page = (plan.out / 'compare.html').read_text()
  parser, tags = html.parser.HTMLParser(), []
  parser.handle_starttag = lambda tag, attrs: tags.append((tag, dict(attrs)))
  parser.feed(page)
  assert [tag for tag, _ in tags].count('table') == 2
  links = [x.get('src') or x.get('href') for _, x in tags]
  (image,) = [link for link in links if link]
  assert image.startswith('data:image/png;base64,')


def test_a_finished_comparison_trains_nothing(stopped, monkeypatch):
  plan, content = stopped

  def fail(*args, **kwargs):
    raise AssertionError

  monkeypatch.setattr(compare.train.loop, 'run_steps', fail)
  monkeypatch.setattr(compare.evaluate, 'evaluate', fail)
  again = compare.compare(plan)
  assert again == content
  with pytest.raises(UserError, match='learning_rate = 0.001 there, 0.5 here'):
    compare.compare(make_plan(plan.out, optimizer__learning_rate=0.5))


def test_a_run_that_is_trained_again_is_not_its_old_evaluation(
  stopped, tmp_path, monkeypatch
):
  plan, _ = stopped
  out = tmp_path / 'out'
  shutil.copytree(plan.out, out)
  metrics = out / 'runs' / 'sft_0' / 'metrics.jsonl'
  for file in out.rglob('*.json'):  # as if all of it had been made there
    file.write_text(file.read_text().replace(str(plan.out), str(out)))
  plan = dataclasses.replace(plan, out=out)
  compare.compare(plan)
  lines = metrics.read_text()
  rows = read_rows(metrics)
  rows[-1]['time'] += 1  # another training has other times
  metrics.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  match = 'evaluations/sft_0 is of another .*model.updates_sha256 = '
  with pytest.raises(UserError, match=match):
    compare.compare(plan)
  # Nothing is trained first.
  shutil.move(metrics.parent, tmp_path / 'kept')
  with pytest.raises(UserError, match='sft_0 is of a run that is gone'):
    compare.compare(plan)
  shutil.move(tmp_path / 'kept', metrics.parent)
  metrics.write_text(lines)
  # As older evaluations are.
  for name in ('evaluation.json', 'results.json'):
    file = out / 'evaluations' / 'sft_0' / name
    claim = json.loads(file.read_text())
    del claim['files_sha256'], claim['model']['updates_sha256']
    file.write_text(json.dumps(claim))
  monkeypatch.setattr(compare.evaluate, 'evaluate', None)
  compare.compare(plan)


def test_files_of_a_comparison_do_not_change(stopped, tmp_path):
  plan, _ = stopped
  task, rows = tmp_path / 'task.py', tmp_path / 'rows.jsonl'
  task.write_text('def reward(text, question):\n  return len(text) % 2\n')
  lines = [f'{{"question": "{i} + 1", "answer": "{i + 1}"}}' for i in range(40)]
  rows.write_text('\n'.join(lines))
  out = tmp_path / 'out'
  plan = make_plan(
    out, methods='base,sft', reference='sft', data__task=str(task),
    data__path=str(rows), warmup__num_steps=0, eval__num_questions=4,
    eval__samples=1, hints__answer_as_solution=True,
  )  # fmt: skip
  compare.compare(plan)
  task.write_text(task.read_text().replace('2', '3'))
  with pytest.raises(UserError, match=f'files_sha256.{task} = .*that folder'):
    compare.compare(plan)
  shutil.rmtree(out / 'evaluations')
  compare.compare(plan)
  # Brought together elsewhere, where another file lies at the path.
  other = tmp_path / 'other'
  for name in ('runs', 'evaluations'):
    shutil.copytree(out / name, other / name)
  before = rows.read_text()
  rows.write_text(before.replace(' + ', ' - '))
  with pytest.raises(UserError, match='--out=.* content of: questions'):
    compare.compare(plan)
  moved = dataclasses.replace(plan, out=other)
  for file in other.rglob('*.json'):
    file.write_text(file.read_text().replace(str(out), str(other)))
  with pytest.raises(UserError, match='sft_0 began .* content of: questions'):
    compare.compare(moved)
  rows.write_text(before)
  compare.compare(moved)


def test_a_budget_of_tokens_is_spent_and_no_more(tmp_path):
  plan = make_plan(
    tmp_path / 'budget', methods=f'sft,{REFERENCE}', budget='tokens'
  )
  content = compare.compare(plan)
  budget = content['variants'][REFERENCE]['training_tokens'][0]
  found = content['variants']['sft']
  num, spent = found['updates'][0], found['training_tokens'][0]
  assert abs(spent - budget) < spent / num
  # Solutions: 8 a batch, 16 rollouts.
  assert num > 3
  assert not (plan.out / 'runs' / 'sft_0' / 'summary.json').exists()
  # Stopped for its budget is finished.
  assert compare.compare(plan) == content
  with pytest.raises(UserError, match="budget = 'tokens' there, '' here"):
    compare.compare(dataclasses.replace(plan, budget=''))


@pytest.mark.parametrize(
  ('methods', 'match'),
  [
    ('base', 'trains nothing'),
    ('opsd,dpo', "'dpo' is none of: base, ogls_sd"),
    ('opsd:steering.max_strenght=1', 'did you mean steering.max_strength'),
    ('opsd:hints.exclude_self=1.5', "'1.5' must be of type bool"),
    ('opsd:num_steps=1.5', "num_steps = '1.5' must be of type int"),
    ('opsd:data.seed=1', 'data.seed has to be the same for all'),
    ('base:num_steps=3', 'takes no changes'),
    ('opsd,opsd', "'opsd' after 'opsd'"),
    ('opsd:num_steps=1:num_steps=2', 'num_steps twice'),
  ],
)
def test_bad_methods_are_one_line(methods, match):
  with pytest.raises(UserError, match=match) as error:
    variants.parse_variants(methods, small_config())
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('text', ['', '0', '-1', '1.5', '0,x', '1,1', '9999'])
def test_bad_seeds_are_one_line(text):
  with pytest.raises(UserError, match=f'--seeds={text}'):
    variants.parse_seeds(text)


@pytest.mark.parametrize(
  ('kwargs', 'match'),
  [
    ({'budget': 'hours'}, '--budget=hours'),
    ({'budget': 'tokens', 'optimizer__schedule': 'cosine'}, "'cosine' ends"),
    (
      {'budget': 'tokens', 'methods': f'sft:num_steps=9,{REFERENCE}'},
      'leave its num_steps out',
    ),
    (
      {'budget': 'seconds'},
      "num_steps = 3 of 'opsd:distill.response_tokens=8' is less than 4",
    ),
    ({'eval__num_questions': 0}, 'eval.num_questions = 0 leaves nothing'),
    ({'warmup__workdir': 'x'}, "warmup.workdir = 'x' must be empty"),
    ({'methods': f'grpo:rollouts.group_size=1,{REFERENCE}'}, 'group_size = 1'),
    ({'methods': f'sft:loss.block_tokens=0,{REFERENCE}'}, 'block_tokens = 0'),
    ({'methods': f'kd,{REFERENCE}'}, 'kd.teacher_workdir'),
    ({'eval__has_likelihood': True}, 'eval.has_likelihood'),
  ],
)  # fmt: skip
def test_bad_input_is_one_line_before_anything_is_trained(
  kwargs, match, tmp_path
):
  with pytest.raises(UserError, match=match):
    compare.compare(make_plan(tmp_path / 'out', **kwargs))
  assert not (tmp_path / 'out').exists()


def test_the_workdir_of_a_run_is_no_place_for_a_comparison(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(UserError, match=f'--out={tmp_path} holds a run'):
    compare.compare(make_plan(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ['config.json']


def test_an_unknown_reference_is_one_line():
  found = variants.parse_variants('base,sft', small_config())
  for label in ('opsd', 'base'):
    with pytest.raises(UserError, match=f'--reference={label} is none'):
      variants.reference_of(found, label)
