"""Orbax checkpoints: train state, data position and run counters."""

import pathlib

import jax
import orbax.checkpoint as ocp

from ogls_jax.batches import TrainState


class Checkpointer:
  """Saves and restores one run's steps under `folder`."""

  def __init__(self, folder: pathlib.Path, *, keep: int):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

  def latest_step(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def all_steps(self) -> list[int]:
    """The complete steps that are kept, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: TrainState, position: dict) -> None:
    """Saves `state` and a JSON-like `position` without waiting for the disk."""
    # Key arrays are saved as the integers they wrap.
    state = _with_key(state, jax.random.key_data)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)
      ),
    )

  def restore(self, step: int, state: TrainState) -> tuple[TrainState, dict]:
    """Step `step` in the structure, shardings and dtypes of `state`."""
    like = _with_key(state, jax.random.key_data)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract),
        position=ocp.args.JsonRestore(),
      ),
    )
    return _with_key(
      restored.state, jax.random.wrap_key_data
    ), restored.position

  def wait(self) -> None:
    """Until everything is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits until everything is on disk."""
    self.wait()
    self._manager.close()


def _with_key(state: TrainState, convert) -> TrainState:
  return TrainState(
    step=state.step,
    key=convert(state.key),
    params=state.params,
    opt_state=state.opt_state,
    ema_params=state.ema_params,
  )
