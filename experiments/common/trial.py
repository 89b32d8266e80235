"""Trials: configurations trained and scored one after another, each in processes of its own, going on where they were cut off.

``run(trials)`` does what is missing and returns a record of each, failures included. A trial's folder holds ``trial.json``, the
run (``run/``), what its processes printed (``train.log``, ``score.log``) and, at the end, ``result.json``.
"""

import dataclasses
import itertools
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import sizes
from glcanet_jax import backend, border, metrics, report, runs, scoring
from glcanet_jax import config as configs
from glcanet_jax.config import Config
from glcanet_jax.errors import UserError

ASKED = {"config": dict, "splits": list, "budget": dict}  # of a trial.json
PROBE = 3  # steps that are timed to tell how many fit into minutes


@dataclass(frozen=True)
class Budget:
    """How long a trial trains: steps, or minutes of steps (compiling, saving and scoring come on top)."""

    steps: int | None = None
    minutes: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """From ``200``, ``"200 steps"``, ``"30 minutes"`` or ``30min``.

        Raises:
            UserError: it is none of these.
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(steps?|min|minutes?|)\s*", text)
        if not match or float(match[1]) <= 0 or (match[2] in ("", "step", "steps") and "." in match[1]):
            raise UserError(f"--budget is {text!r}; it must be steps or minutes, as in 2000steps or 30minutes")
        if match[2].startswith("min"):
            return cls(minutes=float(match[1]))
        return cls(steps=int(match[1]))

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.minutes is None else f"{self.minutes:g} minutes"


@dataclass(frozen=True)
class Trial:
    """One configuration to train, and what to score it on."""

    name: str  # of its folder
    config: Config
    splits: tuple[str, ...]


def run(trials: Sequence[Trial], budget: Budget, folder: Path) -> list[dict[str, Any]]:
    """The record of every trial: its ``status`` ("done" or "failed", with the ``reason``) and, when done, its results."""
    records = []
    for trial in trials:
        print(f"{trial.name}: ", end="", flush=True)
        record = _one(trial, budget, folder / trial.name)
        print(record["status"] if record["status"] == "done" else f"failed: {record['reason']}", flush=True)
        records.append(record)
    return records


def _one(trial: Trial, budget: Budget, folder: Path) -> dict[str, Any]:
    config = dataclasses.replace(trial.config, out=str(folder / "run"))
    asked = {"config": configs.to_dict(config), "splits": list(trial.splits), "budget": dataclasses.asdict(budget)}
    base = {"trial": trial.name, "budget": str(budget)}
    if (folder / "trial.json").exists():
        before = border.read_object(folder / "trial.json", **ASKED)
        # options that are newer than the trial have their defaults
        before["config"] = configs.to_dict(configs.from_dict(before["config"], folder / "trial.json"))
        before["splits"] = [sizes.called(config.data.dataset, split) for split in before["splits"]]
        changed = configs.differences(asked, before)
        if changed:
            reason = f"{folder} holds a trial of other settings ({'; '.join(changed[:2])}); move it away, or give another --work"
            return base | {"status": "failed", "reason": reason}
    if (folder / "result.json").exists():
        return base | {"status": "done"} | _result(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    report.write_json(folder / "trial.json", asked)
    for part in ("train", "score"):
        if part == "train" and (folder / "trained.json").exists():
            continue
        with (folder / f"{part}.log").open("w", encoding="utf-8") as log:
            command = [sys.executable, "-m", "experiments.common.trial", part, str(folder)]
            code = _finished(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        if code:
            return base | {"status": "failed", "reason": _reason(folder / f"{part}.log", code)}
    return base | {"status": "done"} | _result(folder, config)


def _finished(process: subprocess.Popen) -> int:
    """Exit code of a process; after Ctrl-C, which it hears too, when it has saved what it was at."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


def _result(folder: Path, config: Config) -> dict[str, Any]:
    result = border.read_object(folder / "result.json", scores=dict, train=dict, predict=dict)
    scores = {sizes.called(config.data.dataset, split): of for split, of in result["scores"].items()}
    return result | {"scores": scores}


def summary(records: Sequence[dict[str, Any]], split: str, protocol: str | None = None) -> dict[str, Any] | None:
    """mIoU in percent of records under a protocol, or a split's first; None while no trial is done.

    Returns:
        ``protocol`` (its name), ``mean``, ``spread`` (standard deviation, None of one) and ``majority``, that of an all-majority
        map; ``scenes``: of every trial by seed and scene, to compare pairwise; ``runs`` and the fewest ``steps`` of one.
    """
    done = [r for r in records if r["status"] == "done"]
    if not done:
        return None
    protocol = protocol or next(iter(done[0]["scores"][split]["protocols"]))
    values = [100 * (r["scores"][split]["protocols"][protocol]["miou"] or 0.0) for r in done]
    scenes = {
        (int(r["trial"].rpartition("-")[2]), name): 100 * (scores[protocol]["miou"] or 0.0)
        for r in done
        for name, scores in r["scores"][split].get("scenes", {}).items()
    }
    majority = 100 * done[0]["scores"][split]["majority"][protocol]["miou"]
    steps = min(r["train"]["steps"] for r in done)
    found = {"protocol": protocol, "majority": majority, "scenes": scenes} | mean_and_spread(values)
    return found | {"runs": len(done), "steps": steps}


def compare(own: dict[str, Any] | None, default: dict[str, Any] | None) -> dict[str, Any] | None:
    """Mean difference in mIoU to the default network over the scenes and seeds that both have, how many, and p."""
    if own is None or default is None:
        return None
    pairs = sorted(own["scenes"].keys() & default["scenes"].keys())
    if not pairs:
        return None
    differences = [own["scenes"][pair] - default["scenes"][pair] for pair in pairs]
    return {"difference": float(np.mean(differences)), "pairs": len(pairs), "p": metrics.paired_test(differences)}


def in_words(records: Sequence[dict[str, Any]], own: dict[str, Any] | None) -> str:
    """A table's cell: the summary ``own`` of records, what it lacks, and failures."""
    failed = [r for r in records if r["status"] != "done"]
    if own is None:
        return f"failed: {failed[0]['reason']}" if failed else "not run"
    score = with_spread(own) + ("" if own["mean"] > own["majority"] else " (not above all-majority)")
    return score + (f" ({len(failed)} failed)" if failed else "")


def mean_and_spread(values: Sequence[float]) -> dict[str, float | None]:
    """``mean``, and ``spread``: the standard deviation, None of one value."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "spread": spread}


def with_spread(own: dict[str, Any]) -> str:
    """The mean of a summary, and its spread if there is one."""
    return f"{own['mean']:.1f}" + ("" if own["spread"] is None else f" ± {own['spread']:.1f}")


def _reason(log: Path, code: int) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip().removeprefix("error: ") if lines else "nothing was printed"
    return (
        f"{last} (exit code {code}, {log})"
        if code > 0
        else f"killed by signal {-code}, short of memory perhaps ({log})"
    )


# --------------------------------------------------------------------------------------------- in processes of their own
def train(folder: Path) -> None:
    """Train a trial, for as many steps as its budget says."""
    from glcanet_jax.training import loop

    asked = border.read_object(folder / "trial.json", **ASKED)
    config, budget = (
        configs.from_dict(asked["config"], folder / "trial.json"),
        border.check(asked["budget"], Budget, folder / "trial.json"),
    )
    steps = budget.steps
    if steps is None:
        chosen = folder / "steps.json"  # a trial that goes on keeps what it was given
        if not chosen.exists():
            report.write_json(chosen, {"steps": steps_within(config, budget.minutes)})
        steps = border.read_object(chosen, steps=int)["steps"]
    every = min(steps, config.train.checkpoint_every or steps)
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, steps=steps, eval_every=steps, checkpoint_every=every)
    )
    began = time.perf_counter()
    loop.train(config)
    records = report.read_log(Path(config.out) / "log.jsonl")
    peaks = {k: v for k, v in records[-1].items() if k.startswith("memory/")}
    seconds = time.perf_counter() - began
    report.write_json(folder / "trained.json", {"steps": steps, "seconds": round(seconds, 1)} | peaks)


def steps_within(config: Config, minutes: float | int) -> int:
    """Steps that fit into so many minutes here: each phase is timed, once compiled."""
    import jax

    from glcanet_jax import models
    from glcanet_jax.data.loader import TrainLoader
    from glcanet_jax.training import loop, optim, phases, sources
    from glcanet_jax.training import step as training

    dataset = runs.open_data(config.data)
    config = runs.resolve(config, dataset)
    scenes = dataset.scenes(config.data.train_split)
    model = runs.build_model(config, len(dataset.classes.names))
    spans = phases.plan(config.train.schedule, 1000, config.train.global_steps, models.stages(model))
    tx = optim.optimiser(config.optimiser, spans, config.freeze, runs.heads_with_a_rate(config, dataset))
    mesh = loop.make_mesh(config.loader.batch_size, config.train.devices, config.train.accumulation)
    loader = TrainLoader(scenes, config.views, config.loader, len(dataset.classes.names))
    batches = [sources.place_batch(b, mesh) for b in itertools.islice(iter(loader), PROBE + 1)]
    per_step = 0.0
    for phase in spans:
        variables, _ = runs.initial_variables(config, model, scenes[0].bands, dataset.classes.names)
        state = training.create_state(variables, tx, jax.random.key(0), config.train.ema > 0)
        step = training.make_train_step(model, tx, config, config.normalisation.scale, phase)
        state, _ = step(state, batches[0])
        began = time.perf_counter()
        for batch in batches[1:]:
            state, metrics = step(jax.block_until_ready(state), batch)
        jax.block_until_ready(metrics)
        per_step += (phase.stop - phase.start) / 1000 * (time.perf_counter() - began) / PROBE
    return max(1, round(60 * minutes / per_step))


def score(folder: Path) -> None:
    """Score a trained trial in a process that has done nothing else, so that its peak memory is that of prediction."""
    from glcanet_jax.profiling import machine, peak_memory, process_device_memory

    asked = border.read_object(folder / "trial.json", **ASKED)
    config = configs.from_dict(asked["config"], folder / "trial.json")
    backend.enable_compilation_cache()
    dataset, scores, seconds, scenes = runs.open_data(config.data), {}, 0.0, 0
    weights = Path(config.out) / "last.safetensors"  # not the best by validation: what is reported chooses nothing
    for split in asked["splits"]:
        out = Path(config.out) / f"eval-{split}"
        result = scoring.evaluate_split(weights, dataset, split, out, config.eval_batch, tta=config.eval_tta)
        scores[split] = {k: result[k] for k in ("protocols", "confusion", "scenes", "majority")}
        seconds, scenes = seconds + result["seconds"], scenes + len(result["scenes"])
    measured = {
        **machine(),
        "seconds_per_scene": round(seconds / scenes, 2),
        "scenes": scenes,
        **peak_memory(),
    }
    process = process_device_memory()
    if process is not None:
        measured["memory/device_process_mb"] = process
    trained = border.read_object(folder / "trained.json", steps=int, seconds=float)
    report.write_json(folder / "result.json", {"scores": scores, "train": trained, "predict": measured})


def main() -> None:
    part, folder = sys.argv[1:]
    {"train": train, "score": score}[part](Path(folder))


if __name__ == "__main__":
    from glcanet_jax import cli

    cli.run(main)
