"""What a run in a workdir trained: its config, and its model at a step."""

import contextlib
import copy
import dataclasses
import hashlib
import json
import pathlib

from ml_collections import config_dict

from ogls_jax import build, hosts, warmup
from ogls_jax.errors import UserError
from ogls_jax.json_file import read_json, read_rows
from ogls_jax.models.settings import DecoderSettings
from ogls_jax.tokenizer import Tokenizer, has_same_ids
from ogls_jax.validate import check_keys


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """A run's model.

  Attributes:
    config: the run's own.
    settings: of the decoder.
    tokenizer: of the run.
    step: updates that `student` has had.
    student: the model after `step` updates.
  """

  config: config_dict.ConfigDict
  settings: DecoderSettings
  tokenizer: Tokenizer
  step: int
  student: build.Model


def read_run_config(
  workdir: pathlib.Path, *, flag: str
) -> config_dict.ConfigDict:
  """The config of the run in `workdir`; `flag` led there, for errors."""
  values = read_json(workdir / 'config.json', flag=flag)
  if values is None:
    raise UserError(f'{flag} has no config.json; give the workdir of a run')
  config = config_dict.ConfigDict(values)
  check_keys(config, flag=flag)
  return config


def source_of(workdir: pathlib.Path, step: int) -> dict:
  """What tells a run after `step` updates from others.

  Its metrics among them, as a run that is trained again in the same place has
  other times.
  """
  rows = read_rows(workdir / 'metrics.jsonl', step)
  digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
  return {'workdir': str(workdir), 'step': step, 'updates_sha256': digest}


def load_run(
  workdir: pathlib.Path, mesh, *, step: int | None, flag: str
) -> TrainedRun:
  """The run in `workdir` after `step` updates; None for its newest checkpoint.

  Raises:
    UserError: there is no run, no such checkpoint, or its files are gone.
  """
  config = read_run_config(workdir, flag=flag)
  tokenizer = build.load_tokenizer_of(config)
  settings = build.decoder_settings(config, tokenizer.vocab_size)
  with contextlib.closing(
    build.checkpointer(config, workdir / 'checkpoints', is_read_only=True)
  ) as checkpointer:
    steps = checkpointer.all_steps()
    if not steps and step is None:
      raise UserError(
        f'{flag} has no checkpoint yet; train it, or ask for step 0, the model'
        ' that stage 2 begins with'
      )
    if step is None:  # while it is trained hosts may see others
      (step,) = hosts.largest(max(steps))
    if step and step not in steps:
      known = ', '.join(map(str, [0, *steps]))
      raise UserError(
        f'{flag} has no checkpoint of step {step}; it has {known}'
      )
    base = build.base_model(config, settings, mesh)
    # Training all weights ends with all of them in the checkpoint.
    if config.warmup.num_steps and (config.lora.rank or not step):
      folder = warmup.folder_of(config, workdir)
      base = warmup.load_warm(config, base, mesh, folder)
    base = build.quantized(config, base, mesh)
    student = build.student_model(config, base, mesh)
    if step:
      state = build.init_state(
        config, student.params, build.make_optimizer(config), mesh,
        has_ema=config.teacher == 'ema',
      )  # fmt: skip
      state, _ = checkpointer.restore(step, state)
      student = dataclasses.replace(student, params=state.params)
  return TrainedRun(config, settings, tokenizer, step, student)


def kd_teacher_config(
  config: config_dict.ConfigDict,
) -> tuple[config_dict.ConfigDict, str]:
  """(the config of the model that teaches, what names it in errors).

  Raises:
    UserError: kd.teacher_workdir holds no run.
  """
  if not config.kd.teacher_path:
    flag = f'kd.teacher_workdir = {config.kd.teacher_workdir!r}'
    workdir = pathlib.Path(config.kd.teacher_workdir)
    return read_run_config(workdir, flag=flag), flag
  theirs = copy.deepcopy(config)
  with theirs.unlocked():
    theirs.model.path = config.kd.teacher_path
    theirs.model.tokenizer_path = ''
    theirs.model.quantize = ''
  return theirs, f'kd.teacher_path = {config.kd.teacher_path!r}'


def check_teacher_rows(num_rows: int, ours: int, *, flag: str) -> None:
  """Rejects a teacher with other than `ours` rows in its output matrix."""
  if num_rows != ours:
    raise UserError(
      f"{flag} has {num_rows} rows in its output matrix and this config's model"
      f' {ours}; a teacher needs as many'
    )


def check_kd_teacher(
  config: config_dict.ConfigDict, tokenizer: Tokenizer
) -> tuple[config_dict.ConfigDict, DecoderSettings, str]:
  """(config of the model that teaches, its settings, what names it in errors).

  Raises:
    UserError: there is no such model, the run in kd.teacher_workdir is not
      finished, or its ids are not those of `tokenizer`.
  """
  theirs, flag = kd_teacher_config(config)
  workdir = pathlib.Path(config.kd.teacher_workdir)
  is_run = not config.kd.teacher_path
  if is_run and not (workdir / 'summary.json').is_file():
    raise UserError(f'{flag} is not finished: it has no summary.json')
  their_tokenizer = build.load_tokenizer_of(theirs)
  if not has_same_ids(their_tokenizer, tokenizer):
    raise UserError(
      f'{flag} has another tokenizer; its ids mean other tokens than those of'
      ' this config'
    )
  settings = build.decoder_settings(theirs, their_tokenizer.vocab_size)
  ours = build.decoder_settings(config, tokenizer.vocab_size).vocab_size
  check_teacher_rows(settings.vocab_size, ours, flag=flag)
  return theirs, settings, flag


def load_kd_teacher(
  config: config_dict.ConfigDict, tokenizer: Tokenizer, mesh
) -> build.Model:
  """The model of kd.teacher_path, or of the finished run in teacher_workdir.

  Raises:
    UserError: as `check_kd_teacher`.
  """
  theirs, settings, flag = check_kd_teacher(config, tokenizer)
  if config.kd.teacher_path:
    return build.base_model(theirs, settings, mesh)
  workdir = pathlib.Path(config.kd.teacher_workdir)
  return load_run(workdir, mesh, step=theirs.num_steps, flag=flag).student
