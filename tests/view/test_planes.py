"""Pixels at any scale: overviews that are made here are those of the whole, and areas are what a report says."""

import numpy as np
import pytest

from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.overview import mean_of, mode_of
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.maps.map_report import Areas
from tests.view import made

pytest.importorskip("rio_tiler", reason="the extra view is not installed")

from glcanet_jax.view import counts, shrunk, tiles
from glcanet_jax.view.chores import Chore, Chores
from glcanet_jax.view.gallery import Legend
from glcanet_jax.view.lasting import Kept
from glcanet_jax.view.planes import ScenePlane
from glcanet_jax.view.rasters import Box

# rasterio's own, of affine
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
LEGEND = Legend(made.NAMES, made.COLOURS)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("by_rows", [True, False])
def test_overviews_are_those_of_the_whole(tmp_path, monkeypatch, labels, by_rows):
    monkeypatch.setattr(shrunk, "SMALL", 4)
    monkeypatch.setattr(shrunk, "BLOCK", 3)
    monkeypatch.setattr(shrunk, "BYTES", 8 * 70 * 16)
    ids, image = made.blocks(90, 70), np.moveaxis(made.noise(3, 90, 70), 0, -1)
    chores = Chores()
    plane = ScenePlane(ArrayScene("scene", image, ids), labels)
    whole = shrunk.ShrunkPlane(plane, labels, chores, tmp_path, "overview", by_rows)
    values, valid = whole.read(Box(0, 0, 90, 70), (6, 5))
    assert not valid.any()  # it is not there yet, and is begun
    chores.close()
    whole.making.do(lambda share: None)
    assert not whole.unfinished
    for factor in (2, 8, 16, 64):
        shape = -(-90 // factor), -(-70 // factor)
        values, valid = whole.read(Box(0, 0, 90, 70), shape)
        assert valid.all() and values.shape[:2] == shape
        if labels:
            expected = ids
            for step in {2: [2], 8: [4, 2], 16: [4, 4], 64: [4, 4, 4]}[factor]:
                expected = mode_of(expected, step)
            np.testing.assert_array_equal(values[..., 0], expected)
        else:
            near, _ = mean_of(image.copy(), np.ones((90, 70), bool), factor)
            rows, columns = (90 // factor, 70 // factor)  # squares that are cut are weighed otherwise from step to step
            np.testing.assert_allclose(values[:rows, :columns], near[:rows, :columns], atol=1.6)


def test_tiles_cover_a_scene_once():
    for height, width in ((1, 1), (256, 256), (257, 100), (1000, 3000), (30_000, 29_999)):
        finest = tiles.levels(height, width)
        for z in {0, finest // 2, finest}:
            factor = 2 ** (finest - z)
            across = range(-(-width // (256 * factor)) + 1)
            down = range(-(-height // (256 * factor)) + 1)
            if len(across) * len(down) > 3000:
                continue
            found = [place for y in down for x in across if (place := tiles.place_of(height, width, z, x, y))]
            assert sum(place.box.height * place.box.width for place in found) == height * width
            assert all(max(place.shape) <= 256 for place in found)
        assert tiles.place_of(height, width, 0, 0, 0).box == Box(0, 0, height, width)
        assert tiles.place_of(height, width, finest + 1, 0, 0) is None


@pytest.mark.parametrize("crs", ["EPSG:32640", "EPSG:4326", None])
def test_areas_of_windows_are_those_of_reports(monkeypatch, crs):
    from rasterio.crs import CRS
    from rasterio.transform import from_origin

    transform = from_origin(330000, 2780000, 2, 2) if crs == "EPSG:32640" else from_origin(55, 60, 0.01, 0.01)
    place = Georeference(None if crs is None else CRS.from_string(crs), transform)
    ids = made.blocks(400, 320)
    plane, whole = ScenePlane(ArrayScene("scene", np.zeros((400, 320, 3), np.uint8), ids), True), Areas(place, 3)
    whole.add(0, 0, ids)
    told = counts.of_window(plane, LEGEND, place, Box(0, 0, 400, 320))
    monkeypatch.setattr(counts, "EXACT", 9000)
    about = counts.of_window(plane, LEGEND, place, Box(0, 0, 400, 320))
    assert told["exact"] and not about["exact"]
    assert [row["pixels"] for row in told["rows"]] == whole.pixels[:3].tolist()
    if crs is None:
        assert all(row["hectares"] is None for row in told["rows"])
        return
    np.testing.assert_allclose([row["hectares"] for row in told["rows"]], whole.areas / 1e4, rtol=1e-6)
    np.testing.assert_allclose([row["hectares"] for row in about["rows"]], whole.areas / 1e4, rtol=0.02)


def test_errors_are_not_lost_in_small_pictures():
    """A single wrong pixel is seen at a quarter of its size, fainter."""
    ids = np.zeros((64, 64), np.uint8)
    wrong = ids.copy()
    wrong[9, 30] = 1
    image = np.zeros((64, 64, 3), np.uint8)
    planes = [ScenePlane(ArrayScene("scene", image, of), True) for of in (ids, wrong)]
    place = tiles.Place(Box(0, 0, 64, 64), (16, 16), 4)
    drawn = tiles.differences(*planes, LEGEND.ids_of(LEGEND), place)[..., 3]
    assert np.argwhere(drawn).tolist() == [[2, 7]] and 0 < drawn[2, 7] < 255


def test_a_chore_that_fails_stops_no_other():
    chores = Chores()

    def fail(tell):
        raise RuntimeError("no idea")

    bad, good = chores.ask("bad", "a chore", fail), chores.ask("good", "another", lambda tell: tell(0.5) or 7)
    assert chores.ask("good", "another", fail) is good
    for _ in range(500):
        if {bad.state, good.state} == {"failed", "done"}:
            break
        chores._thread.join(0.01)
    assert "no idea" in bad.problem and good.result == 7
    assert [told["state"] for told in chores.told()] == ["failed"]
    chores.close()
    late = chores.ask("late", "after the end", fail)
    assert isinstance(late, Chore) and late.state == "waiting"


def test_tiles_that_are_kept_have_their_room():
    kept = Kept(10)
    for i in range(5):
        kept.put(str(i), b"abcd")
    assert kept.get("0") is None and kept.get("4") == b"abcd" and kept.get("3") == b"abcd"
    kept.get("3")
    kept.put("5", b"abcd")
    assert kept.get("4") is None and kept.get("3") is not None
