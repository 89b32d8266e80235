"""Maps as xarray has them: rioxarray finds their place, CF their classes, and we read them as what they were."""

import json

import numpy as np
import pytest
from rasterio import Affine
from rasterio.crs import CRS

from glcanet_jax.data import dataarrays
from glcanet_jax.data.arrays import ArraySource
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.errors import UserError

NAMES = ("bare land", "bare_land", "<b>Straße</b>")
PALETTE = ((0, 0, 0), (255, 0, 1), (2, 2, 0))
UTM, METRES = CRS.from_epsg(32640), Affine(0.5, 0, 325000, 0, -0.5, 2790000)
ROTATED = Affine(0.4, 0.3, 325000, 0.3, -0.4, 2790000)
PLACES = {
    "metres": Georeference(UTM, METRES),
    "degrees": Georeference(CRS.from_epsg(4326), Affine(1e-5, 0, 55.0, 0, -1e-5, 25.0)),
    "a world file": Georeference(None, METRES),
    "nowhere": Georeference(),
    "rotated": Georeference(UTM, ROTATED),
}
# rioxarray multiplies transforms, and tells of those that it cannot find in coordinates
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore:Transform that is non-rectilinear")


def layers():
    ids = (np.arange(12, dtype=np.uint8) % 3).reshape(3, 4)
    ids[0, 0] = 255
    shares = np.linspace(0, 1, 36, dtype=np.float32).reshape(3, 4, 3)
    shares[0, 0] = np.nan
    return {"classes": ids, "confidence": shares.max(-1), "probabilities": shares}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_place_comes_back(place):
    """By rioxarray, by its coordinates, and by what reads a DataArray here."""
    pytest.importorskip("rioxarray")
    out = dataarrays.dataset_of(layers(), NAMES, PALETTE, place)
    for kind, values in layers().items():
        plane = out[kind]
        np.testing.assert_array_equal(plane.transpose("y", "x", ...), values)
        assert plane.rio.crs == place.crs and plane.rio.grid_mapping == "spatial_ref"
        assert plane.rio.transform() == (place.transform or Affine.identity())
    columns, rows = np.meshgrid(np.arange(4) + 0.5, np.arange(3) + 0.5)
    wanted = place.to_crs(columns, rows)
    rotated = place.transform is not None and place.transform.b != 0
    found = (out.xc, out.yc) if rotated else np.meshgrid(out.x, out.y)
    np.testing.assert_allclose(found, wanted, rtol=1e-13)
    again = ArraySource(out.classes, 1)
    assert again.georeference.crs == place.crs
    assert (again.georeference.transform is None) == (place.transform is None)
    assert place.transform is None or again.georeference.transform.almost_equals(place.transform, 1e-9)
    np.testing.assert_array_equal(again.read_valid(), layers()["classes"] != 255)


def test_the_classes_keep_their_names(tmp_path):
    """As CF has them, in words that are one each; and in a file that rioxarray writes."""
    pytest.importorskip("rioxarray")
    import rasterio

    out = dataarrays.dataset_of(layers(), NAMES, PALETTE, PLACES["metres"])
    about = out.classes.attrs
    assert about["flag_values"].dtype == np.uint8 and about["flag_values"].tolist() == [0, 1, 2]
    assert about["flag_meanings"].split() == ["bare_land", "bare_land_2", "b_Straße_b"]
    assert about["flag_colors"].split() == ["#000000", "#ff0001", "#020200"]
    assert tuple(json.loads(about["CLASSES"])) == NAMES == tuple(out["class"].values.tolist())
    assert out.classes.rio.nodata == 255 and np.isnan(out.confidence.rio.nodata)
    out.classes.rio.to_raster(tmp_path / "m.tif")
    with rasterio.open(tmp_path / "m.tif") as file:
        assert (file.crs, file.transform, file.nodata) == (UTM, METRES, 255)
        assert tuple(json.loads(file.tags()["CLASSES"])) == NAMES


def test_words_of_flags_are_words():
    assert dataarrays.meanings(["a b", "a_b", "a  b", "!", "?", "x"]) == [
        "a_b",
        "a_b_2",
        "a_b_3",
        "class",
        "class_2",
        "x",
    ]


def test_what_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rioxarray", None)
    with pytest.raises(UserError, match=r"pip install 'glcanet-jax\[xarray\]'"):
        dataarrays.dataset_of(layers(), NAMES, PALETTE, Georeference())
