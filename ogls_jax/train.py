"""Trains a model: `python -m ogls_jax.train --config=FILE --workdir=FOLDER`.

1. warm up by SFT (stage 1, if the config has one)
2. evaluate on held-out questions, if the config asks for it
3. loop: sample, grade, build hints, distill (stage 2)
4. evaluate again and write summary.json

The same command again continues from the last checkpoint.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
import zlib

import jax
import numpy as np
from absl import flags
from ml_collections import config_dict

from ogls_jax import build, cli, data, hosts, inputs, loop, warmup
from ogls_jax.errors import UserError
from ogls_jax.intervals import mean_interval
from ogls_jax.json_file import make_folder, read_json, write_json
from ogls_jax.mesh import make_mesh
from ogls_jax.notice import StopNotice
from ogls_jax.programs import make_programs, round_rules
from ogls_jax.questions import load_questions
from ogls_jax.runs import load_kd_teacher
from ogls_jax.tasks import superglue
from ogls_jax.validate import validate
from ogls_jax.validate_inputs import (
  check_questions,
  check_vocabulary,
  warn_of_length,
)
from ogls_jax.workdir import check_same, locked


def train(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  *,
  stop_after_steps: int = 0,
  profile_steps: int = 0,
  notice: StopNotice | None = None,
) -> dict:
  """Runs both stages; returns what summary.json holds.

  Args:
    config: as from configs/default.py.
    workdir: config, metrics, samples, checkpoints and summary go there.
    stop_after_steps: stop, with a checkpoint, after so many more updates; 0
      for none. The same command then continues.
    profile_steps: so many updates, after the first two, are traced into
      `workdir`/profile; 0 for none.
    notice: asks for a stop; None: nothing does.

  Raises:
    UserError: bad input, before anything compiles.
    FloatingPointError: a non-finite loss; the last checkpoint is intact.
    Preempted: `notice` came; all is saved and the same call continues.
  """
  values, notice = json.loads(config.to_json()), notice or StopNotice()
  command = (config.to_json(), stop_after_steps, profile_steps)
  hosts.check_agree(
    zlib.crc32(repr(command).encode()),
    '--config: the hosts have different configs or flags; start all with the'
    ' same command and the same code',
  )
  sizes = validate(config, jax.device_count())
  maker = build.load_maker(config)
  num_ids = maker.tokenizer.vocab_size
  settings = build.decoder_settings(config, num_ids)
  check_vocabulary(config, num_ids=num_ids, num_rows=settings.vocab_size)
  warn_of_length(config, settings.context_tokens, is_trained=True)
  questions, held_out, num_skipped = load_questions(config, maker)
  check_questions(config, questions, held_out, sizes)
  build.check_task(config, questions[0])
  flag = f'--workdir={workdir}'
  is_claimed = check_same(workdir / 'config.json', values, flag=flag)
  fed = inputs.digests(config, questions, held_out)
  hosts.check_agree(
    zlib.crc32(repr(fed).encode()),
    '--config: the hosts have different data or templates at the same paths;'
    ' give all the same files',
  )
  inputs.check(workdir, fed, flag=flag)
  is_finished = is_claimed and (workdir / 'summary.json').is_file()
  for found in (is_claimed, is_finished):
    hosts.check_agree(found, f'{flag}: {hosts.NOT_SHARED}')
  if is_finished:
    hosts.say(f'{workdir} is finished; its summary.json has the result')
    return read_json(workdir / 'summary.json', flag=flag)
  mesh = make_mesh(dict(config.mesh))
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    base = build.base_model(config, settings, mesh)
    teacher = None
    if config.method == 'kd':
      teacher = load_kd_teacher(config, maker.tokenizer, mesh)
    # Only now: what failed before leaves the workdir to a corrected command.
    stage = warmup.folder_of(config, workdir)  # which other runs may share
    if config.warmup.num_steps:
      warmup.is_claimed(config, stage)
      inputs.check(stage.parent, fed, flag=f'stage 1 in {stage}')
    if hosts.is_first():
      make_folder(workdir, flag=flag)
    stack.enter_context(locked(workdir / 'lock', flag=flag))
    if hosts.is_first():
      write_json(workdir / 'config.json', values, flag=flag)
    inputs.claim(workdir, fed, flag=flag)
    if config.warmup.num_steps:
      # It has no rewards.
      learned = {name: fed[name] for name in fed if name != 'task'}
      inputs.claim(stage.parent, learned, flag=f'stage 1 in {stage}')
    hosts.check_shared(workdir / 'config.json', f'{flag}: {hosts.NOT_SHARED}')
    base, seconds = _warmed(
      config, base, questions, maker, mesh, workdir, notice
    )
    base = build.quantized(config, base, mesh)
    student, teacher = build.student_model(config, base, mesh), teacher or base
    eos_ids = maker.tokenizer.eos_ids
    objective = build.objective(config, eos_ids=eos_ids)
    programs = make_programs(
      config,
      student,
      teacher,
      objective=objective,
      eos_ids=eos_ids,
    )
    parts = loop.Parts(
      config=config,
      workdir=workdir,
      mesh=mesh,
      maker=maker,
      held_out=held_out,
      num_skipped=num_skipped,
      student=student,
      teacher=teacher,
      programs=programs,
      rules=round_rules(config, sizes.group_size, objective),
      is_sampled=sizes.is_sampled,
      grader=loop.closed_after(
        stack,
        build.make_grader(config),
      ),
      notice=notice,
    )
    # On errors too: what was saved last must reach the disk.
    checkpointer = loop.closed_after(
      stack, build.checkpointer(config, workdir / 'checkpoints')
    )
    iterator = data.question_iterator(
      questions, batch_questions=config.rollouts.batch_questions,
      seed=config.data.seed + config.seed,
    )  # fmt: skip
    state, counters, start = loop.begin_or_resume(
      parts, checkpointer, iterator, seconds
    )
    last = config.num_steps
    if stop_after_steps:
      last = min(last, start + stop_after_steps)
    numbers = range(start + 1, last + 1)
    state = loop.run_steps(
      parts, state, counters, checkpointer, iterator, numbers,
      profile_steps=profile_steps,
    )  # fmt: skip
    if last < config.num_steps:
      hosts.say(f'stopped at step {last}; the same command continues')
      return {}
    began, after = time.monotonic(), []
    if config.eval.has_before_after:
      after = loop.accuracy(parts, state, 'after')
    counters.seconds['evaluation'] += time.monotonic() - began
    groups = superglue.groups_of(parts.held_out)
    return _write_summary(workdir, config, counters, after, groups)


def _warmed(config, base, questions, maker, mesh, workdir, notice):
  """(the starting model after stage 1, seconds by stage)."""
  began = time.monotonic()
  if config.warmup.num_steps:
    folder = warmup.folder_of(config, workdir)
    base = warmup.warm_up(config, base, questions, maker, mesh, folder, notice)
  return base, {'warmup': time.monotonic() - began}


def _write_summary(workdir, config, counters, after, groups) -> dict:
  summary = {
    'method': config.method,
    'seed': config.seed,
    'num_steps': config.num_steps,
    'eval_questions': len(after),
    'seconds': counters.seconds,
  }
  if after:
    before_Q, after_Q = np.array(counters.before), np.array(after)
    for name, values in (
      ('before', before_Q),
      ('after', after_Q),
      ('gain', after_Q - before_Q),
    ):
      interval = mean_interval(values, groups)
      summary[f'accuracy_{name}'] = dataclasses.asdict(interval)
  path = workdir / 'summary.json'
  if hosts.is_first():
    write_json(path, summary, flag=f'--workdir={workdir}')
  hosts.say(f'wrote {path}')
  return summary


def main() -> None:
  """Reads the flags and trains."""
  config = cli.read_config()
  cli.start_hosts()
  if not flags.FLAGS.workdir:
    raise UserError('--workdir= must name a folder')
  with StopNotice(cli.preempted_code()) as notice:
    train(
      config,
      pathlib.Path(flags.FLAGS.workdir),
      stop_after_steps=flags.FLAGS.stop_after_steps,
      profile_steps=flags.FLAGS.profile_steps,
      notice=notice,
    )


if __name__ == '__main__':
  cli.define_config()
  cli.define_hosts()
  flags.DEFINE_string('workdir', None, 'Where the run is kept.', required=True)
  flags.DEFINE_integer(
    'stop_after_steps', 0, 'Stop after so many updates; 0 for none.', 0
  )
  flags.DEFINE_integer(
    'profile_steps', 0, 'Trace so many updates, the first two left out.', 0
  )
  cli.run(main)
