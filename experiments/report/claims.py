"""What the paper claims, and what our results say of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from experiments import table1
from experiments.common import sizes, trial

HOLDS, FAILS = "holds", "does not hold here"
ANY = "any"  # of the data sets
Results = dict[str, Any]  # the JSON files of a results folder, by their names without ".json"


@dataclass(frozen=True)
class Evidence:
    """What one of our results says of a claim."""

    finding: str
    source: str  # file, data, split, protocol, hardware
    command: str
    verdict: str  # HOLDS or FAILS


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and how it is looked at."""

    title: str
    says: str  # in our words, with its numbers
    where: str  # in the paper
    look: Callable[[Results], list[Evidence]]
    wants: tuple[str, str]  # the dataset that the statement is about, and the command that runs it

    def of_wanted(self, found: list[Evidence]) -> list[Evidence]:
        """The evidence of the dataset that the statement is about."""
        return [e for e in found if self.wants[0] == ANY or self.wants[0].lower() in e.source.lower()]

    def verdict(self, results: Results) -> str:
        """``holds``, ``does not hold here``, or ``needs DATASET``; of the wanted dataset alone, if there is anything of it."""
        found = self.look(results)
        own = self.of_wanted(found)
        if not found:
            return "not measured yet" if self.wants[0] == ANY else f"needs {self.wants[0]}"
        verdict = _says(all(e.verdict == HOLDS for e in own or found))
        return verdict if own else f"{verdict} (other data); needs {self.wants[0]}"


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
            out.append(Evidence(finding, source, result["command"], _says(own["mean"] > best["mean"])))
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
            out.append(Evidence(finding, source, result["command"], _says(compared["difference"] > 0)))
        return out

    return look


def _isprs(name: str, paper: float) -> Callable[[Results], list[Evidence]]:
    """Whether a run on an ISPRS set reaches what the paper prints."""

    def look(results: Results) -> list[Evidence]:
        out = []
        for key, result in sorted(results.items()):
            if key.startswith(f"{name}-") and "protocols" in result:
                for protocol, scores in result["protocols"].items():
                    miou = 100 * (scores["miou"] or 0.0)
                    out.append(
                        Evidence(
                            f"mIoU {miou:.1f}",
                            f"{key}.json: {name}, protocol {protocol}",
                            f"python -m experiments.{name}",
                            _says(miou >= paper),
                        )
                    )
        return out

    return look


TABLE1 = (
    "python -m experiments.table1 --data.dataset deepglobe --data.dir DIR --backbone FILE --seeds 3 --budget 60minutes"
)
ABLATION = "python -m experiments.ablation --data.dataset deepglobe --data.dir DIR --backbone FILE --seeds 3 --budget 60minutes"
CLAIMS = (
    Claim(
        "Best accuracy on DeepGlobe",
        "GLCANet 73.4 mIoU, GLNet G<=>L 71.6, G=>L 70.9, the best of six networks of one view 70.1 (FCN-8s, whole scene)",
        "Table 1",
        accuracy,
        ("DeepGlobe", TABLE1),
    ),
    Claim(
        "Less memory than GLNet G<=>L",
        "GLCANet 1766 MB, GLNet G<=>L 1865 MB, G=>L 1395 MB",
        "Table 1",
        memory_against_glnet,
        (ANY, TABLE1),
    ),
    Claim(
        "Less memory than networks on the whole scene",
        "GLCANet 1766 MB, the six others 2557 (ICNet) to 10339 MB (SegNet)",
        "Table 1",
        memory_against_whole,
        (ANY, TABLE1),
    ),
    Claim(
        "Best accuracy on Vaihingen",
        "GLCANet 82.4 mIoU, SegGPT 80.4, BSNet 80.2, DeepLabv3+ 79.0",
        "Table 2",
        _isprs("vaihingen", 82.4),
        ("Vaihingen", "python -m experiments.vaihingen paper --data.dir DIR --backbone FILE"),
    ),
    Claim(
        "Best accuracy on Potsdam",
        "GLCANet 80.4 mIoU, SegGPT 78.2, BSNet 77.5, DeepLabv3+ 73.8",
        "Table 3",
        _isprs("potsdam", 80.4),
        ("Potsdam", "python -m experiments.potsdam paper --data.dir DIR --backbone FILE"),
    ),
    Claim(
        "The mask helps",
        "73.4 with mask and self-attention, 72.4 with self-attention alone (what takes the mask's place is not said; here none)",
        "Table 4",
        _against("footprint-sa", "cross-sa"),
        ("DeepGlobe", ABLATION),
    ),
    Claim(
        "Self-attention helps",
        "73.4 with mask and self-attention, 73.0 with the mask alone",
        "Table 4",
        _against("footprint-sa", "footprint"),
        ("DeepGlobe", ABLATION),
    ),
    Claim(
        "Cross-attention is better than GLNet's sharing",
        "GLCANet 73.4 mIoU with attention, GLNet 71.6 with concatenation",
        "Table 1",
        _against("footprint-sa", "glnet-sa"),
        ("DeepGlobe", ABLATION),
    ),
)
