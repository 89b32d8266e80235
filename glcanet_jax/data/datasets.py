"""Datasets: scenes by split, with classes and protocols; and what is told of one that is not there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.moments import ExtraBand
from glcanet_jax.data.scenes import filled
from glcanet_jax.errors import UserError
from glcanet_jax.options import perhaps

OWN = ("folder", "tiles")  # of the user's own


@dataclass(frozen=True)
class Protocol:
    """How scores are counted: named, and never mixed."""

    name: str
    classes: tuple[int, ...]  # ids that means are taken over
    ignore: tuple[int, ...] = ()  # truth ids whose pixels are dropped
    predict: tuple[int, ...] | None = None  # ids that the argmax is restricted to
    truth: str = field(default="labels", repr=False)  # a scene's read_<truth>; no part of older builds' fingerprints


@dataclass(frozen=True)
class Dataset:
    """Scenes by split, with classes and protocols."""

    name: str
    classes: ClassTable
    splits: dict[str, tuple[Any, ...]]
    protocols: tuple[Protocol, ...]
    root: Path | None = None
    validation_split: str | None = None  # chooses a checkpoint; never one that is reported
    scale: float = 255.0  # full scale of the images' values
    bands: str | None = None  # which were chosen, where there is a choice
    extra: ExtraBand | None = None  # the band behind the colours, if there is one
    called: Mapping[str, str] = field(default_factory=dict)  # splits that its files call otherwise: theirs, ours
    numbers: tuple[tuple[float, ...], tuple[float, ...]] | None = (
        None  # published means and deviations, shares of the scale
    )
    colours: int | None = None  # bands before one of heights that numbers hold for, too; None: there is none
    reported: str = "test"  # the split that scores are published of
    split_list: str | None = None  # which published splits these are, where there are several
    never_after: tuple[str, ...] = ()  # datasets that show scenes of its test

    @property
    def title(self) -> str:
        """What people call it: its name; one of the user's own has that of its folder."""
        return (self.root.resolve().name if self.name in OWN and self.root is not None else "") or self.name

    def scenes(self, split: str) -> tuple[Any, ...]:
        """The scenes of a split.

        Raises:
            UserError: no such split.
        """
        if split in self.called and split not in self.splits:
            ours = self.called[split]
            names = ", ".join(scene.name for scene in self.splits.get(ours, ()))
            raise UserError(
                f"{self.title} has no split {split!r}: what its files call so ({names}) is its {ours}; give {ours}"
            )
        if split not in self.splits:
            near = perhaps(split, list(self.splits))
            raise UserError(f"{self.title} has no split {split!r}{near}; it has {', '.join(self.splits)}")
        for scene in self.splits[split]:
            getattr(scene, "verify", lambda: None)()
        return self.splits[split]

    def filled(self, fill: Sequence[float]) -> "Dataset":
        """The dataset with a value per band, in the images' units, where there is no data."""
        return replace(self, splits={k: tuple(filled(scene, fill) for scene in v) for k, v in self.splits.items()})


def no_bands(name: str, bands: str, choices: Sequence[str], elsewhere: Sequence[str] = ()) -> UserError:
    """What to tell of a choice of bands that there is not; what is one ``elsewhere`` is no slip of the pen."""
    near = "" if bands in elsewhere else perhaps(bands, choices)
    return UserError(f"{name} has no bands {bands!r}{near}; choose from {', '.join(choices)}")


class DatasetMissing(UserError):
    """A dataset is not where it was looked for. The message spans lines: path, what was found, layout, how to get it."""

    lines = True

    def __init__(self, name: str, path: Path, tree: str, how: str):
        found = "nothing: the folder does not exist"
        if path.exists() and not path.is_dir():
            found = "a file, where a folder should be"
        if path.is_dir():
            entries = sorted(p.name + "/" * p.is_dir() for p in path.iterdir())
            found = (
                ", ".join(entries[:8]) + (f" ... ({len(entries)} entries)" if len(entries) > 8 else "")
                if entries
                else "an empty folder"
            )
        super().__init__(
            f"{name} was not found\n  looked at: {path}\n  found:     {found}\n  expected:\n"
            + "".join(f"    {line}\n" for line in tree.strip("\n").splitlines())
            + f"  get it:    {how}\n  or try the bundled scene: python -m experiments.deepglobe sample"
        )
