"""Weights published with their card and their STAC Item, and the two written to files."""

import dataclasses
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from glcanet_jax import hub, runs
from glcanet_jax.data import disk
from glcanet_jax.data.identity import digest
from glcanet_jax.errors import UserError
from glcanet_jax.sharing import card, stac
from glcanet_jax.sharing.facts import Facts
from glcanet_jax.weights import copy_weights

CARD, STAC = "README.md", "stac-item.json"
EXPORT = "network.zip"  # what a published export is called


def write(facts: Facts, out: Path | None, item: Path | None = None, name: str | None = None) -> list[Path]:
    """The card as a file, and the STAC Item as another, those that are asked for, each whole or not at all; a picture stays where
    it is.

    Raises:
        UserError: a file has another ending, or cannot be written, or is one that all this is made from.
    """
    texts = {}
    for path, ending, what in ((out, ".md", "a card"), (item, ".json", "a STAC Item")):
        if path is None:
            continue
        if path.suffix.lower() != ending and not path.is_dir():
            raise UserError(f"{str(path)[:300]} is no name of {what}, which ends in {ending}; give such a name")
        disk.make_place(path, facts.reads)
    if out is not None:
        texts[out] = card.markdown(facts, name, None if facts.picture is None else card.beside(facts.picture, out))
    if item is not None:
        texts[item] = json.dumps(stac.item(facts), indent=1) + "\n"
    for path, text in texts.items():
        with disk.whole(path) as place:
            place.write_text(text, encoding="utf-8")
    return list(texts)


def push(facts: Facts, repository: str, message: str | None = None, private: bool = False) -> str:
    """Publish weights; returns the name by which they are fetched.

    Raises:
        UserError: the hub does not take them.
    """
    wanted = hub.parse_repository(repository)
    name = f"{hub.PREFIX}{wanted.repository}" + f"/{EXPORT}" * facts.export
    with tempfile.TemporaryDirectory() as folder:
        files = _files(facts, name, Path(folder))
        made = hub.parse(hub.push(repository, files, message or f"Weights: {facts.title}", private))
    return str(made._replace(file=EXPORT if facts.export else None))


def _plain(value: Any) -> Any:
    """A configuration with the last part of every path alone that begins at the root, a home or a drive."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    placed = isinstance(value, str) and re.match(r"[/~\\]|[A-Za-z]:[/\\]", value)
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if placed else value


def without_places(facts: Facts, folder: Path) -> Facts:
    """The facts of a copy of the weights that names no place of this machine: where data, runs and backbones lay."""
    if facts.export:  # it names none
        return facts
    _, stored = runs.read_weights(facts.path)
    clean = folder / hub.WEIGHTS
    copy_weights(facts.path, clean, _plain(stored.config) | {"distributed": "auto"})
    return dataclasses.replace(facts, path=clean, bytes=clean.stat().st_size, sha256=digest(clean, whole=True))


def _files(facts: Facts, name: str, folder: Path) -> dict[str, Path]:
    """What is published, by the names that it gets."""
    weights, facts = EXPORT if facts.export else hub.WEIGHTS, without_places(facts, folder)
    assets: dict[str, Any] = {
        "card": {"href": CARD, "type": "text/markdown", "roles": ["metadata"], "title": "Model card"}
    }
    files = {weights: facts.path}
    picture = None
    if facts.picture is not None:
        picture = f"picture{facts.picture.suffix.lower()}"
        kind = {".jpg": "jpeg"}.get(facts.picture.suffix.lower(), facts.picture.suffix.lower().removeprefix("."))
        assets["thumbnail"] = {"href": picture, "type": f"image/{kind}", "roles": ["thumbnail"]}
        files[picture] = Path(shutil.copy(facts.picture, folder / picture))
    described = stac.item(facts, assets)
    described["assets"]["weights"]["href"] = weights
    texts = {CARD: card.markdown(facts, name, picture), STAC: json.dumps(described, indent=1) + "\n"}
    for title, text in texts.items():
        files[title] = folder / title
        files[title].write_text(text, encoding="utf-8")
    return files
