"""The paths that were given, as a gallery."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glcanet_jax.data.gdal import look_at
from glcanet_jax.data.guard import check_file
from glcanet_jax.data.own_maps import RASTERS, SUFFIX
from glcanet_jax.errors import UserError
from glcanet_jax.view.found import (
    CLASSES,
    Allowed,
    MapFiles,
    Run,
    SceneFiles,
    files_of,
    is_dataset,
    is_run,
    map_of,
    maps_in,
    named_source,
    rasters_in,
)
from glcanet_jax.view.gallery import Gallery, Item
from glcanet_jax.view.opening import Opener, legend_of, legend_of_table


class Gathering:
    """Scenes as they are found, one for each image; maps join the scene that they were made of."""

    def __init__(self, allowed: Allowed):
        self.allowed, self.notes = allowed, []
        self._scenes: dict[Any, SceneFiles] = {}  # by the file of the image, else by name
        self._maps: list[MapFiles] = []
        self._runs: list[Run] = []

    # ------------------------------------------------------------------------------------------------------ what is given
    def add(self, path: Path) -> None:
        """Raises UserError if nothing of a path can be looked at."""
        if path.is_dir():
            self._add_folder(path)
            return
        check_file(path)
        if path.name.endswith(SUFFIX):
            self._add_map(path.parent, path.name.removesuffix(SUFFIX))
            return
        end = next((end for end in RASTERS.values() if path.name.endswith(end)), None)
        name = path.name.removesuffix(end or "")
        if end is not None and (path.parent / f"{name}{SUFFIX}").is_file():
            self._add_map(path.parent, name)
        elif _is_class_map(path):
            self._maps.append(MapFiles(path.parent.resolve().name, name if end == CLASSES else path.stem, path))
        else:
            self._add_image(path, named=True)

    def _add_map(self, folder: Path, name: str) -> None:
        """A map that was named, by one of its files: those beside it are of it."""
        made = map_of(folder, name, self.allowed.with_folder(folder))
        for file in (made.classes, made.confidence, made.probabilities):
            if file is not None:
                self.allowed.add(file)
        self._maps.append(made)

    def _add_folder(self, folder: Path) -> None:
        try:
            kind = is_dataset(folder)
            if is_run(folder):
                self._add_run(folder)
            elif kind is not None:
                self.add_dataset(kind, folder)
            else:
                maps = list(maps_in(folder, self.allowed, self.notes))
                images = list(rasters_in(folder))
                self._maps += maps
                for image in images:
                    self._add_image(image)
                if not maps and not images and self.notes:
                    raise UserError("; ".join(self.notes))
                if not maps and not images:
                    raise UserError(
                        f"{folder} has no scene, no map with its report, no classes.json of a dataset and no weights of a run; "
                        "name another folder"
                    )
        except OSError as error:
            raise UserError(f"{folder} cannot be read ({error.strerror}); name another folder") from error

    def _add_image(self, path: Path, named: bool = False) -> None:
        """``named``: by the user, who means what it draws from, too."""
        try:
            drawn = (path,) if named else look_at(path).files
        except UserError as error:
            self.notes.append(str(error))
            return
        outside = [file for file in drawn if not self.allowed.holds(file)]
        if outside:
            what = "is a link that leads" if outside[0] == path else f"draws from {outside[0]},"
            self.notes.append(f"{path} {what} out of what was given, and is not shown; name it itself")
            return
        self._scenes.setdefault(os.path.realpath(path), SceneFiles(path.stem, image=path))

    def add_dataset(self, name: str, folder: Path | None) -> None:
        from glcanet_jax.data import open_dataset

        self._take(open_dataset(name, folder))

    def _take(self, dataset: Any) -> None:
        legend = legend_of_table(dataset.classes)
        if dataset.root is not None:  # that of a name, or of a run, was named with it
            self.allowed.add(dataset.root)
        for split, scenes in dataset.splits.items():
            for scene in scenes:
                image = getattr(scene, "image", None)
                key = os.path.realpath(image) if isinstance(image, Path) else (dataset.title, scene.name)
                refused = [path for path, _ in files_of(scene) if not self.allowed.holds(path)]
                if refused:
                    self.notes.append(
                        f"{refused[0]} is a link that leads out of what was given, and {scene.name} is not shown; name it, too"
                    )
                    continue
                group = f"{dataset.title}, {split}"
                found = SceneFiles(scene.name, group, None, scene, (scene.height, scene.width), legend=legend)
                self._scenes.setdefault(key, found)

    def _add_run(self, folder: Path) -> None:
        from glcanet_jax import runs

        weights = runs.find_weights(folder)
        self._runs.append(Run(folder.resolve().name, weights))
        if not self._scenes:
            data = runs.data_of(weights)
            dataset = runs.open_data(data)
            self._take(dataset)

    # -------------------------------------------------------------------------------------------------------- what it is
    def scenes(self) -> list[SceneFiles]:
        """All scenes with their maps."""
        for files, label in zip(self._maps, _apart([files.classes.parent for files in self._maps]), strict=True):
            self._scene_of(files).maps.append(replace(files, label=label))
        labels = _apart([run.weights.parent for run in self._runs])
        for run in (replace(run, label=label) for run, label in zip(self._runs, labels, strict=True)):
            for found in self._scenes.values():
                found.maps.append(run)
        return list(self._scenes.values())

    def _scene_of(self, files: MapFiles) -> SceneFiles:
        source = named_source(files.report) if files.report else None
        if source is not None and os.path.realpath(source) in self._scenes:
            return self._scenes[os.path.realpath(source)]
        size = None if files.report is None else (files.report["height"], files.report["width"])
        for found in self._scenes.values():
            if found.name == files.name and (found.size is None or size is None or found.size == size):
                return found
        key = files.name if source is None else os.path.realpath(source)
        return self._scenes.setdefault(key, SceneFiles(files.name, size=size))


def _apart(folders: Sequence[Path]) -> list[str]:
    """The names of folders, with as much of what they lie in as tells them apart."""
    parts = [folder.resolve().parts for folder in folders]

    def last(whole: tuple[str, ...]) -> str:
        count = 1
        while count < len(whole) and any(other[-count:] == whole[-count:] for other in parts if other != whole):
            count += 1
        return "/".join(whole[-count:])

    return [last(whole) for whole in parts]


def _is_class_map(path: Path) -> bool:
    try:
        legend_of(path)
    except UserError:
        return False
    return True


def gather(paths: Sequence[Path], opener: Opener, dataset: str | None = None, folder: Path | None = None) -> Gallery:
    """A gallery of what lies at paths.

    Args:
        dataset: one of those by name, in ``folder``, beside the paths.

    Raises:
        UserError: one of them cannot be looked at, or there is nothing.
    """
    found = Gathering(opener.allowed)
    if dataset is not None:
        found.add_dataset(dataset, folder)
    for path in sorted(paths, key=lambda path: path.is_dir() and is_run(path)):  # runs map the scenes that others name
        found.add(path)
    scenes = found.scenes()
    return Gallery([Item(s.name, s.group, lambda s=s: opener.open(s)) for s in scenes], found.notes)
