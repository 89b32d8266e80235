"""The files of a scene's map: their names, which of them are made of which, and whether they can be written."""

import os
from collections.abc import Mapping
from pathlib import Path

from glcanet_jax.data.own_maps import LAYERS, RASTERS, SUFFIX
from glcanet_jax.errors import UserError
from glcanet_jax.maps import destination
from glcanet_jax.maps.beside import SUFFIX as BESIDE
from glcanet_jax.maps.options import MapOptions

NAME_MAX = 255  # bytes of a name, where the system does not say


def outputs_of(name: str, options: MapOptions) -> dict[str, str]:
    """File names of what is made of a scene, by kind: ``classes``, ``classes_style``, ``polygons`` ..."""
    kinds = [kind for kind in LAYERS if kind == "classes" or getattr(options, kind)]
    files = {kind: f"{name}{RASTERS[kind]}" for kind in kinds}
    if options.polygons is not None:
        files["polygons"] = f"{name}_polygons.{options.polygons}"
    if options.overlay:
        files["overlay"] = f"{name}{RASTERS['overlay']}"
    styled = [kind for kind in files if kind in LAYERS or (kind == "polygons" and options.polygons == "geojson")]
    return files | {f"{kind}_style": f"{Path(files[kind]).stem}.qml" for kind in styled}


def beside(files: dict[str, str]) -> dict[str, str]:
    """The files that hold a CRS beside their maps, for those among ``files``."""
    return {f"{kind}_crs": f"{files[kind]}{BESIDE}" for kind in LAYERS if kind in files}


def partial(out: Path, name: str) -> Path:
    """The folder of what is under way."""
    return out / f".{name}.partial"


def check_names(name: str, path: str, out: Path, options: MapOptions) -> None:
    """Raises UserError if a scene's name leaves no room for what its files' names end in, in the bytes of a file name."""
    files = outputs_of(name, options)
    staged = f"{name}.staged.part.tif"  # the tiled copy of a scene that is dear to read
    names = [*files.values(), *beside(files).values(), f".{name}{SUFFIX.rpartition('.')[0]}.part.json", staged]
    longest = max([*names, partial(out, name).name], key=lambda n: len(os.fsencode(n)))
    needed, limit = len(os.fsencode(longest)), _name_max(out)
    if needed > limit:
        least = len(os.fsencode(name)) - (needed - limit)
        raise UserError(
            f"{_short(path)}: its name has {len(os.fsencode(name))} bytes, and with endings as {longest.removeprefix(name)[-30:]} "
            f"it would have {needed}, over the {limit} that a file's name may have in {out}; "
            f"rename the scene to at most {least} bytes"
        )


def _short(path: str) -> str:
    name = Path(path).name
    return path if len(name) < 60 else str(Path(path).with_name(f"{name[:30]}...{name[-12:]}"))


def _name_max(out: Path) -> int:
    place = out.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return os.pathconf(place, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows, and file systems that do not say
        return NAME_MAX


def check_apart(named: Mapping[str, str], out: destination.Out, options: MapOptions) -> None:
    """Raises UserError if a scene is what another one's map would be written over."""
    where = destination.of(out, options.work)
    made = {
        destination.canonical(where.at(file)): name
        for name in named
        for file in (*outputs_of(name, options).values(), f"{name}{SUFFIX}")
    }
    for name, path in named.items():
        owner = made.get(destination.canonical(path), name)
        if owner != name:
            raise UserError(
                f"{path} would be overwritten by the map of {owner} ({named[owner]}); give another --out, or leave it out"
            )
