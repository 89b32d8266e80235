"""Labels as vectors, as docs/own-data.md shows them: its files are read, its command says what it says, and a map comes of it."""

import json
import shutil

import numpy as np
import pytest
import rasterio
import shapely
from rasterio import Affine
from rasterio.features import shapes

from glcanet_jax.data import check, open_dataset
from glcanet_jax.data.mbrsc import SAMPLE
from tests.test_cli import run
from tests.test_docs import ROOT, blocks, commands

PAGE = ROOT / "docs" / "own-data.md"
PLACE = Affine(0.5, 0, 400000, 0, -0.5, 2800000)


def block(begins, language="json"):
    """The page's block whose text has this near its beginning."""
    return next(b.text for b in blocks(PAGE) if b.language == language and begins in b.text[:40])


def pixels(*boxes, shape=shapely.box):
    return shapely.transform(np.array([shape(*box) for box in boxes]), lambda p: p * [0.5, -0.5] + [400000, 2800000])


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """The folder of the page: four scenes side by side, of 300 x 300 px, and the layers of their labels."""
    pyogrio = pytest.importorskip("pyogrio")
    root = tmp_path_factory.mktemp("docs") / "fields"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(("north", "south", "east", "west")):
        place = Affine(0.5, 0, 400000 + 150 * i, 0, -0.5, 2800000)
        options = dict(driver="GTiff", height=300, width=300, count=3, dtype="uint8", crs="EPSG:32640", transform=place)
        with rasterio.open(root / f"images/{name}.tif", "w", **options) as file:
            file.write(rng.integers(0, 256, (3, 300, 300), np.uint8))
    for name, begins in (("classes", '"classes"'), ("splits", '"train"'), ("labels", '"layers"')):
        (root / f"{name}.json").write_text(block(begins))
    use = pixels(
        (10, 10, 200, 150),
        (250, 20, 500, 120),
        (620, 50, 850, 250),
        (950, 10, 1100, 200),
        (310, 150, 400, 280),
        (5000, 0, 5050, 50),
    )
    road = shapely.transform(
        shapely.linestrings([[(0, 160), (1200, 140)]]), lambda p: p * [0.5, -0.5] + [400000, 2800000]
    )
    kinds = np.array(["wheat", "maize", "crop", "wheat", "unsure", "crop"], object)
    layers = {
        "use": (use, "Polygon", kinds),
        "tracks": (road, "LineString", kinds[:1]),
        "done": (pixels((0, 0, 1200, 250)), "Polygon", kinds[:1]),
    }
    for layer, (shapes_, geometry, said) in layers.items():
        options = dict(fields=["kind"], field_data=[said], layer=layer, geometry_type=geometry, crs="EPSG:32640")
        pyogrio.raw.write(
            root / "labels.gpkg", shapely.to_wkb(shapes_), append=(root / "labels.gpkg").exists(), **options
        )
    return root


def test_the_page_shows_what_check_says(fields, capsys):
    assert check.main("folder", fields) == 0
    said = capsys.readouterr().out
    assert block("labels: ", "").strip() in said, said


def test_the_table_of_keys_is_whole():
    from dataclasses import fields as fields_of

    from glcanet_jax.data.tables import LabelsFile, LayerEntry

    text = PAGE.read_text().partition("## Labels as vectors")[2].partition("\n## ")[0]
    missing = [
        f.name
        for kind in (LabelsFile, LayerEntry)
        for f in fields_of(kind)
        if f"`{f.name}`" not in text and f'"{f.name}"' not in text
    ]
    assert not missing


def test_masks_made_into_polygons_are_the_same_masks(tmp_path):
    """Of the bundled scene: every region as a polygon with its class, in pixels, drawn again."""
    entries = json.loads((SAMPLE / "scenes.json").read_text())
    part = next(iter(entries["scenes"].values()))["parts"][0]
    (tmp_path / "images").mkdir()
    shutil.copy(SAMPLE / part["image"], tmp_path / "images/a.jpg")
    (tmp_path / "classes.json").write_text(
        json.dumps({key: entries[key] for key in ("classes", "ignore") if key in entries})
    )
    (tmp_path / "masks").mkdir()
    shutil.copy(SAMPLE / part["mask"], tmp_path / "masks/a.png")
    (scene,) = open_dataset("folder", tmp_path).scenes("all")
    want = scene.read_labels()
    shutil.rmtree(tmp_path / "masks")
    found = [{"type": "Feature", "properties": {"id": int(i)}, "geometry": g} for g, i in shapes(want, want != 255)]
    (tmp_path / "l.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": found}))
    (tmp_path / "labels.json").write_text('{"layers": [{"file": "l.geojson", "attribute": "id"}]}')
    (scene,) = open_dataset("folder", tmp_path).scenes("all")
    assert len(found) > 20 and len(np.unique(want)) > 2
    np.testing.assert_array_equal(scene.read_labels(), want)


@pytest.mark.slow
def test_from_a_folder_with_vectors_alone_to_a_map(fields, tmp_path, monkeypatch):
    """The page's own commands, one after the other, with the smallest preset."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ran = {}
    for words in commands(PAGE):
        name = words[1] if len(words) > 1 else ""
        if "fields" not in " ".join(words) or name in ran or name not in ("check", "train", "eval", "predict"):
            continue
        words = [str(fields) if w == "fields" else "tiny" if w == "recipe" else w for w in words]
        small = ["--train.steps", "2", "--train.no-tensorboard"] if name == "train" else []
        words = [str(fields / "images/west.tif") if w == "new/*.tif" else w for w in words]
        done = run(*words, *small, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        ran[name] = done
    assert list(ran) == ["check", "train", "eval", "predict"]
    with rasterio.open(tmp_path / "maps/west_classes.tif") as file:
        assert file.shape == (300, 300) and file.crs.to_epsg() == 32640
    scores = json.loads((tmp_path / "scores/metrics.json").read_text())
    assert scores
