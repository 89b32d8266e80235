"""A scene with pixels of another size: its values against Pillow, its place, its windows, and pixels without data."""

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import Affine
from rasterio.control import GroundControlPoint

from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.files import FileScene
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.ground import median_resolution
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.data.resampled import at_resolution, differ, scaled
from glcanet_jax.errors import UserError

UTM = "EPSG:32640"
TURNED = 0.4, 0.3, 300000, 0.3, -0.4, 2800000  # pixels of 0.5 m, turned


def at(t, column, row):
    return t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f


def write(path, image, pixel=0.5, crs=UTM, transform=None, **options):
    transform = transform or Affine(pixel, 0, 300000, 0, -pixel, 2800000)
    h, w, bands = image.shape
    profile = dict(driver="GTiff", height=h, width=w, count=bands, dtype=image.dtype, crs=crs, transform=transform)
    with rasterio.open(path, "w", **profile | options) as file:
        file.write(np.moveaxis(image, -1, 0))
    return path


def noise(h, w, bands=3, dtype=np.uint8, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 200, (-(-h // 8), -(-w // 8), bands))
    return np.kron(coarse, np.ones((8, 8, 1), int))[:h, :w].astype(dtype)


@pytest.mark.parametrize(
    ("pixel", "metres", "size"), [(0.5, 1.3, (46, 71)), (0.5, 0.2, (300, 462)), (0.5, 2.0, (30, 46))]
)
def test_pixels_are_means_of_what_they_cover(tmp_path, pixel, metres, size):
    """Larger and smaller ones, as Pillow's triangle filter has them; the extent stays to the last digit."""
    image = noise(120, 185)
    source = at_resolution(RasterSource(write(tmp_path / "a.tif", image, pixel)), metres)
    assert (source.height, source.width) == size and source.all_valid
    wanted = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_allclose(source.read_image().astype(int), wanted, atol=1)
    place = source.georeference
    assert (place.transform.c, place.transform.f) == (300000, 2800000) and place.crs.to_epsg() == 32640
    corner = at(place.transform, source.width, source.height)
    np.testing.assert_allclose(corner, (300000 + 185 * pixel, 2800000 - 120 * pixel), rtol=0, atol=1e-6)
    assert place.ground_resolution(*size) == pytest.approx(metres, rel=0.02)


def test_windows_do_not_matter(tmp_path, monkeypatch):
    """A pixel is the same in any window, and in pieces of any size."""
    path = write(tmp_path / "a.tif", noise(90, 140, 4, np.uint16))
    source = at_resolution(RasterSource(path, [1, 2, 3, 4]), 1.7)
    whole = source.read_image()
    monkeypatch.setattr("glcanet_jax.data.resampled.PIECE", 300)
    np.testing.assert_array_equal(source.read_image(), whole)
    np.testing.assert_array_equal(source.read_image(3, 5, 11, 17), whole[3:14, 5:22])


def test_what_holds_no_data_does_not_count(tmp_path):
    image = np.full((40, 40, 3), 100, np.uint8)
    image[:, :20] = 0
    path = write(tmp_path / "a.tif", image, nodata=0)
    source = at_resolution(RasterSource(path, fill=(7.0, 8.0, 9.0)), 2.0)
    values, valid = source.read()
    assert valid[:, 5:].all() and not valid[:, :5].any()
    assert (values[valid] == 100).all() and (values[~valid] == (7, 8, 9)).all()  # no edge of half values
    np.testing.assert_array_equal(source.read_valid(), valid)


def test_the_copy_that_is_walked_over_is_the_same(tmp_path):
    path = write(tmp_path / "a.tif", noise(60, 70), nodata=8)
    source = at_resolution(RasterSource(path), 0.3)
    assert source.needs_staging and source.identity()["resampled"] == [100, 117]
    copy = source.stage(tmp_path / "copy")
    assert not copy.needs_staging and copy.georeference == source.georeference and copy.name == "a"
    np.testing.assert_array_equal(copy.read_image(), source.read_image())
    np.testing.assert_array_equal(copy.read_valid(), source.read_valid())
    copy.close()


def test_a_scene_that_fits_is_left_as_it_is_and_one_without_a_place_is_told(tmp_path):
    source = RasterSource(write(tmp_path / "a.tif", noise(40, 40)))
    assert at_resolution(source, 0.505) is source
    Image.fromarray(noise(40, 40)).save(tmp_path / "b.png")
    with pytest.raises(
        UserError, match=r"b.png has no georeference that tells how large its pixels are; leave out --resample"
    ):
        at_resolution(RasterSource(tmp_path / "b.png"), 0.5)
    with pytest.raises(UserError, match="leave out --resample"):
        at_resolution(source, 1e-9)


def test_points_and_rotations_move_along():
    turned = Affine(*TURNED)
    points = (GroundControlPoint(10, 20, 1.0, 2.0), GroundControlPoint(0, 0, 3.0, 4.0))
    place = scaled(Georeference(None, turned, points), 4.0, 5.0)
    assert [(p.row, p.col, p.x, p.y) for p in place.gcps] == [(2, 5, 1.0, 2.0), (0, 0, 3.0, 4.0)]
    np.testing.assert_allclose(at(place.transform, 3, 7), at(turned, 12, 35))


@pytest.mark.parametrize(
    ("crs", "transform", "metres"),
    [
        (UTM, Affine(0.5, 0, 300000, 0, -0.5, 2800000), 0.5),
        ("EPSG:3857", Affine(2, 0, 0, 0, -2, 8399737.9), 1.0),  # at 60 degrees Mercator shows the ground twice as large
        ("EPSG:4326", Affine(1 / 3600, 0, 10, 0, -1 / 3600, 0.0014), 30.82),  # a second of arc at the equator
        ("EPSG:2263", Affine(1, 0, 980000, 0, -1, 200000), 0.3048),  # feet
        (UTM, Affine(*TURNED), 0.5),
    ],
)
def test_ground_resolution_is_in_metres_on_the_ground(crs, transform, metres):
    from rasterio.crs import CRS

    place = Georeference(CRS.from_user_input(crs), transform)
    assert place.ground_resolution(10, 10) == pytest.approx(metres, rel=5e-3)
    assert Georeference(None, transform).ground_resolution(10, 10) is None


def test_of_scenes_it_is_the_median_of_those_that_know(tmp_path):
    classes = ClassTable(("a",), ((0, 0, 0),))
    files = [write(tmp_path / f"{pixel}.tif", noise(8, 8), pixel) for pixel in (0.3, 0.5, 0.31)]
    Image.fromarray(noise(8, 8)).save(tmp_path / "bare.png")
    scenes = [FileScene(path.stem, path, None, classes) for path in (*files, tmp_path / "bare.png")]
    assert median_resolution(scenes) == pytest.approx(0.31, rel=1e-3)
    assert median_resolution(scenes[3:]) is None


@pytest.mark.parametrize(
    ("own", "trained", "told"),
    [(1.0, 0.5, True), (0.3, 0.5, True), (0.7, 0.5, False), (0.5, None, False), (None, 1.0, False)],
)
def test_over_half_as_much_again_is_another_scale(own, trained, told):
    assert differ(own, trained) == told
