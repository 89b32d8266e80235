"""Pages: nothing of what they tell can leave its place, and they need no other file."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from glcanet_jax import page
from glcanet_jax.page import Folded, Page, Picture, Section, Table

BAD = """</td><script>alert(1)</script> "quoted" & | 'x'"""


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.sources = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "onerror", "onclick")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 4000, 3), np.uint8)).save(path)
    return path


def example(picture):
    parts = [BAD, Table([BAD, "b"], [[BAD, "1.5"], ["#00ff7f", BAD]]), Folded(BAD, BAD), Picture(BAD, picture)]
    return Page(BAD, BAD, [Section(BAD, parts)])


def test_names_stay_names(picture):
    found = Tags()
    found.feed(page.html(example(picture)))
    assert "script" not in found.tags and found.text.count(BAD) == 11
    assert found.tags.count("td") == 4 and found.tags.count("img") == 1


def test_a_page_is_one_file_of_bounded_size(picture):
    text = page.html(example(picture))
    found = Tags()
    found.feed(text)
    assert all(source.startswith("data:image/webp;base64,") for source in found.sources) and found.sources
    assert not re.search(r"url\(|@import|https?:", text)
    assert len(text) < picture.stat().st_size / 10
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_shades_follow_the_numbers():
    text = page.html(Page("t", "", [Section("s", [Table(["a", "b", "c"], [["99", "40.4", "0.2"]], shaded=True)])]))
    assert re.findall(r"var\(--shade\) (\d+)%", text) == ["40"]


def test_the_same_in_markdown(picture):
    text = page.markdown(example(picture))
    row = next(line for line in text.splitlines() if line.endswith("| 1.5 |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3 and "](p.png)" in text


def test_names_stay_names_in_markdown(picture):
    text = page.markdown(example(picture))
    open_text = [line for line in text.splitlines() if not line.startswith("    ")]  # of what is folded, which is code
    assert "<script>" not in "\n".join(open_text) and text.count("&lt;script>") == 9
    assert page.plain("a|b\\ `c`\n<d>") == "a\\|b\\\\ \\`c\\` &lt;d>"
