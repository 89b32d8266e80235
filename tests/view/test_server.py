"""What the server gives: pixels as the files hold them, what was given alone, and no more than a message of what is broken."""

import json
import os
import random
import string

import numpy as np
import pytest

from glcanet_jax.errors import UserError
from tests.view import made
from tests.view.made import COLOURS, NAMES, TOKEN, asking

pytest.importorskip("rio_tiler", reason="the extra view is not installed")
pytest.importorskip("starlette", reason="the extra view is not installed")

# rasterio's own, of affine
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

UTM = {"crs": "EPSG:32640"}


@pytest.fixture
def folder(tmp_path):
    """A labelled scene, and its map that is wrong in one corner."""
    labels, image = made.blocks(300, 500), made.noise(3, 300, 500)
    labels[:10] = 255
    path = made.dataset(tmp_path / "data", labels, image)
    ids = labels.copy()
    ids[200:, 300:] = (ids[200:, 300:] + 1) % 3
    ids[:10] = 0
    confidence = np.full((300, 500), 240, np.uint8)
    confidence[100:180, 200:300] = 90
    made.map_of(tmp_path / "maps", "field_1", ids, path, confidence)
    return tmp_path, labels, ids, image


def test_a_map_joins_the_scene_that_it_was_made_of(folder):
    place, labels, ids, image = folder
    with asking(place / "data", place / "maps") as ask:
        (listed,) = ask.json("api/gallery")["scenes"]
        scene = ask.json("api/scene/0")
    assert listed["name"] == "field_1" and (scene["height"], scene["width"]) == (300, 500)
    (told,) = scene["maps"]
    assert told["label"] == "maps" and told["confidence"] and not told["probabilities"]
    assert told["legend"]["names"] == scene["truth"]["names"] == list(NAMES)
    assert [row["pixels"] for row in told["whole"]["rows"]] == [int((ids == i).sum()) for i in range(3)]


def test_a_map_that_is_named_brings_what_lies_beside_it(folder):
    place = folder[0]
    for named in ("field_1_classes.tif", "field_1_confidence.tif", "field_1.report.json"):
        with asking(place / "maps" / named) as ask:
            (told,) = ask.json("api/scene/0")["maps"]
            assert told["confidence"] and ask.tile("0/confidence-0/1/0/0").any()
    (place / "maps" / "field_1_confidence.tif").unlink()
    os.symlink(place / "data" / "images" / "field_1.tif", place / "maps" / "field_1_confidence.tif")
    with (
        pytest.raises(UserError, match="leads to .*outside of what was given"),
        asking(place / "maps" / "field_1_classes.tif"),
    ):
        pass


def test_tiles_are_the_pixels_of_the_files(folder):
    place, labels, ids, image = folder
    colours = np.array(COLOURS, np.uint8)
    with asking(place / "data", place / "maps") as ask:

        def whole(layer):
            rows = [np.hstack([ask.tile(f"0/{layer}/1/{x}/{y}") for x in (0, 1)]) for y in (0, 1)]
            return np.vstack(rows)[:300, :500]

        picture, classes, truth, wrong, sure = map(whole, ("image", "classes-0", "truth", "errors-0", "confidence-0"))
        hidden = ask.tile("0/classes-0/1/0/0?off=1")
        small = ask.tile("0/classes-0/0/0/0")
    np.testing.assert_array_equal(picture[..., :3], np.moveaxis(image, 0, -1))
    assert (picture[..., 3] == 255).all()
    np.testing.assert_array_equal(classes[..., :3], colours[ids])
    assert not truth[:10, :, 3].any() and (truth[10:, :, 3] == 255).all()
    np.testing.assert_array_equal(truth[10:, :, :3], colours[labels[10:]])
    np.testing.assert_array_equal(wrong[..., 3] > 0, (ids != labels) & (labels != 255))
    assert len(np.unique(sure[..., :3].reshape(-1, 3), axis=0)) == 2
    np.testing.assert_array_equal(hidden[..., 3] > 0, ids[:256, :256] != 1)
    assert not small[150:, :, 3].any() and not small[:, 250:, 3].any() and small[:150, :250, 3].all()


def test_areas_of_a_view_are_counted_pixel_by_pixel(folder):
    place, _, ids, _ = folder
    with asking(place / "data", place / "maps") as ask:
        told = ask.json("api/scene/0/areas?map=0&box=-50,20,120,333")
        assert ask.get("api/scene/0/areas?map=0&box=400,0,500,10")[0] == 404
    assert told["exact"]
    assert [row["pixels"] for row in told["rows"]] == [int((ids[:120, 20:333] == i).sum()) for i in range(3)]


def test_a_pixel_tells_all_that_is_known_of_it(folder):
    place, labels, ids, image = folder
    with asking(place / "data", place / "maps") as ask:
        told = ask.json("api/scene/0/pixel?row=250&column=400")
        above = ask.json("api/scene/0/pixel?row=3&column=400")
    assert told["values"] == image[:, 250, 400].tolist() and told["place"] is None
    assert told["truth"] == NAMES[labels[250, 400]] != told["maps"][0]["class"] == NAMES[ids[250, 400]]
    assert told["maps"][0]["confidence"] == pytest.approx(240 / 254)
    assert above["truth"] is None and above["maps"][0]["class"] == NAMES[0]


def test_windows_worth_looking_at(folder):
    place, labels, ids, _ = folder
    with asking(place / "data", place / "maps") as ask:
        worst = ask.wait("api/scene/0/spots?kind=worst&map=0")["windows"]
        unsure = ask.wait("api/scene/0/spots?kind=unsure&map=0")["windows"]
    for at in worst:
        rows, columns = slice(at["top"], at["top"] + at["height"]), slice(at["left"], at["left"] + at["width"])
        of, truth = ids[rows, columns], labels[rows, columns]
        assert at["value"] == pytest.approx((of != truth)[truth != 255].mean()) and at["value"] > 0
    inside = unsure[0]
    assert (
        inside["top"] <= 140 < inside["top"] + inside["height"]
        and inside["left"] <= 250 < inside["left"] + inside["width"]
    )


def test_a_rotated_scene_in_16_bits_says_where_its_pixels_lie(tmp_path):
    from rasterio import Affine

    transform = Affine.translation(330000, 2780000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)
    values = made.noise(4, 120, 200, np.uint16, 4000)
    values[:, :, 150:] = 0
    path = made.write(tmp_path / "turned.tif", values, transform=transform, nodata=0, **UTM)
    with asking(path) as ask:
        scene, told = ask.json("api/scene/0"), ask.json("api/scene/0/pixel?row=7&column=31")
        nothing = ask.json("api/scene/0/pixel?row=7&column=170")
        plain, infrared = ask.tile("0/image/0/0/0"), ask.tile("0/image/0/0/0?bands=4,1,2&stretch=full")
        assert ask.get("tile/0/image/0/0/0?bands=5,1,2")[0] == ask.get("tile/0/image/0/0/0?stretch=wide")[0] == 404
    assert (told["place"]["x"], told["place"]["y"]) == pytest.approx(transform @ (31.5, 7.5))
    assert (
        25 < told["place"]["lonlat"][1] < 26
        and told["values"] == values[:, 7, 31].tolist()
        and nothing["values"] is None
    )
    assert scene["place"]["north"] == pytest.approx(-np.radians(30), abs=1e-6) and scene["image"]["dtype"] == "uint16"
    assert plain[:120, :150, 3].all() and not plain[:120, 150:, 3].any()
    steps = values[3, :, :150] / 3999 * 255
    np.testing.assert_allclose(infrared[:120, :150, 0], steps, atol=2)


def test_two_maps_are_compared_by_the_names_of_classes(tmp_path):
    ids = made.blocks(64, 64)
    scene = made.write(tmp_path / "scene.tif", made.noise(3, 64, 64))
    made.map_of(tmp_path / "a", "scene", ids, scene)
    made.map_of(tmp_path / "b", "scene", ids, scene, names=("road", "field", "Water"))
    with asking(scene, tmp_path / "a", tmp_path / "b") as ask:
        assert len(ask.json("api/gallery")["scenes"]) == 1
        wrong = ask.tile("0/differs-0-1/0/0/0")[:64, :64, 3] > 0
        colours = [told["legend"]["colours"] for told in ask.json("api/scene/0")["maps"]]
    np.testing.assert_array_equal(wrong, ids != 2)
    assert colours[1] == [colours[0][1], colours[0][0], colours[0][2]]


# -------------------------------------------------------------------------------------------------------------- safety
def test_what_is_broken_breaks_its_tiles_alone(folder):
    place, *_ = folder
    whole = (place / "data/images/field_1.tif").read_bytes()
    (place / "broken.tif").write_bytes(whole[: len(whole) // 2])
    with asking(place / "broken.tif", place / "data") as ask:
        names = [scene["name"] for scene in ask.json("api/gallery")["scenes"]]
        at, good = names.index("broken"), names.index("field_1")
        stripes = ask.tile(f"{at}/image/1/1/1")
        assert "problem" in ask.json(f"api/scene/{at}/pixel?row=290&column=400")
        fine = ask.tile(f"{good}/image/1/1/1")
        told = ask.json("api/status")["problems"]
    assert 0 < (stripes[..., 3] > 0).mean() < 1 and (fine[:44, :244, 3] == 255).all()
    assert len(told) == 1 and "broken.tif" in told[0]


def test_names_are_passed_on_as_they_are_and_never_as_markup(tmp_path):
    name = "<img src=x onerror=alert(1)>\"'&"
    made.map_of(tmp_path / "maps", name, made.blocks(20, 20), names=("</script><b>", "b", "c"))
    with asking(tmp_path / "maps") as ask:
        status, headers, body = ask.get("api/scene/0")
        page = ask.get("")[2]
    assert json.loads(body)["name"] == name and headers["content-type"] == "application/json"
    assert b"onerror" not in page
    scripts = [
        file.read_text()
        for file in (made.Path(__file__).parents[2] / "glcanet_jax/view/page").glob("*.js")
        if file.name != "ol.js"
    ]
    assert len(scripts) > 10 and not any(
        word in text
        for text in scripts
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "document.write")
    )


def hostile(secret):
    """Paths behind the token, or with another, none of which there is."""
    rng, climbs = (
        random.Random(24),
        ("../", "..%2f", "%2e%2e/", "..\\", "....//", "%252e%252e%252f", "/", "//", "\x00", "file://"),
    )
    for climb in climbs:
        for depth in range(1, 6):
            yield f"/{TOKEN}/page/{climb * depth}{secret}"
            yield f"/{TOKEN}/{climb * depth}{secret}"
    numbers = ("-1", "99", "1e3", "0x1", "²", "1" * 400, "", " 0", "0;ls", "NaN", "<script>", "null", "٣")
    for number in numbers:
        yield from (f"/{TOKEN}/tile/{number}/image/0/0/0", f"/{TOKEN}/tile/0/image/{number}/0/0")
        yield from (f"/{TOKEN}/tile/0/image/0/{number}/0", f"/{TOKEN}/api/scene/{number}")
        yield from (f"/{TOKEN}/api/scene/{number}/pixel", f"/{TOKEN}/tile/0/classes-{number}/0/0/0")
    for layer in (
        "image-0",
        "classes",
        "errors-0-0",
        "__class__",
        "../image",
        "truth%00",
        "differs-0",
        "probabilities-0",
    ):
        yield f"/{TOKEN}/tile/0/{layer}/0/0/0"
    for z in (31, 64, 10**8, 10**30):
        yield f"/{TOKEN}/tile/0/image/{z}/{2**z if z < 99 else z}/0"
    for _ in range(100):
        token = "".join(rng.choices(string.printable.strip().replace("/", ""), k=rng.choice((1, 12, 32, 5000))))
        yield f"/{token}/{rng.choice(('', 'api/gallery', 'page/main.js', 'tile/0/image/0/0/0'))}"
    yield from (
        "/",
        "",
        "/page/main.js",
        "/api/gallery",
        f"/{TOKEN[:-1]}/",
        f"/{TOKEN}x/",
        f"//{TOKEN}/",
        f"/{TOKEN.upper()}/",
        "/é/",
    )


def test_hostile_requests_get_nothing(folder):
    place, *_ = folder
    secret = place / "secret.txt"
    secret.write_text("the secret")
    paths = list(hostile(str(secret).lstrip("/")))
    assert len(paths) >= 290
    with asking(place / "data", place / "maps") as ask:
        assert ask.raw(f"/{TOKEN}/api/gallery")[0] == 200
        for path in paths:
            status, headers, body = ask.raw(path)
            assert status == 404 and b"secret" not in body and "access-control-allow-origin" not in headers, path
        for query in (
            "off=" + "1," * 300 + "1",
            "bands=1,2",
            "bands=0,1,2",
            "range=1,x",
            "range=1e999,2",
            "off=<script>",
        ):
            assert ask.get(f"tile/0/classes-0/0/0/0?{query}")[0] == 404, query
        for query in ("box=1,2,3", "box=9,9,1,1", "box=a,b,c,d", "map=7&box=0,0,9,9"):
            assert ask.get(f"api/scene/0/areas?{query}")[0] in (404,), query
        assert ask.get("api/scene/0/spots?kind=../../etc")[0] == 404
        assert ask.raw(f"/{TOKEN}/api/gallery", method="POST")[0] == 405
        assert ask.json("api/scene/0")["name"] == "field_1"


@pytest.mark.parametrize(
    "headers",
    [
        [(b"host", b"evil.example")], [(b"host", b"127.0.0.1:10")], [(b"host", b"")],
        [(b"sec-fetch-site", b"cross-site")], [(b"sec-fetch-site", b"same-site"), (b"sec-fetch-mode", b"cors")],
    ],
)  # fmt: skip
def test_other_sites_and_other_names_of_this_machine_get_nothing(folder, headers):
    place, *_ = folder
    with asking(place / "maps") as ask:
        status, _, body = ask.raw(f"/{TOKEN}/api/gallery", headers=headers)
        assert (status, body) == (404, b"")
        linked = [(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate")]
        assert ask.raw(f"/{TOKEN}/", headers=linked)[0] == 200


def test_every_answer_carries_its_headers(folder):
    place, *_ = folder
    with asking(place / "maps", basemap="https://tiles.example/{z}/{x}/{y}.png") as ask:
        for path in ("", "page/main.js", "api/gallery", "tile/0/classes-0/0/0/0", "nothing"):
            headers = ask.get(path)[1]
            assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert "img-src 'self' data: blob: https://tiles.example;" in policy and "frame-ancestors 'none'" in policy


def test_links_out_of_what_was_given_are_refused(tmp_path):
    outside = made.write(tmp_path / "outside.tif", made.noise(3, 20, 20))
    inside = tmp_path / "given"
    inside.mkdir()
    made.write(inside / "own.tif", made.noise(3, 20, 20))
    os.symlink(outside, inside / "linked.tif")
    os.symlink("own.tif", inside / "other_name.tif")
    with asking(inside) as ask:
        told = ask.json("api/gallery")
        assert {scene["name"] for scene in told["scenes"]} <= {"own", "other_name"} and len(told["scenes"]) == 1
        assert "linked.tif" in told["notes"][0]
        (inside / "own.tif").unlink()
        os.symlink(outside, inside / "own.tif")  # while the server runs, before anybody has looked
        assert "problem" in ask.json("api/scene/0")
    with asking(inside / "linked.tif") as ask:  # who names the link means it
        assert ask.json("api/scene/0")["width"] == 20


def test_a_report_shows_only_the_very_scene_that_it_was_made_of(tmp_path):
    scene = made.write(tmp_path / "scene.tif", made.noise(3, 20, 20))
    made.map_of(tmp_path / "maps", "scene", made.blocks(20, 20), scene)
    with asking(tmp_path / "maps") as ask:
        assert ask.json("api/scene/0")["image"] is not None
    made.write(scene, made.noise(3, 20, 20, most=200))
    with asking(tmp_path / "maps") as ask:
        told = ask.json("api/scene/0")
        assert told["image"] is None and "changed" in told["notes"][0]
        assert ask.get("tile/0/image/0/0/0")[0] == 404 and ask.tile("0/classes-0/0/0/0").any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "no.tif", "cannot be opened"),
        (lambda p: p, "has no scene, no map"),
        (lambda p: (p / "text.tif").write_text("no raster") and p / "text.tif", "cannot be read as a raster"),
    ],
)
def test_what_cannot_be_looked_at_is_told_in_a_line(tmp_path, make, words):
    with pytest.raises(UserError, match=words), asking(make(tmp_path)) as ask:
        told = ask.json("api/scene/0")
        raise UserError(told.get("problem", "nothing was wrong"))


@pytest.mark.parametrize(
    "url",
    ["tiles.example", "javascript:alert(1)//{z}{x}{y}", "https://a.b/{z}/{x}", "https://a.b/{z}/{x}/{y}; script-src *"],
)
def test_addresses_of_base_maps_are_looked_at(folder, url):
    with pytest.raises(UserError, match="--basemap"), asking(folder[0] / "maps", basemap=url):
        pass


# ------------------------------------------------------------------------------------- what is made while it is looked at
def test_large_scenes_without_overviews_get_their_own(tmp_path):
    """From afar nothing is there until they were made; from near all is, at once."""
    image = np.repeat(np.arange(0, 250, dtype=np.uint8)[None, :, None], 160, axis=2).repeat(
        16, axis=1
    )  # [1, 4000, 160]
    tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    path = made.write(tmp_path / "long.tif", image, **tiled)
    with asking(path) as ask:
        first = ask.tile("0/image/0/0/0")
        np.testing.assert_array_equal(ask.tile("0/image/4/0/3")[:, 0, 0], image[0, 768:1024, 0])
        ask.wait("api/status", lambda told: told["chores"] == [])
        whole = ask.tile("0/image/0/0/0")
    assert not first.any()
    np.testing.assert_array_equal(whole[:250, 0, 0], np.arange(250))
    assert whole[:250, :10, 3].all() and not whole[250:].any() and not whole[:, 10:].any()


def test_what_was_drawn_before_overviews_were_there_is_not_kept(tmp_path, monkeypatch):
    """Nor where they are made while it is drawn."""
    from glcanet_jax.view.server import TileServer

    path = made.write(tmp_path / "long.tif", made.noise(1, 4000, 160), tiled=True, blockxsize=64, blockysize=64)
    drawn = TileServer._drawn

    def slowly(server, *given):
        data = drawn(server, *given)
        server._viewer.opener.chores.wait()
        return data

    monkeypatch.setattr(TileServer, "_drawn", slowly)
    with asking(path) as ask:
        assert not ask.tile("0/image/0/0/0").any() and ask.tile("0/image/0/0/0").any()


def test_pictures_without_random_access_are_copied_into_tiles(tmp_path, monkeypatch):
    from PIL import Image

    from glcanet_jax.data import raster

    monkeypatch.setattr(raster, "STAGING_SIDE", 100)
    rgba = np.moveaxis(made.noise(4, 200, 130), 0, -1)
    rgba[..., 3] = 255
    rgba[:50, :50, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "picture.png")
    with asking(tmp_path / "picture.png") as ask:
        ask.tile("0/image/0/0/0")
        ask.wait("api/status", lambda told: told["chores"] == [])
        got = ask.tile("0/image/0/0/0")[:200, :130]
    np.testing.assert_array_equal(got[..., 3], rgba[..., 3])
    np.testing.assert_array_equal(got[50:, 50:], rgba[50:, 50:])


def test_a_run_maps_what_is_looked_at(tmp_path, monkeypatch):
    from glcanet_jax.maps import mapping
    from glcanet_jax.weights import DEMO

    ids, run, asked = made.blocks(90, 80), tmp_path / "run", []
    scene = made.write(tmp_path / "scene.tif", made.noise(3, 90, 80))
    run.mkdir()
    (run / "config.json").write_text("{}")
    os.symlink(DEMO, run / "best.safetensors")

    def map_scenes(scenes, weights, out, options):
        asked.append((scenes, weights, options.confidence, options.probabilities))
        made.map_of(out, "scene", ids, scene, np.full((90, 80), 100, np.uint8))
        made.write(out / "scene_probabilities.tif", np.full((5, 90, 80), 50, np.uint8))
        told = json.loads((out / "scene.report.json").read_text())
        told["outputs"]["probabilities"] = "scene_probabilities.tif"
        (out / "scene.report.json").write_text(json.dumps(told))

    monkeypatch.setattr(mapping, "map_scenes", map_scenes)
    with asking(run, scene) as ask:
        (first,) = ask.json("api/scene/0")["maps"]
        told = ask.wait("api/scene/0", lambda told: told["maps"][0]["ready"])
        assert ask.tile("0/classes-0/0/0/0")[:90, :80, 3].all()
    assert first["label"] == "run" and first["network"] == "branch"
    assert told["maps"][0]["confidence"] and told["maps"][0]["probabilities"] and not told["maps"][0]["attention"]
    assert asked == [([scene], run / "best.safetensors", True, True)]


def test_attention_of_a_pixel_is_what_the_network_weighs(folder, monkeypatch):
    from types import SimpleNamespace

    from glcanet_jax.inference import attention_maps
    from glcanet_jax.view.attention import Attention

    place, *_ = folder
    weights = np.array([[[0.1, 0.3], [0, 0.6]], [[0.3, 0.1], [0, 0.6]]], np.float32)
    found = attention_maps.AttentionMap(weights, weights[0] > 0, 5, (0, 0, 200, 200), (50, 50, 100, 100), (1, 1))
    seen = []
    monkeypatch.setattr(attention_maps, "attention_map", lambda predictor, scene, pixel: seen.append(pixel) or found)
    monkeypatch.setattr(Attention, "_model", lambda self, weights: SimpleNamespace(predictor=None))
    monkeypatch.setattr(Attention, "_scene", lambda self, opened, model: (None, lambda: None))
    with asking(place / "maps") as ask:
        assert "needs the weights of a GLCANet" in ask.json("api/scene/0/attention?map=0&row=9&column=7")["problem"]
        opened = ask.viewer.gallery.items[0].opened()
        opened.maps[0].network, opened.maps[0].weights = "glcanet", place
        assert ask.json("api/scene/0")["maps"][0]["attention"]
        told = ask.json("api/scene/0/attention?map=0&row=9&column=7")
    assert seen == [(9, 7)] and told["visible"] == [[1, 1], [0, 1]] and told["largest"] == pytest.approx(0.6)
    np.testing.assert_allclose(told["weights"], weights.mean(0) / 0.6, atol=1e-4)
    assert told["context"] == [0, 0, 200, 200] and told["patch"] == [50, 50, 100, 100]


def test_what_is_missing_is_told_in_a_line(monkeypatch):
    import sys

    from glcanet_jax.view import serving

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(
        UserError, match=r"view needs uvicorn, which is not installed; pip install 'glcanet-jax\[view\]'"
    ):
        serving.check_installed()


def test_a_port_that_is_taken_is_told():
    import contextlib

    from glcanet_jax.view.serving import listening

    with contextlib.closing(listening(0)) as sock:
        sock.listen()
        with pytest.raises(UserError, match="another --port"):
            listening(sock.getsockname()[1])


def test_a_mosaic_in_a_folder_draws_from_what_was_given_alone(tmp_path):
    from rasterio.shutil import copy

    outside = made.write(tmp_path / "outside.tif", made.noise(3, 20, 20))
    inside = tmp_path / "given"
    inside.mkdir()
    made.write(inside / "own.tif", made.noise(3, 20, 20))
    copy(outside, inside / "mosaic.vrt", driver="VRT")
    with asking(inside) as ask:
        told = ask.json("api/gallery")
        assert [scene["name"] for scene in told["scenes"]] == ["own"] and "outside.tif" in told["notes"][0]
    with asking(inside, tmp_path / "outside.tif") as ask:
        assert {scene["name"] for scene in ask.json("api/gallery")["scenes"]} == {"own", "mosaic", "outside"}


def test_maps_of_folders_of_one_name_are_told_apart(tmp_path):
    scene = made.write(tmp_path / "scene.tif", made.noise(3, 20, 20))
    folders = [tmp_path / name for name in ("a/maps", "b/maps", "other")]
    for folder in folders:
        folder.mkdir(parents=True)
        made.map_of(folder, "scene", made.blocks(20, 20), scene)
    with asking(*folders) as ask:
        assert [told["label"] for told in ask.json("api/scene/0")["maps"]] == ["a/maps", "b/maps", "other"]


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_the_command_ends_with_nothing_left(tmp_path, number):
    import re
    import signal
    import subprocess
    import sys
    import urllib.request

    scene = made.write(tmp_path / "scene.tif", made.noise(3, 20, 20))
    own = tmp_path / "tmp"
    own.mkdir()
    command = [sys.executable, "-m", "glcanet_jax", "view", str(scene), "--no-open"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=os.environ | {"TMPDIR": str(own)}, **options) as process:
        url = re.search(r"http://\S+", process.stdout.readline())[0]
        with urllib.request.urlopen(f"{url}api/gallery") as answer:
            assert json.load(answer)["scenes"][0]["name"] == "scene"
        assert list(own.iterdir())
        process.send_signal(getattr(signal, number))
        assert process.wait(60) == 0 and "Traceback" not in process.stdout.read()
    assert list(own.iterdir()) == []


def test_a_map_of_another_form_is_none_of_a_scene(tmp_path):
    scene = made.write(tmp_path / "scene.tif", made.noise(3, 40, 60))
    made.map_of(tmp_path / "half", "scene", made.blocks(20, 30))
    made.map_of(tmp_path / "other", "scene", made.blocks(40, 40))
    with asking(scene, tmp_path / "half", tmp_path / "other") as ask:
        told = ask.json("api/scene/0")
        assert [of["label"] for of in told["maps"]] == ["half"] and "another scene" in told["notes"][-1]
        got = ask.tile("0/classes-0/0/0/0")[:40, :60, :3]
    np.testing.assert_array_equal(got, np.array(COLOURS, np.uint8)[made.blocks(20, 30)].repeat(2, 0).repeat(2, 1))


def test_tiles_of_a_dataset_are_one_scene_with_a_place(tmp_path):
    from rasterio.transform import from_origin

    image, labels = made.noise(3, 40, 80), made.blocks(40, 80)
    for kind, values in (("images", image), ("masks", labels[None])):
        (tmp_path / "tiles" / kind).mkdir(parents=True)
        for name, left in (("a", 40), ("b", 0)):  # the first by name lies on the right
            place = {"crs": "EPSG:32640", "transform": from_origin(330000 + 2 * left, 2780000, 2, 2)}
            made.write(tmp_path / "tiles" / kind / f"{name}.tif", values[:, :, left : left + 40], **place)
    classes = [
        {"id": i, "name": n, "rgb": f"#{bytes(c).hex()}"} for i, (n, c) in enumerate(zip(NAMES, COLOURS, strict=True))
    ]
    (tmp_path / "tiles/classes.json").write_text(json.dumps({"classes": classes}))
    with asking(dataset="tiles", folder=tmp_path / "tiles") as ask:
        scene, told = ask.json("api/scene/0"), ask.json("api/scene/0/pixel?row=0&column=0")
        areas = ask.json("api/scene/0/areas?map=truth")
    assert (scene["height"], scene["width"]) == (40, 80) and told["values"] == image[:, 0, 0].tolist()
    assert (told["place"]["x"], told["place"]["y"]) == (330001, 2779999)
    assert [row["hectares"] for row in areas["rows"]] == [pytest.approx((labels == i).sum() * 4e-4) for i in range(3)]
