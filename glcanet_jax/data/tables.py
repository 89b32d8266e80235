"""What the JSON files of a dataset hold: ``classes.json``, ``splits.json`` and ``scenes.json``, key by key."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from glcanet_jax import border
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.errors import UserError
from glcanet_jax.limits import Length, Range, Text
from glcanet_jax.options import perhaps

MOST_CLASSES = 254  # ids are bytes, of which 255 is "ignored" and 254 "no class"
SIDE = Range(1, 2**31 - 1)  # of images, pixels
PLACE = Range(0, 2**31 - 1)
CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
Name = Annotated[str, Text(rf"(?=.*\S)[^{CONTROLS}]{{1,200}}", "a name of 1 to 200 characters, none of them a control")]
Colour = Annotated[str, Text(r"#[0-9a-fA-F]{6}", 'a colour as "#ff8800"')]
Inside = Annotated[
    str,
    Text(rf"(?![/~\\])(?!.*(?:^|[/\\])\.\.(?:[/\\]|$))(?!\w:)[^{CONTROLS}]+", "a path inside the folder, without .."),
]
SPLITS = {
    "train": ("training", "trainset", "train_set"),
    "val": ("validation", "valid", "validate", "eval", "valset"),
    "test": ("testing", "tests", "testset", "test_set"),
}  # what is looked for, and how others call it


@dataclass(frozen=True)
class ClassEntry:
    """A class."""

    id: Annotated[int, Range(0, MOST_CLASSES - 1)]
    name: Name
    rgb: Colour
    value: Annotated[int | None, Range(0, 2**16 - 1)] = None  # what stands for it in masks of numbers; None: its id


@dataclass(frozen=True)
class Ignored:
    """The colours that are not labelled."""

    rgb: tuple[Colour, ...] = ()
    id: Annotated[int | None, Range(0, 255)] = None


@dataclass(frozen=True)
class ClassesFile:
    """A ``classes.json``."""

    classes: Annotated[tuple[ClassEntry, ...], Length(1, MOST_CLASSES)]
    ignore: Ignored = field(default_factory=Ignored)


@dataclass(frozen=True)
class Part:
    """An image of a scene, with its place in it."""

    image: Inside
    x: Annotated[int, PLACE]
    y: Annotated[int, PLACE]
    w: Annotated[int, SIDE]
    h: Annotated[int, SIDE]
    mask: Annotated[str | None, *Inside.__metadata__] = None


@dataclass(frozen=True)
class SceneEntry:
    """A scene of a ``scenes.json``."""

    width: Annotated[int, SIDE]
    height: Annotated[int, SIDE]
    parts: Annotated[tuple[Part, ...], Length(1)]
    split: Name = "all"
    eval_crop_xyxy: Annotated[tuple[int, int, int, int] | None, PLACE] = None
    pixels: dict[str, int] = field(default_factory=dict)  # of every class; told, not used


@dataclass(frozen=True)
class SplitsFile:
    """The names of a split; a file has several."""

    names: tuple[Name, ...]


def same(name: str) -> str:
    """A name as it is compared: macOS takes letters apart from their accents, which look the same."""
    return unicodedata.normalize("NFC", name)


def class_table(head: Any, path: Path) -> ClassTable:
    """The classes of a ``scenes.json`` or ``classes.json``.

    Raises:
        UserError: the file is not of that form, its ids are not 0, 1, 2..., or a name, value or colour means two things.
    """
    if isinstance(head, dict):
        head = {key: value for key, value in head.items() if key != "scenes"}
    file = border.check(head, ClassesFile, path)
    entries = sorted(file.classes, key=lambda entry: entry.id)
    ids = [entry.id for entry in entries]
    if ids != list(range(len(ids))):
        raise UserError(
            f"{path} has class ids {', '.join(map(str, ids))}; they must be 0, 1, 2 and so on: number them so, and say with "
            '"value" which number stands for a class in masks'
        )
    values = [entry.id if entry.value is None else entry.value for entry in entries]
    palette = tuple(_colour(entry.rgb) for entry in entries)
    ignored = tuple(_colour(c) for c in file.ignore.rgb)
    _refuse_twice(path, "a name", [same(entry.name).strip() for entry in entries])
    _refuse_twice(path, "a value in masks", values)
    _refuse_twice(path, "an rgb", [*palette, *set(ignored)])
    own = None if values == ids else tuple(values)
    return ClassTable(tuple(same(entry.name) for entry in entries), palette, ignored, values=own)


def _colour(text: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(text.lstrip("#"))
    return red, green, blue


def _refuse_twice(path: Path, what: str, given: list[Any]) -> None:
    twice = [str(one) for one, count in Counter(given).items() if count > 1]
    if twice:
        raise UserError(f"{path} gives {', '.join(twice)} more than one meaning; every class needs {what} of its own")


def split_lists(path: Path) -> dict[str, list[str]]:
    """The names of a ``splits.json`` by split.

    Raises:
        UserError: it holds something else, or a split that nothing would look for.
    """
    content = border.read_json(path)
    wanted = 'it must hold lists of names by split, as {"train": ["scene1"], "val": ["scene2"]}'
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: {wanted}")
    told = []
    for split, names in content.items():
        own = border.faults({"names": names}, SplitsFile)
        told += [fault.replace("names", split, 1) for fault in own]
    if told:
        more = f"; and {len(told) - border.SHOWN} more" * (len(told) > border.SHOWN)
        raise UserError(f"{path}: {'; '.join(told[: border.SHOWN])}{more}; {wanted}")
    check_splits(content, path)
    return {split: [same(name) for name in names] for split, names in content.items()}


def check_splits(names: Iterable[str], source: Path) -> None:
    """Look for names of splits that nothing would look for.

    Raises:
        UserError: one is nearly ``train``, ``val`` or ``test``, which is not there.
    """
    names = list(names)
    for name in names:
        plain = name.strip().lower()
        for split, others in SPLITS.items():
            near = plain in (split, *others) or (sorted(plain) == sorted(split) and plain[:1] == split[:1])
            if near and name != split and split not in names:
                raise UserError(
                    f"{source} has a split {name!r} (perhaps you meant {split!r}); training, validation and test are looked "
                    "for as train, val and test: rename it"
                )


def entries_of(content: Any, path: Path) -> dict[str, dict[str, Any]]:
    """The scenes of a ``scenes.json`` by name.

    Raises:
        UserError: there are none, or the file has other keys.
    """
    entries = content.get("scenes") if isinstance(content, dict) else None
    if not entries or not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise UserError(
            f'{path} has no scenes; it must hold {{"scenes": {{"NAME": {{...}}}}}}, as the bundled sample\'s'
        )
    known = ("classes", "ignore", "scenes")
    for key in content:
        if key not in known:
            raise UserError(f"{path}: {key} is not known{perhaps(key, known)}; mend the file")
    return entries


def lacking(name: str, entry: dict[str, Any]) -> list[str]:
    """What is wrong with a scene's entry and its parts."""
    found = border.faults(entry, SceneEntry)
    if border.faults({"names": [name]}, SplitsFile):
        found.insert(0, "its name must be a name without control characters")
    return [f"scene {name}: {fault}" for fault in found]


def scene_entry(name: str, entry: dict[str, Any], path: Path) -> SceneEntry:
    """A scene as a ``scenes.json`` describes it.

    Raises:
        UserError: what :func:`lacking` finds.
    """
    problems = lacking(name, entry)
    if problems:
        raise UserError(f"{path}: {'; '.join(problems[: border.SHOWN])}; see the bundled sample's scenes.json")
    return border.check(entry, SceneEntry, path)


# ------------------------------------------------------------------------------------------------------------ labels.json
SCENE = "{scene}"  # in the name of a vector file: the scene's own
Width = Range(0, 1e5, open="low")
Column = Annotated[str, Text(r".{1,200}", "the name of a column")]


@dataclass(frozen=True)
class LayerEntry:
    """A layer of features, and which classes they are."""

    file: Inside  # of GeoJSON, a GeoPackage or a Shapefile; {scene} stands for a scene's name
    layer: Name | None = None  # of a GeoPackage with several
    attribute: Column | None = None  # the column that says a feature's class
    class_name: Name | None = None  # of all features, where no column says it
    # what the column says, and the class's name; null: not labelled; "*": whatever else it says
    classes: dict[str, str | None] = field(default_factory=dict, hash=False)
    omit: tuple[
        Name, ...
    ] = ()  # what the column says of features that are not drawn, as those that bound the annotated area
    width_m: Annotated[float | None, Width] = None  # of lines and points, metres on the ground
    width_px: Annotated[float | None, Width] = None  # or pixels
    all_touched: bool = False  # all pixels that a feature touches, not those whose centres lie inside
    order_by: Column | None = None  # the column by which features are drawn, the highest last; None: as in the file
    crs: Annotated[str | None, Text(r".{1,5000}", "the name of a CRS")] = (
        None  # where the file says none, or a wrong one
    )


@dataclass(frozen=True)
class AreaEntry:
    """A layer of polygons inside of which everything is labelled."""

    file: Inside
    layer: Name | None = None
    crs: Annotated[str | None, Text(r".{1,5000}", "the name of a CRS")] = None


@dataclass(frozen=True)
class LabelsFile:
    """A ``labels.json``: how masks are drawn from vector files."""

    layers: Annotated[tuple[LayerEntry, ...], Length(1, 100)]  # the later over the earlier
    background: Name | None = None  # the class where nothing is drawn; None: not labelled
    annotated: AreaEntry | None = None  # outside of it nothing is labelled; None: it is everywhere
    order: Literal["layers", "classes"] = "layers"  # "classes": later ones of classes.json over earlier ones


def labels_file(path: Path, table: ClassTable) -> LabelsFile:
    """How a folder's labels are drawn.

    Raises:
        UserError: the file is not of that form, names a class that is none, or says a thing twice or not at all.
    """
    rules, known = border.check(border.read_json(path), LabelsFile, path), table.names
    told = []
    for i, entry in enumerate(rules.layers):
        if (entry.attribute is None) == (entry.class_name is None):
            told.append(
                f"layers[{i}] must have either attribute, a column that says the class, or class_name, one for all"
            )
        if entry.classes and entry.attribute is None:
            told.append(f"layers[{i}].classes says what a column means, and attribute names none")
        if entry.omit and entry.attribute is None:
            told.append(f"layers[{i}].omit says what a column says, and attribute names none")
        if entry.width_m is not None and entry.width_px is not None:
            told.append(f"layers[{i}] has both width_m and width_px, it must be one")
        named = [("class_name", entry.class_name), *((f"classes[{k!r}]", v) for k, v in entry.classes.items())]
        told += [f"layers[{i}].{key} is {_no_class(name, known)}" for key, name in named if not _is_class(name, known)]
    if not _is_class(rules.background, known):
        told.append(f"background is {_no_class(rules.background, known)}")
    if told:
        raise UserError(f"{path}: {'; '.join(told[: border.SHOWN])}; mend the file")
    return rules


def _is_class(name: str | None, known: tuple[str, ...]) -> bool:
    return name is None or same(name) in known


def _no_class(name: str, known: tuple[str, ...]) -> str:
    return f"{name[:60]!r}, which is no class{perhaps(name[:60], known)}; classes are {', '.join(known[: border.SHOWN])}{' ...' * (len(known) > border.SHOWN)}"
