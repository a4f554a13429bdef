"""Whether a run fits a TPU slice, and what bounds it, with no TPU at hand.

    python -m ogls_jax.preflight --config=FILE --topology=v5e:4x4 [--suggest]

The very programs of training are compiled for the slice by the TPU compiler,
which says what memory they take; their text, walked with its loops, says what
they compute, read and send. Times are those at the chip's published rates, all
of it overlapped: bounds of compute and memory, an estimate of links. Exit code
0: it fits; 3: it does not.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import sys

import jax
from absl import flags
from ml_collections import config_dict

from ogls_jax import chips, cli, program_cost, suggest
from ogls_jax.compiled import Compiler, Program
from ogls_jax.errors import UserError
from ogls_jax.mesh import make_mesh
from ogls_jax.validate import validate

DOES_NOT_FIT_CODE = 3
_NO_MACHINE = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # another preflight may be at work
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
}
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice, or several.

  Attributes:
    text: as on the command line.
    chip: of one chip.
    devices: JAX's, of no real machine.
    num_chips: in all.
    is_ring: whether every dim of the torus closes to a ring.
  """

  text: str
  chip: chips.Chip
  devices: list
  num_chips: int
  is_ring: bool


def find_slice(topology: str, num_slices: int) -> Slice:
  """The devices of a topology such as `v5e:4x4`.

  Raises:
    UserError: libtpu is missing, or knows no such topology.
  """
  kind, _, shape = topology.partition(':')
  text = f'--topology={topology}'
  num_dims = {4: 2, 6: 3}
  chip = chips.CHIPS.get(kind.lower())
  sizes = [int(size) for size in re.findall(r'\d+', shape)]
  if (
    chip is None
    or not re.fullmatch(r'\d+(x\d+)*', shape)
    or len(sizes) != num_dims[chip.num_links]
    or not all(0 < size <= chip.most_chips for size in sizes)
  ):
    examples = ', '.join(
      f'{name}:{"x".join(["4"] * num_dims[each.num_links])}'
      for name, each in chips.CHIPS.items()
    )
    raise UserError(
      f'{text} is no kind with the chips of each dim, such as {examples}; a v5e'
      ' slice of 16 chips is v5e:4x4, whatever name clouds give it'
    )
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      f'{text} needs the TPU compiler: pip install libtpu, which needs no TPU'
    )
  from jax.experimental import topologies

  # It would ask the machine for a TPU's settings, and complain of the answers.
  for name, value in _NO_MACHINE.items():
    os.environ.setdefault(name, value)
  options = {'num_slices': num_slices} if num_slices > 1 else {}
  if kind.lower() == 'v4':
    # Both cores of a chip as one device, as TPU VMs have them by default.
    options['chip_config_name'] = 'megacore'
  try:
    found = topologies.get_topology_desc(topology, 'tpu', **options)
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    reason = ' '.join(str(error).split())[:200]
    raise UserError(f'{text}: no such topology ({reason})') from error
  return Slice(
    text=topology if num_slices == 1 else f'{num_slices} x {topology}',
    chip=chip,
    devices=list(found.devices),
    num_chips=math.prod(sizes) * num_slices,
    is_ring=all(size % chip.ring_chips == 0 for size in sizes if size > 1),
  )


def fits(program: Program, chip: chips.Chip) -> bool:
  """With all that lives beside it."""
  if program.limit_bytes is not None:
    return False
  return program.peak_bytes + program.other_bytes <= chip.usable_gib * _GIB


def compile_step(config: config_dict.ConfigDict, where: Slice) -> Compiler:
  """The programs of a step of `config`, on `where`."""
  sizes = validate(config, len(where.devices))
  mesh = make_mesh(dict(config.mesh), where.devices)
  with jax.set_mesh(mesh):
    compiler = Compiler(config, sizes, mesh, note=_note)
    compiler.compile_all()
  return compiler


def first_misfit(compiler: Compiler, chip: chips.Chip) -> str:
  """The first program that does not fit; '' if all do."""
  names = [each.name for each in compiler.programs if not fits(each, chip)]
  return names[0] if names else ''


def suggestion(
  config: config_dict.ConfigDict, where: Slice, compiler: Compiler
) -> suggest.Overrides | None:
  """Changes with which the step was compiled and fits; None: found none."""

  def try_out(changed, overrides):
    _note(f'trying {suggest.as_flags(overrides)}')
    return first_misfit(compile_step(changed, where), where.chip)

  return suggest.find(config, first_misfit(compiler, where.chip), try_out)


def _note(text: str) -> None:
  print(f'  {text}', file=sys.stderr, flush=True)


def print_report(config, where: Slice, compiler: Compiler) -> None:
  """Memory, work and times, as text."""
  mesh = ' x '.join(f'{axis} {n}' for axis, n in compiler.mesh.shape.items())
  print(
    f'{where.text}: {where.num_chips} chips, {len(where.devices)} devices of'
    f' {where.chip.usable_gib:.2f} GiB; mesh {mesh}'
  )
  held = dataclasses.asdict(compiler.held)
  print(
    'on each device, GiB: '
    + ', '.join(
      f'{name} {size / _GIB:.2f}' for name, size in held.items() if size
    )
  )
  layout = '{:12} {:>6} {:>10} {:>10} {:>8} {:>8}  {}'.format
  print(
    layout('program', 'slots', 'arguments', 'temporary', 'beside', 'peak', '')
  )
  for each in compiler.programs:
    sizes = (
      each.argument_bytes, each.temporary_bytes, each.other_bytes,
      each.peak_bytes + each.other_bytes,
    )  # fmt: skip
    texts = [f'{size / _GIB:.2f}' for size in sizes]
    verdict = 'fits' if fits(each, where.chip) else 'does not fit'
    print(layout(each.name, each.slots or '', *texts, verdict))
  _print_times(compiler.programs, where)


def _print_times(programs: list[Program], where: Slice) -> None:
  layout = '{:26} {:>9} {:>9} {:>9} {:>10} {:>10} {:>10}  {}'.format
  print(
    layout(
      'part', 'TFLOP', 'GB', 'links GB', 'compute ms', 'memory ms', 'links ms',
      'bound by',
    )
  )  # fmt: skip
  for program in programs:
    for part, cost in program.costs.items():
      name = part if program.name == 'distill' else _title(program)
      times = chips.times(cost, where.chip, is_ring=where.is_ring)
      links = sum(size for _, size in cost.collectives.values())
      print(
        layout(
          name, f'{cost.flops / 1e12:.4f}', f'{cost.num_bytes / 1e9:.3f}',
          f'{links / 1e9:.4f}', f'{1e3 * times.compute:.3f}',
          f'{1e3 * times.memory:.3f}', f'{1e3 * times.links:.3f}', times.bound,
        )
      )  # fmt: skip
  print('compute ms and memory ms are bounds, links ms is an estimate')
  for program in programs:
    found = program_cost.by_kind(program_cost.total(program.costs))
    texts = [
      f'{count:,.0f} {kind} of {num_bytes / 1e6:,.1f} MB in all'
      for kind, (count, num_bytes) in sorted(found.items())
    ]
    print(f'{_title(program)}: {", ".join(texts) or "no collectives"}')


def _title(program: Program) -> str:
  if program.name.endswith('decode'):
    return f'{program.name} 1 of {program.slots}'
  return program.name


def step_seconds(programs: list[Program], where: Slice) -> dict[str, float]:
  """Seconds: of sampling as long as can be, of the update, of both.

  Evaluation is no part of them. A token's time is taken to grow with the cache
  in a straight line.
  """

  def seconds(program):
    cost = program_cost.total(program.costs)
    return chips.times(cost, where.chip, is_ring=where.is_ring).seconds

  found = {'sampling': 0.0, 'update': 0.0}
  decodes = [p for p in programs if p.name == 'decode']
  for program in programs:
    if program.name in ('begin', 'place'):
      found['sampling'] += seconds(program)
    elif program.name == 'distill':
      found['update'] += seconds(program)
  if decodes:
    first, last = decodes[0], decodes[-1]
    mean = (seconds(first) + seconds(last)) / 2
    found['sampling'] += last.slots * mean
  return found | {'step': sum(found.values())}


def as_json(where: Slice, compiler: Compiler) -> dict:
  """The same as `print_report`, for programs."""
  return {
    'topology': where.text,
    'num_chips': where.num_chips,
    'chip': dataclasses.asdict(where.chip),
    'mesh': dict(compiler.mesh.shape),
    'held_bytes': dataclasses.asdict(compiler.held),
    'programs': [
      {
        'name': p.name, 'slots': p.slots, 'peak_bytes': p.peak_bytes,
        'argument_bytes': p.argument_bytes,
        'temporary_bytes': p.temporary_bytes, 'other_bytes': p.other_bytes,
        'fits': fits(p, where.chip),
        'parts': {part: _cost_json(c, where) for part, c in p.costs.items()},
      }
      for p in compiler.programs
    ],
    'step_seconds': step_seconds(compiler.programs, where),
  }  # fmt: skip


def _cost_json(cost: program_cost.Cost, where: Slice) -> dict:
  times = chips.times(cost, where.chip, is_ring=where.is_ring)
  return {
    'flops': cost.flops,
    'bytes': cost.num_bytes,
    'collectives': program_cost.by_kind(cost),
    'unknown': cost.unknown,
    'seconds': dataclasses.asdict(times),
    'bound': times.bound,
  }


def main() -> None:
  """Compiles, prints, and exits with the verdict."""
  # What is compiled for chips that are not there cannot be read back from it.
  jax.config.update('jax_enable_compilation_cache', False)
  config = cli.read_config()
  where = find_slice(flags.FLAGS.topology, flags.FLAGS.num_slices)
  compiler = compile_step(config, where)
  is_fitting = not first_misfit(compiler, where.chip)
  found = None
  if flags.FLAGS.suggest and not is_fitting:
    found = suggestion(config, where, compiler)
  if flags.FLAGS.json:
    verdict = {'fits': is_fitting, 'suggestion': found}
    print(json.dumps(as_json(where, compiler) | verdict, indent=2))
  else:
    print_report(config, where, compiler)
    if is_fitting:
      texts = [
        f'{name} {seconds:.3g} s'
        for name, seconds in step_seconds(compiler.programs, where).items()
      ]
      print(f'at these rates, every rollout at its limit: {", ".join(texts)}')
    if found:
      print(f'fits with {suggest.as_flags(found)}')
    elif flags.FLAGS.suggest and not is_fitting:
      print('no change that was tried makes it fit; take a larger slice')
    if not is_fitting and not flags.FLAGS.suggest:
      print('--suggest looks for changes of the config with which it does')
    print('fits' if is_fitting else 'does not fit')
  if not is_fitting:
    sys.exit(DOES_NOT_FIT_CODE)


if __name__ == '__main__':
  cli.define_config()
  flags.DEFINE_string(
    'topology', None, 'KIND:SHAPE, such as v5e:4x4.', required=True
  )
  flags.DEFINE_integer('num_slices', 1, 'Slices of that topology.', 1)
  flags.DEFINE_bool('json', False, 'Print JSON.')
  flags.DEFINE_bool('suggest', False, 'Where it does not fit, try what may.')
  cli.run(main)
