"""Compares methods: `python -m ogls_jax.compare --config=FILE --out=FOLDER`.

  --methods=base,opsd,ogls_sd   and variants: ogls_sd:steering.max_strength=1
  --seeds=3                     0, 1 and 2; or a list, 0,3,5

1. for each seed, train every method from the same weights (one stage 1) on the
   same order of the same questions, all in this process
2. evaluate what each has after its last update, and the start (base)
3. compare.json, compare.md, compare.png and compare.html: differences with
   intervals over seeds and over questions, costs and curves

The same command again continues; finished runs are not repeated, so that more
methods or seeds may be asked for later.
"""

import contextlib
import dataclasses
import gc
import importlib.metadata
import pathlib
import platform
import zlib

import jax
from absl import flags

from ogls_jax import (
  build,
  cli,
  comparison,
  comparison_plots,
  evaluate,
  hosts,
  inputs,
  paired,
  results,
  spending,
  train,
  variants,
)
from ogls_jax.comparison_plan import Plan, check, claim_of
from ogls_jax.errors import Preempted, UserError
from ogls_jax.json_file import (
  make_folder,
  read_json,
  read_rows,
  replace_bytes,
  write_json,
)
from ogls_jax.notice import StopNotice
from ogls_jax.validate import is_sampled
from ogls_jax.variants import Variant, config_of
from ogls_jax.workdir import locked

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def compare(plan: Plan, notice: StopNotice | None = None) -> dict:
  """Trains, evaluates and writes; returns what compare.json holds.

  Raises:
    UserError: bad input, before anything is trained.
    FloatingPointError: a run's loss is not finite.
    Preempted: `notice` came; all is saved and the same call continues.
  """
  notice = notice or StopNotice()
  hosts.check_agree(
    zlib.crc32(repr(plan).encode()),
    '--methods: the hosts have different configs or flags; start all with the'
    ' same command and the same code',
  )
  fed = check(plan)
  if hosts.is_first():
    make_folder(plan.out, flag=plan.flag)
  with locked(plan.out / 'lock', flag=plan.flag):
    if hosts.is_first():
      write_json(plan.out / 'comparison.json', claim_of(plan), flag=plan.flag)
    inputs.claim(plan.out, fed, flag=plan.flag)
    for seed in plan.seeds:
      budget = None
      for variant in plan.in_order():
        notice.check()
        hosts.say(f'{variant.label}, seed {seed}')
        step = _trained(plan, variant, seed, budget, notice)
        _free()
        _evaluated(plan, variant, seed, step, fed['held_out'], notice)
        _free()
        if variant == plan.reference:
          budget = _budget(plan, seed)
    return hosts.on_first(lambda: _write(plan, fed['held_out'])) or {}


def _trained(plan, variant, seed, budget, notice) -> int:
  """The last update of a run, which is complete then."""
  config, workdir = plan.config_of(variant, seed), plan.workdir(variant, seed)
  if not variant.is_trained:
    if hosts.is_first():
      values = variants.values_of(config)
      write_json(workdir / 'config.json', values, flag=plan.flag)
    hosts.check_shared(
      workdir / 'config.json', f'{plan.flag}: {hosts.NOT_SHARED}'
    )
    return 0
  if budget is None:
    train.train(config, workdir, notice=notice)
    return config.num_steps
  budget = dataclasses.replace(
    budget, rows_per_update=plan.rows_per_update(variant)
  )
  if step := _spent_at(config, workdir, budget):
    return step
  hosts.say(f'until {budget.amount:.0f} {budget.kind} are spent')
  bound = spending.BudgetNotice(notice, budget, workdir)
  try:
    train.train(config, workdir, notice=bound)
  except Preempted:
    if not bound.is_spent:
      raise
    step = _newest(config, workdir)
    hosts.say(f'{budget.kind} are spent after {step} updates')
    return step
  hosts.say(f'warning: {workdir} ends before its budget is spent')
  return config.num_steps


def _budget(plan, seed):
  """As much as the reference has taken, if the others are to take as much."""
  if not plan.budget:
    return None
  rows = plan.rows_per_update(plan.reference)
  if not hosts.is_first():
    # What the others stop by are the figures of the first.
    return spending.Budget(plan.budget, 0.0, rows)
  costs = _figures(plan, plan.reference, seed).costs
  return spending.Budget.of(plan.budget, costs, rows)


def _newest(config, workdir):
  """The last update that is saved; 0 for none."""
  folder = workdir / 'checkpoints'
  if not hosts.largest(int(folder.is_dir()))[0]:
    return 0
  with contextlib.closing(  # all hosts: to open it is to meet
    build.checkpointer(config, folder, is_read_only=True)
  ) as checkpointer:
    step = max(checkpointer.all_steps(), default=0)
  return hosts.largest(step)[0]


def _spent_at(config, workdir, budget) -> int:
  """The update at which the run has been stopped for its budget, or 0."""
  step, is_last = _newest(config, workdir), False
  if hosts.is_first() and step:
    rows = read_rows(workdir / 'metrics.jsonl', step - 1)
    is_last = budget.is_last(spending.costs_of(rows, budget.rows_per_update))
  return step * hosts.largest(int(is_last))[0]


def _evaluated(plan, variant, seed, step, digest, notice):
  """Evaluates a run after update `step`, as all others, if that is not done."""
  workdir, folder = plan.workdir(variant, seed), plan.evaluation(variant, seed)
  is_done = False
  if hosts.is_first():
    found = read_json(folder / 'results.json', flag=plan.flag)
    source = {'workdir': str(workdir), 'step': step}
    # Its task file and training were compared before anything was trained.
    is_done = (
      found is not None
      and found['questions_sha256'] == digest
      and source.items() <= found['model'].items()
    )
  if not hosts.largest(int(is_done))[0]:
    config = config_of(plan.config, Variant(variants.BASE, {}), seed, plan.out)
    evaluate.evaluate(
      config, folder, workdir=workdir, run_step=step, notice=notice
    )


def _free():
  """A run's programs; each is compiled anew, or read from the disk's cache."""
  jax.clear_caches()
  gc.collect()


def _figures(plan, variant, seed) -> comparison.RunFigures:
  """Of a run that is trained and evaluated; on the first host."""
  folder = plan.evaluation(variant, seed)
  found = paired.read_results(folder)
  step, metrics = found['model']['step'], found['metrics']
  shares = paired.shares_of(folder, found)
  rows = _rows(plan, variant, seed, step)
  # Of a task of one's own nobody knows what an answer is; older evaluations
  # did not ask.
  answered = metrics.get('answered_fraction', {'mean': None})
  num_rollouts = 0
  if variant.is_trained and is_sampled(plan.config_of(variant, seed)):
    num_rollouts = step * plan.rows_per_update(variant)
  return comparison.RunFigures(
    shares=shares[results.KINDS[0]],
    answered_fraction=answered['mean'],
    response_tokens=metrics['response_tokens']['mean'],
    truncated_fraction=metrics['truncated_fraction']['mean'],
    repeated_fraction=metrics['repeated_fraction']['mean'],
    costs=spending.costs_of(rows, plan.rows_per_update(variant)),
    num_rollouts=num_rollouts,
  )


def _rows(plan, variant, seed, step):
  """Lines of metrics.jsonl of a run, of all its updates."""
  path = plan.workdir(variant, seed) / 'metrics.jsonl'
  rows = read_rows(path, step)
  if [row['step'] for row in rows] != list(range(1, step + 1)):
    raise UserError(
      f'{path} has lines of {len(rows)} updates, not once each of 1 to {step},'
      f' so that their cost is not known; delete {path.parent} and'
      f' {plan.evaluation(variant, seed)} to train again'
    )
  return rows


def _write(plan, digest) -> dict:
  """All files of the comparison."""
  figures = {
    v.label: [_figures(plan, v, seed) for seed in plan.seeds]
    for v in plan.variants
  }
  summary = comparison.summarize(figures, plan.reference.label)
  for v in plan.variants:
    summary[v.label] |= {
      'changes': v.changes,
      'runs': [str(plan.workdir(v, s)) for s in plan.seeds],
      'evaluations': [str(plan.evaluation(v, s)) for s in plan.seeds],
    }
  config = plan.config
  content = {
    'variants': summary,
    'reference': plan.reference.label,
    'seeds': plan.seeds,
    'budget': plan.budget,
    'config': variants.values_of(config),
    'num_questions': len(next(iter(figures.values()))[0].shares.of_id),
    'samples': config.eval.samples,
    'questions_sha256': digest,
    'versions': _versions(),
  }
  png = comparison_plots.draw(_curves(plan, figures))
  text, page = comparison.report(content), comparison_plots.page(content, png)
  # The table is of the order of --methods, which sorted keys would lose.
  write_json(
    plan.out / 'compare.json',
    content | {'methods': [v.label for v in plan.variants]},
    flag=plan.flag,
  )
  try:
    replace_bytes(plan.out / 'compare.md', text.encode())
    replace_bytes(plan.out / 'compare.png', png)
    replace_bytes(plan.out / 'compare.html', page.encode())
  except OSError as error:
    raise UserError(
      f'{plan.flag}: {plan.out} cannot be written ({error.strerror})'
    ) from error
  hosts.say(f'{text}\nwrote {plan.out}/compare.html, .json, .md and .png')
  return content


def _curves(plan, figures):
  """By metric and label."""
  rows = {
    v.label: [
      _rows(plan, v, seed, len(run.costs.seconds))
      for seed, run in zip(plan.seeds, figures[v.label], strict=True)
    ]
    for v in plan.variants
    if v.is_trained
  }
  ends = {label: [run.accuracy for run in of] for label, of in figures.items()}
  curves = {
    name: {
      label: comparison_plots.curve(rows_S, name)
      for label, rows_S in rows.items()
    }
    for name, _ in comparison_plots.PANELS
  }
  curves['eval_accuracy'] = {
    label: comparison_plots.accuracy_curve(
      rows_S, ends.get(variants.BASE), ends[label]
    )
    for label, rows_S in rows.items()
  }
  return curves


def _versions() -> dict[str, str]:
  device = jax.devices()[0].device_kind
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return found | {
    'python': platform.python_version(),
    'devices': f'{jax.device_count()} {device}',
  }


def main() -> None:
  """Reads the flags and compares."""
  f, config = flags.FLAGS, cli.read_config()
  cli.start_hosts()
  if not f.out:
    raise UserError('--out= must name a folder')
  found = variants.parse_variants(f.methods, config)
  plan = Plan(
    config=config,
    out=pathlib.Path(f.out),
    variants=found,
    seeds=variants.parse_seeds(f.seeds),
    reference=variants.reference_of(found, f.reference),
    budget=f.budget,
  )
  with StopNotice(cli.preempted_code()) as notice:
    compare(plan, notice)


if __name__ == '__main__':
  cli.define_config()
  cli.define_hosts()
  flags.DEFINE_string('methods', None, 'NAME[:key=value]...', required=True)
  flags.DEFINE_string('seeds', '3', 'How many, from 0, or a list: 0,3,5.')
  flags.DEFINE_string(
    'reference', '', 'Differences are to it; empty: opsd, or the first method.'
  )
  flags.DEFINE_string('budget', '', 'Seconds or tokens, of the reference.')
  flags.DEFINE_string('out', None, 'Folder of it all.', required=True)
  cli.run(main)
