"""Several hosts: how they meet, whose rows are whose, and what they share.

Every host runs the same program on the same order of questions. It renders,
grades and builds hints for the questions whose rows its own devices hold, and
places their arrays; sizes that all must agree on and figures of single rows
travel between hosts. On one host all of this does nothing.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import sys
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ogls_jax.errors import UserError
from ogls_jax.mesh import ROW_AXES, num_row_shards_of

NOT_SHARED = (
  'some hosts see a run there and others none; it has to be one folder that all'
  ' hosts share'
)
# A host that is gone is noticed after so long, and the others stop.
_HEARTBEAT_SECONDS = 30
_SHUTDOWN_SECONDS = 15
# While one host is at work alone the others hear of it so often.
_MEET_SECONDS = 1
# File systems over a network show a new file so late at the most.
_SEEN_SECONDS = 35


def start(
  coordinator: str,
  num_processes: int,
  process_id: int,
  *,
  wait_seconds: int = 300,
) -> None:
  """Joins the other hosts' processes; to be called before JAX sees a device.

  Args:
    coordinator: '' for a single process; `auto` on a TPU pod slice, under
      SLURM, Open MPI or a GKE JobSet, where JAX finds the rest by itself; else
      HOST:PORT of process 0, which all can reach.
    num_processes: how many there are, where `coordinator` is HOST:PORT.
    process_id: of this one, from 0, likewise.
    wait_seconds: for the others.

  Raises:
    UserError: the three do not go together.

  Where a host is missing the process ends with code 1.
  """
  if not coordinator:
    if num_processes or process_id >= 0:
      raise UserError(
        '--num_processes and --process_id need --coordinator=HOST:PORT'
      )
    return
  flag = f'--coordinator={coordinator}'
  arguments = {}
  if coordinator != 'auto':
    if not 0 <= process_id < num_processes:
      raise UserError(
        f'{flag} --num_processes={num_processes} --process_id={process_id}:'
        ' give each of N processes N and its own number, 0 to N - 1'
      )
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdigit():
      raise UserError(f'{flag} is not HOST:PORT, such as 10.0.0.2:8476')
    arguments = dict(
      coordinator_address=coordinator,
      num_processes=num_processes,
      process_id=process_id,
    )
  # What CPUs of several processes add up with; others ignore it.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')

  def give_up(reason):
    print(
      f'error: {flag}: {reason}; start every process, all with the same'
      ' --num_processes and each with its own --process_id, where it can reach'
      ' the coordinator',
      file=sys.stderr,
      flush=True,
    )
    os._exit(1)  # not 2: the same command may well succeed

  # JAX's own limit aborts the process, with a dump.
  late = f'not all hosts were there after {wait_seconds} s'
  timer = threading.Timer(wait_seconds, give_up, [late])
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=wait_seconds + 60,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
  except ValueError as error:
    reason = ' '.join(str(error).split())[:200].rstrip('.')
    raise UserError(
      f'{flag}: {reason}; give --coordinator=HOST:PORT, --num_processes and'
      ' --process_id where auto finds nothing'
    ) from error
  except RuntimeError as error:
    give_up(' '.join(str(error).split())[:200])
  finally:
    timer.cancel()


def leave(code: int) -> None:
  """Ends a process that met an error; where there are others, at once.

  They stop within a minute. The usual way out would wait for them, and they for
  this one.
  """
  if jax.distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)


def is_first() -> bool:
  """Whether this process writes what a run has once: all but checkpoints."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """Prints a line, once for all hosts."""
  if is_first():
    # Where nobody reads, or a log's disk is full, the run goes on.
    with contextlib.suppress(OSError):
      print(text, flush=True)


def _holders(mesh):
  """(owner, whether this process is one of them) of each shard of the rows.

  The owner is the first process that holds it; it speaks for the others.
  """
  process = np.vectorize(lambda device: device.process_index, otypes=[int])
  process_SD = process(mesh.devices).reshape(num_row_shards_of(mesh), -1)
  is_here_SD = process_SD == jax.process_index()
  return process_SD.min(1), is_here_SD.any(1)


def own_rows(num_rows: int, mesh: Mesh) -> np.ndarray:
  """Which of a batch's rows (or questions) this process's devices hold."""
  is_here_S = _holders(mesh)[1]
  return np.flatnonzero(np.repeat(is_here_S, num_rows // len(is_here_S)))


def own_of(questions: list, mesh: Mesh) -> list:
  """Those of a batch that this process renders, grades and places."""
  return [questions[b] for b in own_rows(len(questions), mesh)]


def put_rows(tree, mesh: Mesh):
  """Places host arrays whose first dim is this process's rows, in order.

  What is on devices already stays where it is.
  """
  is_here_S = _holders(mesh)[1]
  place_S = np.cumsum(is_here_S) - 1

  def put(array):
    if isinstance(array, jax.Array):
      return array
    sharding = NamedSharding(mesh, PartitionSpec(ROW_AXES))
    if is_here_S.all():
      return jax.device_put(array, sharding)
    per_shard = len(array) // is_here_S.sum()

    def part(index):
      start = place_S[(index[0].start or 0) // per_shard] * per_shard
      return array[start : start + per_shard]

    shape = (per_shard * len(is_here_S), *array.shape[1:])
    return jax.make_array_from_callback(shape, sharding, part)

  # What that function does is no explicit transfer for JAX.
  with jax.transfer_guard_host_to_device('allow'):
    return jax.tree.map(put, tree)


def put_whole(array: np.ndarray, mesh: Mesh) -> jax.Array:
  """Places an array that all hosts have alike, on all devices."""
  sharding = NamedSharding(mesh, PartitionSpec())
  with jax.transfer_guard_host_to_device('allow'):
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )


def take_rows(tree):
  """This process's rows of arrays whose first dim is sharded by row."""

  def take(array):
    if array.is_fully_addressable:
      return jax.device_get(array)
    parts = {
      shard.index[0].start or 0: shard.data
      for shard in array.addressable_shards
    }
    return np.concatenate(jax.device_get([parts[k] for k in sorted(parts)]))

  return jax.tree.map(take, tree)


def largest(*sizes: int) -> tuple[int, ...]:
  """The largest of each over all hosts; every host has to call it."""
  if jax.process_count() == 1:
    return sizes
  return tuple(_gather(np.array(sizes, np.int32)).max(0).tolist())


def share_rows(values_RX: np.ndarray, mesh: Mesh) -> np.ndarray:
  """All hosts' rows of figures of up to 32 bits, in the order of the batch.

  Of rows that several hosts hold, those of their owner. Every host has to call
  it, with its own rows.
  """
  if jax.process_count() == 1:
    return values_RX
  first_S, is_here_S = _holders(mesh)
  per_shard = len(values_RX) // is_here_S.sum()
  everything = np.zeros(
    (len(is_here_S), per_shard, *values_RX.shape[1:]), values_RX.dtype
  )
  everything[is_here_S] = values_RX.reshape(-1, *everything.shape[1:])
  found = _gather(everything)
  rows = found[first_S, np.arange(len(first_S))]
  return rows.reshape(-1, *values_RX.shape[1:])


def share_texts(texts: list[str], mesh: Mesh) -> list[str]:
  """All hosts' rows of texts, as `share_rows` does it."""
  if jax.process_count() == 1:
    return texts
  rows = [text.encode('utf-8', 'surrogatepass') for text in texts]
  (width,) = largest(max(map(len, rows)))
  bytes_RX = np.zeros((len(rows), width), np.uint8)
  for row, data in zip(bytes_RX, rows, strict=True):
    row[: len(data)] = np.frombuffer(data, np.uint8)
  length_R = share_rows(np.array([len(data) for data in rows], np.int32), mesh)
  bytes_RX = share_rows(bytes_RX, mesh)
  return [
    row[:length].tobytes().decode('utf-8', 'surrogatepass')
    for row, length in zip(bytes_RX, length_R, strict=True)
  ]


def on_first(function):
  """What the first host makes of `function`, which may take long; else None.

  The others wait for it. Every host has to call it.

  Raises:
    UserError: of the others, where the first one met an error.
  """
  if jax.process_count() == 1:
    return function()
  if not is_first():
    is_busy = True
    while is_busy:  # in short waits: a collective has a limit of time
      (is_busy,) = largest(0)
    if largest(0)[0]:
      raise UserError('the first host met an error, and says which')
    return None
  with concurrent.futures.ThreadPoolExecutor(1) as executor:
    future = executor.submit(function)
    while largest(int(not future.done()))[0]:
      concurrent.futures.wait([future], _MEET_SECONDS)
    largest(int(future.exception() is not None))
    return future.result()


def check_agree(value: int, message: str) -> None:
  """UserError with `message` where a host has another value."""
  if jax.process_count() == 1:
    return
  # As two halves: what travels has 32 bits.
  halves = np.array([value >> 31 & 0x7FFFFFFF, value & 0x7FFFFFFF], np.int32)
  if (_gather(halves) != halves[None]).any():
    raise UserError(message)


def check_shared(path: pathlib.Path, message: str) -> None:
  """UserError with `message` where a host does not see the first one's file.

  Every host has to call it, the first one once `path` is there.
  """
  if jax.process_count() == 1:
    return
  _gather(np.int32(0))
  end = time.monotonic() + _SEEN_SECONDS
  while not path.is_file() and time.monotonic() < end:
    time.sleep(0.5)
  if not _gather(np.int32(path.is_file())).all():
    raise UserError(message)


def _gather(array):
  """[processes, ...]."""
  with jax.transfer_guard('allow'):
    return np.asarray(multihost_utils.process_allgather(array))
