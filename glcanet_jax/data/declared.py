"""Published data sets as declarations: how their files lie, which scene is of which split, what masks hold, how scores are counted.

A new one is a :class:`Declared` in a file of its own, listed in :mod:`glcanet_jax.data`.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from glcanet_jax.data.about import About
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Dataset, DatasetMissing, Protocol, no_bands
from glcanet_jax.data.files import FileScene
from glcanet_jax.data.tiled import joined
from glcanet_jax.errors import UserError
from glcanet_jax.options import perhaps

NAME = r"(?P<name>[^.].*)"  # of a scene, as its file has it


@dataclass(frozen=True)
class Layout:
    """A way that files lie in: regular expressions of paths below the set's folder, folder by folder, whatever the case.

    Named groups tell what a file is. A mask belongs to the image whose groups are the same, so far as both have them.
    """

    image: str
    masks: tuple[str, ...] = ()  # where a mask may be, the first that is there; none: no labels
    bands: Mapping[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # by choice, the file's from 1; none: all of them
    scale: float = 255.0  # full scale of the values
    moments: tuple[
        tuple[float, float], ...
    ] = ()  # published mean and deviation of each of the file's bands, in its values
    heights: int | None = None  # the file's band that is no colour, from 1; last where it is chosen
    ids_expected: bool = False  # masks of colours are told


class Found(NamedTuple):
    """A scene's files, or those of a tile of it."""

    name: str
    groups: Mapping[str, str]
    image: Path
    mask: Path | None
    layout: Layout

    @property
    def key(self) -> tuple[str, ...]:
        """What it is told apart from others by."""
        return tuple(self.groups.values())

    def order(self) -> list[str | int]:
        """As people count: 2 before 10."""
        return _natural("/".join(self.key))


@dataclass(frozen=True)
class Splits:
    """Which scenes are of which split, as somebody published it."""

    words: str  # whose, and how
    counts: Mapping[str, int | None]  # of scenes or tiles in each, as published; None: nobody says
    assign: Callable[[Sequence[Found]], Mapping[str, Sequence[Found]]]  # in natural order; scenes may be in none
    names: Callable[[], Mapping[str, Sequence[str]]] = dict  # all that are listed, where they are
    validation: str | None = "val"  # chooses a checkpoint
    reported: str = "test"
    hidden: tuple[str, ...] = ()  # whose labels are kept back


def read_list(name: str) -> tuple[str, ...]:
    """A list of names that is shipped, as ``deepglobe_val``."""
    return tuple((files("glcanet_jax.data") / "splits" / f"{name}.txt").read_text(encoding="utf-8").split())


def by_names(words: str, names: Callable[[], Mapping[str, Sequence[str]]], **of: Any) -> Splits:
    """Splits that list their scenes, whatever folder these lie in."""

    def assign(found: Sequence[Found]) -> dict[str, list[Found]]:
        there = {scene.name: scene for scene in found}
        return {split: [there[n] for n in listed if n in there] for split, listed in names().items()}

    return Splits(words, {split: len(listed) for split, listed in names().items()}, assign, names, **of)


def by_group(words: str, counts: Mapping[str, int | None], group: str = "split", **of: Any) -> Splits:
    """Splits that folders have the names of, whatever the case; ``group`` of a layout is that name."""

    def assign(found: Sequence[Found]) -> dict[str, list[Found]]:
        return {split: [s for s in found if s.groups[group].lower() == split] for split in counts}

    return Splits(words, counts, assign, **of)


@dataclass(frozen=True)
class Declared:
    """A published data set."""

    name: str
    about: About
    tree: str  # its layouts, as they are told
    classes: ClassTable
    protocols: tuple[Protocol, ...]
    layouts: tuple[Layout, ...]
    splits: Mapping[str, Splits]  # by name; the first is what holds where none is asked for
    roots: tuple[str, ...] = ("",)  # folders below the one given that an archive may have unpacked to
    zone: str | None = (
        None  # tiles with the same name of a zone, filled in from their groups, are joined by their places
    )
    unit: str = "scenes"  # that splits count
    never_after: tuple[str, ...] = ()  # sets that show scenes of its test: weights trained on them may not begin a run

    @property
    def choices(self) -> tuple[str, ...]:
        """Of bands, the one first that holds where none is asked for; none where there is nothing to choose."""
        return tuple(dict.fromkeys(choice for layout in self.layouts for choice in layout.bands))

    @property
    def options(self) -> tuple[str, ...]:
        """What it is opened with."""
        return ("bands",) * bool(self.choices) + ("split_list",) * (len(self.splits) > 1)

    def find(self, root: Path, bands: str | None = None) -> list[Found]:
        """The scenes, or tiles, under a folder, in natural order; of a choice of bands where one is given."""
        place = self.place(root)
        return merged(find(place, layout) for layout in self.layouts if bands is None or bands in layout.bands)

    def place(self, root: Path) -> Path:
        """Where below a folder the files are; the folder itself where they are nowhere."""
        places = [root / below for below in self.roots if (root / below).is_dir()]
        has_any = lambda place: any(True for layout in self.layouts for _ in _matches(place, layout.image))  # noqa: E731
        return next(filter(has_any, places), root)

    def missing(self, root: Path) -> DatasetMissing:
        return DatasetMissing(self.name, root, self.tree, self.about.get)

    def split_list(self, name: str | None) -> Splits:
        """Published splits by name.

        Raises:
            UserError: there are none of this name.
        """
        name = name or next(iter(self.splits))
        if name not in self.splits:
            raise UserError(
                f"{self.name} has no split list {name!r}{perhaps(name, self.splits)}; choose from {', '.join(self.splits)}"
            )
        return self.splits[name]

    def open(self, data_dir: str | Path | None, bands: str | None = None, split_list: str | None = None) -> Dataset:
        """The scenes by split.

        Args:
            bands: one of :attr:`choices`; None: the first whose images are there. split_list: one of :attr:`splits`.

        Raises:
            DatasetMissing: no image is there.
            UserError: no such bands or split list, or a tile does not say where it lies.
        """
        root, splits = Path(data_dir or f"data/{self.name}"), self.split_list(split_list)
        if bands is not None and bands not in self.choices:
            raise no_bands(self.name, bands, self.choices)
        asked = (*self.choices, None) if bands is None else (bands,)
        bands, found = next(((one, scenes) for one in asked if (scenes := self.find(root, one))), (bands, []))
        if not found:
            there = [choice for choice in self.choices if self.find(root, choice)]
            if there:
                raise UserError(f"{root} has no images for bands {bands!r}; choose {' or '.join(there)}, or get them")
            raise self.missing(root)
        assigned = splits.assign(found)
        scenes = {split: tuple(self._scenes(members, bands)) for split, members in assigned.items()}
        return Dataset(
            self.name,
            self.classes,
            scenes,
            self.protocols,
            root,
            splits.validation if scenes.get(splits.validation) else None,
            found[0].layout.scale,
            bands,
            **self.published(bands, split_list),
        )

    def published(self, bands: str | None, split_list: str | None) -> dict[str, Any]:
        """What its dataset says beside scenes, of a choice of bands and splits."""
        told: dict[str, Any] = {"never_after": self.never_after, "reported": self.split_list(split_list).reported}
        if len(self.splits) > 1:
            told["split_list"] = split_list or next(iter(self.splits))
        layout = next(one for one in self.layouts if bands is None or bands in one.bands)
        picked = layout.bands.get(bands, ())
        if layout.moments and picked:
            mean, std = zip(*(layout.moments[band - 1] for band in picked), strict=True)
            told["numbers"] = tuple(tuple(v / layout.scale for v in values) for values in (mean, std))
        if layout.heights in picked:
            told["colours"] = len(picked) - 1
        return told

    def _scenes(self, members: Sequence[Found], bands: str | None) -> Iterator[FileScene]:
        picked = lambda of: None if bands is None else of.layout.bands[bands]  # noqa: E731
        tile = lambda of: FileScene(of.name, of.image, of.mask, self.classes, picked(of), heed_alpha=False)  # noqa: E731
        if self.zone is None:
            yield from map(tile, members)
            return
        zones: dict[str, list[Found]] = {}
        for member in members:
            zones.setdefault(self.zone.format(**member.groups), []).append(member)
        for name, tiles in zones.items():
            pieces = list(joined(map(tile, tiles)))
            for i, scene in enumerate(pieces):
                yield replace(scene, name=name if len(pieces) == 1 else f"{name}_{i + 1}")


# ---------------------------------------------------------------------------------------------------------------- files
def merged(layouts: Iterable[Iterable[Found]]) -> list[Found]:
    """The scenes of several layouts, each once, as the first layout has it; in natural order."""
    found: dict[tuple[str, ...], Found] = {}
    for scene in itertools.chain.from_iterable(layouts):
        found.setdefault(scene.key, scene)
    return sorted(found.values(), key=Found.order)


def find(root: Path, layout: Layout) -> Iterator[Found]:
    """The scenes that lie as a layout says."""
    patterns = reversed(layout.masks)  # so that the first one's is kept
    masks = {_key(groups): path for pattern in patterns for path, groups in _matches(root, pattern)}
    shared = _shared(layout)
    for path, groups in _matches(root, layout.image):
        mask = masks.get(_key({name: groups[name] for name in shared}))
        yield Found(groups.get("name", path.stem), groups, path, mask, layout)


def masks_alone(root: Path, layouts: Sequence[Layout]) -> Iterator[Path]:
    """Masks whose images are missing, in whatever layout."""
    paired: dict[Path, bool] = {}
    for layout in layouts:
        shared = _shared(layout)
        images = {_key({name: groups[name] for name in shared}) for _, groups in _matches(root, layout.image)}
        for path, groups in (found for pattern in layout.masks for found in _matches(root, pattern)):
            paired[path] = paired.get(path, False) or _key(groups) in images
    yield from (path for path, known in paired.items() if not known)


def _shared(layout: Layout) -> list[str]:
    """The groups of a mask, all of which its image has, too."""
    groups = (re.findall(r"\(\?P<(\w+)>", pattern) for pattern in layout.masks)
    return list(dict.fromkeys(itertools.chain.from_iterable(groups)))


def _key(groups: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(groups.items()))


@functools.cache
def _compiled(pattern: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(part, re.IGNORECASE) for part in pattern.split("/"))


def _matches(root: Path, pattern: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """Files whose path below a folder matches, folder by folder: what a folder is called says nothing of what is in it."""

    def walk(
        folder: Path, parts: Sequence[re.Pattern[str]], groups: dict[str, str]
    ) -> Iterator[tuple[Path, dict[str, str]]]:
        for entry in sorted(folder.iterdir(), key=lambda path: path.name):
            match = parts[0].fullmatch(entry.name)
            if match is None:
                continue
            seen = groups | match.groupdict()
            if len(parts) == 1:
                if entry.is_file():
                    yield entry, seen
            elif entry.is_dir():
                yield from walk(entry, parts[1:], seen)

    if root.is_dir():
        yield from walk(root, _compiled(pattern), {})


def _natural(text: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
