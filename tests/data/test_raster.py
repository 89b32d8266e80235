"""Rasters of every kind as scenes, and maps that are written by window and finished as COGs."""

import contextlib
import json
import math
import os
import subprocess
import sys
import textwrap
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glcanet_jax.data import overview as overviews
from glcanet_jax.data import raster
from glcanet_jax.data.gdal import environment, open_raster, steps
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.overview import overview
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.data.tiles import check_disk
from glcanet_jax.errors import UserError
from glcanet_jax.maps.writer import MapWriter, required_bytes

rasterio = pytest.importorskip("rasterio")
from rasterio.control import GroundControlPoint  # noqa: E402
from rasterio.crs import CRS  # noqa: E402
from rasterio.enums import ColorInterp  # noqa: E402
from rasterio.rpc import RPC  # noqa: E402


def affine(x, y, size, angle, shear=0.0):
    """Square pixels of a size, turned by degrees and sheared."""
    cos, sin = size * math.cos(math.radians(angle)), size * math.sin(math.radians(angle))
    return rasterio.Affine(cos, cos * shear + sin, x, sin, sin * shear - cos, y)


def place_of(transform, corner):
    return (
        transform.a * corner[0] + transform.b * corner[1] + transform.c,
        transform.d * corner[0] + transform.e * corner[1] + transform.f,
    )


ROTATED = affine(3e5, 2.7e6, 0.5, 30)
NAMES = ("urban", "Äcker", "water")
PALETTE = ((0, 255, 255), (255, 255, 0), (0, 0, 255))
PLACE = Georeference(CRS.from_epsg(32639), rasterio.Affine(0.5, 0, 3e5, 0, -0.5, 2.7e6))
RPCS = RPC(
    height_off=100.0,
    height_scale=500.0,
    lat_off=25.0,
    lat_scale=0.1,
    line_den_coeff=[1.0] + [1e-4] * 19,
    line_num_coeff=[0.01] * 20,
    line_off=50.0,
    line_scale=50.0,
    long_off=55.0,
    long_scale=0.1,
    samp_den_coeff=[1.0] + [2e-4] * 19,
    samp_num_coeff=[0.02] * 20,
    samp_off=60.0,
    samp_scale=60.0,
)


def random(*shape, dtype=np.uint8, high=256, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def save(path, image, mask=None, colours=None, **options):
    """``[h, w, c]`` as a GeoTIFF, or another format by ``driver``."""
    h, w, c = image.shape
    options = {"driver": "GTiff", "height": h, "width": w, "count": c, "dtype": image.dtype.name, **options}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), open_raster(path, "w", **options) as file:
        if colours:
            file.colorinterp = colours
        file.write(np.moveaxis(image, -1, 0))
        if mask is not None:
            file.write_mask(mask)
    return path


def opened(path, bands=None, wanted=3, fill=None):
    return contextlib.closing(RasterSource(path, bands, wanted, fill))


def refused(match, *arguments):
    with pytest.raises(UserError, match=match) as error:
        RasterSource(*arguments)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------- environment
def test_the_cache_is_capped_in_all_threads_until_the_last_one_leaves():
    from rasterio.env import get_gdal_config

    inside, leave, seen = threading.Event(), threading.Event(), []

    def work():
        with environment():
            seen.append((get_gdal_config("GDAL_CACHEMAX"), get_gdal_config("GDAL_PAM_ENABLED")))
            inside.set()
            leave.wait()
            seen.append(get_gdal_config("GDAL_CACHEMAX"))

    with rasterio.Env():
        before = get_gdal_config("GDAL_CACHEMAX")
    with environment():
        thread = threading.Thread(target=work)
        thread.start()
        inside.wait()
    leave.set()
    thread.join()
    with rasterio.Env():
        assert get_gdal_config("GDAL_CACHEMAX") == before
    assert seen == [(64 * 2**20, False), 64 * 2**20]


def test_the_module_is_imported_without_rasterio():
    code = "import sys; sys.modules['rasterio'] = None; import glcanet_jax.data.raster"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(raster.__file__).parents[2])


# -------------------------------------------------------------------------------------------------------------- sources
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("driver", ["GTiff", "COG", "PNG"])
def test_windows_of_a_scene(tmp_path, dtype, driver):
    image = random(90, 70, 3, dtype=dtype, high=np.iinfo(dtype).max + 1)
    path = save(tmp_path / "scene.bin", image)
    if driver != "GTiff":
        from rasterio.shutil import copy

        copy(path, tmp_path / "other.bin", driver=driver)
        path = tmp_path / "other.bin"
    before = sorted(tmp_path.iterdir())
    with opened(path) as source:
        assert (source.name, source.height, source.width, source.bands) == (path.stem, 90, 70, 3)
        assert source.dtype == dtype and source.all_valid and not source.labelled and source.note == ""
        assert source.georeference == Georeference()
        np.testing.assert_array_equal(source.read_image(), image)
        np.testing.assert_array_equal(source.read_image(10, 20, 30, 5), image[10:40, 20:25])
        assert source.read_valid(10, 20, 30, 5).shape == (30, 5) and source.read_valid().all()
        assert source.read_image().flags.c_contiguous and source.read_image().flags.writeable
    assert sorted(tmp_path.iterdir()) == before


@settings(max_examples=15)
@given(st.data())
def test_any_window_is_that_of_the_array(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "windows.tif"
    image = random(37, 53, 2, seed=4)
    if not path.exists():
        save(path, image, tiled=True, blockxsize=16, blockysize=16)
    top, left = data.draw(st.integers(0, 36)), data.draw(st.integers(0, 52))
    h, w = data.draw(st.integers(1, 37 - top)), data.draw(st.integers(1, 53 - left))
    with opened(path, [2, 1, 2]) as source:
        np.testing.assert_array_equal(
            source.read_image(top, left, h, w), image[top : top + h, left : left + w][..., [1, 0, 1]]
        )


def test_many_threads_read_one_source(tmp_path):
    image = random(128, 128, 3)
    found = []
    with opened(save(tmp_path / "a.tif", image, tiled=True, blockxsize=16, blockysize=16)) as source:

        def work(row):
            found.extend(
                np.array_equal(source.read_image(row, x, 16, 32), image[row : row + 16, x : x + 32]) for x in range(96)
            )

        threads = [threading.Thread(target=work, args=(row,)) for row in (0, 30, 60, 90)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert found == [True] * 4 * 96


def test_default_bands(tmp_path):
    image = random(8, 8, 5)
    r, g, b, a, u = (ColorInterp[c] for c in ("red", "green", "blue", "alpha", "undefined"))
    rgb = save(tmp_path / "rgba.tif", image[..., :4], colours=[r, g, b, a])
    with opened(rgb) as source:
        assert source.identity()["bands"] == [1, 2, 3]
        assert source.note == "band 4 is marked as alpha and says where there is data; name it to read it"
    bgr = save(tmp_path / "bgr.tif", image, colours=[b, g, r, u, u])
    with opened(bgr) as source:
        assert source.note == "bands 3,2,1 (red, green, blue) of 5"
        np.testing.assert_array_equal(source.read_image(), image[..., [2, 1, 0]])
    with opened(bgr, None, 4) as source:
        assert source.note == "bands 1,2,3,4 of 5, the first; --bands takes others"
    with opened(bgr, (4, 1, 2)) as source:
        np.testing.assert_array_equal(source.read_image(), image[..., [3, 0, 1]])
    plain = save(tmp_path / "plain.tif", image, photometric="minisblack")
    with opened(plain, None, 1) as source:
        assert source.note == "band 1 of 5, the first; --bands takes others"
    with opened(plain) as source:
        np.testing.assert_array_equal(source.read_image(), image[..., :3])


def test_bands_that_are_refused(tmp_path):
    one = save(tmp_path / "one.tif", random(8, 8, 1))
    refused("has 1 band, the weights take 3; give a raster of 3, or repeat bands by --bands 1,1,1", one, None, 3)
    with opened(one, [1, 1, 1]) as source:
        assert source.read_image().shape == (8, 8, 3)
    alpha = save(
        tmp_path / "la.tif", random(8, 8, 3), colours=[ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha]
    )
    refused("3 bands, one of them alpha, the weights take 3; .*--bands 1,2,2", alpha, None, 3)
    refused("has 1 band, --bands names 0", one, [0], 1)
    refused("has 1 band, --bands names 2; bands are counted from 1 to 1", one, [2], 1)
    refused("--bands 1,1 names 2, the weights take 3", one, [1, 1], 3)
    refused("fill has 1 values, 3 bands", one, [1, 1, 1], 3, [1.0])


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint32", "complex64"])
def test_types_that_are_refused(tmp_path, dtype):
    path = save(tmp_path / "a.tif", np.zeros((8, 8, 3), dtype))
    refused(
        f"holds {dtype}, uint8, uint16, int16, float32, float64 are read; convert it with `gdal_translate -ot Float32",
        path,
        None,
        3,
    )


def test_files_that_are_refused(tmp_path):
    refused("nothing.tif cannot be opened .No such file", tmp_path / "nothing.tif", None, 3)
    (tmp_path / "words.tif").write_text("words")
    refused("words.tif cannot be read as a raster", tmp_path / "words.tif", None, 3)
    refused("is a folder, where a file is wanted", tmp_path, None, 3)


def vrt(path, sources, dtype="Byte", size=8):
    """Bands of several files as one raster."""
    bands = "".join(
        f'<VRTRasterBand dataType="{dtypes}" band="{i}"><SimpleSource><SourceFilename relativeToVRT="1">{name}'
        f"</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for i, (name, band, dtypes) in enumerate(sources, 1)
    )
    path.write_text(f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}">{bands}</VRTDataset>')
    return path


def test_vrt(tmp_path):
    image, wide = random(8, 8, 3), random(8, 8, 1, dtype=np.uint16, high=65536)
    save(tmp_path / "a.tif", image)
    save(tmp_path / "b.tif", wide)
    good = vrt(tmp_path / "good.vrt", [("a.tif", 3, "Byte"), ("a.tif", 1, "Byte"), ("a.tif", 2, "Byte")])
    with opened(good) as source:
        np.testing.assert_array_equal(source.read_image(), image[..., [2, 0, 1]])
    mixed = vrt(tmp_path / "mixed.vrt", [("a.tif", 1, "Byte"), ("b.tif", 1, "UInt16"), ("a.tif", 2, "Byte")])
    refused("bands of uint16 and uint8; choose bands of one type by --bands", mixed, None, 3)
    gone = vrt(tmp_path / "gone.vrt", [("a.tif", 1, "Byte"), ("c.tif", 1, "Byte"), ("a.tif", 2, "Byte")])
    for _ in range(2):  # GDAL itself tells the first time alone, while another VRT is open
        with opened(good):
            refused(r"gone.vrt draws from .*c.tif, which is not there; restore it", gone, None, 3)


def test_words_of_a_vrt_are_no_missing_files(tmp_path):
    """Metadata of any domain, and names of what a driver finds in a file."""
    image = random(8, 8, 3)
    save(tmp_path / "a.tif", image)
    good = vrt(tmp_path / "good.vrt", [("a.tif", band, "Byte") for band in (1, 2, 3)])
    told = '<Metadata domain="IMAGE_STRUCTURE"><MDI key="INTERLEAVE">BAND</MDI></Metadata>'
    told += '<Metadata><MDI key="AREA_OR_POINT">Area</MDI></Metadata></VRTDataset>'
    good.write_text(good.read_text().replace("</VRTDataset>", told))
    with opened(good) as source:
        np.testing.assert_array_equal(source.read_image(), image)


def test_a_scene_in_an_archive(tmp_path):
    """GDAL's own names of what is no plain file."""
    image = random(8, 9, 3)
    save(tmp_path / "a.tif", image)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.tif", "a.tif")
    inside = f"/vsizip/{tmp_path}/a.zip/a.tif"
    with opened(inside) as source:
        np.testing.assert_array_equal(source.read_image(), image)
        assert source.name == "a" and source.identity()["path"] == inside
    refused("cannot be read as a raster", inside.replace("a.tif", "b.tif"), None, 3)


def test_palette(tmp_path):
    ids = random(20, 30, high=4)
    picture = Image.frombytes("P", (30, 20), ids.tobytes())
    colours = random(4, 3, seed=3)
    picture.putpalette(colours.tobytes())
    picture.save(tmp_path / "a.png")
    with opened(tmp_path / "a.png") as source:
        assert source.all_valid and source.bands == 3 and source.dtype == np.uint8
        np.testing.assert_array_equal(source.read_image(), colours[ids])
    with opened(tmp_path / "a.png", None, 1) as source:
        np.testing.assert_array_equal(source.read_image()[..., 0], ids)
    picture.save(tmp_path / "b.png", transparency=2)
    with opened(tmp_path / "b.png", None, 3, [7.0, 8.0, 9.0]) as source:
        np.testing.assert_array_equal(source.read_valid(), ids != 2)
        np.testing.assert_array_equal(source.read_image(), np.where((ids == 2)[..., None], [7, 8, 9], colours[ids]))
        assert overview(source, 30)[..., 3].tolist() == np.where(ids == 2, 0, 255).tolist()
        with contextlib.closing(source.stage(tmp_path)) as staged:
            np.testing.assert_array_equal(staged.read_image(), source.read_image())


def masked(folder, kind):
    """A scene whose upper left part is not valid, with what it holds and where it is valid."""
    valid = np.ones((40, 60), bool)
    valid[:13, :21] = False
    image = random(40, 60, 3, dtype=np.uint16, high=60000, seed=5)
    path = folder / f"{kind}.tif"
    if kind == "alpha":
        colours = [ColorInterp[c] for c in ("red", "green", "blue", "alpha")]
        save(path, np.concatenate([image, valid[..., None] * np.uint16(1)], -1), colours=colours)
    elif kind == "mask":
        save(path, image, mask=valid)
    else:
        image[~valid] = 65535
        image[30, 30, 0] = 65535  # one band only: the pixel is valid
        save(path, image, nodata=65535)
    return path, image, valid


@pytest.mark.parametrize("kind", ["alpha", "mask", "nodata"])
def test_pixels_that_are_not_valid(tmp_path, kind):
    path, image, valid = masked(tmp_path, kind)
    with opened(path) as source:
        assert not source.all_valid
        np.testing.assert_array_equal(source.read_valid(), valid)
        np.testing.assert_array_equal(source.read_valid(5, 9, 20, 30), valid[5:25, 9:39])
        np.testing.assert_array_equal(source.read_image(), image)
        with open_raster(path) as file:
            np.testing.assert_array_equal(source.read_valid(), file.dataset_mask() > 0)
    with opened(path, None, 3, [100.5, -4.0, 1e9]) as source:
        np.testing.assert_array_equal(source.read_image(), np.where(valid[..., None], image, [100, 0, 65535]))


@pytest.mark.parametrize("nodata", [float("nan"), -9999.0, 70000.0])
def test_nodata_that_no_pixel_can_hold(tmp_path, nodata):
    bands = [("a.tif", 1, "UInt16")] * 3
    save(tmp_path / "a.tif", random(8, 8, 1, dtype=np.uint16))
    path = vrt(tmp_path / "a.vrt", bands)
    path.write_text(path.read_text().replace("<SimpleSource>", f"<NoDataValue>{nodata}</NoDataValue><SimpleSource>"))
    with opened(path) as source:
        assert source.all_valid and source.read_valid().all()


def test_files_that_are_cut_short(tmp_path):
    Image.fromarray(random(300, 300, 3)).save(tmp_path / "a.jpg", quality=90)
    whole = (tmp_path / "a.jpg").read_bytes()
    with opened(tmp_path / "a.jpg") as source:
        assert source.read_image().shape == (300, 300, 3)
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with opened(tmp_path / "cut.jpg") as source, pytest.raises(UserError, match="cut.jpg cannot be read at rows 0:300"):
        source.read_image()
    for options in ({"compress": "deflate"}, {}, {"compress": "jpeg", "photometric": "ycbcr"}):
        path = save(tmp_path / "cut.tif", random(300, 300, 3), interleave="pixel", **options)
        with opened(path) as source:
            source.read_image(0, 0, 8, 300)
            os.truncate(path, path.stat().st_size // 2)
            with pytest.raises(
                UserError, match=r"cut.tif cannot be read at rows 200:300, columns 0:300 \(.+\)"
            ) as error:
                source.read_image(200, 0, 100, 300)
            assert "previous exception" not in str(error.value)


def test_identity(tmp_path):
    path = save(tmp_path / "a.tif", random(8, 9, 4))
    with opened(path, [3, 1, 2]) as source:
        first = source.identity()
    assert json.loads(json.dumps(first)) == first
    assert first["path"] == str(path) and first["bytes"] == path.stat().st_size
    assert (first["height"], first["width"], first["bands"], first["dtype"]) == (8, 9, [3, 1, 2], "uint8")
    os.utime(path, ns=(0, 12345))
    with opened(path, [3, 1, 2]) as source:
        assert source.identity() == {**first, "mtime_ns": 12345}


# ------------------------------------------------------------------------------------------------------- georeferencing
def points():
    corners = [(0, 0), (0, 100), (80, 0), (80, 100), (40, 50)]
    return tuple(
        GroundControlPoint(r, c, *place_of(ROTATED, (c, r)), 0.0, id=str(i + 1)) for i, (r, c) in enumerate(corners)
    )


def georeferenced(path, place, **options):
    with open_raster(path, "w", height=80, width=100, count=3, dtype="uint8", **options) as file:
        file.write(random(3, 80, 100))
        if place.gcps:
            file.gcps = (list(place.gcps), place.crs)
        elif place.transform is not None:
            file.transform = place.transform
            if place.crs is not None:
                file.crs = place.crs
        if place.rpcs is not None:
            file.rpcs = place.rpcs
    return path


PLACES = {
    "plain": PLACE,
    "rotated": Georeference(PLACE.crs, ROTATED),
    "geographic": Georeference(CRS.from_epsg(4326), rasterio.Affine(1e-5, 0, 55.123456789, 0, -1e-5, 25.3)),
    "points": Georeference(PLACE.crs, None, points()),
    "rpcs": Georeference(None, None, (), RPCS),
    "nowhere": Georeference(None, PLACE.transform),  # a world file alone
    "nothing": Georeference(),
}


@pytest.mark.parametrize("kind", PLACES)
def test_the_place_goes_from_scene_to_map(tmp_path, kind):
    place = PLACES[kind]
    path = georeferenced(tmp_path / "a.tif", place)
    with opened(path) as source:
        read = source.georeference
    assert (read.crs, len(read.gcps)) == (place.crs, len(place.gcps))
    writer = MapWriter(tmp_path / "maps", 80, 100, read, NAMES, PALETTE, ["classes"], {})
    cog = writer.finish()["classes"]
    writer.close()
    with opened(cog, None, 1) as source:
        again = source.georeference
    assert again.crs == place.crs
    wanted = ROTATED if kind == "points" else place.transform
    assert (again.transform is None) == (wanted is None)
    if wanted is not None:
        for corner in [(0, 0), (100, 0), (0, 80), (100, 80)]:
            assert place_of(~wanted, place_of(again.transform, corner)) == pytest.approx(
                corner, abs=1e-6 if kind != "points" else 1e-4
            )
    for point, other in zip(again.gcps, place.gcps, strict=True):
        assert (point.row, point.col) == (other.row, other.col)
        assert (point.x, point.y) == pytest.approx((other.x, other.y), abs=0.5e-6)
    if kind == "rpcs":
        for name, value in RPCS.to_dict().items():
            assert value is None or again.rpcs.to_dict()[name] == pytest.approx(value, rel=1e-12), name
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == ["classes.cog.tif", "classes.tif"]


@settings(max_examples=6)
@given(st.floats(0.05, 30), st.floats(-180, 180), st.floats(1e5, 9e5), st.floats(0, 9e6), st.floats(-0.5, 0.5))
def test_corners_stay_within_a_millionth_of_a_pixel(tmp_path_factory, size, angle, x, y, shear):
    wanted = affine(x, y, size, angle, shear)
    folder = tmp_path_factory.mktemp("corners")
    writer = MapWriter(folder, 20, 30, Georeference(PLACE.crs, wanted), NAMES, PALETTE, ["classes"], {})
    with opened(writer.finish()["classes"], None, 1) as source:
        for corner in [(0, 0), (30, 0), (0, 20), (30, 20)]:
            assert place_of(~wanted, place_of(source.georeference.transform, corner)) == pytest.approx(corner, abs=1e-6)
    writer.close()


def test_a_place_in_a_side_file(tmp_path):
    path = tmp_path / "a.png"
    save(path, random(8, 8, 3), driver="PNG", crs=PLACE.crs, transform=PLACE.transform)
    assert (tmp_path / "a.png.aux.xml").exists()
    with opened(path) as source:
        assert source.georeference == PLACE


# -------------------------------------------------------------------------------------------------------------- staging
@pytest.mark.parametrize("kind", ["alpha", "mask", "nodata"])
def test_a_staged_scene_is_the_scene(tmp_path, monkeypatch, kind):
    path, image, valid = masked(tmp_path, kind)
    monkeypatch.setattr(raster, "STAGING_BYTES", 60 * 4 * 2 * 8)  # 8 rows at a time
    steps = []
    with opened(path, [3, 1, 2], 3, [1.0, 2.0, 3.0]) as source:
        staged = source.stage(tmp_path / "staged", lambda done, rows: steps.append((done, rows)))
        assert steps == [(row, 40) for row in range(8, 41, 8)]
        assert (staged.name, staged.identity(), staged.georeference) == (kind, source.identity(), source.georeference)
        np.testing.assert_array_equal(staged.read_image(3, 4, 30, 50), source.read_image(3, 4, 30, 50))
        np.testing.assert_array_equal(staged.read_valid(), valid)
        np.testing.assert_array_equal(overview(staged, 20), overview(source, 20))
        staged.close()
        source.stage(tmp_path / "staged", lambda done, rows: pytest.fail("copied again")).close()
        os.truncate(staged.path, staged.path.stat().st_size - 1)
        source.stage(tmp_path / "staged", lambda done, rows: steps.append(done)).close()
    assert len(steps) == 10
    with opened(path, [1, 1, 1]) as source, contextlib.closing(source.stage(tmp_path / "staged")) as staged:
        np.testing.assert_array_equal(staged.read_image(), image[..., [0, 0, 0]])
    assert [p.name for p in (tmp_path / "staged").iterdir()] == [f"{kind}.staged.tif"]


def test_staging_that_fails_leaves_nothing(tmp_path):
    path = save(tmp_path / "a.tif", random(600, 600, 3), interleave="pixel")
    with opened(path) as source:
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(UserError, match="a.tif cannot be read"):
            source.stage(tmp_path / "staged")
    assert list((tmp_path / "staged").iterdir()) == []


def test_what_is_staged(tmp_path):
    wide = np.zeros((4, 2600, 1), np.uint8)
    small = wide[:, :100]
    cases = [
        (save(tmp_path / "strips.tif", wide, compress="deflate"), True),
        (save(tmp_path / "plain.tif", wide), False),
        (save(tmp_path / "tiles.tif", wide, compress="deflate", tiled=True, blockxsize=256, blockysize=16), False),
        (save(tmp_path / "small.tif", small, compress="deflate"), False),
        (save(tmp_path / "a.png", wide, driver="PNG"), True),
        (save(tmp_path / "b.png", small, driver="PNG"), False),
        (save(tmp_path / "a.jpg", wide, driver="JPEG"), True),
    ]
    for path, dear in cases:
        with opened(path, None, 1) as source:
            assert source.needs_staging == dear, path


# ----------------------------------------------------------------------------------------------------------------- maps
LAYERS = ("classes", "confidence", "probabilities")


def arrays(height, width, seed=0):
    """Smooth maps, with a corner that holds nothing."""
    ids = np.kron(random(height // 16 + 1, width // 16 + 1, high=3, seed=seed), np.ones((16, 16), np.uint8))[
        :height, :width
    ]
    found = {
        "classes": ids,
        "confidence": (ids * 80 + 5).astype(np.uint8),
        "probabilities": np.stack([ids * 3, ids + 100, ids], -1).astype(np.uint8),
    }
    for values in found.values():
        values[:100, :130] = 255
    return found


def writer_of(folder, height=1200, width=1100, layers=LAYERS, place=PLACE, tags=None):
    return MapWriter(folder, height, width, place, NAMES, PALETTE, layers, tags or {"WEIGHTS": "w.safetensors"})


def write_windows(writer, found, windows):
    for rows, columns in windows:
        writer.write(rows.start, columns.start, {k: v[rows, columns] for k, v in found.items()})


def windows_of(height, width, step=300):
    return [(rows, columns) for rows in steps(height, step) for columns in steps(width, step)]


def assert_valid_cog(path):
    with open_raster(path) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert set(file.block_shapes) == {(512, 512)}
        side, factors = max(file.shape), file.overviews(1)
        assert factors == [2**i for i in range(1, 1 + len(factors))] and side / 2 ** len(factors) <= 512
        heads, first = [], []
        for level in (None, *range(len(factors))):
            heads.append(int(file.get_tag_item("IFD_OFFSET", "TIFF", 1, level)))
            first.append(int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1, level)))
        assert heads == sorted(heads) and max(heads) < min(first)  # all directories before any pixel
        assert first == sorted(first, reverse=True)  # the smallest overview first


def test_finished_maps(tmp_path):
    found = arrays(1200, 1100)
    writer = writer_of(tmp_path)
    write_windows(writer, found, windows_of(1200, 1100))
    paths = writer.finish()
    assert list(paths) == list(LAYERS)
    for layer, path in paths.items():
        assert_valid_cog(path)
        with open_raster(path) as file:
            assert (file.crs, file.transform, file.nodata) == (PLACE.crs, PLACE.transform, 255)
            pixels = np.moveaxis(file.read(), 0, -1)
            np.testing.assert_array_equal(pixels if layer == "probabilities" else pixels[..., 0], found[layer])
            assert file.tags()["WEIGHTS"] == "w.safetensors" and json.loads(file.tags()["CLASSES"]) == list(NAMES)
            if layer == "classes":
                assert file.descriptions == ("class",) and file.colorinterp == (ColorInterp.palette,)
                table = file.colormap(1)
                assert [table[i] for i in range(3)] == [(*c, 255) for c in PALETTE] and table[255][3] == 0
                assert [file.tags()[f"CLASS_{i}"] for i in range(3)] == list(NAMES)
            else:
                assert file.scales == (1 / 254,) * file.count and "CLASS_0" not in file.tags()
                assert file.descriptions == (NAMES if layer == "probabilities" else ("confidence",))
        with open_raster(path, OVERVIEW_LEVEL=0) as small:
            pixels, values = small.read(1), found[layer] if layer != "probabilities" else found[layer][..., 0]
            assert set(np.unique(pixels)) <= ({0, 1, 2, 255} if layer == "classes" else set(range(256)))
            assert (pixels[:50, :65] == 255).all() and (pixels[50:, 65:] != 255).all()  # nodata does not bleed
            np.testing.assert_array_equal(pixels, values[::2, ::2])  # patches of 16 and edges on even pixels
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [f"{x}{e}" for x in LAYERS for e in (".tif", ".cog.tif")]
    )
    writer.close()


def test_cogs_by_another_judge(tmp_path):
    cogeo = pytest.importorskip("rio_cogeo")
    writer = writer_of(tmp_path)
    for path in writer.finish().values():
        assert cogeo.cog_validate(path)[:2] == (True, [])
    writer.close()


def test_equal_layers_give_equal_bytes(tmp_path):
    found = arrays(700, 900)
    results = []
    for name, order in (("a", 1), ("b", -1)):
        writer = writer_of(tmp_path / name, 700, 900)
        write_windows(writer, found, windows_of(700, 900)[::order])
        results.append([path.read_bytes() for path in writer.finish().values()])
        results.append([path.read_bytes() for path in writer.finish().values()])  # again, over the first
        writer.close()
    assert all(result == results[0] for result in results)


@settings(max_examples=10)
@given(st.data())
def test_windows_are_written_in_place(tmp_path_factory, data):
    h, w = data.draw(st.integers(1, 1100)), data.draw(st.integers(1, 1100))
    folder = tmp_path_factory.mktemp("windows")
    writer = writer_of(folder, h, w)
    paths = [folder / f"{layer}.tif" for layer in LAYERS]
    heads = [(path.stat().st_size, path.read_bytes()[:300]) for path in paths]
    whole = {k: np.full_like(v, 255) for k, v in arrays(h, w).items()}
    for seed in range(3):
        top, left = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
        found = arrays(data.draw(st.integers(1, h - top)), data.draw(st.integers(1, w - left)), seed)
        writer.write(top, left, found)
        for layer, values in found.items():
            whole[layer][top : top + values.shape[0], left : left + values.shape[1]] = values
    writer.close()
    assert heads == [(path.stat().st_size, path.read_bytes()[:300]) for path in paths]
    for layer, path in zip(LAYERS, paths, strict=True):
        with open_raster(path) as file:
            pixels = np.moveaxis(file.read(), 0, -1)
        np.testing.assert_array_equal(pixels if layer == "probabilities" else pixels[..., 0], whole[layer])


def test_windows_that_do_not_fit(tmp_path):
    writer = writer_of(tmp_path, 100, 100)
    for top, left, values in [
        (90, 0, np.zeros((11, 5), np.uint8)),
        (0, -1, np.zeros((5, 5), np.uint8)),
        (0, 0, np.zeros((5, 5), np.int32)),
    ]:
        with pytest.raises(ValueError, match="classes.part.tif|classes.tif"):
            writer.write(top, left, {"classes": values})
    writer.close()
    for layers in ([], ["heights"]):
        with pytest.raises(ValueError, match="layers are"):
            writer_of(tmp_path, 100, 100, layers)


KILLED = """
    import os, signal, sys
    sys.path[:0] = [{root!r}]
    from tests.data.test_raster import arrays, windows_of, write_windows, writer_of
    writer = writer_of({folder!r})
    write_windows(writer, arrays(1200, 1100), windows_of(1200, 1100)[:8])
    writer.flush()
    write_windows(writer, arrays(1200, 1100, seed=9), windows_of(1200, 1100)[8:9])  # not noted as done: written again
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_goes_on(tmp_path):
    found, todo = arrays(1200, 1100), windows_of(1200, 1100)
    code = KILLED.format(root=str(Path(raster.__file__).parents[2]), folder=str(tmp_path / "a"))
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)]).returncode == -9
    writer = writer_of(tmp_path / "a")
    write_windows(writer, found, todo[8:])
    resumed = writer.finish()
    writer.close()
    writer = writer_of(tmp_path / "b")
    write_windows(writer, found, todo)
    for layer, path in writer.finish().items():
        assert path.read_bytes() == resumed[layer].read_bytes()
    writer.close()


def test_a_layer_of_another_shape_is_replaced(tmp_path):
    for size in (600, 500):
        writer = writer_of(tmp_path, size, size, ["classes"])
        with open_raster(tmp_path / "classes.tif") as file:
            assert file.shape == (size, size) and (file.read(1) == 255).all()
        writer.write(0, 0, {"classes": np.zeros((size, size), np.uint8)})
        writer.close()
    os.truncate(tmp_path / "classes.tif", 1000)
    writer = writer_of(tmp_path, 500, 500, ["classes"])
    with open_raster(tmp_path / "classes.tif") as file:
        assert (file.read(1) == 255).all()
    writer.close()


FULL = """
    import os, resource, signal, sys
    sys.path[:0] = [{root!r}]
    import numpy as np
    from glcanet_jax.errors import UserError
    from tests.data.test_raster import opened, random, save, writer_of
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    def attempt(what, work):
        try:
            work()
            print(what, "went through")
        except UserError as error:
            assert "\\n" not in str(error)
            print(what, error, sorted(os.listdir({folder!r})))
    limit(500_000)
    attempt("create:", lambda: writer_of({folder!r}, 1200, 1100, ["classes"]))
    limit(resource.RLIM_INFINITY)
    writer = writer_of({folder!r}, 1200, 1100, ["classes"])
    writer.write(0, 0, {{"classes": random(1200, 1100)}})
    for size in (100_000, 700_000, 1_500_000):
        limit(size)
        attempt("finish:", writer.finish)
    limit(300_000)
    attempt("write:", lambda: writer.write(1000, 1000, {{"classes": random(100, 100)}}))
    limit(resource.RLIM_INFINITY)
    with opened(save({scene!r}, random(600, 600, 3))) as source:
        limit(500_000)
        attempt("stage:", lambda: source.stage({folder!r}))
    limit(resource.RLIM_INFINITY)
    writer.write(1000, 1000, {{"classes": random(100, 100)}})
    with opened(writer.finish()["classes"], None, 1) as source:
        assert (source.read_image()[:1000, :, 0] == random(1200, 1100)[:1000]).all()
    print("then: well")
"""


def test_a_full_disk_is_one_line(tmp_path):
    places = {"root": str(Path(raster.__file__).parents[2])}
    code = textwrap.dedent(FULL.format(**places, folder=str(tmp_path / "maps"), scene=str(tmp_path / "a.tif")))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["create", *["finish"] * 3, "write", "stage", "then"], lines
    for line in lines[:-1]:
        assert "could not be written whole (" in line and ": free space in " in line, line
        assert line.endswith(" []" if line.startswith("create") else " ['classes.tif']"), line
    assert lines[-1] == "then: well"


def test_a_map_that_differs_is_not_given_out(tmp_path, monkeypatch):
    import rasterio.shutil

    copy = rasterio.shutil.copy

    def spoil(source, target, **options):
        copy(source, target, **options)
        if options["driver"] != "COG":
            return
        with open_raster(target, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
            file.write(np.full((1, 1), 3, np.uint8), 1, window=((1150, 1151), (1050, 1051)))

    monkeypatch.setattr(rasterio.shutil, "copy", spoil)
    writer = writer_of(tmp_path, layers=["classes"])
    with pytest.raises(
        UserError, match="classes.cog.tif could not be written whole .it differs at row 1024, column 1024"
    ):
        writer.finish()
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["classes.tif"]


def test_disk(tmp_path):
    needed = required_bytes(1200, 1100, LAYERS, 3)
    writer = writer_of(tmp_path)
    write_windows(writer, arrays(1200, 1100), windows_of(1200, 1100))
    writer.finish()
    writer.close()
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= needed < 30e6
    check_disk(tmp_path / "not" / "yet", needed)
    with pytest.raises(UserError, match="needs 1,000,000,000,000 MB and its disk has .* MB free; free space"):
        check_disk(tmp_path / "not" / "yet", 10**18)


# ------------------------------------------------------------------------------------------------------------- pictures
@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 128, "blockysize": 128}])
@pytest.mark.parametrize("max_side", [400, 100, 37])
def test_overview_of_an_image(tmp_path, monkeypatch, options, max_side):
    monkeypatch.setattr(raster, "TILE", 16)  # many pieces
    monkeypatch.setattr(raster, "STAGING_BYTES", 2**15)
    valid = np.ones((250, 330), bool)
    valid[:120, :140] = False
    image = random(250, 330, 3)
    path = save(tmp_path / "a.tif", image, mask=valid, **options)
    with opened(path) as source:
        picture = overview(source, max_side)
        near = overview(source, max_side, "nearest")
    factor = {400: 1, 100: 4, 37: 12}[max_side]
    assert picture.shape == near.shape == (-(-250 // factor), -(-330 // factor), 4) and picture.dtype == np.uint8
    for y in range(0, picture.shape[0], 3):
        for x in range(picture.shape[1]):
            at = slice(y * factor, (y + 1) * factor), slice(x * factor, (x + 1) * factor)
            inside = image[at][valid[at]]
            wanted = [*np.rint(inside.mean(0)), 255] if len(inside) else [0] * 4
            np.testing.assert_allclose(picture[y, x].astype(float), wanted, atol=1)
            middle = min(y * factor + factor // 2, 249), min(x * factor + factor // 2, 329)
            np.testing.assert_array_equal(near[y, x], [*image[middle], 255] if valid[middle] else [0] * 4)


def test_overview_of_16_bits_is_stretched(tmp_path):
    image = random(200, 200, 4, dtype=np.uint16, high=500) + np.uint16(1000)
    image[0, 0] = 65535
    with opened(save(tmp_path / "a.tif", image), [4, 1, 2]) as source:
        picture = overview(source, 200)
    assert picture.min() == 0 and picture.max() == 255 and 110 < picture[..., :3].mean() < 145


def test_overview_shows_one_band_as_grey(tmp_path):
    image = random(20, 20, 1)
    with opened(save(tmp_path / "a.tif", image), None, 1) as source:
        np.testing.assert_array_equal(overview(source, 20)[..., :3], image[..., [0, 0, 0]])


@pytest.mark.parametrize("resampling", ["mode", "nearest"])
def test_overview_of_classes(tmp_path, monkeypatch, resampling):
    found = arrays(1200, 1100)
    writer = writer_of(tmp_path, layers=["classes"])
    writer.write(0, 0, {"classes": found["classes"]})
    plain, cog = tmp_path / "classes.tif", writer.finish()["classes"]
    writer.close()
    for path in (plain, cog):  # without overviews and with
        np.testing.assert_array_equal(overview(path, 2000, resampling), found["classes"])
        ids = overview(path, 300, resampling)
        assert ids.shape == (300, 275) and ids.dtype == np.uint8
        np.testing.assert_array_equal(
            ids[30:, 35:], found["classes"][120:, 140:][::4, ::4]
        )  # patches are 4 x 4 such squares
    assert overview(plain, 7, resampling).shape == (7, 6)
    with pytest.raises(ValueError, match="'average', 'mode' or 'nearest' is wanted"):
        overview(plain, 7, "average")


def test_the_mode_passes_over_nodata():
    ids = np.array([[255, 255, 1, 1], [255, 2, 0, 0], [255, 255, 3, 3]], np.uint8)
    np.testing.assert_array_equal(overviews.mode_of(ids, 2), [[2, 0], [255, 3]])


@settings(max_examples=50)
@given(st.integers(1, 300000), st.integers(1, 3000))
def test_the_factor_of_a_picture(side, max_side):
    factor = overviews._factor(side / max_side)
    assert -(-side // factor) <= max_side and (factor == 1 or factor < 1.5 * side / max_side or factor == 2)
    while factor % 2 == 0:
        factor //= 2
    assert factor in (1, 3)


def test_a_map_and_its_image_have_pictures_of_one_size(tmp_path):
    path = tmp_path / "a.jpg"
    save(path, random(700, 1300, 3), driver="JPEG")
    writer = writer_of(tmp_path, 700, 1300, ["classes"])
    made = writer.finish()["classes"]
    writer.close()
    with opened(path) as source:
        for side in (1300, 900, 500, 400, 200, 99):
            assert overview(source, side).shape[:2] == overview(made, side).shape
