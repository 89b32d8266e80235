"""Polygons that parts keep, and what is traced between them: the file of the whole map, to the byte."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glcanet_jax import geometry
from glcanet_jax.data.gdal import open_raster
from glcanet_jax.maps import pieces, polygons
from glcanet_jax.maps.features import Drawer
from glcanet_jax.maps.pieces import FILES, Pieces, cells, settled, spans, write_pieces
from glcanet_jax.maps.polygons import write_features, write_polygons
from glcanet_jax.maps.tracing import Tracing
from tests.maps.test_polygons import DEGREES, NAMES, UTM, save


def views(overlap=0):
    return geometry.Views(context_size=64, global_size=32, patch_size=32, overlap=overlap)


def classes(rng, size):
    """Blobs that go over many parts, with noise and nodata in them."""
    coarse = rng.integers(0, 3, (-(-size[0] // 40), -(-size[1] // 40))).astype(np.uint8)
    ids = coarse.repeat(40, 0).repeat(40, 1)[: size[0], : size[1]]
    noise = rng.random(size)
    return np.where(noise < 0.1, 3, np.where(noise > 0.97, 255, ids)).astype(np.uint8)


def kept(folder, ids, grid, part, drawer, rng):
    """What a part keeps, whose map is another one where others reach."""
    top, left, height, width = grid.window(part, *ids.shape)
    own = rng.integers(0, 4, (height, width)).astype(np.uint8)
    y, x, h, w = settled(grid, part, ids.shape)
    own[y - top : y - top + h, x - left : x - left + w] = ids[y : y + h, x : x + w]
    folder.mkdir()
    told = write_pieces(folder, save(folder, own), (top, left), (y, x, h, w), ids.shape, drawer)
    return Pieces.read(folder, told, drawer.kind)


def put_together(tmp_path, ids, grid, side, place, kind, rng):
    parts, drawer = grid.parts(side), Drawer(kind, place, *ids.shape)
    there = {part[:2]: kept(tmp_path / f"{part[:2]}", ids, grid, part, drawer, rng) for part in parts}
    down, across = spans(grid, parts, ids.shape)
    out = tmp_path / f"joined.{kind}"
    with open_raster(save(tmp_path, ids)) as source:
        found = Tracing(ids.shape, drawer.made).features(cells(down, across, there, source, ids.shape, drawer))
        write_features(found, out, kind, place, polygons.named(NAMES, out), None)
    return out, (down, across)


@given(
    st.integers(0, 2**31),
    st.integers(40, 200),
    st.integers(40, 200),
    st.integers(1, 3),
    st.sampled_from([0, 8, 20, 27]),
)
@settings(max_examples=12, deadline=None)
def test_the_file_is_that_of_the_whole_map(tmp_path_factory, seed, height, width, side, overlap):
    tmp_path, rng = tmp_path_factory.mktemp("pieces"), np.random.default_rng(seed)
    ids, grid = classes(rng, (height, width)), geometry.walk_scene(height, width, views(overlap))
    out, (down, across) = put_together(tmp_path, ids, grid, side, UTM, "geojson", rng)
    whole = tmp_path / "whole.geojson"
    write_polygons(save(tmp_path, ids), whole, "geojson", UTM, NAMES, 0.0, tmp_path)
    assert out.read_bytes() == whole.read_bytes()
    for found, length in ((down, height), (across, width)):  # they tile the scene
        assert [a.stop for a in found] == [*(b.start for b in found[1:]), length] and found[0].start == 0


@pytest.mark.parametrize("kind", ["geojson", "gpkg"])
def test_formats_and_degrees(tmp_path, kind, monkeypatch):
    """Bands in the parts, few polygons at once: nothing of it is to be seen."""
    pyogrio = pytest.importorskip("pyogrio") if kind == "gpkg" else None
    rng = np.random.default_rng(1)
    ids, grid = classes(rng, (200, 180)), geometry.walk_scene(200, 180, views(8))
    monkeypatch.setattr(polygons, "BAND", 5000)
    monkeypatch.setattr(pieces, "AT_ONCE", 50)
    out, _ = put_together(tmp_path, ids, grid, 2, DEGREES, kind, rng)
    whole = tmp_path / f"whole.{kind}"
    write_polygons(save(tmp_path, ids), whole, kind, DEGREES, NAMES, 0.0, tmp_path)
    if pyogrio is None:
        assert out.read_bytes() == whole.read_bytes()
        return
    _, _, geometry_, columns = pyogrio.raw.read(out)
    _, _, wanted, expected = pyogrio.raw.read(whole)
    assert geometry_.tolist() == wanted.tolist() and len(wanted) > 100
    assert all((a == b).all() for a, b in zip(columns, expected, strict=True))


def test_most_is_traced_in_parts(tmp_path):
    """Where the parts are put together only what lies between their settled windows is looked at."""
    grid, size = geometry.walk_scene(640, 640, views(8)), (640, 640)
    down, across = spans(grid, grid.parts(10), size)
    inside = [sum(s.stop - s.start for s in axis if s.settled) for axis in (down, across)]
    assert len(grid.parts(10)) == 4 and inside[0] * inside[1] > 0.85 * 640 * 640


def test_what_was_kept_is_looked_at(tmp_path):
    rng = np.random.default_rng(2)
    ids, grid = classes(rng, (200, 200)), geometry.walk_scene(200, 200, views(8))
    part, drawer = grid.parts(2)[0], Drawer("geojson", UTM, 200, 200)
    folder = tmp_path / "part"
    assert len(kept(folder, ids, grid, part, drawer, rng).bottoms) > 10
    told = {"kind": "geojson", "files": {name: pieces._checksum(folder / name) for name in FILES}}
    assert Pieces.read(folder, told, "geojson") is not None
    assert Pieces.read(folder, told, "gpkg") is None and Pieces.read(folder, None, "geojson") is None
    for name in FILES:
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert Pieces.read(folder, told, "geojson") is None
        (folder / name).unlink()
        assert Pieces.read(folder, told, "geojson") is None
        (folder / name).write_bytes(good)
