"""Networks that are compiled once and trained for many seeds."""

import ast
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from experiments.converge.field import CLASSES, TEST, Field, Fold
from experiments.converge.scoring import Scored, make_confusion, told
from glcanet_jax import models, starting
from glcanet_jax.errors import UserError
from glcanet_jax.training import optim, phases
from glcanet_jax.training.on_device import Dispatch, at_once, make_chunk
from glcanet_jax.training.step import TrainState, create_state, make_train_step

FILE_BYTES = 14e6  # of saved arrays in a file


def literal(text: str) -> Any:
    """Python's value of an option, or the word itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def build(text: str, options: Mapping[str, Any]) -> Any:
    """A network as it is asked for: NAME:option=value,option=value."""
    name, _, given = text.partition(":")
    asked = {**options} | {k: literal(v) for k, v in (item.split("=") for item in given.split(",") if item)}
    known = models.options(name)
    return models.build(name, CLASSES, **{k: v for k, v in asked.items() if k in known})


class Entry:
    """A network, compiled in a thread of its own, while another one of ``others`` makes what its runs begin with."""

    def __init__(self, text: str, field: Field, seeds: Iterable[int], others: futures.Executor):
        self.text, self._field = text, field
        self.model = build(text, field.options)
        config, sizes = field.config, field.sizes
        phase = phases.Phase(phases.JOINT, 0, config.train.steps)
        self.tx = optim.optimiser(config.optimiser, (phase,), config.freeze)
        step = make_train_step(self.model, self.tx, config, 255.0, phase)
        self._steps = at_once(sizes.chunk)  # a dispatch
        self._chunk = make_chunk(step, sizes.plan(), self._steps)
        self._confusion = jax.jit(make_confusion(models.functions(self.model).apply, config, sizes, CLASSES))
        self._fresh = {seed: others.submit(self.fresh, seed) for seed in seeds}
        self._compiled = futures.Future[None]()
        threading.Thread(target=self._compile_once, daemon=True).start()  # nothing waits for it at the end

    def _compile_once(self) -> None:
        try:
            self._compiled.set_result(self._compile())
        except Exception as error:
            self._compiled.set_exception(error)

    def _compile(self) -> None:
        began, fold = time.time(), next(iter(self._field.folds.values()))
        state = jax.eval_shape(lambda: self.fresh(0))
        self.chunk = self._chunk.lower(state, self._dispatch(fold, 0)).compile()
        some = next(iter(fold.tests.values()))
        self.confusion = self._confusion.lower(state.average, *next(iter(some.values()))).compile()
        self.compile_seconds = round(time.time() - began, 1)

    def ready(self) -> bool:
        """Whether it is compiled; raises what that raised."""
        if self._compiled.done():
            self._compiled.result()
        return self._compiled.done()

    def _dispatch(self, fold: Fold, seed: int) -> Dispatch:
        return Dispatch(fold.scenes, jax.random.key(seed), np.int32(self._steps))

    def fresh(self, seed: int) -> TrainState:
        """What a run begins with; made on the CPU, which leaves the device to those that run."""
        with jax.default_device(jax.devices("cpu")[0]):
            variables = models.init(self.model, jax.random.key(seed), 3)
            if self._field.backbone is not None:
                variables = starting.with_backbones(self._field.backbone, variables, 3)
            return create_state(variables, self.tx, jax.random.key(1000 + seed), average=True)

    def score(self, variables: Any, scenes: Mapping[str, Scored]) -> dict[str, Any]:
        """Of some scenes together, and of each (``scenes``, if there are several)."""
        counts = {name: np.asarray(self.confusion(variables, *scene), np.float64) for name, scene in scenes.items()}
        each = {name: told(confusion) for name, confusion in counts.items()}
        return told(sum(counts.values())) | ({"scenes": each} if len(each) > 1 else {})

    def run(self, name: str, seed: int) -> dict[str, Any] | None:
        """Train and score once on the fold of that name; None where there is no time for it."""
        field, length, fold = self._field, self._field.length, self._field.folds[name]
        state = jax.device_put(self._fresh[seed].result(), jax.devices()[0], may_alias=False)  # it is donated
        dispatch, began, done = self._dispatch(fold, seed), time.time(), 0
        curve: list[list[float]] = []
        while done < length.steps and not (curve and length.is_over(curve)):
            if time.time() > field.end:
                return None
            losses = []
            for _ in range(field.sizes.chunk // self._steps):
                state, taken = self.chunk(state, dispatch)
                losses.append(taken.each["loss"])
            done += field.sizes.chunk
            loss = np.concatenate(losses)  # waits for them
            if length.still is not None and done % length.every == 0:
                curve.append([done, self.score(state.average, next(iter(fold.tests.values())))["miou"]])
                print(f"{self.text}, {name}, seed {seed}: {curve[-1][1]:.1f} at step {done}", flush=True)
        found = {"network": self.text, "fold": name, "seed": seed, "steps": done, "loss": float(loss.mean())}
        found |= {"seconds": round(time.time() - began, 1), "compile_seconds": self.compile_seconds}
        found |= {"curve": curve} if curve else {}
        if seed == 0 and name == TEST:
            save(place_of(field.out, self.text), state.average)
        return found | {"scores": {group: self.score(state.average, tests) for group, tests in fold.tests.items()}}


def save(path: Path, variables: Any) -> None:
    """Kernels as int8 with a float32 scale an output channel, everything else as float32; in files of at most 15 MB."""
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    flat = {"/".join(k.key for k in p): np.asarray(x, np.float32) for p, x in leaves}
    parts, size = [{}], 0
    for name, x in flat.items():
        new = {name: x}
        if name.endswith("kernel"):
            scale = np.maximum(np.abs(x).max(axis=tuple(range(x.ndim - 1))) / 127, 1e-12).astype(np.float32)
            new = {name: np.round(x / scale).astype(np.int8), name + ".scale": scale}
        more = sum(v.nbytes for v in new.values())
        if size + more > FILE_BYTES:
            parts.append({})
            size = 0
        parts[-1] |= new
        size += more
    for i, part in enumerate(parts):
        partial = path.with_name(f".{path.name}.{i}.part.npz")
        np.savez(partial, **part)
        partial.replace(f"{path}.{i}.npz")


def kept(path: Path) -> dict[str, Any]:
    """What :func:`save` wrote, as float32.

    Raises:
        UserError: nothing is there.
    """
    flat: dict[str, np.ndarray] = {}
    for part in sorted(path.parent.glob(f"{path.name}.*.npz")):
        with np.load(part) as arrays:
            flat |= dict(arrays)
    if not flat:
        raise UserError(
            f"{path.parent} holds no weights of {path.name}; experiments.converge keeps those of seed 0, scored on tile 2"
        )
    scales = {name: flat.pop(name) for name in list(flat) if name.endswith("kernel.scale")}
    return unflatten_dict(
        {tuple(name.split("/")): x * scales.get(f"{name}.scale", np.float32(1)) for name, x in flat.items()}
    )


def place_of(out: Path, text: str) -> Path:
    """Where a network's weights are kept, without the number and the ending of the files."""
    return out / text.replace(":", "-").replace("=", "-").replace(",", "-")
