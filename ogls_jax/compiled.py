"""The programs of a training step, compiled from shapes, and what they need.

Those of `compiled_sampling`, then

distill  teacher, loss, gradient and update, or the method's own

then, where an evaluation's sizes are not those of training, its sampling, with
`eval` before the names. Left out is `inspect_step`: the teacher's part of
`distill` for fewer rollouts, without a gradient, before it.
"""

import dataclasses
import pathlib
import re
import tempfile
import time
from collections.abc import Callable

import jax
from ml_collections import config_dict

from ogls_jax import build, program_cost, shapes
from ogls_jax.compiled_sampling import compile_sampling
from ogls_jax.programs import (
  evaluation_options,
  make_programs,
  rollout_options,
)
from ogls_jax.step_parts import part_of
from ogls_jax.validate import Sizes


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled program, per device; bytes and seconds.

  Attributes:
    name: of the lists in this file and `compiled_sampling`.
    slots: of the cache, where it has one.
    peak_bytes: at its worst moment, arguments included; where it does not fit,
      what the compiler says that it needs.
    argument_bytes: what it is given.
    temporary_bytes: what it needs besides arguments and results.
    other_bytes: what lives meanwhile and is no argument.
    limit_bytes: what the compiler says there is, where it did not fit.
    costs: by part; empty where it did not fit.
    compile_seconds: of this machine.
  """

  name: str
  slots: int
  peak_bytes: float
  argument_bytes: float
  temporary_bytes: float
  other_bytes: float
  limit_bytes: float | None
  costs: program_cost.Costs
  compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Held:
  """Bytes on each device between programs; `teacher`: where it is not the
  starting model."""

  weights: int
  teacher: int
  adapters: int
  optimizer: int
  cache: int


class DoesNotFitError(Exception):
  """The compiler gave up; `used` and `limit` are in bytes."""

  def __init__(self, used: float, limit: float):
    super().__init__(used, limit)
    self.used, self.limit = used, limit


_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


def _compile(
  lowered: jax.stages.Lowered,
) -> tuple[jax.stages.Compiled, str]:
  """A compiled program and its text.

  The text is the one that the compiler dumps: programs for v6e and TPU7x have
  asynchronous instructions that `as_text` of libtpu 0.0.52 cannot read back.
  """
  with tempfile.TemporaryDirectory() as folder:
    options = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
    try:
      compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      found = re.search(
        r'\(([\d.]+)(\w?)\) exceeds available HBM \(([\d.]+)(\w?)\)', str(error)
      )
      if not found:
        raise
      used, used_unit, limit, limit_unit = found.groups()
      raise DoesNotFitError(
        float(used) * _UNITS[used_unit], float(limit) * _UNITS[limit_unit]
      ) from error
    (file,) = pathlib.Path(folder).glob('*.after_codegen.txt')
    return compiled, file.read_text()


class Compiler:
  """Compiles the programs of one config for one mesh, in order."""

  def __init__(
    self,
    config: config_dict.ConfigDict,
    sizes: Sizes,
    mesh,
    *,
    note: Callable[[str], None],
  ):
    """`note` gets a line about each program."""
    self._config, self._sizes, self.mesh = config, sizes, mesh
    self._note = note
    settings = shapes.decoder_settings(config)
    self.base = shapes.base_model(config, settings, mesh)
    self.student = shapes.student_model(config, settings, self.base, mesh)
    self.teacher = self.base
    if config.method == 'kd':
      self.teacher = shapes.load_kd_teacher(config, settings, mesh)
    self.state = shapes.init_state(config, self.student.params, mesh)
    self.programs: list[Program] = []
    self.cache_bytes = 0
    devices = mesh.devices.flat
    self._num_slices = len({getattr(d, 'slice_index', 0) for d in devices})

  @property
  def held(self) -> Held:
    """What stays on a device; cache: that of the largest."""
    adapters = self.student.params if self._config.lora.rank else ()
    weights = shapes.bytes_per_device(self.base.params)
    return Held(
      weights=weights,
      teacher=shapes.bytes_per_device(self._models) - weights,
      adapters=shapes.bytes_per_device((adapters, self.state.ema_params)),
      optimizer=shapes.bytes_per_device(self.state.opt_state),
      cache=self.cache_bytes,
    )

  @property
  def _models(self):
    """Weights that no update changes, each once."""
    if self.teacher is self.base:
      return self.base.params
    return self.base.params, self.teacher.params, self.teacher.frozen

  def compile_all(self) -> None:
    """Fills `programs`, up to the first that does not fit by itself."""
    c = self._config
    training, evaluation = None, None
    if self._sizes.is_sampled:
      training = (c.rollouts.batch_questions, rollout_options(c))
    if c.eval.num_questions:
      evaluation = (c.eval.batch_questions, evaluation_options(c))
    try:
      if training:
        self._sampling(*training)
      self._distill()
      if evaluation and not has_same_sizes(training, evaluation):
        self._sampling(*evaluation, prefix='eval ')
    except DoesNotFitError:
      pass

  def _run(self, name: str, jitted, *arguments, slots=0, live=(), **options):
    """(outputs as shapes), with a `Program` noted down."""
    began = time.monotonic()
    lowered = jitted.lower(*arguments, **options)
    given = shapes.bytes_per_device(arguments)
    everything = shapes.bytes_per_device(live)
    other = max(everything - given, 0)
    rest = dict(name=name, slots=slots, argument_bytes=given, other_bytes=other)
    try:
      compiled, text = _compile(lowered)
    except DoesNotFitError as error:
      self._add(
        Program(
          **rest, peak_bytes=error.used, temporary_bytes=error.used - given,
          limit_bytes=error.limit, costs={},
          compile_seconds=time.monotonic() - began,
        )
      )  # fmt: skip
      raise
    memory = compiled.memory_analysis()
    self._add(
      Program(
        **rest,
        peak_bytes=memory.peak_memory_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        limit_bytes=None,
        costs=program_cost.count(
          text,
          num_slices=self._num_slices,
          part_of=part_of if name == 'distill' else lambda _: name,
        ),
        compile_seconds=time.monotonic() - began,
      )
    )
    return shapes.outputs(compiled, lowered)

  def _add(self, program: Program) -> None:
    self.programs.append(program)
    self._note(
      f'{program.name}: compiled in {program.compile_seconds:.0f} s,'
      f' {program.peak_bytes / 2**30:.2f} GiB'
    )

  def _sampling(self, num_prompts, options, prefix=''):
    def note_cache(num_bytes):
      self.cache_bytes = max(self.cache_bytes, num_bytes)

    compile_sampling(
      lambda name, *args, **kwargs: self._run(prefix + name, *args, **kwargs),
      self.student,
      shapes.prompt_batch(self._config, self.mesh, num_prompts),
      self.state.key,
      lasting=(self._models, self.state),
      note_cache=note_cache,
      **options,
    )

  def _distill(self) -> None:
    c = self._config
    objective = build.objective(c, eos_ids=(0,))
    programs = make_programs(
      c, self.student, self.teacher, objective=objective, eos_ids=(0,)
    )
    batch = shapes.loss_batch(
      c, objective, self.mesh, group_size=self._sizes.group_size
    )
    teacher = (self.teacher.params, self.teacher.frozen)
    self._run(
      'distill', programs.distill, self.state, self.student.frozen, teacher,
      batch, live=(self._models, self.state, batch),
    )  # fmt: skip


def has_same_sizes(training, evaluation) -> bool:
  """Of two (number of prompts, options of `make_sampler`), or None."""
  if training is None:
    return False
  keys = ('group_size', 'max_tokens')
  return training[0] == evaluation[0] and all(
    training[1][key] == evaluation[1][key] for key in keys
  )
