"""Training, scoring and mapping read through one reader: the same bands, values and pixels without data, from any format."""

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio import Affine
from rasterio.enums import ColorInterp

from glcanet_jax.data import open_dataset
from glcanet_jax.data.check import check_dataset, main
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.files import FileScene
from glcanet_jax.data.gdal import open_raster
from glcanet_jax.data.masks import MaskSource
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.data.scenes import filled
from glcanet_jax.errors import UserError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
TABLE = ClassTable(("a", "b", "c"), (RED, GREEN, BLUE))
UTM, PLACE = "EPSG:32640", Affine(0.5, 0, 3e5, 0, -0.5, 2.7e6)
SIZE = 24, 30


def save(path, image, driver="GTiff", colours=None, **options):
    """``[h, w, c]`` or ``[h, w]`` as a raster; options are the file's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = np.moveaxis(image[..., None] if image.ndim == 2 else image, -1, 0)
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype.name}
    with open_raster(path, "w", driver=driver, **shape, **options) as file:
        if colours:
            file.colorinterp = colours
        file.write(bands)
    return path


def folder(root, masks, images=None, classes=TABLE, **entries):
    """A data set of masks by name, each written by a function of its path, and of plain images."""
    listed = [
        {"id": i, "name": n, "rgb": "#{:02x}{:02x}{:02x}".format(*c), **entries.get(n, {})}
        for i, (n, c) in enumerate(zip(classes.names, classes.palette, strict=True))
    ]
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "classes.json").write_text(json.dumps({"classes": listed}))
    for name, write in masks.items():
        write(root / "masks" / name)
        image = root / "images" / f"{name.partition('.')[0]}.png"
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(image) if images is None else images(image)
    return root


def labels_of(root):
    return {scene.name: scene.read_labels() for scene in open_dataset("folder", root).scenes("all")}


def ids(seed=0):
    return np.random.default_rng(seed).integers(0, 3, SIZE, np.uint8)


# ------------------------------------------------------------------------------------------------------ the same pixels
@st.composite
def images(draw):
    """What an image file holds: its values, and the options it is written with."""
    dtype = draw(st.sampled_from(["uint8", "uint16", "int16", "float32", "float64"]))
    bands = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    image = rng.integers(0, 200, (*SIZE, bands)).astype(dtype)
    hole = draw(st.sampled_from(["none", "nodata", "alpha", "mask", "nan"]))
    empty = rng.random(SIZE) < 0.3
    options, colours = {"photometric": "minisblack"}, None
    if draw(st.booleans()):
        options |= {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}
    if hole == "nodata":
        options["nodata"] = 7
        image[empty] = 7
    if hole == "nan" and dtype.startswith("float"):
        image[empty, rng.integers(bands)] = np.nan
    if hole == "alpha":
        image = np.concatenate([image, np.where(empty, 0, 255).astype(dtype)[..., None]], axis=-1)
        colours = [ColorInterp.gray, *[ColorInterp.undefined] * (bands - 1), ColorInterp.alpha]
    return image, empty, hole, options, colours


@settings(max_examples=40)
@given(images(), st.data())
def test_what_is_trained_on_is_what_is_mapped(tmp_path_factory, made, data):
    """At any window: values, fill, and where there is data; and no pixel without data has a label."""
    image, empty, hole, options, colours = made
    root = tmp_path_factory.mktemp("scene")
    path = save(root / "s.tif", image, colours=colours, **options)
    if hole == "mask":
        with open_raster(path, "r+") as file:
            file.write_mask(~empty)
    mask = save(root / "m.tif", ids())
    scene = FileScene("s", path, mask, TABLE)
    fill = [3.0, 5.0, 11.0, 2.0, 9.0][: scene.bands]
    trained = filled(scene, fill)
    top, left = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 20))
    at = top, left, data.draw(st.integers(1, SIZE[0] - top)), data.draw(st.integers(1, SIZE[1] - left))
    with contextlib.closing(RasterSource(path, None, scene.bands, fill)) as mapped:
        assert mapped.dtype.__name__ == scene.dtype
        np.testing.assert_array_equal(trained.read_image(*at), mapped.read_image(*at), strict=True)
        np.testing.assert_array_equal(trained.read_valid(*at), mapped.read_valid(*at), strict=True)
    cut = slice(at[0], at[0] + at[2]), slice(at[1], at[1] + at[3])
    valid = trained.read_valid(*at)
    expected = ~empty[cut]
    if hole == "none" or (hole == "nan" and not scene.dtype.startswith("float")):
        expected = np.ones_like(expected)
    if hole == "nodata":
        expected = ~(image[cut] == 7).all(axis=-1)
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(trained.read_labels(*at), np.where(expected, ids()[cut], 255))
    np.testing.assert_array_equal(
        trained.read_image(*at)[~expected], np.broadcast_to(fill, (int((~expected).sum()), scene.bands))
    )
    np.testing.assert_array_equal(trained.read_image(*at)[expected], image[cut][expected][:, : scene.bands])


PICTURES = {
    "rgb.png": (3, lambda rgb: Image.fromarray(rgb)),
    "rgba.png": (3, lambda rgb: Image.fromarray(np.dstack([rgb, np.where(rgb[..., 0] > 99, 255, 0).astype(np.uint8)]))),
    "grey.png": (1, lambda rgb: Image.fromarray(rgb[..., 0])),
    "grey-alpha.png": (1, lambda rgb: Image.fromarray(rgb[..., 0]).convert("LA")),
    "sixteen.png": (1, lambda rgb: Image.fromarray(rgb[..., 0].astype(np.uint16) * 200)),
    "bits.png": (1, lambda rgb: Image.fromarray(rgb[..., 0] > 99)),
    "palette.png": (3, lambda rgb: Image.fromarray(rgb).quantize(16)),
    "palette.tif": (3, lambda rgb: Image.fromarray(rgb).quantize(16)),
    "palette.gif": (3, lambda rgb: Image.fromarray(rgb).quantize(16)),
    "grey.bmp": (1, lambda rgb: Image.fromarray(rgb[..., 0])),
    "photo.jpg": (3, lambda rgb: Image.fromarray(rgb)),
    "lossless.webp": (3, lambda rgb: Image.fromarray(rgb)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_every_kind(tmp_path, name):
    """Bands, types and values of a picture are the same in training and mapping, and those of another reader."""
    bands, make = PICTURES[name]
    picture = make(np.random.default_rng(1).integers(0, 256, (*SIZE, 3), np.uint8))
    picture.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    scene = FileScene("s", tmp_path / name, None, TABLE)
    with contextlib.closing(RasterSource(tmp_path / name, None, bands)) as mapped:
        assert (scene.bands, scene.dtype) == (bands, mapped.dtype.__name__)
        np.testing.assert_array_equal(scene.read_image(3, 4, 9, 8), mapped.read_image(3, 4, 9, 8), strict=True)
        np.testing.assert_array_equal(scene.read_valid(3, 4, 9, 8), mapped.read_valid(3, 4, 9, 8))
    if not name.endswith("jpg"):  # whose decoders differ in how they enlarge colours
        with Image.open(tmp_path / name) as opened:
            theirs = np.asarray(opened.convert("RGB") if "palette" in name else opened)
        np.testing.assert_array_equal(scene.read_image(), theirs.reshape(*SIZE, -1)[..., :bands].astype(scene.dtype))


def test_an_image_beside_whose_file_nodata_is_declared(tmp_path):
    """Side files count in training as in mapping."""
    image = np.full((*SIZE, 3), 9, np.uint8)
    image[:5] = 0
    path = save(tmp_path / "s.png", image, driver="PNG")
    bands = "".join(f'<PAMRasterBand band="{i}"><NoDataValue>0</NoDataValue></PAMRasterBand>' for i in (1, 2, 3))
    (tmp_path / "s.png.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    scene = FileScene("s", path, None, TABLE)
    assert not scene.read_valid()[:5].any() and scene.read_valid()[5:].all()


def test_inks_are_read_as_light(tmp_path):
    """Cyan, magenta, yellow and black come as red, green and blue in training and mapping."""
    save(tmp_path / "s.tif", np.full((*SIZE, 4), 50, np.uint8), photometric="cmyk")
    scene = FileScene("s", tmp_path / "s.tif", None, TABLE)
    assert scene.bands == 3 and (scene.read_image() == 255 * (1 - 50 / 255) ** 2 // 1).all()
    assert scene.read_valid().all()


def test_near_infrared_that_is_marked_as_alpha(tmp_path):
    """It is no band unless it is named; both are said."""
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 4), np.uint8)
    root = folder(
        tmp_path / "d",
        {"s.png": lambda path: Image.fromarray(ids()).save(path)},
        images=lambda path: save(path.with_suffix(".tif"), image),
    )
    (scene,) = open_dataset("folder", root).scenes("all")
    assert scene.bands == 3 and "band 4 is marked as alpha" in RasterSource(scene.image).note
    dataset = open_dataset("folder", root, bands="4,1,2")
    (scene,) = dataset.scenes("all")
    np.testing.assert_array_equal(scene.read_image(), image[..., [3, 0, 1]])
    assert dataset.bands == "4,1,2" and scene.all_valid


# -------------------------------------------------------------------------------------------------------------- masks
def indexed(array, palette):
    picture = Image.fromarray(array, mode="P")
    picture.putpalette([*np.ravel(palette), *[0] * (768 - np.size(palette))])
    return picture


TABLE_OF_THREE = ClassTable(("a", "b", "c"), (RED, GREEN, BLUE))
MASKS = {
    "ids.png": lambda path: Image.fromarray(ids()).save(path),
    "ids.tif": lambda path: save(path, ids().astype(np.int32)),
    "ids.bmp": lambda path: Image.fromarray(ids()).save(path),
    "colours.png": lambda path: Image.fromarray(np.array([RED, GREEN, BLUE], np.uint8)[ids()]).save(path),
    "colours.tif": lambda path: save(path, np.array([RED, GREEN, BLUE], np.uint8)[ids()]),
    "rgba.png": lambda path: Image.fromarray(np.array([(*RED, 255), (*GREEN, 0), (*BLUE, 9)], np.uint8)[ids()]).save(
        path
    ),
    # colours of the palette are the classes', in another order than the indices
    "palette.png": lambda path: indexed(np.array([2, 0, 1], np.uint8)[ids()], [GREEN, BLUE, RED]).save(path),
    "palette.tif": lambda path: indexed(np.array([2, 0, 1], np.uint8)[ids()], [GREEN, BLUE, RED]).save(path),
    "palette.gif": lambda path: indexed(np.array([2, 0, 1], np.uint8)[ids()], [GREEN, BLUE, RED]).save(path),
    # colours of the palette are anything: the indices are the ids
    "voc.png": lambda path: indexed(ids(), [(0, 0, 0), (128, 0, 0), (0, 128, 0)]).save(path),
    "voc.tif": lambda path: indexed(ids(), [(0, 0, 0), (128, 0, 0), (0, 128, 0)]).save(path),
}


def test_where_there_is_data_costs_no_values(tmp_path, monkeypatch):
    """Where a mask of the file tells; and a palette's file is opened once."""
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    valid = np.ones((40, 50), bool)
    valid[5:20, 7:30] = False
    with open_raster(tmp_path / "a.tif", "w", driver="GTiff", height=40, width=50, count=3, dtype="uint8") as file:
        file.write(np.moveaxis(image, -1, 0))
        file.write_mask(valid)
    MASKS["palette.png"](tmp_path / "a.png")
    opened, read, init = [], RasterSource._read, RasterSource.__init__
    asked = lambda self, how, *more, **options: (opened.append(how), read(self, how, *more, **options))[1]  # noqa: E731
    monkeypatch.setattr(RasterSource, "_read", asked)
    scene = FileScene("a", tmp_path / "a.tif", None, TABLE_OF_THREE)
    np.testing.assert_array_equal(scene.read_valid(2, 3, 30, 40), valid[2:32, 3:43])
    assert opened == ["read_masks"]
    count = lambda self, *more, **options: (opened.append("open"), init(self, *more, **options))[1]  # noqa: E731
    monkeypatch.setattr(RasterSource, "__init__", count)
    opened.clear()
    mask = MaskSource(tmp_path / "a.png", TABLE_OF_THREE)
    np.testing.assert_array_equal(mask.read(), ids())
    assert opened.count("open") == 1
    mask.close()


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_every_kind(tmp_path, name):
    root = folder(tmp_path / "d", {name: MASKS[name]})
    np.testing.assert_array_equal(labels_of(root)[name.partition(".")[0]], ids(), strict=True)
    assert check_dataset("folder", root) == []


GREYS = ClassTable(("background", "building"), ((0, 0, 0), (255, 255, 255)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 255]], [[0, 1]]),  # black and white
        ([[0], [0, 255]], [[0], [0, 1]]),
        ([[0, 1, 255]], [[0, 1, 255]]),  # ids, 255 ignored
        ([[0, 255], [0, 1]], [[0, 255], [0, 1]]),  # ids: one mask tells what the other means
    ],
)
def test_masks_of_black_and_white(tmp_path, values, expected):
    """Are read by the classes' own greys, unless one of the data set's masks holds an id."""
    write = lambda held: lambda path: Image.fromarray(np.resize(np.uint8(held), SIZE)).save(path)  # noqa: E731
    root = folder(tmp_path / "d", {f"{i}.png": write(held) for i, held in enumerate(values)}, classes=GREYS)
    found = labels_of(root)
    assert [sorted(np.unique(found[str(i)]).tolist()) for i in range(len(values))] == expected


def test_nodata_of_a_mask_is_ignored_unless_it_is_a_class(tmp_path):
    numbers = ids().astype(np.int16)
    numbers[0] = -9999
    masks = {"a.tif": lambda path: save(path, numbers, nodata=-9999), "b.tif": lambda path: save(path, ids(), nodata=0)}
    root = folder(tmp_path / "d", masks)
    found = labels_of(root)
    assert (found["a"][0] == 255).all()
    np.testing.assert_array_equal(found["a"][1:], ids()[1:])
    np.testing.assert_array_equal(found["b"], ids())
    assert check_dataset("folder", root) == []


@pytest.mark.parametrize("count", [2, 4, 5])
def test_a_mask_of_neither_ids_nor_colours(tmp_path, count):
    """More bands than are read would be dropped without a word."""
    many = lambda path: save(path, np.zeros((*SIZE, count), np.uint8), photometric="minisblack", alpha="no")  # noqa: E731
    root = folder(tmp_path / "d", {"a.tif": many})
    with pytest.raises(UserError, match=f"has {count} bands beside alpha; a mask has one of ids or three of colours"):
        labels_of(root)
    assert len(check_dataset("folder", root)) == 1


@pytest.mark.parametrize("empty", [(True, True), (True, False)])
def test_check_refuses_what_training_would(tmp_path, capsys, empty):
    """Masks without a labelled pixel, if they all are."""
    write = lambda none: lambda path: Image.fromarray(ids() * 0 + 255 if none else ids()).save(path)  # noqa: E731
    root = folder(tmp_path / "d", {f"{i}.png": write(none) for i, none in enumerate(empty)})
    assert main("folder", root) == all(empty)
    assert ("no pixel of split all is labelled (2 scenes" in capsys.readouterr().out) == all(empty)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.0])
def test_check_tells_of_images_without_data(tmp_path, capsys, value):
    """No number is data in any of them."""
    image = lambda path: save(path.with_suffix(".tif"), np.full((*SIZE, 3), value, np.float32))  # noqa: E731
    root = folder(tmp_path / "d", {"a.png": MASKS["ids.png"]}, images=image)
    assert main("folder", root) == (not np.isfinite(value))
    assert ("no pixel of split all is labelled (1 scenes" in capsys.readouterr().out) == (not np.isfinite(value))


def declared(path, side):
    """A TIFF whose header says that it has ``side`` pixels a side."""
    save(path, np.zeros((*SIZE, 3), np.uint8))
    data = bytearray(path.read_bytes())
    start = struct.unpack_from("<I", data, 4)[0]
    for i in range(struct.unpack_from("<H", data, start)[0]):
        at = start + 2 + 12 * i
        if struct.unpack_from("<H", data, at)[0] in (256, 257):  # width and height
            struct.pack_into("<HII", data, at + 2, 4, 1, side)
    path.write_bytes(data)


@pytest.mark.parametrize("side", [10**7, 2**31 - 1])
@pytest.mark.parametrize("mask", [False, True])
def test_sizes_that_no_memory_holds(tmp_path, side, mask):
    """Are told in one line, whatever is gone through."""
    huge = lambda path: declared(path, side)  # noqa: E731
    images = None if mask else lambda path: huge(path.with_suffix(".tif"))
    root = folder(tmp_path / "d", {"a.tif": huge} if mask else {"a.png": MASKS["ids.png"]}, images)
    problems = check_dataset("folder", root)
    assert problems and all("\n" not in problem for problem in problems)
    assert any("cannot be read" in problem or "more than there is" in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("crs", "transform", "message"),
    [
        (
            UTM,
            Affine(0.5, 0, 3e5 + 10, 0, -0.5, 2.7e6 + 5),
            "20 px to the right and 10 px above",
        ),
        ("EPSG:32639", PLACE, "lies in EPSG:32639, its image in EPSG:32640"),
        (UTM, Affine(0.5, 0, 3e5, 0, 0.5, 2.7e6), "is stored south up, its image north up"),
        (UTM, Affine(1, 0, 3e5, 0, -1, 2.7e6), "has pixels of another size or direction"),
    ],
)
def test_a_mask_that_lies_elsewhere(tmp_path, crs, transform, message):
    place = lambda path: save(path.with_suffix(".tif"), np.zeros((*SIZE, 3), np.uint8), crs=UTM, transform=PLACE)  # noqa: E731
    root = folder(tmp_path / "d", {"s.tif": lambda path: save(path, ids(), crs=crs, transform=transform)}, images=place)
    with pytest.raises(UserError, match=message):
        open_dataset("folder", root).scenes("all")
    (problem,) = check_dataset("folder", root)
    assert message in problem


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_picture_that_viewers_turn_is_not_trained_on(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"tiffinfo": {274: 6}} if suffix == "tif" else {"exif": exif}
    picture = Image.fromarray(np.zeros((*SIZE, 3), np.uint8))
    turned = lambda path: picture.save(path.with_suffix(f".{suffix}"), **options)  # noqa: E731
    root = folder(tmp_path / "d", {"s.png": lambda path: Image.fromarray(ids()).save(path)}, images=turned)
    with pytest.raises(UserError, match="has EXIF orientation 6: viewers turn it, GIS does not"):
        open_dataset("folder", root).scenes("all")
    assert "orientation (6) is not applied" in RasterSource(root / "images" / f"s.{suffix}").note


# ------------------------------------------------------------------------------------------------------------ identity
def test_what_a_scene_draws_from_is_part_of_it(tmp_path):
    """A VRT's sources, also at two removes, side files and masks; of a URL no secret."""
    save(tmp_path / "a.tif", np.zeros((8, 8), np.uint8))
    vrt = (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">{}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    (tmp_path / "inner.vrt").write_text(vrt.format("a.tif"))
    (tmp_path / "outer.vrt").write_text(vrt.format("inner.vrt"))

    def identity(name):
        with contextlib.closing(RasterSource(tmp_path / name)) as source:
            return source.identity()

    before = identity("outer.vrt")
    assert [entry[0].rpartition("/")[2] for entry in before["draws_from"]] == ["a.tif", "inner.vrt"]
    save(tmp_path / "a.tif", np.ones((8, 9), np.uint8)[:, :8].repeat(3, 0)[:8])
    (tmp_path / "a.tif").touch()
    assert identity("outer.vrt") != before
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "p.png")
    before = identity("p.png")
    (tmp_path / "p.pgw").write_text("0.5\n0\n0\n-0.5\n3\n7\n")
    assert identity("p.png") != before


# ---------------------------------------------------------------------------------------------------------------- check
def test_check_says_what_it_found(tmp_path, capsys):
    def image(path):
        values = np.random.default_rng(0).integers(100, 3000, (*SIZE, 4), np.uint16)
        values[:6] = 0
        save(path.with_suffix(".tif"), values, crs=UTM, transform=PLACE, nodata=0, photometric="minisblack")

    root = folder(
        tmp_path / "d", {"s.png": lambda path: Image.fromarray(np.minimum(ids(), 1)).save(path)}, images=image
    )
    out = tmp_path / "normalisation.json"
    assert main("folder", root, normalisation=out) == 0
    said = capsys.readouterr().out
    for words in (
        "images: 1, 24 x 30 px",
        "4 bands of uint16; values by band: 1",
        "ground resolution: 0.5 m",
        "without data: 25 % of the pixels",
        "smaller than a patch of 500 px",
        "classes without a pixel: c",
        "--normalisation.scale 65535",
    ):
        assert words in said, said
    written = json.loads(out.read_text())
    with open_raster(root / "images" / "s.tif") as file:
        valid = file.read()[:, 6:].reshape(4, -1) / 65535
    np.testing.assert_allclose(written["mean"], valid.mean(1), rtol=1e-5)
    np.testing.assert_allclose(written["std"], valid.std(1), rtol=1e-5)
