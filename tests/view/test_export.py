"""Pages to send: one file of bounded size that asks nobody for anything, in any browser, whatever things are called."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rasterio import Affine

from glcanet_jax.errors import UserError
from glcanet_jax.maps import look
from glcanet_jax.view import sheet
from glcanet_jax.view.sheet import Layer, Shown
from tests.view import made
from tests.view.browser import browser, page_of

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # rio-tiler multiplies transforms
BAD = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
METRES, ROTATED = Affine(0.5, 0, 325000, 0, -0.5, 2790000), Affine(0.4, 0.3, 325000, 0.3, -0.4, 2790000)
PALETTE = made.COLOURS


def layer(ids, names=made.NAMES, title="map"):
    rows = [{"id": i, "name": n, "pixels": int((ids == i).sum()), "percent": 33.3, "hectares": None} for i, n in enumerate(names)]  # fmt: skip
    return Layer(title, ids, PALETTE, look.legend(rows, PALETTE), 100 * float((ids == 255).mean()))


def example():
    """Two scenes: one with two layers and hostile names, one map alone."""
    ids = made.blocks(90, 120)
    ids[:9] = 255
    picture = np.concatenate([np.moveaxis(made.noise(3, 90, 120), 0, -1), np.full((90, 120, 1), 255, np.uint8)], -1)
    layers = [layer(ids), layer((ids + 1) % 3 | (ids & 128), (BAD, "road", "water"), BAD)]
    return ids, [Shown(BAD, BAD, picture, layers), Shown("alone", "", None, [layer(ids)])]


def test_a_pictures_pixels_are_the_maps():
    """What the page's script takes apart is what any reader of PNGs sees."""
    ids, _ = example()
    picture = Image.open(io.BytesIO(sheet.png(ids, PALETTE)))
    np.testing.assert_array_equal(np.asarray(picture), ids)
    np.testing.assert_array_equal(np.asarray(picture.convert("RGBA")), look.colours(ids, PALETTE))


def test_names_stay_names():
    text = sheet.html(BAD, BAD, example()[1])
    assert text.count("<script") == 1 == text.count("</script>") and "<img src=x" not in text
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text) and "url(" not in text
    (digest,) = re.findall(r"script-src 'sha256-([^']+)'", text)
    assert len(base64.b64decode(digest)) == 32 and "default-src 'none'" in text


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    path = tmp_path_factory.mktemp("sent") / "page.html"
    path.write_text(sheet.html("Maps", BAD, example()[1]), encoding="utf-8")
    return f"file://{path}"


def pixels(page, number=0):
    """RGBA of the map that is shown, as the browser has drawn it."""
    draw = "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height); return [d.height, d.width, [...d.data]]; }"
    height, width, data = page.locator(f"#scene-{number} canvas:not([hidden])").evaluate(draw)
    return np.array(data, np.uint8).reshape(height, width, 4)


def test_a_browser_shows_classes_that_are_on(chromium, sent):
    ids, _ = example()
    with page_of(chromium, sent) as page:
        page.wait_for_selector("#scene-0 .controls:not([hidden])")
        np.testing.assert_array_equal(pixels(page), look.colours(ids, PALETTE))
        page.locator("#scene-0 .legend:not([hidden]) label", has_text="road").click()
        without = look.colours(np.where(ids == 1, 255, ids).astype(np.uint8), PALETTE)
        np.testing.assert_array_equal(pixels(page), without)
        page.get_by_role("button", name="none").first.click()
        assert not pixels(page).any()
        page.locator("#scene-0").get_by_role("radio").nth(1).check()
        assert page.locator("#scene-0 .legend:not([hidden]) caption").inner_text() == BAD
        assert pixels(page).any()
        page.locator("#scene-0 .opacity").fill("20")
        shown = page.locator("#scene-0 canvas:not([hidden])").evaluate("c => getComputedStyle(c).opacity")
        assert float(shown) == pytest.approx(0.2)


def test_a_page_is_used_by_keys_and_names(chromium, sent):
    """Zoomed, moved and read without a mouse; every control has a name."""
    with page_of(chromium, sent) as page:
        page.wait_for_selector("#scene-0 .controls:not([hidden])")
        frame, stage = page.locator("#scene-0 .frame"), page.locator("#scene-0 .stage")
        before = stage.bounding_box()["width"]
        frame.focus()
        page.keyboard.press("+")
        assert stage.bounding_box()["width"] == pytest.approx(1.5 * before, rel=0.02)
        page.keyboard.press("-")
        assert stage.bounding_box()["width"] == pytest.approx(before, rel=0.02)
        for control in page.locator("input:visible, button:visible").all():
            assert control.evaluate("e => e.ariaLabel || e.innerText || e.labels[0].innerText.trim()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_a_phone(chromium, sent, scheme):
    with page_of(chromium, sent, width=390, height=800, scheme=scheme) as page:
        page.wait_for_selector("#scene-0 .controls:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        light = page.evaluate("getComputedStyle(document.body).color").startswith("rgb(2")
        assert light == (scheme == "dark")


def test_without_scripts_the_map_is_there(chromium, sent):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(sent)
    assert (
        page.locator("#scene-0 img.classes").first.is_visible() and not page.locator("#scene-0 .controls").is_visible()
    )
    context.close()


# ------------------------------------------------------------------------------------------------------ of what is given
def shown_in(path):
    """Of a page its pictures by kind, and its words."""
    text = path.read_text()
    pictures = {
        kind: [
            Image.open(io.BytesIO(base64.b64decode(data)))
            for data in re.findall(rf'class="{kind}"[^>]*base64,([^"]+)"', text)
        ]
        for kind in ("scene", "classes")
    }
    return pictures, re.sub(r"<style.*?</style>|<script.*?</script>|<[^>]*>", " ", text, flags=re.DOTALL)


@pytest.mark.parametrize(
    "place, words",
    [
        ({"crs": "EPSG:32640", "transform": METRES}, "500 x 300 px, EPSG:32640, 0.5 m a pixel"),
        ({"crs": "EPSG:32640", "transform": ROTATED}, "500 x 300 px, EPSG:32640, 0.5 m a pixel"),
        ({}, "500 x 300 px"),
    ],
)
def test_a_map_and_its_scene(tmp_path, place, words):
    """Of 16 bits and four bands, some without data; with, with a rotated and without a place."""
    pytest.importorskip("rio_tiler", reason="the extra view is not installed")
    from glcanet_jax.view.export import export_page

    ids = made.blocks(300, 500)
    ids[:30] = 255
    image = made.noise(4, 300, 500, np.uint16, 9000) + 1
    image[:, :30] = 0
    scene = made.write(tmp_path / "field_1.tif", image, nodata=0, **place)
    made.map_of(tmp_path / "maps", "field_1", ids, scene, **place)
    out = export_page([tmp_path / "maps"], tmp_path / "new" / "page.html", 250)
    pictures, told = shown_in(out)
    (picture,), (classes,) = pictures["scene"], pictures["classes"]
    assert picture.size == classes.size == (250, 150) and out.stat().st_size < 300_000
    np.testing.assert_array_equal(np.asarray(classes), ids[1::2, 1::2])
    alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    assert not alpha[:15].any() and alpha[15:].all() and np.asarray(picture)[20:].std() > 20
    assert words in told and "no data, of all 10.0 %" in " ".join(told.split())
    assert all(name in told for name in made.NAMES)


def test_truth_and_maps_are_layers_and_broken_scenes_are_told(tmp_path, capsys):
    pytest.importorskip("rio_tiler", reason="the extra view is not installed")
    from glcanet_jax.view.export import export_page

    labels = made.blocks(300, 500)
    image = made.dataset(tmp_path / "data", labels, made.noise(3, 300, 500))
    made.map_of(tmp_path / "maps", "field_1", (labels + 1) % 3, image)
    made.map_of(tmp_path / "broken", "other", labels)
    (tmp_path / "broken/other_classes.tif").write_bytes(b"II*\0")
    out = export_page([tmp_path / "data", tmp_path / "maps", tmp_path / "broken"], tmp_path / "page.html", 500)
    pictures, told = shown_in(out)
    assert len(pictures["scene"]) == 1 and "truth" in told and "Not shown" in told and "other" in told
    np.testing.assert_array_equal(np.asarray(pictures["classes"][1]), labels)
    assert "not shown" in capsys.readouterr().err


def test_what_cannot_be_written_is_told_before_anything_is_read(tmp_path):
    pytest.importorskip("rio_tiler", reason="the extra view is not installed")
    from glcanet_jax.view import export

    scene = made.write(tmp_path / "a.tif", made.noise(3, 20, 30))
    with pytest.raises(UserError, match="--export is page.pdf; its name must end in .html"):
        export.export_page([scene], Path("page.pdf"))
    (tmp_path / "page.html").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        export.export_page([scene], tmp_path / "page.html")


def test_many_scenes_are_shown_smaller(tmp_path, monkeypatch, capsys):
    pytest.importorskip("rio_tiler", reason="the extra view is not installed")
    from glcanet_jax.view import export

    for i in range(4):
        made.write(tmp_path / f"{i}.tif", made.noise(3, 300, 400))
    monkeypatch.setattr(export, "ALL", 4 * 100**2)
    pictures, _ = shown_in(export.export_page([tmp_path], tmp_path / "page.html"))
    assert [picture.size for picture in pictures["scene"]] == [(100, 75)] * 4
    assert "4 pictures: each has at most 100 px a side" in capsys.readouterr().out
    monkeypatch.setattr(export, "ALL", 100)
    with pytest.raises(UserError, match="too many for a page"):
        export.export_page([tmp_path], tmp_path / "page.html")


def test_the_command(tmp_path, monkeypatch, capsys):
    """What is given reaches the server, or the page."""
    pytest.importorskip("rio_tiler", reason="the extra view is not installed")
    from glcanet_jax import __main__
    from glcanet_jax.view import serving

    given = []
    monkeypatch.setattr(serving, "serve", lambda *words: given.extend(words))
    scene, page = str(made.write(tmp_path / "a.tif", made.noise(3, 20, 30))), ("glcanet view", "")
    __main__.view([scene, "--labels", "labels/{scene}.geojson", "--no-open"], page)
    assert given == [[Path(scene)], None, None, None, 0, False, Path("labels/{scene}.geojson")]
    __main__.view([scene, "--export", str(tmp_path / "page.html"), "--side", "64"], page)
    assert "page.html, 0.0 MB" in capsys.readouterr().out and (tmp_path / "page.html").exists()
    with pytest.raises(UserError, match="give one of them"):
        __main__.view([scene, "--export", "page.html", "--labels", "l.geojson"], page)
