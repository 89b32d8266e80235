"""What our results say of a claim, and when that decides it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments import table1
from experiments.common import sizes, trial
from experiments.converge.report import differences

HOLDS, FAILS, UNDECIDED = "holds", "does not hold here", "not decided"
SEEDS, STEPS = 3, 1000  # that a comparison of accuracies takes at least: on an H100 runs of 1000 steps stood still
Results = dict[str, Any]  # the JSON files of a results folder, by their names without ".json"


@dataclass(frozen=True)
class Evidence:
    """What one of our results says of a claim."""

    finding: str
    source: str  # file, data, split, protocol, hardware
    command: str
    verdict: str  # HOLDS, FAILS or UNDECIDED


def together(verdicts: Sequence[str]) -> str:
    """One verdict of several: of those that decide, if there are any."""
    decided = [verdict for verdict in verdicts if verdict != UNDECIDED]
    return _says(all(verdict == HOLDS for verdict in decided)) if decided else UNDECIDED


def _decide(own: dict[str, Any], other: dict[str, Any], gain: float) -> str:
    """Of two summaries of trials: by more than the spread of enough runs that were long enough, or not at all."""
    if min(own["runs"], other["runs"]) < SEEDS or min(own["steps"], other["steps"]) < STEPS:
        return UNDECIDED
    return UNDECIDED if abs(gain) <= max(own["spread"], other["spread"]) else _says(gain > 0)


def _says(good: bool) -> str:
    return HOLDS if good else FAILS


def _source(name: str, result: dict[str, Any], own: dict[str, Any]) -> str:
    """Where the summary ``own`` is from."""
    made, size = result["machine"], result["size"]
    reduced = "".join(f", {k} {v}" for k, v in size.get("network", {}).items())
    return (
        f"{name}.json: {result['dataset']}, split {sizes.called(result['dataset'], result['splits'][0])}, protocol {own['protocol']}, {result['budget']} a run, "
        f"{size['patch_size']}-px patches{reduced}; "
        f"{made['device']}, {made['date']}"
    )


def _tables(results: Results, kind: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, result) for name, result in sorted(results.items()) if name.startswith(f"{kind}-")]


def _ranked(result: dict[str, Any], initialisation: str) -> list[tuple[str, dict[str, Any]]]:
    """Rows of an initialisation with their summaries, the best first; rows without a score are left out."""
    split, rows = result["splits"][0], []
    for row in result["rows"]:
        summary = trial.summary(row["trials"], split)
        if row["initialisation"] == initialisation and summary:
            rows.append((f"{row['label']} ({row['inference']})", summary | {"entry": row["entry"]}))
    return sorted(rows, key=lambda item: -item[1]["mean"])


def accuracy(results: Results) -> list[Evidence]:
    """Whether GLCANet leads the rows that start as it does."""
    out = []
    for name, result in _tables(results, "table1"):
        for start in ("imagenet", "scratch"):
            ranked = _ranked(result, start)
            own = next((s for _, s in ranked if s["entry"] == "glcanet"), None)
            rivals = [(label, s) for label, s in ranked if s["entry"] not in ("glcanet", *table1.CONTROLS)]
            if own is None or not rivals:
                continue
            label, best = rivals[0]
            finding = f"{start}: GLCANet {trial.with_spread(own)}, best rival {label} {best['mean']:.1f}, of {len(rivals)} rows"
            source = _source(name, result, own)
            out.append(Evidence(finding, source, result["command"], _decide(own, best, own["mean"] - best["mean"])))
    return out


def _memories(result: dict[str, Any]) -> dict[tuple[str, str], float]:
    found = {}
    for row in result["rows"]:
        peak = row["cost"].get("memory", {}).get("peak_mb")
        if peak is not None:
            found[row["entry"], row["inference"]] = peak
    return found


def _memory_source(name: str, result: dict[str, Any]) -> str:
    return (
        f"{name}.json: any scene of 2448 px, 500-px patches, float32, batch 1; compiled ahead of time for an H100 by jax "
        f"{result['machine']['jax']}, {result['machine']['date']}"
    )


def memory_against_glnet(results: Results) -> list[Evidence]:
    """Whether GLCANet needs less memory than G<=>L."""
    out = []
    for name, result in _tables(results, "table1"):
        memory = _memories(result)
        own, both = memory.get(("glcanet", "both")), memory.get(("glnet", "both"))
        if own and both:
            finding = f"GLCANet {own:.0f} MB, GLNet G<=>L {both:.0f} MB"
            out.append(Evidence(finding, _memory_source(name, result), result["command"], _says(own < both)))
    return out


def memory_against_whole(results: Results) -> list[Evidence]:
    """Whether GLCANet needs less memory than the others on the whole scene."""
    out = []
    for name, result in _tables(results, "table1"):
        memory = _memories(result)
        own = memory.get(("glcanet", "both"))
        whole = {entry: mb for (entry, inference), mb in memory.items() if inference == "global"}
        if own and whole:
            more = [entry for entry, mb in whole.items() if mb > own]
            finding = (
                f"GLCANet {own:.0f} MB; on the whole scene at half its size "
                + ", ".join(f"{entry} {mb:.0f}" for entry, mb in sorted(whole.items(), key=lambda item: item[1]))
                + f": {len(more)} of {len(whole)} need more"
            )
            out.append(
                Evidence(finding, _memory_source(name, result), result["command"], _says(len(more) == len(whole)))
            )
    return out


def _against(better: str, worse: str) -> Callable[[Results], list[Evidence]]:
    """Whether a cell of the ablation is better than another."""

    def look(results: Results) -> list[Evidence]:
        out = []
        for name, result in _tables(results, "ablation"):
            cells = {cell["name"]: cell["trials"] for cell in result["cells"]}
            split = result["splits"][0]
            a, b = (trial.summary(cells.get(key, []), split) for key in (better, worse))
            compared = trial.compare(a, b)
            if compared is None:
                continue
            p = "no test" if compared["p"] is None else f"p {compared['p']:.3f}"
            finding = f"{a['mean']:.1f} against {b['mean']:.1f}: {compared['difference']:+.1f} over {compared['pairs']} pair{'s' * (compared['pairs'] > 1)} ({p})"
            source = _source(name, result, a)
            out.append(Evidence(finding, source, result["command"], _decide(a, b, compared["difference"])))
        return out

    return look


def _on_made_scenes(without: str) -> Callable[[Results], list[Evidence]]:
    """Whether GLCANet with the nonlinear head learns made scenes that it does not learn without a part."""

    def look(results: Results) -> list[Evidence]:
        result, out = results.get("context"), []
        if result is None:
            return []
        of = lambda name, task: [c for c in result["cells"] if (c["network"], c["task"]) == (name, task)]  # noqa: E731
        for task in dict.fromkeys(cell["task"] for cell in result["cells"]):
            both = of("footprint-nonlinear", task), of(f"{without}-nonlinear", task)
            if not all(both):
                continue
            words = [
                f"{np.mean([np.mean(c['iou']) for c in cells]):.1f} (learnt {sum(c['learnt'] for c in cells)} of {len(cells)})"
                for cells in both
            ]
            enough = min(map(len, both)) >= SEEDS and all(c["learnt"] for c in both[0])
            needed = enough and not any(c["learnt"] for c in both[1])
            # learnt with it and without, there is no room left to see what it is worth where it matters less
            verdict, spare = HOLDS if needed else UNDECIDED, enough and all(c["learnt"] for c in both[1])
            finding = f"made scenes, {task}: IoU {words[0]} with it, {words[1]} without{': not needed there' * spare}"
            made = f"context.json: small networks; {result['machine']['device']}, {result['machine']['date']}"
            # of these cells: the file's own command is the last of several that have filled it
            command = f"python -m experiments.context --tasks {task} --networks footprint-nonlinear {without}-nonlinear"
            command += f" --seeds {max(map(len, both))} --steps {result['settings']['steps']}"
            out.append(Evidence(finding, made, command, verdict))
        return out

    return look


def _converged_runs(results: Results) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, result) for name, result in sorted(results.items()) if name.partition("-")[0] == "converge"]


def _paired(name: str, result: Mapping[str, Any], one: str, other: str) -> list[Evidence]:
    """Whether a network's converged runs are better than another's, by scene and seed; nothing where they share none."""
    pairs = differences(result["cells"], one, other)
    if not pairs:
        return []
    seeds = {cell["seed"] for cell in result["cells"] if cell["network"] == other}
    mean, spread = trial.mean_and_spread(pairs).values()
    decided = len(seeds) >= SEEDS and spread is not None and abs(mean) > spread
    finding = f"{one} - {other}: {mean:+.1f} mIoU over {len(pairs)} pairs of {len(seeds)} seeds"
    made = f"{name}.json: mbrsc; {result['machine']['device']}, {result['machine']['date']}"
    return [Evidence(finding, made, result["command"], _says(mean > 0) if decided else UNDECIDED)]


def _converged(without: str) -> Callable[[Results], list[Evidence]]:
    """Whether GLCANet's converged runs on MBRSC lose without a part, with either head."""

    def look(results: Results) -> list[Evidence]:
        return [
            found
            for name, result in _converged_runs(results)
            for whole in ("glcanet", "glcanet:head=nonlinear")
            for found in _paired(name, result, whole, f"{whole}{',' if ':' in whole else ':'}{without}")
        ]

    return look


def two_views(results: Results) -> list[Evidence]:
    """Whether GLCANet's converged runs on MBRSC are better than those of its local branch alone."""
    out = []
    for name, result in _converged_runs(results):
        networks = dict.fromkeys(cell["network"] for cell in result["cells"])
        for whole in (text for text in networks if text.partition(":")[0] == "glcanet"):
            out += _paired(name, result, whole, "branch")
    return out


def part(cell: str, without: str, made: str, option: str) -> Callable[[Results], list[Evidence]]:
    """All that there is of a part: two cells of the ablation, made scenes, and converged runs with another option."""
    looks = _against(cell, without), _on_made_scenes(made), _converged(option)
    return lambda results: [found for look in looks for found in look(results)]


def isprs(name: str, paper: float) -> Callable[[Results], list[Evidence]]:
    """What a run on an ISPRS set reaches beside what the paper prints; one run decides nothing."""

    def look(results: Results) -> list[Evidence]:
        out = []
        for key, result in sorted(results.items()):
            if key.startswith(f"{name}-") and "protocols" in result:
                for protocol, scores in result["protocols"].items():
                    miou = 100 * (scores["miou"] or 0.0)
                    out.append(
                        Evidence(
                            f"mIoU {miou:.1f} in one run, the paper {paper:.1f}",
                            f"{key}.json: {name}, protocol {protocol}",
                            f"python -m experiments.{name}",
                            UNDECIDED,
                        )
                    )
        return out

    return look
