"""A model card: Markdown that a person reads before using weights, with the header that the Hugging Face hub reads."""

import dataclasses
import json
import os
import shlex
import urllib.parse
from pathlib import Path

from glcanet_jax import hub
from glcanet_jax.page import plain
from glcanet_jax.scoring import CHOSE
from glcanet_jax.sharing.facts import Facts, Scores

# licences that the hub knows by these names, https://huggingface.co/docs/hub/repositories-licenses
LICENCES = (
    "apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
    "cc-by-3.0", "odbl", "etalab-2.0", "unlicense",
)  # fmt: skip
UNKNOWN = "not stated"
SOFTWARE = "https://github.com/glcanet-jax/glcanet-jax"


def markdown(facts: Facts, name: str | None = None, picture: str | None = None) -> str:
    """The card of weights.

    Args:
        name: by which the weights are given to commands; None: their own name or path.
        picture: the place of a picture, as the card refers to it; None: it has none.

    Raises:
        UserError: the name is meant as one on the hub, and is none.
    """
    name = name or facts.name
    if hub.is_name(name):
        hub.parse(name)
    parts = [
        _header(facts),
        f"# {plain(facts.title)}",
        _summary(facts),
        f"![A scene, its labels and its map]({urllib.parse.quote(picture)})" if picture else "",
        "## Use\n\n" + _commands(facts, name),
        "## Classes\n\n" + _classes(facts),
        "## Input\n\n" + _input(facts),
        "## Scores\n\n" + ("\n\n".join(map(_scores, facts.scores)) or _unscored(name)),
        "## Training data\n\n" + _data(facts),
        "## Limits\n\n" + _limits(facts),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _header(facts: Facts) -> str:
    lines = ["---", "library_name: glcanet-jax", "pipeline_tag: image-segmentation"]
    licence = facts.licence
    if licence is not None and licence.lower() in LICENCES:
        lines.append(f"license: {licence.lower()}")
    elif licence is not None:
        lines += ["license: other", f"license_name: {_quoted(licence)}"]
    tags = ("semantic-segmentation", "remote-sensing", "earth-observation", "land-cover", "jax", "flax", facts.network)
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in dict.fromkeys(tags)), "---"])


def _quoted(text: str) -> str:
    """Text as YAML reads it back."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ground(facts: Facts) -> str:
    """The ground resolution, in words."""
    return UNKNOWN if facts.ground_resolution is None else f"{facts.ground_resolution:.3g} m a pixel"


def _summary(facts: Facts) -> str:
    started = f", started from {plain(facts.pretrained)}" if facts.pretrained else ""
    where = "" if facts.ground_resolution is None else f", {ground(facts)}"
    return (
        f"Land-cover weights for [GLCANet-JAX]({SOFTWARE}): {facts.called} with {facts.parameters:,} parameters, "
        f"{len(facts.classes)} classes, {len(facts.bands)} bands{where}{started}. "
        f"Licence: {plain(facts.licence or UNKNOWN)}."
    )


def _commands(facts: Facts, name: str) -> str:
    package = "glcanet-jax[hub]" if hub.is_name(name) else "glcanet-jax"
    weights = shlex.quote(name)
    lines = [
        "```bash",
        f"pip install '{package} @ git+{SOFTWARE}'",
        f"glcanet predict scene.tif --weights {weights} --out maps --overlay",
    ]
    if not facts.export:
        lines += [
            f"glcanet eval --dataset folder --data-dir DIR --split test --weights {weights} --out scores",
            f"glcanet export --weights {weights} --out network.onnx",
        ]
    python = [
        "```python",
        "import glcanet_jax",
        "",
        f'prediction = glcanet_jax.load({json.dumps(name, ensure_ascii=False)}).predict("scene.tif")',
        "```",
    ]
    return "\n".join([*lines, "```"]) + "\n\n" + "\n".join(python)


def _classes(facts: Facts) -> str:
    pairs = zip(facts.classes, facts.palette, strict=True)
    rows = [(str(i), plain(name), "#{:02x}{:02x}{:02x}".format(*colour)) for i, (name, colour) in enumerate(pairs)]
    return _table(("id", "class", "colour"), rows)


def _input(facts: Facts) -> str:
    told = facts.normalisation
    rows = [
        (str(i + 1), plain(band), f"{told['mean'][i]:.4g}", f"{told['std'][i]:.4g}")
        for i, band in enumerate(facts.bands)
    ]
    views = facts.views
    context = "the whole scene" if views.context_size is None else f"{views.context_size} px"
    lines = [
        f"* Ground resolution: {ground(facts)}.",
        f"* Values are divided by {told['scale']:g}, then `(x - mean) / deviation` a band.",
        f"* Patches of {views.patch_size} px overlap by {views.overlap} px or more; context {context}, shrunk to "
        f"{views.global_size} px. `predict` does all of this.",
    ]
    return _table(("band", "what it is", "mean", "deviation"), rows) + "\n\n" + "\n".join(lines)


def _scores(scores: Scores) -> str:
    percent = lambda v: f"{100 * v:.1f}"  # noqa: E731
    where = " ".join(filter(None, [scores.called, scores.split]))
    head = (
        f"**{plain(where) or 'scored'}**, protocol {plain(scores.protocol)}: mIoU **{percent(scores.miou)}**, mean F1 "
    )
    head += f"{percent(scores.mf1)}, overall accuracy {percent(scores.oa)}."
    if scores.majority is not None:
        head += f" The commonest class everywhere would have an mIoU of {percent(scores.majority)}."
    if scores.chose:
        head += f" {CHOSE}"
    rows = [(plain(name), percent(iou)) for name, iou in scores.classes]
    return head + "\n\n" + _table(("class", "IoU"), rows)


def _unscored(name: str) -> str:
    weights = shlex.quote(name)
    return (
        f"No scores came with these weights. `glcanet eval --weights {weights} ...` makes them; "
        f"`glcanet card {weights} --scores metrics.json` puts them here."
    )


def _data(facts: Facts) -> str:
    lines = [f"* Data set: {plain(facts.dataset) or UNKNOWN}", f"* Licence: {plain(facts.licence or UNKNOWN)}"]
    if facts.scenes:
        lines.append("* Scenes: " + ", ".join(f"{count} {plain(split)}" for split, count in facts.scenes.items()))
    if facts.steps is not None:
        lines.append(f"* Steps: {facts.steps:,}")
    return "\n".join(lines)


def _limits(facts: Facts) -> str:
    lines = []
    if facts.ground_resolution is not None:
        lines.append(
            f"* Scenes of another ground resolution than {facts.ground_resolution:.3g} m are mapped worse; `predict --resample` "
            "reads them at it."
        )
    lines.append(
        "* Ground, seasons and sensors that the training data do not have are mapped by chance: score before use."
    )
    return "\n".join(lines)


def text(facts: Facts) -> str:
    """The same in a few lines of plain text, for a terminal."""
    size = f"{facts.bytes / 1e6:.1f} MB"
    kind = "an exported network (StableHLO)" if facts.export else "weights"
    told = facts.normalisation
    views = facts.views
    lines = {
        "file": f"{facts.name}, {kind}, {size}",
        "sha256": facts.sha256,
        "network": f"{facts.called}, {facts.parameters:,} parameters",
        "classes": ", ".join(facts.classes),
        "bands": ", ".join(facts.bands) + f"; divided by {told['scale']:g}",
        "ground": ground(facts),
        "views": f"patches {views.patch_size} px, context {views.context_size or 'the whole scene'}"
        f"{' px' * (views.context_size is not None)}, global view {views.global_size} px",
        "data": facts.dataset or UNKNOWN,
        "licence": facts.licence or UNKNOWN,
    }
    for scores in facts.scores:
        where = " ".join(filter(None, [scores.called, scores.split, scores.protocol]))
        lines[f"mIoU {100 * scores.miou:.1f}"] = (
            f"{where}, overall accuracy {100 * scores.oa:.1f}" + f". {CHOSE}" * scores.chose
        )
    width = max(map(len, lines))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in lines.items())


def as_json(facts: Facts) -> str:
    """All that is known, for programs."""
    known = dataclasses.asdict(facts)
    return json.dumps(known | {"title": facts.title}, indent=1, default=str)


def beside(picture: Path, card: Path) -> str:
    """How a card refers to a picture that lies where it lies."""
    return Path(os.path.relpath(picture.resolve(), card.resolve().parent)).as_posix()
