"""What each part of GLCANet is needed for: ``python -m experiments.context [--seeds 3] [--tiny]``.

Small networks learn made scenes (:mod:`experiments.context.scenes`, nothing is downloaded) whose labels need a local texture, a far
cue, the extent of an object, or texture and cue together, until they have or the steps are over. A second call does only what is
missing. Writes ``context.json``, ``context.md`` and ``context.webp``.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.cells import Cells, before, made_on
from experiments.context import scenes
from experiments.context.scenes import TASKS, Difficulty, Sizes
from glcanet_jax import backend, cli, models, report
from glcanet_jax.config import Config, LossConfig, OptimiserConfig
from glcanet_jax.errors import UserError
from glcanet_jax.training import losses, optim, phases
from glcanet_jax.training.step import Batch, TrainState, create_state, make_train_step

LEARNT = 95.0  # % IoU of both classes
CHANCE = 100 / 3  # % IoU of two classes that are as frequent, guessed
VALUES = 255.0
NOTHING = {"attn_levels": (), "self_attention": False}
# network, what it is called, what it has other than the default
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    f"{name}{suffix}": ("glcanet", f"{label}, {head} head", options | {"head": head})
    for head, suffix in (("affine", ""), ("nonlinear", "-nonlinear"))
    for name, label, options in (
        ("footprint", "GLCANet", {}),
        ("window", "window mask", {"mask": "window"}),
        ("no-mask", "no mask", {"mask": "none"}),
        ("no-self", "no self-attention", {"self_attention": False}),
        ("no-cross", "no cross-attention", {"attn_levels": ()}),
        ("aggregation", "aggregation alone", NOTHING),
        ("glnet", "GLNet's sharing", {"sharing": "glnet", "self_attention": False}),
    )
} | {
    "branch": ("branch", "the local branch alone, affine head", {}),
    "branch-nonlinear": ("branch", "the local branch alone, nonlinear head", {"head": "nonlinear"}),
    "deeplabv3plus": ("deeplabv3plus", "DeepLabv3+ on patches", {}),
}


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    sizes: Sizes = Sizes()
    width: int = 16  # filters of the ResNet-10's stem
    channels: int = 32  # of pyramids
    scenes: int = 4  # a step
    patches: int = 2  # of each scene; twice as many of those held out
    held_out: int = 24  # scenes, never seen in training
    rate: float = 1e-3
    fast_conv: bool | None = None  # of the networks


TINY = Scale(Sizes(512, 64), width=8, channels=16, held_out=8, fast_conv=False)  # compiles sooner


@dataclass(frozen=True, kw_only=True)
class Options:
    tasks: tuple[str, ...] = tuple(TASKS)
    networks: tuple[str, ...] = tuple(NETWORKS)
    seeds: int = 3  # runs of everything
    steps: int = 2000  # of a run that does not learn
    every: int = 50  # steps from score to score
    difficulty: Difficulty = field(default_factory=Difficulty)
    tiny: bool = False  # half the size, a few steps: shows that everything runs
    results: Path = Path("results")  # where the tables go; cells that are there are not run again

    @property
    def scale(self) -> Scale:
        return TINY if self.tiny else Scale()

    def command(self) -> str:
        words = ["python -m experiments.context"]
        for name, every in (("tasks", TASKS), ("networks", NETWORKS)):
            chosen = getattr(self, name)
            words += [f"--{name} {' '.join(chosen)}"] * (set(chosen) != set(every))
        words += [f"--seeds {self.seeds} --steps {self.steps}"]
        return " ".join(words + ["--tiny"] * self.tiny)


class Learner(NamedTuple):
    """A network's programs, compiled once for all tasks and seeds."""

    start: Callable[[int], TrainState]
    step: Callable[..., Any]
    count: Callable[..., Any]  # (variables, batch) -> confusion [2, 2]


@functools.cache
def learner(name: str, scale: Scale) -> Learner:
    """The programs of a network of the table at a scale."""
    network, _, options = NETWORKS[name]
    common = {"depth": 10, "width": scale.width, "fast_conv": scale.fast_conv}
    common["channels" if network == "deeplabv3plus" else "fpn_channels"] = scale.channels
    common |= {"mask_radius": scale.sizes.patch / 2} if network == "glcanet" else {}
    model = models.build(network, 2, **common | options)
    rates = dict.fromkeys(("global_rate", "local_rate", "fusion_rate"), scale.rate)
    config = Config(
        loss=LossConfig(gamma=0.0), optimiser=OptimiserConfig(**rates, schedule="constant", clip=1.0, warmup_steps=20)
    )
    (phase,) = phases.plan("joint", 1, None, models.stages(model))
    tx = optim.optimiser(config.optimiser, (phase,))
    mean_std = config.normalisation.mean, config.normalisation.std

    def start(seed: int) -> TrainState:
        return create_state(models.init(model, jax.random.key(seed), 3), tx, jax.random.key(seed + 1))

    @jax.jit
    def count(variables: Any, batch: Batch) -> jax.Array:
        image, patches = (models.normalise(batch[k], *mean_std, VALUES) for k in ("global_image", "patches"))
        logits, _ = models.functions(model).apply(variables, image, patches, batch["boxes"])
        truth = losses.at_logits(batch["patch_labels"], logits)
        hot = jax.nn.one_hot(truth, 2).reshape(-1, 2)  # nothing where labels count nowhere
        return hot.T @ jax.nn.one_hot(logits.argmax(-1), 2).reshape(-1, 2)

    return Learner(start, make_train_step(model, tx, config, VALUES, phase), count)


def ious(confusion: np.ndarray) -> list[float]:
    """Of both classes, in percent."""
    hits = np.diag(confusion)
    share = hits / np.maximum(confusion.sum(0) + confusion.sum(1) - hits, 1)
    return [round(100 * float(x), 1) for x in share]


def learn(name: str, task: str, seed: int, options: Options) -> dict[str, Any]:
    """One cell: a network trained on a task until it is learnt or the steps are over.

    Returns:
        ``curve`` (step and IoU of both classes on scenes not seen in training), ``iou`` at its end, ``steps``, ``learnt``, ``seconds``.
    """
    scale, began = options.scale, time.perf_counter()
    start, step, count = learner(name, scale)
    make = functools.partial(scenes.batch, difficulty=options.difficulty, sizes=scale.sizes)
    held_out = make(np.random.default_rng([seed, 1]), task, scale.held_out, 2 * scale.patches)
    rng, state, curve = np.random.default_rng([seed, 0]), start(seed), []
    for done in range(1, options.steps + 1):
        state, metrics = step(state, make(rng, task, scale.scenes, scale.patches))
        if done % options.every and done < options.steps:
            continue
        if not jnp.isfinite(metrics["loss"]):
            raise FloatingPointError(f"{name} on {task}, seed {seed}: the loss is not finite at step {done}")
        iou = ious(np.asarray(count(state.variables, held_out)))
        curve.append([done, *iou])
        if min(iou) >= LEARNT:
            break
    return {
        "network": name,
        "task": task,
        "seed": seed,
        "steps": curve[-1][0],
        "iou": curve[-1][1:],
        "learnt": min(curve[-1][1:]) >= LEARNT,
        "seconds": round(time.perf_counter() - began, 1),
        "curve": curve,
    }


def build(options: Options) -> dict[str, Any]:
    """Do what is missing, and write everything after every cell.

    Raises:
        UserError: there is no such task or network, or the results there are of other settings.
    """
    for words, known in ((options.tasks, TASKS), (options.networks, NETWORKS)):
        unknown = [word for word in words if word not in known]
        if unknown or not words:
            raise UserError(f"there is no {', '.join(unknown) or 'task or network'}; there are {', '.join(known)}")
    backend.enable_compilation_cache()
    settings = {
        "steps": options.steps,
        "every": options.every,
        "difficulty": dataclasses.asdict(options.difficulty),
        "scale": dataclasses.asdict(options.scale),
    }
    cells = Cells(options.results / "context.json", options.command(), settings, ("network", "task", "seed"))
    asked = [(n, t, s) for s in range(options.seeds) for n in options.networks for t in options.tasks]
    for i, cell in enumerate(asked):
        if cells.has(*cell):
            continue
        print(f"cell {i + 1} of {len(asked)}: {cell[0]} on {cell[1]}, seed {cell[2]}: ", end="", flush=True)
        done = learn(*cell, options)
        print(f"IoU {done['iou'][0]:.0f} / {done['iou'][1]:.0f} at step {done['steps']}, {done['seconds']:.0f} s")
        cells.add(done)
        report.write_text(options.results / "context.md", markdown(cells.result))
        save_curves(options.results / "context.webp", cells.result)
    return cells.result


# -------------------------------------------------------------------------------------------------------------- results
def _by_place(result: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Cells of all seeds, by network and task."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in result["cells"]:
        found.setdefault((cell["network"], cell["task"]), []).append(cell)
    return found


def in_words(cells: list[dict[str, Any]]) -> str:
    """A table's cell: the mean IoU, its spread over the seeds, and when it was learnt."""
    if not cells:
        return "-"
    values = [float(np.mean(cell["iou"])) for cell in cells]
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    learnt = sorted(cell["steps"] for cell in cells if cell["learnt"])
    if not learnt:
        return f"{np.mean(values):.1f}{spread}"
    some = "" if len(learnt) == len(cells) else f", {len(learnt)} of {len(cells)}"
    return f"**{np.mean(values):.1f}**{spread} ({learnt[len(learnt) // 2]}{some})"


def markdown(result: dict[str, Any]) -> str:
    """The table of networks and tasks."""
    settings, found = result["settings"], _by_place(result)
    scale, tasks = settings["scale"], [t for t in TASKS if any(c["task"] == t for c in result["cells"])]
    side = scale["sizes"]
    out = [
        "# What the parts are needed for: made scenes",
        "",
        f"`{result['command']}`; {made_on(result['machine'])}. ResNet-10 of "
        f"{scale['width']} filters, pyramids of {scale['channels']} channels, patches of {side['patch']} px in scenes of "
        f"{side['scene']} px, which the global view shrinks to {side['scene'] // side['cell']} px.",
        "",
        *before(result),
        f"Mean IoU of two classes on {scale['held_out']} scenes not seen in training, ± its spread over seeds; about {CHANCE:.0f} is chance. "
        f"In brackets the step at which both were at {LEARNT:.0f} or more (the median of the seeds, and how many were, if not all); "
        f"without brackets that did not happen within {settings['steps']} steps.",
        "",
        *(f"* *{task}*: {TASKS[task]}." for task in tasks),
        "",
        f"| network | {' | '.join(tasks)} | seeds |",
        "|---" * (len(tasks) + 2) + "|",
    ]
    for name, (_, label, _) in NETWORKS.items():
        cells = [found.get((name, task), []) for task in tasks]
        if any(cells):
            out.append(f"| {label} | {' | '.join(map(in_words, cells))} | {max(map(len, cells))} |")
    return "\n".join([*out, "", "![IoU over steps](context.webp)"]) + "\n"


def save_curves(path: Path, result: dict[str, Any]) -> None:
    """The worse class's IoU over steps, a panel a task; every seed a line, in its network's colour, dashed if the head is affine."""
    from matplotlib.figure import Figure

    tasks = [t for t in TASKS if any(c["task"] == t for c in result["cells"])]
    figure = Figure(figsize=(10, 2.6 * (-(-len(tasks) // 2)) + 1.4), layout="constrained")
    axes = np.ravel(figure.subplots(-(-len(tasks) // 2), 2, sharey=True, squeeze=False))
    bases = list(dict.fromkeys(name.removesuffix("-nonlinear") for name in NETWORKS))
    lines = {}
    for axis in axes[len(tasks) :]:
        axis.set_axis_off()
    for axis, task in zip(axes, tasks, strict=False):
        axis.axhline(CHANCE, color="0.7", lw=0.8)
        for cell in (c for c in result["cells"] if c["task"] == task):
            steps, *values = zip(*cell["curve"], strict=True)
            nonlinear = cell["network"].endswith("-nonlinear")
            style = dict(color=f"C{bases.index(cell['network'].removesuffix('-nonlinear'))}", lw=1.1)
            # a dot where it ends: what is learnt by the first score is one point
            dot = dict(marker="o", markersize=3.5, markevery=[-1], clip_on=False)
            (line,) = axis.plot(steps, np.min(values, axis=0), "-" if nonlinear else "--", **style, **dot)
            lines[NETWORKS[cell["network"]][1]] = line
        axis.set(title=TASKS[task], xlim=(0, None), ylim=(0, 101), xlabel="step", ylabel="IoU, %")
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    report.save_figure(figure, path)


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.context", __doc__)
    if options.tiny:
        options = dataclasses.replace(options, seeds=1, steps=min(options.steps, 4), every=2)
    print(markdown(build(options)))
