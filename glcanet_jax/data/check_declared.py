"""Everything that is wrong with a folder of a published data set."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from glcanet_jax.data.declared import Declared, Found, Layout, Splits, find, masks_alone, merged
from glcanet_jax.data.survey import Survey, check_kinds

Assigned = Mapping[str, Sequence[Found]]  # scenes by split


def problems(root: Path, seen: Survey, of: Declared, split_list: str | None = None) -> Iterator[str]:
    """A line each; ``seen`` keeps what its files hold, and what is otherwise than published and no problem.

    Raises:
        DatasetMissing: no image is there.
    """
    place, splits = of.place(root), of.split_list(split_list)
    by_layout = {layout.image: (layout, list(find(place, layout))) for layout in of.layouts}
    if not any(found for _, found in by_layout.values()):
        raise of.missing(root)
    every = merged(found for _, found in by_layout.values())
    assigned = splits.assign(every)
    yield from _lacking(root, every, splits, assigned)
    seen.notes += _fewer(of, splits, assigned)
    yield from _twice(of, by_layout.values())
    used = {scene.key for split, members in assigned.items() if split not in splits.hidden for scene in members}
    masks: set[Path] = set()
    for layout, found in by_layout.values():
        yield from _files(layout, found, seen, of, used, masks)
    yield from (f"{mask}: its image is missing" for mask in masks_alone(place, of.layouts))


def _files(
    layout: Layout, found: Sequence[Found], seen: Survey, of: Declared, used: set[tuple[str, ...]], masks: set[Path]
) -> Iterator[str]:
    """Problems of the files of a layout; ``masks`` are those that were gone through."""
    kinds: dict[str, list[str]] = {}
    choice = next(iter(layout.bands.values()), None)
    for scene in found:
        if scene.mask is None and layout.masks and scene.key in used:
            yield f"{scene.image}: its mask is missing"
        shape, told = seen.image(scene.image, kinds, choice)
        yield from told
        if scene.mask is not None and scene.mask not in masks:
            masks.add(scene.mask)
            yield from seen.mask(scene.mask, shape, of.classes, layout.ids_expected, scene.image)
    yield from check_kinds(of.name, kinds)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:8])}{' ...' * (len(names) > 8)}"


def _lacking(root: Path, found: Sequence[Found], splits: Splits, assigned: Assigned) -> Iterator[str]:
    """Scenes that the published lists have and a folder has not, and the other way round."""
    there = {scene.name: scene for scene in found}
    names = splits.names()
    for split, members in names.items():
        missing = [name for name in members if name not in there]
        if missing:
            yield f"{root}: {len(missing)} of the {len(members)} scenes of split {split} are missing: {_listed(missing)}"
    used = {scene.key for members in assigned.values() for scene in members}
    extra = [scene.name for scene in found if scene.key not in used and scene.mask is not None]
    if extra:  # archives also hold images of challenges, which have no masks
        yield f"{root}: {len(extra)} labelled scenes are in no split: {_listed(extra)}"


def _fewer(of: Declared, splits: Splits, assigned: Assigned) -> Iterator[str]:
    """Splits that have not as many scenes as were published, where no list says which."""
    names = splits.names()
    for split, count in splits.counts.items():
        if count is not None and split not in names and len(assigned.get(split, ())) != count:
            yield f"split {split} has {len(assigned.get(split, ()))} {of.unit}, published are {count:,}"


def _twice(of: Declared, by_layout: Collection[tuple[Layout, Sequence[Found]]]) -> Iterator[str]:
    """Scenes that lie in two places with the same bands, of which one is read."""
    for choice in of.choices or (None,):
        seen = [scene for one, found in by_layout if choice is None or choice in one.bands for scene in found]
        for key in (key for key, times in Counter(scene.key for scene in seen).items() if times > 1):
            first, second, *_ = (scene.image for scene in seen if scene.key == key)
            yield f"{second}: not read, for it is the same scene as {first}; keep one of them"
