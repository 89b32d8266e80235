"""What the paths that were given hold: scenes, maps with their reports, datasets and runs. Nothing outside of them is shown."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glcanet_jax.data.own_maps import RASTERS, SUFFIX, is_map
from glcanet_jax.data.provenance import stamp
from glcanet_jax.data.scenes import leaves
from glcanet_jax.errors import UserError
from glcanet_jax.maps import map_report
from glcanet_jax.maps.inputs import SUFFIXES

CLASSES = RASTERS["classes"]


@dataclass
class MapFiles:
    """A map as it lies there."""

    label: str
    name: str  # of its scene
    classes: Path
    confidence: Path | None = None
    probabilities: Path | None = None
    report: dict[str, Any] | None = None


@dataclass
class SceneFiles:
    """A scene and what belongs to it, before any of it is opened."""

    name: str
    group: str = ""
    image: Path | None = None
    scene: Any = None  # of a dataset
    size: tuple[int, int] | None = None
    legend: Any = None  # of its labels
    maps: list[Any] = field(default_factory=list)  # MapFiles, and weights that will make one


@dataclass
class Run:
    """Weights whose maps are made when somebody looks."""

    label: str
    weights: Path


class Allowed:
    """What may be shown: the paths that were given, and what lies in them without a link that leads out."""

    def __init__(self, paths: Sequence[Path]):
        self._roots = [Path(os.path.realpath(path)) for path in paths]

    def add(self, path: Path) -> None:
        self._roots.append(Path(os.path.realpath(path)))

    def with_folder(self, folder: Path) -> "Allowed":
        """Of the same paths, and of all that lies in a folder."""
        return Allowed([*self._roots, folder])

    def holds(self, path: Path) -> bool:
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(root) for root in self._roots)

    def check(self, path: Path) -> None:
        """Raises UserError if a file lies elsewhere: links may lead out of what was given."""
        if not self.holds(path):
            raise UserError(
                f"{path} leads to {os.path.realpath(path)}, outside of what was given; name that, too, to look at it"
            )


def named_source(report: dict[str, Any]) -> Path | None:
    """The scene that a map was made of, if it is still the very file: of its size in bytes and its time; else None."""
    identity = report.get("fingerprint", {}).get("scene", {})
    path = identity.get("path") if isinstance(identity, dict) else None
    if not isinstance(path, str) or not os.path.isfile(path):
        return None
    same = stamp(path)[1:3] == [identity.get("bytes"), identity.get("mtime_ns")]
    return Path(path) if same else None


def files_of(scene: Any) -> list[tuple[Path, bool]]:
    """The files behind a dataset's scene, whatever it is put together from, and whether each holds labels."""
    return [file for leaf in leaves(scene) for file in getattr(leaf, "read_from", lambda: ())()]


def rasters_in(folder: Path) -> Iterator[Path]:
    """Scenes of a folder, not of those in it."""
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file() and not is_map(file):
            yield file


def maps_in(folder: Path, allowed: Allowed, notes: list[str]) -> Iterator[MapFiles]:
    """Maps of a folder, by their reports."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            allowed.check(path)
            yield map_of(folder, path.name.removesuffix(SUFFIX), allowed)
        except UserError as error:
            notes.append(str(error))


def map_of(folder: Path, name: str, allowed: Allowed) -> MapFiles:
    """A map by the name of its scene.

    Raises:
        UserError: its report or its file cannot be used.
    """
    report = map_report.read_report(folder, name)
    files = {kind: folder / Path(file).name for kind, file in report["outputs"].items() if kind in RASTERS}
    classes = files.get("classes", folder / f"{name}{CLASSES}")
    if not classes.is_file():
        raise UserError(f"{classes}, which {folder / f'{name}{SUFFIX}'} names, is not there; map the scene again")
    for file in files.values():
        allowed.check(file)
    kept = {kind: files[kind] for kind in ("confidence", "probabilities") if kind in files and files[kind].is_file()}
    return MapFiles(folder.resolve().name, name, classes, report=report, **kept)


def is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def is_dataset(folder: Path) -> str | None:
    """The dataset that a folder is read as."""
    if (folder / "classes.json").is_file():
        return "folder"
    return "mbrsc" if (folder / "scenes.json").is_file() else None
