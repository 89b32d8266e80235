"""Images, masks and maps that cannot be read, are of a kind that is not taken, or lie nowhere."""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from tests.campaign.cases import ARGV, CLASSES, SCENE, SIDE, Case, Complaint, copy, dice, fine, picture, write_tiff

Make = Callable[[Path, Random], None]
SMALL = (SIDE, SIDE)


def bands(height: int = SMALL[0], width: int = SMALL[1]) -> np.ndarray:
    """``[3, h, w]`` uint8."""
    return np.moveaxis(picture(height, width, 3), -1, 0)


# --------------------------------------------------------------------------------------------------- damaged, whatever is read
def truncated(path: Path, rng: Random, write: Make) -> None:
    write(path, rng)
    path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size - 200)])


def flipped(path: Path, rng: Random, write: Make) -> None:
    """Bytes of the first half kilobyte and of anywhere replaced."""
    write(path, rng)
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((3, 30))):
        data[rng.randrange(min(512, len(data)) if rng.random() < 0.7 else len(data))] = rng.randrange(256)
    path.write_bytes(data)


def tiff(path: Path, _: Random, **options: object) -> None:
    write_tiff(path, bands(), **options)


def ids(path: Path, rng: Random, **options: object) -> None:
    """A mask, or a class map: every class has many pixels, so that no strip is empty."""
    write_tiff(path, np.random.default_rng(rng.randrange(99)).integers(0, 3, SMALL, np.uint8), **options)


def picture_file(path: Path, _: Random, form: str = "PNG") -> None:
    from PIL import Image

    Image.fromarray(picture(*SMALL, 3)).save(path, form)


def text(path: Path, _: Random, content: str = "no image\n") -> None:
    path.write_text(content)


def noise(path: Path, rng: Random) -> None:
    path.write_bytes(rng.randbytes(5000))


def huge(path: Path, rng: Random) -> None:
    """The header of a TIFF says that it has 2^31 - 1 pixels a side."""
    import struct

    tiff(path, rng)
    data = bytearray(path.read_bytes())
    start, count = struct.unpack_from("<I", data, 4)[0], 0
    for i in range(struct.unpack_from("<H", data, start)[0]):
        at = start + 2 + 12 * i
        if struct.unpack_from("<H", data, at)[0] in (256, 257):
            struct.pack_into("<HII", data, at + 2, 4, 1, 2**31 - 1)
            count += 1
    assert count == 2
    path.write_bytes(data)


def huge_png(path: Path, _: Random) -> None:
    """A PNG that says to have 10^9 pixels a side, checksum and all."""
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">IIBBBBB", 10**9, 10**9, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", 0xAE426082))


def typed(path: Path, _: Random, dtype: str, value: float | None = None, **options: object) -> None:
    data = bands().astype(dtype) if value is None else np.full((3, *SMALL), value, dtype)
    write_tiff(path, data, **options)


def placed(path: Path, _: Random, transform: tuple[float, ...], crs: object = "EPSG:32640") -> None:
    from rasterio import Affine

    write_tiff(path, bands(), crs, Affine(*transform))


def counted(path: Path, _: Random, count: int) -> None:
    write_tiff(path, np.repeat(bands()[:1], count, 0))


def vrt(path: Path, _: Random, body: str, size: tuple[int, int] = SMALL) -> None:
    """A virtual raster of one band per source."""
    path.write_text(f'<VRTDataset rasterXSize="{size[1]}" rasterYSize="{size[0]}">{body}</VRTDataset>')


def source(name: str, number: int = 1) -> str:
    simple = f'<SimpleSource><SourceFilename relativeToVRT="1">{name}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
    return f'<VRTRasterBand dataType="Byte" band="{number}">{simple}</VRTRasterBand>'


def cycle(path: Path, rng: Random) -> None:
    other = path.with_name("other.vrt")
    vrt(path, rng, "".join(source(other.name, i) for i in (1, 2, 3)))
    vrt(other, rng, "".join(source(path.name, i) for i in (1, 2, 3)))


def pipe(path: Path, _: Random) -> None:
    os.mkfifo(path)


def linked(path: Path, _: Random, to: str) -> None:
    path.symlink_to(to)


def folder(path: Path, _: Random) -> None:
    path.mkdir()
    (path / "precious.txt").write_text("kept")


def sidecar(path: Path, rng: Random, content: str) -> None:
    tiff(path, rng)
    path.with_name(path.name + ".aux.xml").write_text(content)


def no_words(path: Path, rng: Random) -> None:
    """A truncated TIFF that has no strip of its own left."""
    tiff(path, rng)
    path.write_bytes(path.read_bytes()[:8])


TILED = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
WRITERS: dict[str, tuple[str, Make]] = {
    "tiff": (".tif", tiff),
    "tiled": (".tif", partial(tiff, **TILED)),
    "png": (".png", picture_file),
    "jpeg": (".jpg", partial(picture_file, form="JPEG")),
    "jp2": (".jp2", lambda path, _: write_tiff(path, bands(), driver="JP2OpenJPEG")),
}
# none of these is an image for anyone
BROKEN: dict[str, tuple[str, Make]] = {
    "empty tif": (".tif", partial(text, content="")),
    "empty png": (".png", partial(text, content="")),
    "text tif": (".tif", text),
    "text jpg": (".jpg", text),
    "json tif": (".tif", partial(text, content='{"type": "FeatureCollection", "features": []}')),
    "noise": (".tif", noise),
    "header alone": (".tif", no_words),
    "huge png": (".png", huge_png),
    "complex": (".tif", partial(typed, dtype="complex64")),
    "pipe": (".tif", pipe),
    "link to itself": (".tif", partial(linked, to="self.tif")),
    "link to nothing": (".tif", partial(linked, to="nowhere.tif")),
    "link to a device": (".tif", partial(linked, to="/dev/zero")),
    "link to a terminal": (".tif", partial(linked, to="/dev/full")),
    "folder": (".tif", folder),
    "vrt no xml": (".vrt", partial(text, content="<VRTDataset")),
    "vrt empty": (".vrt", partial(text, content="<VRTDataset/>")),
    "vrt of nothing": (".vrt", partial(vrt, body="".join(source("nowhere.tif", i) for i in (1, 2, 3)))),
    "vrt of itself": (".vrt", cycle),
    "vrt of 0 bands": (".vrt", partial(vrt, body="")),
    "vrt of negative size": (".vrt", partial(vrt, body=source("scene.tif"), size=(-5, 10))),
    "vrt of text size": (".vrt", partial(text, content='<VRTDataset rasterXSize="a" rasterYSize="b"></VRTDataset>')),
}
# these are images, but not what a network of 8-bit RGB was trained on, or lie nowhere
ODD: dict[str, tuple[str, Make]] = {
    "huge tiff": (".tif", huge),
    "int32": (".tif", partial(typed, dtype="int32")),
    "float64": (".tif", partial(typed, dtype="float64")),
    "NaN": (".tif", partial(typed, dtype="float32", value=np.nan)),
    "inf": (".tif", partial(typed, dtype="float32", value=np.inf)),
    "1 band": (".tif", partial(counted, count=1)),
    "2 bands": (".tif", partial(counted, count=2)),
    "300 bands": (".tif", partial(counted, count=300)),
}
# a place on the ground that is none
NOWHERE: dict[str, tuple[float, ...]] = {
    "zero pixels": (0, 0, 325000, 0, 0, 2785000),
    "NaN": (np.nan, 0, 325000, 0, -0.5, 2785000),
    "inf": (0.5, 0, np.inf, 0, -0.5, 2785000),
    "one row over the other": (0.5, 0.5, 325000, 0.5, 0.5, 2785000),
    "flat": (0.5, 0, 325000, 0, 0, 2785000),
}


# ------------------------------------------------------------------------------------------------------------------ commands
def mapped(make: Make, name: str, rng: Random) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        make(folder / name, rng)

    return prepare


def in_dataset(make: Make, suffix: str, rng: Random, where: str = "images") -> Callable[[Path], None]:
    """A scene of a dataset, or its mask, replaced; in every split."""

    def prepare(folder: Path) -> None:
        for stem in "abc":
            (folder / "data" / where / f"{stem}.png").unlink()
            make(folder / "data" / where / f"{stem}{suffix}", rng)

    return prepare


def readable(path: Path) -> Complaint:
    """An independent reader takes the file, too: what was hit says nothing."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with warnings.catch_warnings(action="ignore"), rasterio.open(path) as file:
            if file.width * file.height * file.count > 10**8:
                return f"it says to have {file.width} x {file.height} pixels"
            file.read()
    except (RasterioError, MemoryError) as error:
        return f"GDAL cannot read it: {str(error)[:100]}"
    return None


def read_whole(name: str) -> Callable[[Path], Complaint]:
    return lambda folder: readable(folder / name)


def whole_dataset(where: str, suffix: str, command: str) -> Callable[[Path], Complaint]:
    """Of all scenes, or of those that are scored."""
    stems = "c" if command == "eval" else "abc"

    def look(folder: Path) -> Complaint:
        return next(filter(None, (readable(folder / "data" / where / f"{stem}{suffix}") for stem in stems)), None)

    return look


def damaged(seed: int, each: int) -> Iterator[Case]:
    """Files cut short at random, and with bytes replaced."""
    for word, damage in (("truncated", truncated), ("flipped", flipped)):
        for form, (suffix, write) in WRITERS.items():
            for i in range(each):
                name = f"{word} {form} {i}"
                make = partial(damage, write=write)
                argv = (*ARGV["predict"], f"x{suffix}")
                why = "GDAL reads all of it"
                file, rng = f"x{suffix}", dice(seed, name)
                yield Case("raster", name, argv, mapped(make, file, rng), read_whole(file), why)
                for command in ("check", "eval") if i < each // 3 else ():
                    make_all = in_dataset(make, suffix, dice(seed, name, command))
                    yield Case(
                        "dataset",
                        f"images {name}",
                        ARGV[command],
                        make_all,
                        whole_dataset("images", suffix, command),
                        why,
                    )
        for form, options in {"tiff": {}, "tiled": TILED}.items():
            for i in range(each):
                make = partial(damage, write=partial(ids, **options))
                name = f"{word} {form} {i}"
                file, rng = mapped(make, "x.tif", dice(seed, "map", name)), dice(seed, "masks", name)
                yield Case(
                    "map", name, (*ARGV["vectorise"], "x.tif"), file, read_whole("x.tif"), "GDAL reads all of it"
                )
                for command in ("check", "eval") if i < each // 3 else ():
                    make_all = in_dataset(make, ".tif", rng, "masks")
                    yield Case(
                        "dataset",
                        f"masks {name}",
                        ARGV[command],
                        make_all,
                        whole_dataset("masks", ".tif", command),
                        why,
                    )


def broken(seed: int) -> Iterator[Case]:
    """What is no image, given to every command that reads one."""
    for name, (suffix, make) in {**BROKEN, **ODD}.items():
        file = f"self{suffix}"
        rng = dice(seed, name)
        yield Case("raster", name, (*ARGV["predict"], file), mapped(make, file, rng), *SCENES.get(name, ()))
        yield Case("map", name, (*ARGV["vectorise"], file), mapped(make, file, rng), *MAPS.get(name, ()))
        slow = name in ("2 bands", "300 bands")  # right to train on, and another program to compile
        for command in ("check", "eval") if slow else ("check", "eval", "train"):
            images = in_dataset(make, suffix, rng)
            yield Case("dataset", f"images {name}", ARGV[command], images, *IMAGES.get((command, name), ()))
        if name in BROKEN:
            for command in ("check", "eval", "train"):
                yield Case("dataset", f"masks {name}", ARGV[command], in_dataset(make, suffix, rng, "masks"))


# what is right to take: a map of one band of 8 bits is a map, whatever it was; bands and types that no network is given yet
SCENES = {"300 bands": (fine, "the first three are taken, and the log says so")}
MAPS = {"1 band": (fine, "one band of 8 bits is a map")}
CHECKED = "check tells of types and bands, and no network is there to disagree"
IMAGES = {("check", name): (fine, CHECKED) for name in ("float64", "1 band", "2 bands", "300 bands")}
SCALED = "divided by the weights' own scale, as training was told by --normalisation.scale"
IMAGES["eval", "float64"] = fine, SCALED
IMAGES |= {("train", name): (fine, "trained on as it is") for name in ("1 band", "float64")}


def elsewhere(seed: int) -> Iterator[Case]:
    """Geotransforms that cannot be inverted, and files beside a scene."""
    for name, transform in NOWHERE.items():
        make = partial(placed, transform=transform)
        yield Case("place", name, (*ARGV["predict"], "x.tif"), mapped(make, "x.tif", dice(name)), *PLACES.get(name, ()))
        yield Case("place", name, (*ARGV["vectorise"], "x.tif"), mapped(make, "x.tif", dice(name)))
    words = {"no xml": "<PAMDataset", "text": "words", "empty": "", "noise": "\x00\x01\x02"}
    for name, content in words.items():
        make = partial(sidecar, content=content)
        yield Case(
            "place", f"aux.xml {name}", (*ARGV["predict"], "x.tif"), mapped(make, "x.tif", dice(name)), fine, "left out"
        )


PLACES: dict[str, tuple] = {}


def names(seed: int) -> Iterator[Case]:
    """Names of scenes that are hard to hold; the maps must have them, too."""
    for name in (
        "a b",
        "a\tb",
        "a\nb",
        "ä\u0308ö",
        "\U0001f6f0",
        "a.b.c",
        ".hidden",
        "-x",
        "--out",
        "a'b\"c",
        "a%sb{}",
        "a:b",
        "*",
    ):

        def make(folder: Path, name: str = name) -> None:
            write_tiff(folder / f"{name}.tif", bands())

        def look(folder: Path, name: str = name) -> Complaint:
            return None if (folder / "out" / f"{name}_classes.tif").exists() else "there is no map of this name"

        yield Case(
            "name", ascii(name), (*ARGV["predict"], f"./{name}.tif"), make, look, "its map has its name", must=True
        )
    for length in (200, 240, 251):
        name = "n" * length
        yield Case(
            "name", f"{length} letters", (*ARGV["predict"], f"{name}.tif"),
            lambda folder, name=name: write_tiff(folder / f"{name}.tif", bands()),
            lambda folder, name=name: None if (folder / "out" / f"{name}_classes.tif").exists() else "no map",
            "its map has its name",
        )  # fmt: skip
    for word in (
        "",
        " ",
        "a\nb.tif",
        ".",
        "..",
        "/",
        "/dev/null",
        "/dev/stdin",
        "nowhere.tif",
        "n" * 300,
        "a\x01b",
        "http://",
        "/vsizip/x",
    ):
        yield Case("name", f"no scene {ascii(word)[:20]}", (*ARGV["predict"], word), lambda folder: None)
        yield Case("name", f"no map {ascii(word)[:20]}", (*ARGV["vectorise"], word), lambda folder: None)


def sizes(seed: int) -> Iterator[Case]:
    """Scenes that are smaller than anything; they are mapped, pixel by pixel."""
    import rasterio

    for height, width in ((1, 1), (1, 200), (200, 1), (3, 7), (65, 63)):

        def make(folder: Path, size: tuple[int, int] = (height, width)) -> None:
            write_tiff(folder / "x.tif", bands(*size))

        def look(folder: Path, size: tuple[int, int] = (height, width)) -> Complaint:
            with rasterio.open(folder / "out" / "x_classes.tif") as file:
                return None if file.shape == size and (file.read(1) < 3).all() else "the map is no map of it"

        yield Case(
            "size", f"{height}x{width}", (*ARGV["predict"], "x.tif"), make, look, "every pixel has a class", must=True
        )

    def nothing(folder: Path) -> None:
        write_tiff(folder / "x.tif", np.zeros((3, *SMALL), np.uint8), nodata=0)

    def all_nodata(folder: Path) -> Complaint:
        with rasterio.open(folder / "out" / "x_classes.tif") as file:
            return None if (file.read(1) == 255).all() else "pixels without data have a class"

    yield Case("size", "all nodata", (*ARGV["predict"], "x.tif"), nothing, all_nodata, "a map of no data", must=True)


def crowds(seed: int) -> Iterator[Case]:
    """Several scenes, of which one is wrong; folders; what is in the way in --out."""

    def twice(folder: Path) -> None:
        for place in ("x", "y"):
            (folder / place).mkdir()
            copy(folder / "scene.tif", folder / place / "scene.tif")

    predict = ARGV["predict"]
    yield Case("scenes", "one name twice", (*predict, "x/scene.tif", "y/scene.tif", "scene.tif"), twice)
    yield Case("scenes", "one is missing", (*predict, "scene.tif", "nowhere.tif"), lambda folder: None, beside="scene")
    yield Case(
        "scenes",
        "one is text",
        (*predict, "scene.tif", "x.tif"),
        lambda folder: text(folder / "x.tif", dice()),
        beside="scene",
    )
    yield Case("scenes", "none", predict, lambda folder: None)
    yield Case("scenes", "empty folder", (*predict, "x"), lambda folder: (folder / "x").mkdir())
    yield Case(
        "scenes", "folder of text", (*predict, "x"), lambda f: [(f / "x").mkdir(), text(f / "x" / "a.txt", dice())]
    )
    for name in ("scene_classes.tif", "scene.report.json", "scene_classes.qml"):

        def theirs(folder: Path, name: str = name) -> None:
            (folder / "out").mkdir()
            (folder / "out" / name).write_text("precious")

        yield Case("--out", f"{name} of someone's", (*predict, "scene.tif"), theirs)

        def leads_out(folder: Path, name: str = name) -> None:
            (folder / "out").mkdir()
            (folder / "precious").write_text("precious")
            (folder / "out" / name).symlink_to("../precious")

        overwrite = (*predict, "scene.tif", "--overwrite")
        yield Case("--out", f"{name} links outside", (*predict, "scene.tif"), leads_out, fine, "replaced, not followed")
        yield Case("--out", f"{name} links outside, --overwrite", overwrite, leads_out, fine, "replaced, not followed")

    def partial_links(folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "precious").mkdir()
        (folder / "precious" / "journal.jsonl").write_text("precious")
        (folder / "precious" / "right_0_0.npy").write_text("precious")
        (folder / "out" / ".scene.partial").symlink_to("../precious")

    yield Case(
        "--out", "the partial folder links outside", (*predict, "scene.tif"), partial_links, fine, "not followed"
    )
    yield Case("--out", "is a file", (*predict, "scene.tif"), lambda folder: (folder / "out").write_text("x"))
    yield Case(
        "--out", "links to nothing", (*predict, "scene.tif"), lambda f: (f / "out").symlink_to("a/b"), fine, "made"
    )
    within = ("predict", "scene.tif", "--weights", "w.safetensors", "--out", "/proc/none/out")
    yield Case("--out", "is nowhere", within, lambda folder: None)
    over = ("predict", "out/scene_classes.tif", "out/scene.tif", "--weights", "w.safetensors", "--out", "out")

    def own(folder: Path) -> None:
        write_tiff(folder / "out" / "scene.tif", bands(*SCENE))
        write_tiff(folder / "out" / "scene_classes.tif", bands(*SCENE))

    yield Case("--out", "a scene is another's map", over, own)


def masks(seed: int) -> Iterator[Case]:
    """Masks that fit no image or no class."""
    from PIL import Image

    def written(array: np.ndarray, mode: str | None = None) -> Make:
        return lambda path, _: Image.fromarray(array).save(path)

    ids, grid = np.zeros((128, 128), np.uint8), np.arange(128)
    bad = {
        "another size": written(ids[:100]),
        "turned": written(np.zeros((128, 64), np.uint8)),
        "unknown ids": written(np.broadcast_to(grid.astype(np.uint8), (128, 128)).copy()),
        "unknown colours": written(np.full((128, 128, 3), 77, np.uint8)),
        "16 bits": written(np.full((128, 128), 40000, np.uint16)),
        "one unknown pixel": written(np.where(grid[:, None] + grid == 254, 9, ids).astype(np.uint8)),
    }
    for name, make in bad.items():
        for command in ("check", "eval", "train"):
            yield Case("masks", name, ARGV[command], in_dataset(make, ".png", dice(seed, name), "masks"))
    tifs = {
        "floats": np.full((128, 128), 0.5, np.float32),
        "negative": np.full((128, 128), -1, np.int16),
        "2 bands": np.zeros((2, 128, 128), np.uint8),
        "5 bands": np.zeros((5, 128, 128), np.uint8),
        "NaN": np.full((128, 128), np.nan, np.float32),
        "inf": np.full((128, 128), np.inf, np.float32),
    }
    for name, array in tifs.items():
        for command in ("check", "eval", "train"):
            make = in_dataset(lambda path, _, array=array: write_tiff(path, array), ".tif", dice(), "masks")
            yield Case("masks", name, ARGV[command], make)

    def greys(folder: Path) -> None:
        path = folder / "data" / "classes.json"
        path.write_text(json.dumps(CLASSES | {"ignore": {"rgb": ["#000000"]}}))

    yield Case("masks", "ignored colour is a class's", ARGV["check"], greys)
