"""Scenes by lists: lines, STAC items, pages of an answer; and what a list may not name."""

import io
import json
import pickle
import sys

import pytest

from glcanet_jax.errors import UserError
from glcanet_jax.maps import listing
from glcanet_jax.maps.inputs import Listed, names_of, scenes_of


def item(name, assets, **more):
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "geometry": None, "links": [],
        "properties": {"datetime": "2024-05-01T10:00:00Z"}, "assets": assets, **more,
    }  # fmt: skip


def image(href, *roles, kind="image/tiff; application=geotiff"):
    return {"href": href, "type": kind, "roles": list(roles)}


def saved(path, *items, **more):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(items), **more}))
    return str(path)


def test_lines(tmp_path, monkeypatch):
    """Blank lines and comments are none; a path is as it was written, spaces within it and all."""
    text = "# of May\n\n a b.tif \ns3://bucket/c.tif\r\nhttps://host/d.tif?sig=x.y#z\n"
    (tmp_path / "list.txt").write_text(text)
    wanted = ["a b.tif", "s3://bucket/c.tif", "https://host/d.tif?sig=x.y#z"]
    assert listing.read(str(tmp_path / "list.txt")) == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert listing.read("-") == wanted
    assert list(names_of(scenes_of(wanted))) == ["a b", "c", "d"]  # no query is part of a name
    (tmp_path / "none.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match="none.txt lists no scene; put a path or a URL on each line"):
        listing.read(str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="absent.txt cannot be read"):
        listing.read(str(tmp_path / "absent.txt"))


def test_items(tmp_path):
    """An item's map is called by its id; the asset is the only image, or the only one of data, or that which is named."""
    pytest.importorskip("pystac")
    path = saved(
        tmp_path / "items.json",
        item("one", {"visual": image("./one.tif", "visual"), "thumbnail": image("t.png", "thumbnail", kind="image/png")}),
        item("a/two", {"B1": image("/data/1.tif", "reflectance"), "visual": image("s3://b/2.tif", "data"), "json": image("x", "metadata", kind="application/json")},
             links=[{"rel": "self", "href": "https://host/items/two.json"}]),
    )  # fmt: skip
    one, two = listing.read(path)
    assert (one, one.name, one.said) == (str(tmp_path / "one.tif"), "one", {"datetime": "2024-05-01T10:00:00Z"})
    assert (two, two.name, two.said["item"]) == ("s3://b/2.tif", "a_two", "https://host/items/two.json")
    assert names_of(scenes_of([one, two])) == {"one": str(tmp_path / "one.tif"), "a_two": "s3://b/2.tif"}
    again = pickle.loads(pickle.dumps(two))
    assert (again, again.name, again.said) == (two, two.name, two.said) and isinstance(again, Listed)
    with pytest.raises(UserError, match="the item one has no asset 'B1'; it has visual, thumbnail"):
        listing.read(path, "B1")
    assert (
        str(
            listing.read(saved(tmp_path / "b.json", item("x", {"B1": image("/1.tif"), "B2": image("/2.tif")})), "B2")[0]
        )
        == "/2.tif"
    )
    with pytest.raises(UserError, match="the item x has several images .B1, B2.; name the asset with --asset"):
        listing.read(str(tmp_path / "b.json"))
    with pytest.raises(UserError, match="the item y has no image .no asset."):
        listing.read(saved(tmp_path / "y.json", item("y", {})))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"type": "Collection", "id": "c"}, "is a STAC Collection, which only links to its items"),
        ({"type": "FeatureCollection", "features": [3]}, "is no STAC item, and no collection of items"),
        ({"type": "FeatureCollection", "features": [{"type": "Feature"}]}, "is no STAC item, and no collection"),
        ([1], "is no STAC item, and no collection of items"),
        ({"type": "FeatureCollection", "features": []}, "lists no scene"),
        (
            {"type": "FeatureCollection", "features": [], "links": [{"rel": "next", "href": "https://h/2"}]},
            "is one page of an answer",
        ),
    ],
)
def test_what_is_no_list_is_told(tmp_path, value, words):
    """In one line; and a file's next page is not fetched."""
    pytest.importorskip("pystac")
    (tmp_path / "list.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=words) as raised:
        listing.read(str(tmp_path / "list.json"))
    assert "\n" not in str(raised.value)


def test_a_list_from_a_store_names_no_file_of_this_machine(store):
    store.put("list.txt", b"s3://maps/a.tif\n/etc/passwd\n")
    with pytest.raises(UserError, match="list.txt, line 2: '/etc/passwd' is no URL of a server"):
        listing.read("s3://maps/list.txt")
    store.put("list.txt", b"s3://maps/a.tif\n")
    assert listing.read("s3://maps/list.txt") == ["s3://maps/a.tif"]
    with pytest.raises(UserError, match="s3://maps/none.txt is not there: there is no such object"):
        listing.read("s3://maps/none.txt")
