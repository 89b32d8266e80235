"""Polygons of maps that are there: ours by their names and colours, others' as well as they can be told."""

import json
import sys
from xml.etree import ElementTree as xml

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from glcanet_jax import __main__ as command
from glcanet_jax.errors import UserError
from glcanet_jax.maps.cog import Description, write_cog
from glcanet_jax.maps.vectorise import vectorise
from tests.maps.test_polygons import UTM, picture

NAMES, PALETTE = ("water", "wood", "road", "field"), ((0, 0, 255), (0, 128, 0), (9, 9, 9), (200, 200, 0))


def write(path, ids, **options):
    profile = dict(driver="GTiff", height=ids.shape[-2], width=ids.shape[-1], count=1, dtype=ids.dtype)
    profile |= dict(crs=UTM.crs, transform=UTM.transform) | options
    with rasterio.open(path, "w", **profile) as file:
        file.write(ids if ids.ndim == 3 else ids[None])
    return path


def ours(folder, layer="classes"):
    """A map as a run leaves it."""
    place = Description(UTM, NAMES, PALETTE, {"MODEL": "glcanet"})
    made = write_cog(layer, write(folder / "layer.tif", picture(), nodata=255), place)
    return made.rename(folder / f"scene_{layer}.tif")


def properties(path):
    return [f["properties"] for f in json.loads(path.read_text())["features"]]


def test_our_map_has_its_names_and_colours(tmp_path):
    files, count = vectorise(ours(tmp_path))
    assert files == {"polygons": tmp_path / "scene_polygons.geojson", "polygons_style": tmp_path / "scene_polygons.qml"}
    found = properties(files["polygons"])
    assert len(found) == count and {(p["class_id"], p["class"]) for p in found} == set(enumerate(NAMES))
    labels = [e.get("label") for e in xml.parse(files["polygons_style"]).iter("category")]
    assert labels == list(NAMES) and b"200,200,0,255" in files["polygons_style"].read_bytes()
    assert sum(p["area_m2"] for p in found) == pytest.approx((picture() != 255).sum() * 0.25)
    fewer = vectorise(tmp_path / "scene_classes.tif", tmp_path / "new" / "large.geojson", min_area=20.0)[1]
    assert 0 < fewer < count
    assert not [p for folder in (tmp_path, tmp_path / "new") for p in folder.glob(".*")]


def test_another_map_is_named_by_its_ids(tmp_path):
    """No data as it says, colours as its table says."""
    ids = np.where(picture() == 255, 0, picture() + 3).astype(np.uint8)
    path = write(tmp_path / "theirs.tif", ids, nodata=0)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {4: (12, 34, 56)})
    made, style = vectorise(path, tmp_path / "o.geojson")[0].values()
    assert {(p["class_id"], p["class"]) for p in properties(made)} == {(i, f"class {i}") for i in (3, 4, 5, 6)}
    assert b"12,34,56,255" in style.read_bytes()
    assert sum(p["area_m2"] for p in properties(made)) == pytest.approx((ids != 0).sum() * 0.25)


def test_another_value_of_no_data_beside_255_is_told(tmp_path, capsys):
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert vectorise(write(tmp_path / "theirs.tif", ids, nodata=0), tmp_path / "o.geojson")[1] == 254
    assert "its pixels of 255 are left out, which means no data here, beside those of 0" in capsys.readouterr().out


def test_a_geopackage(tmp_path):
    pyogrio = pytest.importorskip("pyogrio")
    files, count = vectorise(ours(tmp_path), tmp_path / "o.gpkg")
    assert list(files) == ["polygons"] and pyogrio.read_info(tmp_path / "o.gpkg", layer="classes")["features"] == count


def test_the_command(tmp_path, monkeypatch, capsys):
    path = ours(tmp_path)
    monkeypatch.setattr(sys, "argv", ["glcanet", "vectorise", str(path), "--min-area", "20"])
    assert command.main() is None
    assert f"polygons written to {tmp_path / 'scene_polygons.geojson'}" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists; give another --out, or --overwrite"):
        command.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--overwrite"])
    command.main()
    monkeypatch.setattr(sys, "argv", ["glcanet", "vectorise"])
    with pytest.raises(UserError, match="0 maps were given"):
        command.main()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda f: f / "absent.tif", {}, "absent.tif cannot be opened"),
        (lambda f: write(f / "m.tif", np.zeros((3, 9, 9), np.uint8), count=3), {}, "3 bands of uint8; a class map has"),
        (lambda f: write(f / "m.tif", np.zeros((9, 9), np.uint16)), {}, "1 band of uint16"),
        (lambda f: ours(f, "confidence"), {}, "a map of confidence, whose values are no classes"),
        (ours, {"out": "o.shp"}, "must end in .geojson or .gpkg"),
        (ours, {"min_area": -1.0}, "--min-area is -1"),
        (ours, {"min_area": np.nan}, "--min-area is nan"),
        (ours, {"out": "scene_classes.tif/x.geojson"}, "is a file; --out must be a folder"),
        (
            lambda f: write(f / "m.tif", np.zeros((9, 9), np.uint8), transform=Affine(1, 0, np.nan, 0, 1, 0)),
            {},
            "geotransform .* is not finite",
        ),
        (
            lambda f: write(f / "m.tif", np.zeros((9, 9), np.uint8), transform=Affine(1, 2, 0, 2, 4, 0)),
            {},
            "geotransform .* cannot be inverted",
        ),
        (
            lambda f: write(f / "m.tif", np.zeros((9, 9), np.uint8), crs='LOCAL_CS["site",UNIT["metre",1]]'),
            {},
            "ask for gpkg",
        ),
    ],
)
def test_what_is_wrong_is_told_and_leaves_nothing(tmp_path, make, options, message):
    path = make(tmp_path)
    before = set(tmp_path.rglob("*"))
    if "out" in options:
        options = options | {"out": tmp_path / options["out"]}
    with pytest.raises(UserError, match=message) as raised:
        vectorise(path, **options)
    assert "\n" not in str(raised.value) and set(tmp_path.rglob("*")) == before
