"""A run that goes on behind its end, or otherwise than it began: a new run from the last state of another, its parent.

The new run's folder begins as a copy of what the parent would go on from (checkpoints, log, record of the data), and then goes
on as any run does that was stopped.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glcanet_jax import border, report, runs, starting
from glcanet_jax import config as configs
from glcanet_jax.config import Config
from glcanet_jax.data import disk
from glcanet_jax.errors import UserError
from glcanet_jax.training.phases import Phase

PARENT = "parent.json"  # in a run's folder: what it began with
KIND = "extended"  # of the line of the log where a run goes on from its parent
# what may differ from the parent, by group; of the others everything is part of the state that is gone on from
FREE = ("out", "more_steps", "init", "distributed", "eval_batch", "eval_tta", "loss")
FREE_OF = {
    "optimiser": ("global_rate", "local_rate", "fusion_rate", "head_rate", "b1", "b2", "weight_decay", "clip", "schedule", "power", "warmup_steps"),
    "train": ("ema", "colour_jitter", "jitter_bands", "devices", "precision", "deterministic", "log_every", "eval_every", "checkpoint_every", "checkpoint_minutes", "tensorboard"),
    "data": ("dir", "cache", "kept_mb"),
}  # fmt: skip
# there or not, they are part of the optimiser's state, or the average is
SWITCHES = (("optimiser", "head_rate"), ("optimiser", "weight_decay"), ("optimiser", "clip"), ("train", "ema"))


def named(config: Config) -> Config:
    """With a parent and a folder of its own: without ``--init`` it is ``--out`` that goes on, in a folder beside."""
    if config.more_steps is None or config.init.weights is not None:
        return config
    out = Path(config.out)
    init = dataclasses.replace(config.init, weights=str(out))
    return dataclasses.replace(config, init=init, out=str(out.with_name(f"{out.name}-more-{config.more_steps}")))


def resumed(config: Config) -> Config:
    """With the warm-up of the parent behind it: it is warmed up again only by another number.

    Raises:
        UserError: it is no run, or what is asked for is another network, other data or another order of them.
    """
    before = starting.of_run(config.init.weights)
    changed = _changed(configs.to_dict(config), configs.to_dict(before))
    if changed:
        raise UserError(
            f"a run that goes on from the state of {config.init.weights} cannot change {'; '.join(changed[:3])}; leave that as it "
            "was, or begin from its weights: --init without --more-steps"
        )
    if config.optimiser.warmup_steps != before.optimiser.warmup_steps:
        return config
    return dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, warmup_steps=0))


def _changed(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    for values in (ours, theirs):
        for group, name in SWITCHES:
            values[group] |= {f"{name} or none": bool(values[group][name])}
        for name in FREE:
            values.pop(name)
        for group, names in FREE_OF.items():
            for name in names:
                values[group].pop(name)
    return configs.differences(ours, theirs, words=("here", "there"))


def begun(config: Config) -> int:
    """The step that a run goes on from; 0 of one that begins at the beginning.

    Raises:
        UserError: its parent has no state.
    """
    if config.more_steps is None:
        return 0
    own = Path(config.out) / PARENT
    if own.exists():
        return border.read_object(own, step=int)["step"]
    step = last_step(Path(config.init.weights))
    if step is None:
        starting.of_run(config.init.weights)  # says if it is no run at all
        raise UserError(
            f"{config.init.weights} was stopped before its first checkpoint: nothing can go on from it; train it first"
        )
    return step


def last_step(run: Path) -> int | None:
    """The step that a run's folder would go on from."""
    steps = (int(p.name) for p in (run / "checkpoints" / "last").glob("[0-9]*") if p.name.isdigit())
    return max(steps, default=None)


def spans(planned: Sequence[Phase], steps: int) -> tuple[Phase, ...]:
    """The phases of a run that was planned for other steps than it has: its last one is longer, or it ends sooner."""
    longer = [*planned[:-1], planned[-1]._replace(stop=max(steps, planned[-1].stop))]
    return tuple(p._replace(stop=min(p.stop, steps)) for p in longer if p.start < steps)


def copy(config: Config) -> None:
    """Make the new run's folder, whole or not at all, from what its parent would go on from; one that is there stays.

    Raises:
        UserError: the parent is running, something else lies at the new run's place, or there is no room.
    """
    parent, out = Path(config.init.weights), Path(config.out)
    if (out / PARENT).exists():  # it has a state of its own to go on from
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and does not go on from {parent}; give another --out, or an empty folder")
    step, place = begun(config), disk.part_of(out)
    with disk.held(parent, "stop it first (Ctrl-C saves it), or wait for its end"):
        try:
            shutil.rmtree(place, ignore_errors=True)  # of one that was killed here
            shutil.copytree(
                parent / "checkpoints", place / "checkpoints", ignore=shutil.ignore_patterns("*tmp*", "damaged")
            )
            if (parent / runs.DATA).exists():
                shutil.copy(parent / runs.DATA, place / runs.DATA)
            told = {"run": str(parent), "step": step, "more_steps": config.more_steps}
            records = [r for r in report.read_log(parent / "log.jsonl") if r["step"] <= step]
            lines = [*records, {"kind": KIND, "step": step, "run": str(parent)}]
            report.write_text(place / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
            report.write_json(place / PARENT, told)
            report.write_json(place / "config.json", configs.to_dict(config))
            if out.exists():
                out.rmdir()
            place.rename(out)
        except OSError as error:
            raise UserError(
                f"{out} cannot be made from {parent} ({error.strerror or error}); make room, or give another --out"
            ) from error
        finally:
            shutil.rmtree(place, ignore_errors=True)
    print(f"going on behind step {step} of {parent}")
