"""Checkpoints of a run, by Orbax: everything that is needed to go on as if nothing had happened."""

from pathlib import Path
from typing import Any

import jax

from glcanet_jax.errors import UserError
from glcanet_jax.training.step import TrainState


class Checkpoints:
    """The last state of a run and its best one by validation mIoU, each in its own folder.

    A checkpoint holds parameters, batch statistics, optimiser, step, random key, the data iterator's position and the
    best score so far; it appears under its name only when it is whole.
    """

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._last = ocp.CheckpointManager((folder / "last").absolute(), options=options)
        self._best = ocp.CheckpointManager((folder / "best").absolute(), options=options)

    def last_step(self) -> int | None:
        return self._last.latest_step()

    def save(self, state: TrainState, data: dict[str, Any], best: float | None) -> None:
        """Save the last state; a state already saved is left alone."""
        step = int(state.step)
        if step == self._last.latest_step():
            return
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(_plain(state)),
            run=self._ocp.args.JsonSave({"data": data, "best": best, "step": step}),
        )
        self._last.save(step, args=args, force=True)

    def save_best(self, state: TrainState, miou: float) -> None:
        """Save a state that scored better than any before it on the validation split."""
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(state.answering),
            run=self._ocp.args.JsonSave({"miou": miou, "step": int(state.step)}),
        )
        self._best.save(int(state.step), args=args, force=True)

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The last state, shaped and placed as ``state`` is, and what was saved beside it."""
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardRestore(jax.tree.map(_abstract, _plain(state))),
            run=self._ocp.args.JsonRestore(),
        )
        step = self._last.latest_step()
        try:
            restored = self._last.restore(step, args=args)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"the checkpoint at step {step} does not fit this configuration ({str(error).splitlines()[0]}); "
                "use another --out, or remove the run"
            ) from error
        return _unplain(restored["state"]), restored["run"]

    def restore_best(self) -> dict[str, Any] | None:
        """Variables of the best checkpoint, as numpy-like arrays; None if none was ever kept."""
        step = self._best.latest_step()
        if step is None:
            return None
        return self._best.restore(step, args=self._ocp.args.Composite(state=self._ocp.args.StandardRestore()))["state"]

    def close(self) -> None:
        self._last.close()
        self._best.close()


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _plain(state: TrainState) -> dict[str, Any]:
    """Typed keys are not arrays that every Orbax version stores: their bits are."""
    plain = {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
        "step": state.step,
        "key": jax.random.key_data(state.key),
    }
    return plain if state.average is None else plain | {"average": state.average}


def _unplain(values: dict[str, Any]) -> TrainState:
    return TrainState(**{**values, "key": jax.random.wrap_key_data(values["key"])})
