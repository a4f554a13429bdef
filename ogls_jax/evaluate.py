"""Evaluates a model: `python -m ogls_jax.evaluate --config=FILE --out=FOLDER`.

  --config.model.path=MODEL   a base model or an exported folder
  --workdir=RUN [--step=N]    or what a run has trained after N updates (0: what
                              it began with); without --config on its own data

1. sample config.eval.samples rollouts of each held-out question, grade them
2. one greedy rollout each, and the likelihood of choices, if asked for
3. generations.jsonl has all of it, results.json the figures with intervals

The same command again continues with the first batch that is missing.
"""

import contextlib
import copy
import dataclasses
import hashlib
import json
import logging
import pathlib
import zlib

import jax
from absl import flags
from ml_collections import config_dict

from ogls_jax import build, cli, data, hosts, results
from ogls_jax.checksums import checksums_of
from ogls_jax.errors import UserError
from ogls_jax.generations import Parts, generate
from ogls_jax.inputs import digest_of, file_digest
from ogls_jax.json_file import flat, make_folder, read_json, write_json
from ogls_jax.mesh import make_mesh
from ogls_jax.notice import StopNotice
from ogls_jax.questions import load_evaluated, num_trained_on
from ogls_jax.runs import load_run, read_run_config, source_of
from ogls_jax.tasks import superglue
from ogls_jax.tasks.grading import OWN_TASK_SUFFIX
from ogls_jax.validate import validate_evaluation
from ogls_jax.validate_inputs import (
  check_choices,
  check_vocabulary,
  warn_of_length,
)
from ogls_jax.workdir import check_same, locked


def evaluate(
  config: config_dict.ConfigDict,
  out: pathlib.Path,
  *,
  workdir: pathlib.Path | None = None,
  run_step: int | None = None,
  notice: StopNotice | None = None,
) -> dict:
  """Evaluates a model; returns what results.json holds.

  Args:
    config: as from configs/default.py: what is asked, how it is sampled and
      graded, and the model, where `workdir` is None.
    out: a folder for the results.
    workdir: of a run, whose model is evaluated.
    run_step: of one of its checkpoints; None for the newest.
    notice: asks for a stop; None: nothing does.

  Raises:
    UserError: bad input, before anything compiles; or `out` has other results.
    FloatingPointError: the model's logits are not finite.
    Preempted: `notice` came; the same call continues.
  """
  notice = notice or StopNotice()
  theirs = None
  if workdir:
    theirs = read_run_config(workdir, flag=f'--workdir={workdir}')
    config = _with_model_of(config, theirs, workdir)
  elif not config.model.path:
    raise UserError(
      "model.path = '' must name a model, or --workdir= a run: a model with"
      ' random weights has nothing to evaluate'
    )
  validate_evaluation(config, jax.device_count())
  mesh, maker = make_mesh(dict(config.mesh)), build.load_maker(config)
  num_ids = maker.tokenizer.vocab_size
  settings = build.decoder_settings(config, num_ids)
  check_vocabulary(config, num_ids=num_ids, num_rows=settings.vocab_size)
  warn_of_length(config, settings.context_tokens, is_trained=False)
  questions, num_skipped = load_evaluated(config, maker)
  build.check_task(config, questions[0])
  check_choices(config, questions)
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    claim = _claim_of(config, questions, maker)
    asked = json.dumps([claim, str(workdir), run_step], sort_keys=True)
    hosts.check_agree(
      zlib.crc32(asked.encode()),
      '--config: the hosts have different configs, flags or data; start all'
      ' with the same command, the same code and the same files',
    )
    flag = f'--out={out}'
    is_there = read_json(out / 'evaluation.json', flag=flag) is not None
    hosts.check_agree(is_there, f'{flag}: {hosts.NOT_SHARED}')
    model, source = _load(config, settings, mesh, workdir, run_step)
    claim['model'] = source | {'checksum': _checksum_of(model)}
    if hosts.is_first():
      make_folder(out, flag=flag)
    stack.enter_context(locked(out / 'lock', flag=flag))
    _check_kept(out, claim, flag)
    counts = {
      'num_questions': len(questions),
      'rows_skipped': num_skipped,
      'num_trained_on': _num_trained_on(
        questions, theirs, workdir, source.get('step')
      ),
    }
    if hosts.is_first():
      write_json(out / 'evaluation.json', claim, flag=flag)
    grader = stack.enter_context(contextlib.closing(build.make_grader(config)))
    parts = Parts(config, mesh, maker, model, questions, grader, notice)
    rows = generate(parts, out)
    return (
      hosts.on_first(
        lambda: _write_results(config, claim | counts, questions, rows, out)
      )
      or {}
    )


def _claim_of(config, questions, maker) -> dict:
  """What the results depend on, but for the model."""
  path = config.data.eval_path or config.data.path
  return {
    'config': _kept(config),
    'data_sha256': file_digest(data.resolve_path(path)),
    'questions_sha256': digest_of(questions),
    'prompts_sha256': _prompts_digest(questions, maker),
    'files_sha256': files_of(config),
  }


def _check_kept(out, claim, flag):
  """Rejects a folder that holds generations of something else."""
  is_there = check_same(out / 'evaluation.json', claim, flag=flag)
  if not is_there and (out / 'generations.jsonl').exists():
    raise UserError(
      f'{flag} has a generations.jsonl and no evaluation.json to say of what;'
      ' use another folder, or delete that one'
    )


def _write_results(config, claim, questions, rows, out):
  found = results.summarize(
    questions, rows, config.hints.min_reward,
    has_votes=not config.data.task.endswith(OWN_TASK_SUFFIX),
  )  # fmt: skip
  metrics = {name: dataclasses.asdict(x) for name, x in found.items()}
  content = claim | {'metrics': metrics}
  write_json(out / 'results.json', content, flag=f'--out={out}')
  num_texts = len(set(superglue.groups_of(questions)))
  on = f' on {num_texts} texts' if num_texts < len(questions) else ''
  hosts.say(f'{len(questions)} questions{on}\n\n{results.table(found)}\n')
  hosts.say(f'wrote {out}/results.json and {out}/generations.jsonl')
  return content


def _with_model_of(config, theirs, workdir):
  """`config` with the model of a run; tells what it asks otherwise."""
  ours, old = (flat(json.loads(x.to_json())) for x in (config, theirs))
  if changed := [
    f'{key} = {ours[key]!r}, not {old.get(key)!r}'
    for key in ours
    if key.startswith(('data.', 'prompt.')) and ours[key] != old.get(key)
  ]:
    hosts.say(
      f'asked otherwise than --workdir={workdir} was trained:'
      f' {"; ".join(changed)}'
    )
  config = copy.deepcopy(config)
  with config.unlocked():
    for name in ('model', 'lora', 'warmup'):
      config[name] = theirs[name]
  return config


def _num_trained_on(questions, theirs, workdir, step) -> int | None:
  """Of the questions; told, as they measure what is known by heart."""
  if not theirs:
    return None
  flag, logger = f'--workdir={workdir}', logging.getLogger(__name__)
  if not step and not theirs.warmup.num_steps:
    return 0
  fed = read_json(workdir / 'inputs.json', flag=flag) or {}
  try:
    num = num_trained_on(
      questions, theirs, build.load_maker(theirs), digest=fed.get('questions')
    )
    why = 'its data file is another now'
  except UserError as error:
    num, why = None, str(error)
  if num is None:
    logger.warning(
      'whether %s trained on these questions is not known: %s', flag, why
    )
  elif num:
    logger.warning(
      '%d of %d questions are among those that %s trains on',
      num, len(questions), flag,
    )  # fmt: skip
  return num


def _load(config, settings, mesh, workdir, run_step):
  """(the model, what it is)."""
  if workdir:
    run = load_run(workdir, mesh, step=run_step, flag=f'--workdir={workdir}')
    return run.student, source_of(workdir, run.step)
  model = build.base_model(config, settings, mesh)
  return model, {'path': config.model.path}


def _kept(config) -> dict:
  """What the results depend on."""
  values = json.loads(config.to_json())
  names = ('seed', 'data', 'prompt', 'model', 'grading', 'eval')
  kept = {name: values[name] for name in names}
  kept['max_tokens'] = config.eval.max_tokens or config.rollouts.max_tokens
  kept['min_reward'] = config.hints.min_reward
  return kept


def files_of(config: config_dict.ConfigDict) -> dict[str, str]:
  """SHA-256 of the files that are named in the config, by path."""
  keys = config.prompt.student_template, config.data.task
  return {
    path: file_digest(path) for path in keys if pathlib.Path(path).is_file()
  }


def _prompts_digest(questions, maker) -> str:
  """Of what the model reads: tokenizer, chat template and questions."""
  rows = [maker.student_ids(question) for question in questions]
  return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _checksum_of(model) -> str:
  """Of all weights: a path may hold others another time."""
  sums = checksums_of((model.params, model.frozen))
  return f'{zlib.crc32(json.dumps(sums, sort_keys=True).encode()):08x}'


def main() -> None:
  """Reads the flags and evaluates."""
  f = flags.FLAGS
  cli.start_hosts()
  if not f.out:
    raise UserError('--out= must name a folder')
  workdir = pathlib.Path(f.workdir) if f.workdir else None
  if f.step >= 0 and not workdir:
    raise UserError(f'--step={f.step} is of a run; give its --workdir')
  if cli.has_config():
    config = cli.read_config()
  elif workdir:
    config = read_run_config(workdir, flag=f'--workdir={workdir}')
  else:
    raise UserError('give --config=FILE, --workdir=RUN or both; see README.md')
  with StopNotice(cli.preempted_code()) as notice:
    evaluate(
      config,
      pathlib.Path(f.out),
      workdir=workdir,
      run_step=f.step if f.step >= 0 else None,
      notice=notice,
    )


if __name__ == '__main__':
  cli.define_config(is_required=False)
  cli.define_hosts()
  flags.DEFINE_string('workdir', '', 'A run whose model is evaluated.')
  flags.DEFINE_integer('step', -1, 'Of its checkpoints; -1: the newest.', -1)
  flags.DEFINE_string('out', None, 'Folder of the results.', required=True)
  cli.run(main)
