"""Converged runs of several networks on MBRSC in minutes: all scenes on the device, contexts drawn inside the step, seeds and networks in one process.

    python -m experiments.converge DATA BACKBONE OUT --networks branch glcanet glcanet:head=nonlinear --steps 1000 --seeds 3 --seconds 330

DATA is MBRSC's folder (more folders by ``--also DIR``: their scenes are scored, too); BACKBONE holds ImageNet's ResNet-50 in
torchvision's layout; OUT gets ``runs.jsonl`` and, for every network's first seed, its moving average in 8 bits (files of at most
15 MB). Options of a network follow its name: NAME:option=value,option=value. Networks are compiled in threads while others
train, without autotuning, which would take longer than the runs and disturb them. ``--tiny`` rehearses it on a CPU.

Needs jax, flax, optax, orbax-checkpoint, numpy, Pillow, einops, jaxtyping, safetensors and scipy alone.
"""

import argparse
import ast
import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Integer

from experiments.mbrsc import CPU
from glcanet_jax import models, runs, weights
from glcanet_jax.config import Config
from glcanet_jax.data.loader import LoaderConfig, TrainLoader
from glcanet_jax.data.mbrsc import open_mbrsc
from glcanet_jax.data.scenes import IGNORE, ArrayScene
from glcanet_jax.geometry import Views
from glcanet_jax.training import optim, phases
from glcanet_jax.training.on_device import Dispatch, Placed, Plan, make_chunk, place
from glcanet_jax.training.step import TrainState, create_state, make_train_step

CLASSES = 5  # of MBRSC
SCALES = 0.6, 1.5  # range that scenes are scaled by
RICH = 0.4  # share of patches that are sought near a class
EDGE = 32  # pixels over which a patch's answer fades where patches meet
FILE_BYTES = 14e6  # of saved arrays in a file
Scene = tuple[Integer[np.ndarray, "h w c"], Integer[np.ndarray, "h w"]]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a batch is made of; pixels and numbers."""

    context: int = 1254
    side: int = 256  # of patches and of the global view
    contexts: int = 6
    patches: int = 4  # of each context
    chunk: int = 25  # steps in a dispatch
    at_once: int = 16  # patches, in scoring

    def plan(self) -> Plan:
        """What every step draws."""
        views = Views(context_size=self.context, global_size=self.side, patch_size=self.side, overlap=0)
        drawn = dict(rare_class_fraction=RICH, scale_jitter=(1 / SCALES[1], 1 / SCALES[0]))
        loader = LoaderConfig(batch_size=self.contexts, patches_per_context=self.patches, **drawn)
        return Plan(views, loader, CLASSES, Mesh(np.array(jax.devices()[:1]), ("data",)))


TINY = Sizes(context=320, side=64, contexts=2, patches=2, chunk=5, at_once=8)


# ------------------------------------------------------------------------------------------------------------- the scoring
class Scored(NamedTuple):
    """A scene with its patches and their contexts, padded to shapes that all scenes share."""

    image: Array
    label: Array
    places: Array  # [m, 2]
    contexts: Array  # [m, 2]
    count: Array  # of patches, without the padding


def grid(length: int, side: int) -> np.ndarray:
    """Where the patches of an axis begin; a fifth of each lies over its neighbour."""
    count = 1 + -(-max(length - side, 0) // (side - side // 5))
    return np.round(np.linspace(0, max(length - side, 0), count)).astype(int)


def placed(scene: Scene, canvas: tuple[int, int], sizes: Sizes) -> Scored:
    """A scene on a canvas as large as the largest one."""
    image, label = scene
    axes = [grid(length, sizes.side) for length in label.shape]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    contexts = np.clip(places + sizes.side // 2 - sizes.context // 2, 0, np.array(label.shape) - sizes.context)
    all_places = np.prod([len(grid(length, sizes.side)) for length in canvas])
    more = [(0, -(-int(all_places) // sizes.at_once) * sizes.at_once - len(places)), (0, 0)]
    beyond = [(0, c - n) for c, n in zip(canvas, label.shape, strict=True)]
    padded = np.pad(image, [*beyond, (0, 0)]), np.pad(label, beyond, constant_values=IGNORE)
    return Scored(*map(jnp.asarray, (*padded, np.pad(places, more), np.pad(contexts, more))), jnp.int32(len(places)))


def make_confusion(apply: Callable[..., Any], config: Config, sizes: Sizes) -> Callable[..., Integer[Array, "k k"]]:
    """``confusion(variables, *placed)``: what a network answers to a scene, counted by true class and answer."""
    side, context = sizes.side, sizes.context
    ramp = np.minimum(np.minimum(np.arange(side) + 1, side - np.arange(side)), EDGE).astype(np.float32)
    fade = (ramp[:, None] * ramp[None])[..., None]
    normal = lambda x: models.normalise(x, config.normalisation.mean, config.normalisation.std, 255.0)  # noqa: E731

    def logits_of(variables: Any, image: Array, at: Array, around: Array) -> Float[Array, "b h w k"]:
        window = lambda p, side: jax.lax.dynamic_slice(image, (p[0], p[1], 0), (side, side, 3)).astype(jnp.float32)  # noqa: E731
        shrunk = lambda p: jax.image.resize(window(p, context), (side, side, 3), "linear", antialias=True)  # noqa: E731
        boxes = jnp.concatenate([at - around, at - around + side], -1).astype(jnp.float32)[:, None] / context
        views, patches = jax.vmap(shrunk)(around), jax.vmap(lambda p: window(p, side))(at)[:, None]
        logits, _ = apply(variables, normal(views), normal(patches), boxes)
        return jax.image.resize(logits[:, 0].astype(jnp.float32), (len(at), side, side, CLASSES), "linear")

    def confusion(variables: Any, image: Array, label: Array, places: Array, contexts: Array, count: Array) -> Array:
        def some(i: Array, canvas: Array) -> Array:
            take = lambda x: jax.lax.dynamic_slice(x, (i * sizes.at_once, 0), (sizes.at_once, 2))  # noqa: E731
            at = take(places)
            logits = logits_of(variables, image, at, take(contexts))

            def add(canvas: Array, item: tuple) -> tuple[Array, None]:
                place, logits, index = item
                corner = (place[0], place[1], 0)
                old = jax.lax.dynamic_slice(canvas, corner, logits.shape)
                new = old + jnp.where(index < count, 1.0, 0.0) * fade * logits
                return jax.lax.dynamic_update_slice(canvas, new, corner), None

            return jax.lax.scan(add, canvas, (at, logits, i * sizes.at_once + jnp.arange(sizes.at_once)))[0]

        blank = jnp.zeros((*label.shape, CLASSES), jnp.float32)
        answer = jax.lax.fori_loop(0, -(-count // sizes.at_once), some, blank).argmax(-1)
        hits = lambda i: jnp.stack([jnp.sum((label == i) & (answer == j)) for j in range(CLASSES)])  # noqa: E731
        return jnp.stack([hits(i) for i in range(CLASSES)])

    return confusion


def told(confusion: Float[np.ndarray, "k k"]) -> dict[str, Any]:
    """mIoU, overall accuracy and the IoU of every class, percent."""
    hit = np.diag(confusion)
    iou = hit / np.maximum(confusion.sum(0) + confusion.sum(1) - hit, 1)
    overall = round(100 * hit.sum() / confusion.sum(), 2)
    return {"miou": round(100 * iou.mean(), 2), "oa": overall, "iou": [round(100 * x, 1) for x in iou]}


# ------------------------------------------------------------------------------------------------------------ the networks
class Field(NamedTuple):
    """What all networks are trained and scored on, and until when."""

    sizes: Sizes
    config: Config
    scenes: Placed  # trained on
    tests: Mapping[str, Sequence[Scored]]  # by folder
    backbone: weights.TorchvisionWeights | None
    options: Mapping[str, Any]  # of networks, where they have them
    out: Path
    end: float  # time after which nothing begins


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
    """A network, compiled in a thread of its own."""

    def __init__(self, text: str, field: Field):
        self.text, self._field = text, field
        self.model = build(text, field.options)
        phase = phases.Phase(phases.JOINT, 0, field.config.train.steps)
        self.tx = optim.optimiser(field.config.optimiser, (phase,))
        step = make_train_step(self.model, self.tx, field.config, 255.0, phase)
        self._chunk = make_chunk(step, field.sizes.plan(), field.sizes.chunk)
        self._confusion = jax.jit(make_confusion(models.functions(self.model).apply, field.config, field.sizes))
        self.ready = False
        self.thread = threading.Thread(target=self._compile, daemon=True)
        self.thread.start()

    def _compile(self) -> None:
        began, field = time.time(), self._field
        state = jax.eval_shape(lambda: self.fresh(0))
        self.chunk = self._chunk.lower(state, self._dispatch(0)).compile()
        self.confusion = self._confusion.lower(state.average, *next(iter(field.tests.values()))[0]).compile()
        self.compile_seconds = round(time.time() - began, 1)
        self.ready = True

    def _dispatch(self, seed: int) -> Dispatch:
        return Dispatch(self._field.scenes, jax.random.key(seed), np.int32(self._field.sizes.chunk))

    def fresh(self, seed: int) -> TrainState:
        variables = models.init(self.model, jax.random.key(seed), 3)
        if self._field.backbone is not None:
            variables = runs.with_backbones(self._field.backbone, variables, 3)
        return create_state(variables, self.tx, jax.random.key(1000 + seed), average=True)

    def run(self, seed: int) -> bool:
        """Train and score once; False where there is no time for it."""
        field, steps = self._field, self._field.config.train.steps
        state, dispatch, began, done = jax.device_put(self.fresh(seed)), self._dispatch(seed), time.time(), 0
        while done < steps:
            if time.time() > field.end:
                return False
            state, taken = self.chunk(state, dispatch)
            done += field.sizes.chunk
            loss = taken.each["loss"].block_until_ready()
        found = {"network": self.text, "seed": seed, "steps": done, "loss": round(float(loss.mean()), 4)}
        found |= {"seconds": round(time.time() - began, 1), "compile_seconds": self.compile_seconds}
        for group, scenes in field.tests.items():
            found[group] = told(sum(np.asarray(self.confusion(state.average, *s), np.float64) for s in scenes))
        with (field.out / "runs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(json.dumps(found), flush=True)
        if seed == 0:
            save(field.out / self.text.replace(":", "-").replace("=", "-").replace(",", "-"), state.average)
        return True


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


# ------------------------------------------------------------------------------------------------------------- the command
def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("backbone", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--also", type=Path, nargs="*", default=[])
    parser.add_argument("--networks", nargs="+", default=["branch", "glcanet", "glcanet:head=nonlinear"])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=330.0, help="nothing new begins after that")
    defaults = dataclasses.asdict(Sizes())
    parser.add_argument("--context", type=int, default=defaults["context"])
    parser.add_argument("--side", type=int, default=defaults["side"], help="pixels of patches and global views")
    parser.add_argument("--contexts", type=int, default=defaults["contexts"])
    parser.add_argument("--patches", type=int, default=defaults["patches"])
    parser.add_argument("--chunk", type=int, default=defaults["chunk"], help="steps a dispatch")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


def read(root: Path, split: str | None) -> dict[str, Scene]:
    """Image and labels of the scenes of a split, or of all."""
    splits = open_mbrsc(root).splits
    chosen = splits[split] if split else [scene for scenes in splits.values() for scene in scenes]
    return {scene.name: (scene.read_image(), scene.read_labels()) for scene in chosen}


def field_of(given: argparse.Namespace) -> Field:
    """All that networks share, read and put on the device."""
    end = time.time() + given.seconds
    sizes = TINY if given.tiny else Sizes(given.context, given.side, given.contexts, given.patches, given.chunk)
    train = read(given.data, "train")
    if given.tiny:
        train = {"tile4": train["tile4"]}
    tests = {"tile2": read(given.data, "test")} | {root.name: read(root, None) for root in given.also}
    extents = [label.shape for scenes in tests.values() for _, label in scenes.values()]
    canvas = tuple(max(extent[axis] for extent in extents) for axis in (0, 1))
    shares = sum(np.bincount(label.ravel(), minlength=256)[:CLASSES] for _, label in train.values())
    balance = (shares / shares.sum()) ** -0.5
    config = dataclasses.replace(
        CPU,
        loss=dataclasses.replace(CPU.loss, class_weights=tuple((balance / balance.mean()).tolist())),
        optimiser=dataclasses.replace(CPU.optimiser, warmup_steps=50),
        train=dataclasses.replace(CPU.train, steps=given.steps, ema=0.99),
    )
    options = dict(norm="frozen", stride="v1", fpn_channels=128, dtype="bfloat16")
    options |= dict(depth=10, width=8, fpn_channels=16, dtype="float32", stride="v1.5") if given.tiny else {}
    backbone = None if given.tiny else weights.load_torchvision(given.backbone)
    given.out.mkdir(parents=True, exist_ok=True)
    arrays, plan = [ArrayScene(name, *scene) for name, scene in train.items()], sizes.plan()
    loader = TrainLoader(arrays, plan.views, plan.config, CLASSES)
    on_device = place(arrays, [loader.contexts(scene) for scene in arrays], plan.mesh)
    on_canvas = {name: [placed(scene, canvas, sizes) for scene in scenes.values()] for name, scenes in tests.items()}
    return Field(sizes, config, on_device, on_canvas, backbone, options, given.out, end)


def main() -> None:
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_autotune_level=0")  # read when the device is first used
    given = arguments()
    field = field_of(given)
    entries = [Entry(text, field) for text in given.networks]
    for seed in range(given.seeds):
        for entry in entries:
            if seed == 0:
                entry.thread.join(max(1.0, field.end - time.time()))
            if not entry.ready or not entry.run(seed):
                print(f"{entry.text}, seed {seed}: no time", flush=True)


if __name__ == "__main__":
    main()
