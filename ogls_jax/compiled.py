"""The programs of a training step, compiled from shapes, and what they need.

begin    reads the prompts (sampling's prefill)
place    the weights as decoding wants them, where `fsdp` shares them out
decode   one token for every row, at the first and at the largest cache
compact  half of the rows of the cache's largest part
distill  teacher, loss, gradient and update, or the method's own
"""

import dataclasses
import pathlib
import re
import tempfile
import time
from collections.abc import Callable

import jax
from ml_collections import config_dict

from ogls_jax import build, program_cost, rollout, sampling, shapes
from ogls_jax.mesh import num_row_shards, num_shards_of
from ogls_jax.models.settings import DecoderSettings
from ogls_jax.programs import make_programs
from ogls_jax.step_parts import part_of
from ogls_jax.validate import Sizes


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled program, per device; bytes and seconds.

  Attributes:
    name: of the list above.
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
  """Bytes on each device between programs."""

  weights: int
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
    settings: DecoderSettings,
    sizes: Sizes,
    mesh,
    *,
    note: Callable[[str], None],
  ):
    """`note` gets a line about each program."""
    self._config, self._sizes, self.mesh = config, sizes, mesh
    self._note = note
    self.base = shapes.base_model(config, settings, mesh)
    self.student = shapes.student_model(config, settings, self.base, mesh)
    self.state = shapes.init_state(config, self.student.params, mesh)
    self.programs: list[Program] = []
    self.cache_bytes = 0
    devices = mesh.devices.flat
    self._num_slices = len({getattr(d, 'slice_index', 0) for d in devices})

  @property
  def held(self) -> Held:
    """What stays on a device; cache: that of the largest."""
    adapters = self.student.params if self._config.lora.rank else ()
    return Held(
      weights=shapes.bytes_per_device(self.base.params),
      adapters=shapes.bytes_per_device((adapters, self.state.ema_params)),
      optimizer=shapes.bytes_per_device(self.state.opt_state),
      cache=self.cache_bytes,
    )

  def compile_all(self) -> None:
    """Fills `programs`, up to the first that does not fit by itself."""
    try:
      if self._sizes.is_sampled:
        self._sampling()
      self._distill()
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

  def _sampling(self) -> None:
    c = self._config
    max_tokens, first = c.rollouts.max_tokens, rollout.CACHE_TOKENS
    first = min(first, max_tokens)
    jitted = rollout.sampler_programs(
      self.student.graphdef,
      group_size=c.rollouts.group_size,
      max_tokens=max_tokens,
      eos_ids=(0,),
      num_slots=first,
      is_unstacked=False,
      temperature=c.rollouts.temperature,
      top_k=c.rollouts.top_k,
      top_p=c.rollouts.top_p,
      min_p=c.rollouts.min_p,
    )
    model = (self.student.params, self.student.frozen)
    lasting = (self.base.params, self.state)
    prefix, own, rows, rollouts = self._run(
      'begin', jitted.begin, *model, shapes.prompt_batch(c, self.mesh),
      self.state.key, None, slots=first, live=lasting,
    )  # fmt: skip
    live = (lasting, prefix, own, rows, rollouts)
    if num_shards_of('fsdp') > 1:
      model = self._run('place', jitted.place, *model, live=live)
      lasting = (lasting, model)
    if first < max_tokens:
      self._decode(jitted, model, lasting, prefix, own, rows, rollouts)
    while own.num_slots < max_tokens:
      slots = rollout.more_slots(
        own.num_slots, first_slots=first, max_tokens=max_tokens
      )
      own, rows = _with_room(own, rows, slots)
    self.cache_bytes = shapes.bytes_per_device((prefix, own))
    smaller = self._decode(jitted, model, lasting, prefix, own, rows, rollouts)
    if smaller:
      num_prompts, size = smaller[0]
      parts = [*own.earlier, (own.key_LBHGKT, own.value_LBHGTK)]
      largest = max(parts, key=shapes.bytes_per_device)
      self._run(
        'compact', jitted.compact, largest, rows.is_done_BG,
        num_prompts=num_prompts, group_size=size, slots=own.num_slots,
        live=(lasting, prefix, own, rows, rollouts),
      )  # fmt: skip

  def _decode(self, jitted, model, lasting, prefix, own, rows, rollouts):
    """The smaller shapes that it may stop for."""
    smaller = tuple(
      sampling.smaller_shapes(
        *rows.is_done_BG.shape,
        min_rows=rollout.MIN_ROWS * num_row_shards(),
        num_shards=num_row_shards(),
      )
    )
    self._run(
      'decode', jitted.decode, *model, None, prefix, own, rows, rollouts,
      smaller, slots=own.num_slots,
      live=(lasting, prefix, own, rows, rollouts),
    )  # fmt: skip
    return smaller

  def _distill(self) -> None:
    c = self._config
    objective = build.objective(c, eos_ids=(0,))
    programs = make_programs(
      c, self.student, self.base, group_size=self._sizes.group_size,
      objective=objective, eos_ids=(0,),
    )  # fmt: skip
    batch = shapes.loss_batch(
      c, objective, self.mesh, group_size=self._sizes.group_size
    )
    teacher = (self.base.params, self.base.frozen)
    self._run(
      'distill', programs.distill, self.state, self.student.frozen, teacher,
      batch, live=(self.base.params, self.state, batch),
    )  # fmt: skip


def _with_room(own, rows, num_slots: int):
  """As `sampling.room` and `OwnCache.with_room` leave them."""

  def resized(leaf, axis, size):
    shape = list(leaf.shape)
    shape[axis] = size
    return jax.ShapeDtypeStruct(
      tuple(shape), leaf.dtype, sharding=leaf.sharding
    )

  added = num_slots - own.num_slots
  own = own.with_room(
    resized(own.key_LBHGKT, -1, added), resized(own.value_LBHGTK, -2, added)
  )
  rows = dataclasses.replace(
    rows,
    response_BGT=resized(rows.response_BGT, -1, num_slots),
    log_prob_BGT=resized(rows.log_prob_BGT, -1, num_slots),
  )
  return own, rows
