"""Checkpoints of a run, by Orbax: everything that is needed to go on as if nothing had happened."""

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from glcanet_jax.errors import UserError
from glcanet_jax.training import processes
from glcanet_jax.training.messages import errors_kept
from glcanet_jax.training.step import TrainState

SHOWN = 200  # characters of what Orbax says of a checkpoint


class Checkpoints:
    """The last states of a run and its best one by validation mIoU, each kind in its own folder.

    A checkpoint holds parameters, batch statistics, optimiser, step, random key, the data iterator's position and the
    best score so far; it appears under its name only when it is whole. Of the last two are kept, should one be damaged.
    """

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp

        self._ocp, self._folder = ocp, folder.absolute()
        self._last, self._best = self._manager("last", 2), self._manager("best", 1)

    def _manager(self, name: str, kept: int) -> Any:
        options = self._ocp.CheckpointManagerOptions(
            max_to_keep=kept, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        return self._ocp.CheckpointManager(self._folder / name, options=options)

    def last_step(self) -> int | None:
        return self._last.latest_step()

    def save(self, state: TrainState, data: dict[str, Any], best: float | None, unscored: bool = False) -> None:
        """Save the last state; a state already saved is left alone.

        Args:
            unscored: its validation is due, and was cut off.

        Raises:
            UserError: there is no room for it.
        """
        run = {"data": data, "best": best, "step": int(state.step), "unscored": unscored}
        self._write(self._last, int(state.step), _plain(state), run)

    def save_best(self, state: TrainState, miou: float) -> None:
        """Save a state that scored better than any before it on the validation split; raises as :meth:`save`."""
        self._write(self._best, int(state.step), state.answering, {"miou": miou, "step": int(state.step)})

    def _write(self, manager: Any, step: int, state: Any, run: dict[str, Any]) -> None:
        if step in manager.all_steps():  # the same bits: a run that was killed came here again
            return
        args = self._ocp.args.Composite(state=self._ocp.args.StandardSave(state), run=self._ocp.args.JsonSave(run))
        _, failure = _tried(lambda: manager.save(step, args=args, force=True))
        if failure is not None:
            kept = self.last_step()
            before = "there is none before it" if kept is None else f"that of step {kept} is whole"
            raise UserError(
                f"the checkpoint of step {step} cannot be written to {manager.directory} ({failure}); {before}: "
                "make room, then the same command goes on"
            )

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The last state that can be read, shaped and placed as ``state`` is, and what was saved beside it.

        One that cannot be read is told, and moved aside.

        Raises:
            UserError: none can be read.
        """
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardRestore(jax.tree.map(_abstract, _plain(state))),
            run=self._ocp.args.JsonRestore(),
        )
        bad: dict[int, str] = {}
        for step in sorted(self._last.all_steps(), reverse=True):
            restored, failure = _tried(lambda step=step: self._last.restore(step, args=args))
            if failure is None:
                break
            bad[step] = failure
        else:
            step, failure = next(iter(bad.items()))
            raise UserError(
                f"the checkpoint at step {step} does not fit this configuration, or is damaged ({failure}); "
                "use another --out, or remove the run"
            )
        for other, failure in bad.items():
            print(f"the checkpoint of step {other} cannot be read ({failure}): that of step {step} is taken")
        self._move_aside(list(bad))
        return _unplain(restored["state"]), dict(restored["run"])

    def _move_aside(self, steps: list[int]) -> None:
        """What cannot be read makes room for its step to be saved again, and stays for who wants to look at it."""
        if not steps:
            return
        with processes.led("damaged") as leads:
            for step in steps if leads else ():
                aside = self._folder / "damaged"
                aside.mkdir(exist_ok=True)
                taken = sum(1 for _ in aside.glob(f"{step}*"))
                (self._folder / "last" / str(step)).rename(aside / (f"{step}.{taken}" if taken else str(step)))
        self._last.reload()

    def restore_best(self, state: TrainState) -> dict[str, Any] | None:
        """Variables of the best checkpoint, placed as those of ``state`` are; None if none was ever kept.

        Raises:
            UserError: it is damaged.
        """
        step = self._best.latest_step()
        if step is None:
            return None
        # said where: the devices that they were saved from need not be here
        like = jax.tree.map(_abstract, state.answering)
        args = self._ocp.args.Composite(state=self._ocp.args.StandardRestore(like))
        restored, failure = _tried(lambda: self._best.restore(step, args=args))
        if failure is not None:
            raise UserError(
                f"the best checkpoint, of step {step}, cannot be read ({failure}): best.safetensors is not written, "
                "last.safetensors is"
            )
        return restored["state"]

    def close(self) -> None:
        self._last.close()
        self._best.close()


def _tried(action: Callable[[], Any]) -> tuple[Any, str | None]:
    """What Orbax makes of an action, or in words why it failed; what it says itself goes to the log alone."""
    with errors_kept():
        try:
            return action(), None
        except Exception as error:  # Orbax's own kinds differ by release; some are no more than Exception
            failure = _in_words(error)
        gc.collect()  # what it left behind complains while it is collected
    return None, failure


def _in_words(error: Exception) -> str:
    """The system's reason if it is one, else the first line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    system = re.search(r": ([^:]+) \[os_error_code", str(error))
    lines = str(error).splitlines() or [type(error).__name__]
    return system[1] if system else lines[0][:SHOWN]


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
