"""Overviews of maps against a loop over their squares, and maps held in memory against those on disk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glcanet_jax.data.gdal import open_raster
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.errors import UserError
from glcanet_jax.maps import map_report, pyramid
from glcanet_jax.maps.writer import MapWriter

NAMES, PALETTE = ("a", "b", "c"), ((0, 0, 255), (0, 255, 0), (255, 0, 0))
LAYERS = ("classes", "confidence", "probabilities")


def squares(values):
    """By square of four pixels, those beyond an odd end the last ones again: the values ``[h, w][4]`` that are no nodata."""
    h, w = values.shape
    for i in range(-(-h // 2)):
        for j in range(-(-w // 2)):
            four = [int(values[min(y, h - 1), min(x, w - 1)]) for y in (2 * i, 2 * i + 1) for x in (2 * j, 2 * j + 1)]
            yield i, j, [v for v in four if v != 255] or [255]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.floats(0, 1), st.integers(0, 99))
def test_halves_are_those_of_a_loop(height, width, classes, holes, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, classes, (2, height, width), np.uint8)
    ids[rng.random(ids.shape) < holes] = 255
    modes, means = pyramid.halve_ids(ids), pyramid.halve_shares(ids * np.uint8(51))
    for band in (0, 1):
        for i, j, there in squares(ids[band]):
            found = int(modes[band, i, j])
            assert found in there and there.count(found) == max(map(there.count, there))
            assert found == next(v for v in there if there.count(v) == there.count(found))  # the first of equals
        for i, j, there in squares(ids[band] * np.uint8(51)):
            assert abs(int(means[band, i, j]) - np.mean(there)) <= 0.5


@pytest.mark.parametrize("compression", ["deflate", "zstd"])
def test_a_map_held_in_memory_is_the_map(tmp_path, compression):
    """The same pixels, overviews and descriptions as of one that was on disk; its areas are told on the way."""
    rng = np.random.default_rng(0)
    ids = np.kron(rng.integers(0, 3, (80, 90), np.uint8), np.ones((16, 13), np.uint8))
    ids[:300, :41] = 255
    height, width = ids.shape
    arrays = {"classes": ids, "confidence": ids * np.uint8(50), "probabilities": np.stack([ids] * 3, axis=-1)}
    made = {}
    for held in (False, True):
        size = height, width, Georeference(), NAMES, PALETTE, LAYERS, {}
        writer = MapWriter(tmp_path / str(held), *size, held=held, compression=compression)
        areas = map_report.Areas(Georeference(), 3)
        for top in range(0, height, 500):
            writer.write(top, 0, {name: values[top : top + 500] for name, values in arrays.items()})
        made[held] = writer.finish(areas.add)
        writer.close()
        np.testing.assert_array_equal(areas.pixels, [np.sum(ids == i) for i in (0, 1, 2, 255)])
    assert [p.name for p in (tmp_path / "True").iterdir() if "cog" not in p.name] == []
    for layer in LAYERS:
        for level in (None, 0, 1):
            options = {} if level is None else {"OVERVIEW_LEVEL": level}
            with open_raster(made[True][layer], **options) as a, open_raster(made[False][layer], **options) as b:
                np.testing.assert_array_equal(a.read(), b.read())
                assert (a.tags(), a.descriptions, a.compression) == (b.tags(), b.descriptions, b.compression)
                if level is None and layer == "classes":
                    np.testing.assert_array_equal(a.read(1), ids)
                    assert a.compression.name == compression and a.overviews(1) == [2, 4]
                elif layer == "classes":
                    whole = pyramid.in_memory(ids[None], pyramid.halve_ids)[level]
                    np.testing.assert_array_equal(a.read(), whole)


@pytest.mark.parametrize("fault", ["a full disk", "no tile", "no description"])
def test_a_held_map_that_is_not_whole_is_not_given_out(tmp_path, monkeypatch, fault):
    """The disk refuses the file, or what GDAL made in memory lacks a part."""
    import rasterio.shutil

    copy, ids = rasterio.shutil.copy, np.zeros((600, 700), np.uint8)
    ids[512:] = 255  # a row of tiles without data, which a sparse file leaves out

    def spoilt(source, target, **options):
        sparse = {"SPARSE_OK": "TRUE"} if fault == "no tile" and options["driver"] == "COG" else {}
        copy(source, target, **options, **sparse)
        if fault == "no description" and options["driver"] == "COG":
            with open_raster(target, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
                file.nodata = 7

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rasterio.shutil, "copy", spoilt)
    if fault == "a full disk":
        monkeypatch.setattr(Path, "write_bytes", full)
    writer = MapWriter(tmp_path, *ids.shape, Georeference(), NAMES, PALETTE, ["classes"], {}, held=True)
    writer.write(0, 0, {"classes": ids})
    words = {
        "a full disk": "No space left",
        "no tile": "it lacks a tile at row 512, column 0",
        "no description": "lacks",
    }
    with pytest.raises(UserError, match=f"classes.cog.tif could not be written whole .*{words[fault]}"):
        writer.finish()
    assert not list(tmp_path.iterdir())


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9))
def test_areas_come_by_window(height, width, classes):
    rng = np.random.default_rng(height)
    ids = rng.integers(0, classes + 1, (height, width), np.uint8)
    ids[ids == classes] = 255
    areas = map_report.Areas(Georeference(), classes)
    for top in range(0, height, 7):
        for left in range(0, width, 9):
            areas.add(top, left, ids[top : top + 7, left : left + 9])
    np.testing.assert_array_equal(areas.pixels, [np.sum(ids == i) for i in (*range(classes), 255)])
    assert areas.areas is None
