"""How arrays of one network find their places in another, and are made to fit them: other bands, other classes."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from glcanet_jax.errors import UserError
from glcanet_jax.models import Axes
from glcanet_jax.models.contract import BACKBONES
from glcanet_jax.options import perhaps
from glcanet_jax.weights.backbones import for_bands

FAMILY = ("glcanet", "branch")  # one is the other's branch: what they share has the same names, but for this module
BRANCH = "branch"
# where a root's arrays come from, the first that has them
ROOTS = {"local": ("local", "global"), "global": ("global", "local"), "feedback": ("feedback", "global")}
Path = tuple[str, ...]  # of an array: its collection, its root, modules, itself


def part_of(path: Path) -> str:
    """What part of a network an array belongs to, whatever its level: ``local/attention``."""
    root, *rest = (name for i, name in enumerate(path[1:]) if i != 1 or name != BRANCH)
    return "/".join([root, *(re.sub(r"_\d+$", "", name) for name in rest[:1])])


def unused(paths: Iterable[Path], used: set[Path]) -> tuple[str, ...]:
    """Parts of weights that nothing was taken of, as roots where that is all of them."""
    taken = {part_of(path) for path in used} | {path[1] for path in used}
    left = {path[1] if path[1] not in taken else part_of(path) for path in paths}
    return tuple(sorted(left - taken))


def relatives(theirs: str, ours: str) -> bool:
    """Whether parts of the same name mean the same in two networks."""
    return theirs == ours or {theirs, ours} <= set(FAMILY)


def canonical(path: Path, network: str, relatives: bool) -> Path | None:
    """A name by which arrays of two networks find each other; of strangers that of backbones' arrays alone."""
    collection, root, *rest = path
    at = next((i for i, name in enumerate(rest) if name in BACKBONES), None)
    if at is not None:
        return collection, root, *rest[at:]
    if not relatives:
        return None
    return collection, root, *(rest[1:] if network == BRANCH and rest[0] == BRANCH else rest)


def spellings(path: Path | None) -> list[Path]:
    """Where an array of this canonical name may be found, the nearest first."""
    if path is None:
        return []
    collection, root, *rest = path
    return [(collection, other, *rest) for other in ROOTS.get(root, (root,))]


def fitted(
    array: np.ndarray, fresh: np.ndarray, axes: Axes, path: Path, pairs: Sequence[tuple[int, ...]]
) -> np.ndarray | None:
    """An array as its place wants it: itself, with other bands, with the classes that both know; None if it does not fit."""
    for axis in axes.bands.get(path, ()):
        if array.ndim == fresh.ndim:
            array = for_bands(array, fresh.shape[axis], axis)
    of_classes = axes.classes.get(path, ())
    outer = lambda x: [n for axis, n in enumerate(x.shape) if axis not in of_classes]  # noqa: E731
    if array.ndim != fresh.ndim or outer(array) != outer(fresh):
        return None
    same = [(i,) for i in range(len(pairs))]
    if not of_classes or (list(pairs) == same and array.shape == fresh.shape):
        return array
    known = [bool(of) for of in pairs]
    if not any(known):
        return None
    whole = np.ones_like(fresh, bool)
    for axis in of_classes:
        rows = [np.take(array, of or [0], axis).mean(axis, dtype=np.float32) for of in pairs]
        array = np.stack(rows, axis)
        whole &= np.reshape(known, [-1 if a == axis else 1 for a in range(fresh.ndim)])
    return np.where(whole, array, fresh)


def pair_classes(theirs: Sequence[str], ours: Sequence[str], renames: str | None, source: str) -> list[tuple[int, ...]]:
    """For each of our classes the numbers of theirs that have its name, or are said to be it; capitals do not matter.

    Raises:
        UserError: what is said is not ``OLD=NEW,OLD=NEW``, or names no class of theirs or of ours.
    """
    plain = lambda name: " ".join(name.casefold().split())  # noqa: E731
    their, our = {plain(n): i for i, n in enumerate(theirs)}, [plain(n) for n in ours]
    found: list[list[int]] = [[] for _ in ours]
    renamed = set()
    for part in (renames or "").split(",") if renames else ():
        old, equals, new = part.partition("=")
        for name, known, where in ((old, their, source), (new, our, "the data")):
            if not equals or plain(name) not in known:
                near = perhaps(name.strip(), theirs if known is their else ours)
                wrong = (
                    f"names {name.strip()!r}, which is no class of {where}{near}" if equals else f"has {part.strip()!r}"
                )
                raise UserError(
                    f"--init.classes {wrong}; it must be OLD=NEW,OLD=NEW: {source} has {', '.join(theirs)}, the data have {', '.join(ours)}"
                )
        found[our.index(plain(new))].append(their[plain(old)])
        renamed.add(plain(old))
    for i, name in enumerate(our):
        if not found[i] and name in their and name not in renamed:
            found[i].append(their[name])
    return [tuple(of) for of in found]
