"""Maps as a STAC collection: Items that are valid, lie where the scenes lie, and say when and by what weights."""

import importlib
import json

import numpy as np
import pytest
from rasterio import Affine
from rasterio.crs import CRS

from glcanet_jax.data.georeference import Georeference
from glcanet_jax.errors import UserError
from glcanet_jax.maps import catalogue, destination, map_report
from glcanet_jax.maps.footprint import bounds, footprint
from glcanet_jax.maps.inputs import Listed
from glcanet_jax.sharing import facts


def georeference(code, a, e, c, f):
    return Georeference(CRS.from_user_input(code), Affine(a, 0, c, 0, e, f))


def reported(folder, name, digest, **more):
    """A report of a map."""
    rows = [{"id": i, "name": n, "pixels": 1, "percent": 50.0, "hectares": None} for i, n in enumerate(("a b", "c"))]
    told = {
        "scene": name, "height": 10, "width": 20, "classes": rows, "nodata_pixels": 0, "made": {}, "seconds": 1.0,
        "outputs": {"classes": f"{name}_classes.tif", "classes_style": f"{name}_classes.qml"},
        "fingerprint": {"weights": digest}, "crs": "EPSG:4326", **more,
    }  # fmt: skip
    (folder / f"{name}.report.json").write_text(map_report.as_text(told))


def test_a_collection(tmp_path):
    """Items of the scenes that have maps; an item of another command stays, and all are in the collection's extent."""
    place = footprint(georeference("EPSG:4326", 0.1, -0.1, 10, 50), 10, 20)
    known = facts.read("demo")
    reported(tmp_path, "one", known.sha256, footprint=place)
    reported(tmp_path, "two", "0" * 64, footprint=None)
    said = {"datetime": "2024-05-01T00:00:00Z", "item": "https://host/one.json"}
    where, scenes = destination.Folder(tmp_path), [Listed("/x/1.tif", "one", said), "two.tif", "three.tif"]
    catalogue.write(where, "demo", scenes)
    one, two = (json.loads((tmp_path / f"{n}.stac.json").read_text()) for n in ("one", "two"))
    assert one["bbox"] == [10, 49, 12, 50] and one["properties"]["datetime"] == said["datetime"]
    derived = [k for k in one["links"] if k["rel"] == "derived_from"]
    assert [k["href"] for k in derived] == ["./weights.mlm.json", "https://host/one.json"]
    weights = json.loads((tmp_path / "weights.mlm.json").read_text())
    assert derived[0]["mlm:name"] == weights["properties"]["mlm:name"]
    assert weights["assets"]["weights"]["file:checksum"] == f"1220{known.sha256}"
    assert one["assets"]["classes"]["classification:classes"][0] | {"color_hint": ""} == {
        "value": 0, "name": "a_b", "description": "a b", "color_hint": "",
    }  # fmt: skip
    assert set(one["assets"]) == {"classes", "report"}
    # of other weights: nothing is said of ours
    assert [k["rel"] for k in two["links"]] == ["root", "parent", "collection"] and two["geometry"] is None
    assert "color_hint" not in two["assets"]["classes"]["classification:classes"][0]
    catalogue.write(where, "demo", [*scenes[1:]])
    collection = json.loads((tmp_path / "collection.json").read_text())
    assert [k["href"] for k in collection["links"] if k["rel"] == "item"] == [
        "./one.stac.json", "./two.stac.json", "./weights.mlm.json",
    ]  # fmt: skip
    assert collection["extent"] == {
        "spatial": {"bbox": [[10, 49, 12, 50]]},
        "temporal": {"interval": [[said["datetime"], said["datetime"]]]},
    }


def test_times_are_compared_as_such_and_names_are_references(tmp_path):
    """Of other zones, with fractions of seconds; a mark that begins something else in a URL is encoded."""
    times = ["2023-04-30T23:30:00Z", "2023-05-01T01:00:00+02:00", "2023-04-30T23:30:00.5Z", "yesterday"]
    scenes = []
    for i, time in enumerate(times):
        reported(tmp_path, f"n#{i} %", "0" * 64)
        scenes.append(Listed(f"{i}.tif", f"n#{i} %", {"datetime": time}))
    catalogue.write(destination.Folder(tmp_path), "demo", scenes)
    collection = json.loads((tmp_path / "collection.json").read_text())
    (ends,) = collection["extent"]["temporal"]["interval"]
    assert ends == ["2023-04-30T23:00:00Z", "2023-04-30T23:30:00.500000Z"]
    assert "./n%230 %25.stac.json" in [link["href"] for link in collection["links"]]
    item = json.loads((tmp_path / "n#0 %.stac.json").read_text())
    assert item["assets"]["classes"]["href"] == "./n%230 %25_classes.tif"


def test_items_as_pystac_reads_them(tmp_path):
    pystac = pytest.importorskip("pystac")
    reported(tmp_path, "one", "0" * 64, footprint=footprint(georeference("EPSG:32632", 1, -1, 5e5, 5e6), 10, 20))
    catalogue.write(destination.Folder(tmp_path), "demo", ["one.tif"])
    collection = pystac.Collection.from_file(str(tmp_path / "collection.json"))
    items = {item.id: item for item in collection.get_items()}
    assert "one" in items and len(items) == 2  # the other one is of the weights
    assert items["one"].assets["classes"].get_absolute_href() == str(tmp_path / "one_classes.tif")
    pytest.importorskip("jsonschema")
    validator = importlib.import_module("pystac.validation.stac_validator").JsonSchemaSTACValidator()
    for file in tmp_path.glob("*.json"):
        if not file.name.endswith("report.json"):
            kind = "COLLECTION" if file.name == "collection.json" else "ITEM"
            validator.validate_core(json.loads(file.read_text()), pystac.STACObjectType[kind], "1.1.0")  # or it raises


def test_it_is_written_where_scenes_failed(tmp_path):
    reported(tmp_path, "one", "0" * 64)
    with pytest.raises(UserError, match="of two"), catalogue.written(True, tmp_path, None, "demo", ["one.tif"], None):
        raise UserError("of two")
    assert (tmp_path / "one.stac.json").exists()


def test_a_collection_that_is_there_is_kept_up(tmp_path):
    """By a command that does not ask for one; what a list has said of a scene stays, and without a collection none is made."""

    def without():
        with catalogue.written(False, tmp_path, None, "demo", ["one.tif"], None):
            pass

    reported(tmp_path, "one", "0" * 64)
    without()
    assert not list(tmp_path.glob("*.stac.json"))
    said = {"datetime": "2024-05-01T00:00:00Z", "item": "https://host/one.json"}
    catalogue.write(destination.Folder(tmp_path), "demo", [Listed("/x/1.tif", "one", said)])
    before = json.loads((tmp_path / "one.stac.json").read_text())
    reported(tmp_path, "one", "0" * 64, outputs={"classes": "one_classes.tif", "overlay": "one_overlay.png"})
    without()
    after = json.loads((tmp_path / "one.stac.json").read_text())
    assert set(after["assets"]) == {"classes", "overlay", "report"} != set(before["assets"])
    assert after | {"assets": 0} == before | {"assets": 0}


def test_outlines():
    """Corners where they are; two parts at the antimeridian, none around a pole or without a CRS."""
    utm = georeference("EPSG:32640", 0.5, -0.5, 325000, 2790000)
    outline = footprint(utm, 400, 600)
    assert outline["type"] == "Polygon"
    ring = np.array(outline["coordinates"][0])
    assert (ring[0] == ring[-1]).all() and len(ring) == 33
    crossing = footprint(georeference("EPSG:4326", 0.1, -0.1, 179, 10), 10, 20)
    assert crossing["type"] == "MultiPolygon" and bounds(crossing) == [179, 9, -179, 10]
    lons = [lon for part in crossing["coordinates"] for lon, _ in part[0]]
    assert -180 <= min(lons) and max(lons) <= 180
    assert footprint(georeference("EPSG:3413", 1000, -1000, -10000, 10000), 20, 20) is None
    assert footprint(Georeference(), 10, 10) is None
