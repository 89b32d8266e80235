"""ISPRS Vaihingen (33 tiles, 9 cm) and Potsdam (38 tiles of 6000 x 6000 px, 5 cm): colours, heights and two truths.

Tiles are read by window, never whole. The official labels are the truth to train on; **eroded** ones, whose objects have a
border of three pixels that is not counted, are a second truth to be scored against.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from glcanet_jax.data.about import About
from glcanet_jax.data.classes import IGNORE, ClassTable
from glcanet_jax.data.datasets import Dataset, DatasetMissing, Protocol, no_bands
from glcanet_jax.data.declared import read_list
from glcanet_jax.data.files import FileScene, open_image, read_image, read_valid
from glcanet_jax.data.moments import ExtraBand, Moments, total
from glcanet_jax.data.raster import with_fill
from glcanet_jax.data.scenes import window
from glcanet_jax.errors import UserError

CLASSES = ClassTable(
    ("impervious", "building", "low vegetation", "tree", "car", "clutter"),
    ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)),
    ignore_colours=((0, 0, 0),),
    threshold=True,  # Potsdam's 4_12 went through a lossy format, and many cars of 6_7 are (252, 255, 0)
)
SPLITS = ("train", "val", "test")
FAULTY = ("7_10",)  # of Potsdam: its labels are wrong
SLACK = 1  # pixels that a DSM may be larger or smaller than its image
LOWEST = -1000.0  # metres: what is lower is no height but a file's word for "nothing"
ROWS = 256  # at a time, where a whole tile is gone through
DSM = "+dsm"

Source = tuple[tuple[str, tuple[int, ...]], ...]  # kinds of files, and which of their bands, from 1
Places = tuple[tuple[str, str], ...]  # folders (a glob) and the names of files in them, the tile in groups


@dataclass(frozen=True)
class Survey:
    """What the two datasets differ in."""

    name: str
    about: About
    tree: str
    places: dict[str, Places]  # by kind of file; "labels", "eroded" and "dsm" are those of both
    colours: dict[str, tuple[Source, ...]]  # by choice of bands: where they may come from, the first that is there

    @property
    def choices(self) -> tuple[str, ...]:
        return (*self.colours, *(name + DSM for name in self.colours))

    def find(self, root: Path) -> dict[str, dict[str, Path]]:
        """The files under a folder, by kind and tile.

        A DSM comes in several versions that must not be mixed: the first of which there is any tile is taken.
        """
        found: dict[str, dict[str, Path]] = {}
        for kind, places in self.places.items():
            seen = [dict(_matches(root, folders, names)) for folders, names in places]
            versions = [tiles for tiles in seen if tiles] or [{}]
            found[kind] = (
                versions[0] if kind == "dsm" else {k: v for tiles in reversed(versions) for k, v in tiles.items()}
            )
        return found

    def source(self, found: dict[str, dict[str, Path]], tile: str, colours: str) -> Source | None:
        """Where a tile's colours come from."""
        fits = (s for s in self.colours[colours] if all(tile in found[kind] for kind, _ in s))
        return next(fits, None)

    def images(self, found: dict[str, dict[str, Path]]) -> dict[str, dict[str, Path]]:
        """The kinds of files that hold colours."""
        return {kind: tiles for kind, tiles in found.items() if kind not in ("labels", "eroded", "dsm")}


def _matches(root: Path, folders: str, names: str) -> Iterator[tuple[str, Path]]:
    pattern = re.compile(names + r"\.(tif|tiff|jpg|png)", re.IGNORECASE)
    for folder in sorted(root.glob(folders)) if root.is_dir() else ():
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            match = pattern.fullmatch(path.name)
            if match:
                yield "_".join(str(int(part)) for part in match.groups()[:-1]), path


_AREA, _TILE = r"top_mosaic_09cm_area(\d+)", r"top_potsdam_(\d+)_(\d+)_"
_HEIGHTS = r"dsm_potsdam_(\d+)_(\d+)"
VAIHINGEN = Survey(
    "vaihingen",
    About(
        "ISPRS Vaihingen",
        "33 tiles of about 2494 x 2064 px, infrared, red and green, with heights, 0.09 m a pixel; 15 to train on, one, 17",
        "for research, by ISPRS's terms: not to be passed on",
        "ask for it at isprs.org (2D Semantic Labeling Contest, Vaihingen: data request form), unpack "
        "ISPRS_semantic_labeling_Vaihingen and its complete and eroded ground truth, then --data.dir DIR",
        notes=("scored against full and eroded labels, over five classes and six: papers differ in both",),
    ),
    """
DIR/
  top/top_mosaic_09cm_area1.tif                              infrared, red, green
  gts_for_participants/top_mosaic_09cm_area1.tif             labels; or gts*/ or *ground_truth*/
  gts_eroded_for_participants/..._area1_noBoundary.tif       eroded labels, likewise: for the eroded protocols
  dsm/dsm_09cm_matching_area1.tif                            heights: for bands irrg+dsm
""",
    {
        "IRRG": (("top", _AREA),),
        "labels": (("gts*", _AREA), ("*ground_truth*", _AREA)),
        "eroded": (("gts*", _AREA + "_noBoundary"), ("*ground_truth*", _AREA + "_noBoundary")),
        "dsm": (("dsm", r"dsm_09cm_matching_area(\d+)"),),
    },
    {"irrg": ((("IRRG", (1, 2, 3)),),)},
)
POTSDAM = Survey(
    "potsdam",
    About(
        "ISPRS Potsdam",
        "38 tiles of 6000 x 6000 px, red, green, blue and infrared, with heights, 0.05 m a pixel; 22 to train on, one, 14",
        "for research, by ISPRS's terms: not to be passed on",
        "ask for it at isprs.org (2D Semantic Labeling Contest, Potsdam: data request form), unpack Potsdam.zip and the "
        "archives in it, then --data.dir DIR",
        notes=(
            "scored against full and eroded labels, over five classes and six: papers differ in both",
            "the labels of tile 7_10 are wrong: it is left out (--data.drop-faulty)",
        ),
    ),
    """
DIR/
  2_Ortho_RGB/top_potsdam_2_10_RGB.tif                       red, green, blue
  3_Ortho_IRRG/top_potsdam_2_10_IRRG.tif                     infrared, red, green
  4_Ortho_RGBIR/top_potsdam_2_10_RGBIR.tif                   all four; one of the three folders is enough
  5_Labels_all/top_potsdam_2_10_label.tif                    labels; or 5_Labels_for_participants/
  5_Labels_all_noBoundary/..._2_10_label_noBoundary.tif      eroded labels: for the eroded protocols
  1_DSM_normalisation/dsm_potsdam_02_10_normalized_lastools.jpg  heights: for bands rgb+dsm, irrg+dsm, irrgb+dsm
""",
    {
        "RGB": (("2_Ortho_RGB", _TILE + "RGB"),),
        "IRRG": (("3_Ortho_IRRG", _TILE + "IRRG"),),
        "RGBIR": (("4_Ortho_RGBIR", _TILE + "RGBIR"),),
        "labels": (("5_Labels_all", _TILE + "label"), ("5_Labels*", _TILE + "label")),
        "eroded": (("5_Labels_all*", _TILE + "label_noBoundary"), ("5_Labels*", _TILE + "label_noBoundary")),
        "dsm": (
            ("1_DSM_normalisation", _HEIGHTS + "_normalized_lastools"),
            ("1_DSM_normalisation", _HEIGHTS + "_normalized_ownapproach"),
            ("1_DSM_normalisation", _HEIGHTS),
            ("1_DSM", _HEIGHTS),
        ),
    },
    {
        "rgb": ((("RGB", (1, 2, 3)),), (("RGBIR", (1, 2, 3)),)),
        "irrg": ((("IRRG", (1, 2, 3)),), (("RGBIR", (4, 1, 2)),)),
        "irrgb": ((("RGBIR", (4, 1, 2, 3)),), (("IRRG", (1, 2, 3)), ("RGB", (3,)))),
    },
)
SURVEYS = {survey.name: survey for survey in (VAIHINGEN, POTSDAM)}


# ---------------------------------------------------------------------------------------------------------------- tiles
@dataclass(frozen=True)
class Heights:
    """A DSM as a band of its tile, aligned at the upper left: a row or column too many is cut off, one too few is the last again."""

    path: Path
    height: int  # of the tile
    width: int
    shape: tuple[int, int] = field(init=False)  # of the file

    def __post_init__(self):
        source = open_image(self.path, (1,))
        object.__setattr__(self, "shape", (source.height, source.width))
        if max(abs(a - b) for a, b in zip(self.shape, (self.height, self.width), strict=True)) > SLACK:
            raise UserError(
                f"{self.path} has {self.shape[0]} x {self.shape[1]} pixels, its image {self.height} x {self.width}; "
                f"they may differ by {SLACK} pixel: get the DSM that belongs to this image"
            )

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """float32 ``[h, w]``, NaN where the file holds no height."""
        there = [
            slice(min(at.start, n - 1), min(at.stop, n)) for at, n in zip((rows, columns), self.shape, strict=True)
        ]
        image, valid = read_image(self.path, (1,), *there)
        values = image[..., 0].astype(np.float32)
        nothing = values < LOWEST
        values[nothing if valid is None else nothing | ~valid] = np.nan
        lacking = [
            (0, (at.stop - at.start) - (got.stop - got.start)) for at, got in zip((rows, columns), there, strict=True)
        ]
        return np.pad(values, lacking, mode="edge") if any(after for _, after in lacking) else values

    def filled(self, rows: slice, columns: slice) -> np.ndarray:
        """:meth:`read` with the tile's mean where there is no height."""
        values = self.read(rows, columns)
        nothing = np.isnan(values)
        if nothing.any():
            values[nothing] = tile_moments(self).mean
        return values


@cache
def tile_moments(heights: Heights) -> Moments:
    """Of a tile's heights, gone through once."""
    bands = (slice(top, min(top + ROWS, heights.height)) for top in range(0, heights.height, ROWS))
    return total(Moments.of(heights.read(rows, slice(0, heights.width))) for rows in bands)


@dataclass(frozen=True)
class TileScene:
    """Colours from one or two files, heights behind them where they are wanted (then all is float32), and the truths."""

    name: str
    colours: tuple[tuple[Path, tuple[int, ...]], ...]  # files, and which of their bands, from 1
    truth: FileScene  # the first file and the labels
    eroded: FileScene | None = None
    heights: Heights | None = None
    fill: tuple[float, ...] | None = None  # a value per band where there is no data

    def __post_init__(self):
        for path, picked in self.colours:
            source = open_image(path, picked, False)
            if (source.height, source.width) != (self.height, self.width):
                raise UserError(
                    f"{path} has {source.height} x {source.width} pixels, {self.truth.image.name} {self.height} x "
                    f"{self.width}; they must agree: get the files of one release"
                )
            if source.dtype != np.uint8:
                raise UserError(f"{path} holds {np.dtype(source.dtype)}; colours must be uint8: replace the file")

    @property
    def height(self) -> int:
        return self.truth.height

    @property
    def width(self) -> int:
        return self.truth.width

    @property
    def bands(self) -> int:
        return sum(len(picked) for _, picked in self.colours) + (self.heights is not None)

    @property
    def labelled(self) -> bool:
        return self.truth.labelled

    @property
    def truths(self) -> tuple[str, ...]:
        """Those besides the labels."""
        return ("eroded",) if self.eroded is not None else ()

    def read_from(self) -> Iterator[tuple[Path, bool]]:
        """All files that are read, and whether each holds labels."""
        yield from ((path, False) for path, _ in self.colours)
        truths = (truth for truth in (self.truth, self.eroded) if truth is not None)
        yield from ((truth.mask, True) for truth in truths if truth.mask is not None)
        if self.heights is not None:
            yield self.heights.path, False

    @property
    def ground_resolution(self) -> float | None:
        """Metres a pixel; None where the first file does not say."""
        return self.truth.ground_resolution

    @property
    def dtype(self) -> str:
        return "uint8" if self.heights is None else "float32"

    @property
    def all_valid(self) -> bool:
        return all(open_image(path, picked, False).all_valid for path, picked in self.colours)

    def verify(self) -> None:
        """Raises UserError if a truth cannot be that of the image."""
        for truth in (self.truth, self.eroded):
            if truth is not None:
                truth.verify()

    def read_image(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        at = window(self, top, left, height, width)
        bands = [read_image(path, picked, *at, heed_alpha=False)[0] for path, picked in self.colours]
        if self.heights is not None:
            bands = [b.astype(np.float32) for b in bands] + [self.heights.filled(*at)[..., None]]
        image = bands[0] if len(bands) == 1 else np.concatenate(bands, axis=-1)
        unfilled = self.fill is None or self.all_valid
        return with_fill(image, None if unfilled else self.read_valid(top, left, height, width), self.fill)

    def read_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """bool ``[h, w]``: False where a file of colours has no data."""
        at = window(self, top, left, height, width)
        valid = np.ones([side.stop - side.start for side in at], bool)
        for path, picked in self.colours:
            valid &= read_valid(path, picked, *at, heed_alpha=False)
        return valid

    def read_labels(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        return self._known(self.truth, top, left, height, width)

    def read_eroded(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        if self.eroded is None:
            raise UserError(f"tile {self.name} has no eroded labels; get them, or score against the full ones")
        return self._known(self.eroded, top, left, height, width)

    def _known(self, truth: FileScene, *at: int | None) -> np.ndarray:
        labels = truth.read_labels(*at)
        return labels if self.all_valid else np.where(self.read_valid(*at), labels, np.uint8(IGNORE))


# ------------------------------------------------------------------------------------------------------------- datasets
def protocols(eroded: bool) -> tuple[Protocol, ...]:
    """Means over five classes (clutter stays in the matrix) or all six, against the eroded labels and the full ones."""
    counts = (("5-class", (0, 1, 2, 3, 4)), ("6-class", (0, 1, 2, 3, 4, 5)))
    full = tuple(Protocol(f"{name}-full", classes) for name, classes in counts)
    return tuple(Protocol(f"{n}-eroded", c, truth="eroded") for n, c in counts) + full if eroded else full


@cache
def split_ids(name: str, split: str) -> tuple[str, ...]:
    """The tiles of a list: the official "train" and "test", and "val", the tile of "train" that chooses checkpoints."""
    return read_list(f"{name}_{split}")


def tiles_of(name: str, split: str, drop_faulty: bool = True) -> tuple[str, ...]:
    """The tiles of a split: "train" without the one of "val", and without the faulty ones."""
    left_out = split_ids(name, "val") * (split == "train") + FAULTY * (name == POTSDAM.name and drop_faulty)
    return tuple(tile for tile in split_ids(name, split) if tile not in left_out)


def _choice(
    survey: Survey, found: dict[str, dict[str, Path]], tiles: list[str], bands: str | None, root: Path
) -> tuple[str, bool]:
    """The colours chosen, and whether heights come with them; None chooses the first colours that are there."""
    if bands is not None and bands not in survey.choices:
        known = [choice for other in SURVEYS.values() for choice in other.choices]
        raise no_bands(survey.name, bands, survey.choices, known)
    there = [c for c in survey.colours if any(survey.source(found, tile, c) for tile in tiles)]
    if not there:
        raise DatasetMissing(survey.name, root, survey.tree, survey.about.get)
    bands = bands or there[0]
    colours = bands.removesuffix(DSM)
    if colours not in there:
        kinds = " or ".join(" with ".join(kind for kind, _ in source) for source in survey.colours[colours])
        raise UserError(
            f"{root} has no images for bands {bands!r}, which are cut from {kinds}; choose {' or '.join(there)}, or get them"
        )
    return colours, bands.endswith(DSM)


def _open(survey: Survey, data_dir: str | Path | None, bands: str | None, drop_faulty: bool = True) -> Dataset:
    root = Path(data_dir or f"data/{survey.name}")
    found = survey.find(root)
    listed = {split: tiles_of(survey.name, split, drop_faulty) for split in SPLITS}
    every = [tile for tiles in listed.values() for tile in tiles]
    colours, with_heights = _choice(survey, found, every, bands, root)
    members = {split: [t for t in tiles if survey.source(found, t, colours)] for split, tiles in listed.items()}
    lacking = [tile for tiles in members.values() for tile in tiles if tile not in found["dsm"]]
    if with_heights and lacking:
        raise UserError(
            f"{root} has no DSM of {len(lacking)} tiles ({', '.join(lacking[:8])}{' ...' * (len(lacking) > 8)}); "
            f"get them, or choose bands {colours}"
        )

    def scene(tile: str) -> TileScene:
        picked = tuple((found[kind][tile], of) for kind, of in survey.source(found, tile, colours))
        truth, eroded = (
            FileScene(tile, picked[0][0], found[kind].get(tile), CLASSES, picked[0][1], heed_alpha=False)
            for kind in ("labels", "eroded")
        )
        heights = Heights(found["dsm"][tile], truth.height, truth.width) if with_heights else None
        return TileScene(tile, picked, truth, eroded if eroded.labelled else None, heights)

    splits = {split: tuple(map(scene, tiles)) for split, tiles in members.items()}
    count = sum(len(picked) for _, picked in survey.colours[colours][0])
    extra = ExtraBand(count, lambda tile: tile_moments(tile.heights)) if with_heights else None
    return Dataset(
        survey.name,
        CLASSES,
        splits,
        protocols(any(tile.truths for tiles in splits.values() for tile in tiles)),
        root,
        "val" if splits["val"] else None,
        bands=colours + DSM * with_heights,
        extra=extra,
    )


def open_vaihingen(data_dir: str | Path | None, bands: str | None = "irrg") -> Dataset:
    """The official splits; tile 30, held out of "train", chooses checkpoints. ``bands``: "irrg" or "irrg+dsm".

    Raises:
        DatasetMissing: no image is there.
        UserError: no such bands, or a tile without a DSM where one is wanted.
    """
    return _open(VAIHINGEN, data_dir, bands)


def open_potsdam(data_dir: str | Path | None, bands: str | None = None, drop_faulty: bool = True) -> Dataset:
    """The official splits; tile 2_10, held out of "train", chooses checkpoints.

    Args:
        bands: "rgb", "irrg" or "irrgb" (in this order), each also with "+dsm"; None: the first whose images are there.
        drop_faulty: leave tile 7_10 out, whose labels are wrong.

    Raises:
        DatasetMissing: no image is there.
        UserError: no such bands, or a tile without a DSM where one is wanted.
    """
    return _open(POTSDAM, data_dir, bands, drop_faulty)
