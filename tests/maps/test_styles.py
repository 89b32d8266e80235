"""Styles as QGIS reads them: XML with every class's name and colour, and the table of a GeoPackage."""

import sqlite3
from xml.etree import ElementTree as xml

import numpy as np
import pytest

from glcanet_jax.maps import styles
from tests.maps.test_polygons import DEGREES, UTM, picture, save

NAMES = ("water & <ice>", 'wood "wet"', "Straße 空", "bell\x07\ud800")
PALETTE = ((0, 0, 255), (1, 128, 2), (255, 255, 255), (9, 8, 7))


def test_a_class_map_has_an_entry_for_each_class():
    root = xml.fromstring(styles.class_style(NAMES, PALETTE))
    renderer = root.find("pipe/rasterrenderer")
    assert root.tag == "qgis" and renderer.get("type") == "paletted" and renderer.get("band") == "1"
    entries = [(e.get("value"), e.get("label"), e.get("color")) for e in renderer.iter("paletteEntry")]
    assert entries == [
        ("0", NAMES[0], "#0000ff"), ("1", NAMES[1], "#018002"), ("2", NAMES[2], "#ffffff"), ("3", "bell??", "#090807")
    ]  # fmt: skip


def test_probabilities_have_a_ramp_to_certainty():
    root = xml.fromstring(styles.probability_style())
    assert root.find("pipe/rasterrenderer").get("type") == "singlebandpseudocolor"
    items = [(float(e.get("value")), e.get("label")) for e in root.iter("item")]
    assert items[0] == (0.0, "0%") and items[-1] == (254.0, "100%") and items == sorted(items)


def test_polygons_have_a_category_for_each_class():
    root = xml.fromstring(styles.polygon_style(NAMES, PALETTE))
    renderer = root.find("renderer-v2")
    assert (renderer.get("type"), renderer.get("attr")) == ("categorizedSymbol", "class_id")
    categories = [(e.get("value"), e.get("symbol"), e.get("label")) for e in renderer.iter("category")]
    assert categories[2] == ("2", "2", NAMES[2]) and len(categories) == 4
    colours = {s.get("name"): s.find("layer/prop[@k='color']").get("v") for s in renderer.iter("symbol")}
    assert colours == {"0": "0,0,255,255", "1": "1,128,2,255", "2": "255,255,255,255", "3": "9,8,7,255"}
    options = {
        s.get("name"): s.find("layer/Option/Option[@name='color']").get("value") for s in renderer.iter("symbol")
    }
    assert options == colours


@pytest.mark.parametrize("place", [UTM, DEGREES])
def test_a_geopackage_carries_its_style(tmp_path, place):
    pyogrio = pytest.importorskip("pyogrio")
    from glcanet_jax.maps.polygons import write_polygons

    names = (*NAMES[:3], "bell")
    style = styles.polygon_style(names, PALETTE)
    count = write_polygons(save(tmp_path, picture()), tmp_path / "o.gpkg", "gpkg", place, names, 0.0, tmp_path, style)
    with sqlite3.connect(tmp_path / "o.gpkg") as file:
        columns = "f_table_name, f_geometry_column, styleQML, useAsDefault"
        (row,) = file.execute(f"SELECT {columns} FROM layer_styles").fetchall()
        (geometry,) = file.execute("SELECT column_name FROM gpkg_geometry_columns").fetchone()
        assert row == ("classes", geometry, style, 1)
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    file.close()
    layers = dict(pyogrio.list_layers(tmp_path / "o.gpkg"))
    assert layers["classes"] == "Polygon" and layers["layer_styles"] is None
    assert len(pyogrio.raw.read(tmp_path / "o.gpkg", layer="classes")[2]) == count


def test_every_kind_has_its_style():
    kinds = ("classes_style", "polygons_style", "confidence_style", "probabilities_style")
    found = [xml.fromstring(styles.style_of(kind, NAMES, PALETTE)) for kind in kinds]
    assert [len(list(root.iter("paletteEntry"))) for root in found] == [4, 0, 0, 0]
    assert [len(list(root.iter("category"))) for root in found] == [0, 4, 0, 0]
    assert np.array_equal([len(list(root.iter("item"))) > 0 for root in found], [False, False, True, True])
