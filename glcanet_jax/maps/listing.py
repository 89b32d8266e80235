"""Scenes that a list names: lines of paths and URLs, or the items of a STAC catalogue, each with an asset that is mapped."""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glcanet_jax import border
from glcanet_jax.data import remote, stores
from glcanet_jax.data.guard import is_virtual
from glcanet_jax.errors import UserError
from glcanet_jax.maps.inputs import SUFFIXES, Listed

LARGEST = 2**28  # bytes of a list
PAGES = 1000  # of an answer to a search
UNSEEN = frozenset(("thumbnail", "overview", "metadata", "graphic", "cloud", "cloud-shadow", "data-mask"))  # roles
RASTER = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2", "image/jpeg", "image/png", "image/webp")


def read(source: str, asset: str | None = None) -> list[Listed]:
    """The scenes of a list: a file or URL, or ``-`` for the standard input.

    Args:
        asset: of STAC items, the key of that which is mapped; None: the only image, or the only one of the role ``data``.

    Raises:
        UserError: it cannot be read, names nothing, or what it may not; or items do not say which asset is meant.
    """
    text = _text(source)
    found = list(_of_items(text, source, asset) if text.lstrip().startswith(("{", "[")) else _of_lines(text, source))
    if not found:
        raise UserError(
            f"{_shown(source)} lists no scene; put a path or a URL on each line, or give a STAC item collection"
        )
    return found


def _shown(source: str) -> str:
    return "the standard input" if source == "-" else remote.without_secrets(source)


def _text(source: str) -> str:
    if source == "-":
        data = sys.stdin.buffer.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise UserError(f"the standard input has over {LARGEST} bytes; this is no list of scenes")
        return border.decode(data, "the standard input")
    if remote.is_store(source):
        data = stores.Objects(source).read(largest=LARGEST)
        if data is None:
            raise UserError(f"{source} {remote.in_words(404)}")
        return border.decode(data, source)
    if remote.scheme_of(source) is not None:
        return border.decode(remote.read(source, LARGEST), _shown(source))
    return border.read_text(source, LARGEST)


# ---------------------------------------------------------------------------------------------------------------- lines
def _of_lines(text: str, source: str) -> Iterator[Listed]:
    for number, line in enumerate(text.splitlines(), 1):
        path = line.strip()
        if path and not path.startswith("#"):
            yield Listed(_allowed(path, source, f"line {number}"))


def _allowed(path: str, source: str, where: str) -> str:
    """A path as it is; raises UserError if a list that lies on a server names a file of this machine."""
    if remote.scheme_of(source) is not None and remote.scheme_of(path) is None:
        raise UserError(
            f"{_shown(source)}, {where}: {path[:200]!r} is no URL of a server, and a list from a server may name no other file; "
            "save the list, and name it as a file"
        )
    return path


# ----------------------------------------------------------------------------------------------------------------- STAC
def _of_items(text: str, source: str, asset: str | None) -> Iterator[Listed]:
    for page, place in _pages(text, source):
        for item in _items(page, place):
            yield _listed(item, place, asset)


def _pages(text: str, source: str) -> Iterator[tuple[Any, str]]:
    """A collection of items, and those that its links say come next, with where each lies."""
    seen: set[str] = set()
    for _ in range(PAGES):
        page = border.parse_json(text, _shown(source))
        yield page, source
        following = _next(page)
        if following is None:
            return
        href = following.get("href")
        again = remote.scheme_of(source) in remote.WEB and following.get("method", "GET") == "GET"
        if not again or not isinstance(href, str) or href in seen or remote.scheme_of(href) not in remote.WEB:
            raise UserError(
                f"{_shown(source)} is one page of an answer, and the next one is not fetched from here; save all of it, as "
                "`stac-client search ... --save items.json` does"
            )
        seen.add(href)
        remote.check_host(href, source)
        text, source = border.decode(remote.read(href, LARGEST), _shown(href)), href
    raise UserError(f"{_shown(source)} goes on for over {PAGES} pages; narrow the search")


def _next(page: Any) -> Mapping[str, Any] | None:
    links = page.get("links") if isinstance(page, dict) else None
    return next((k for k in links or () if isinstance(k, dict) and k.get("rel") == "next"), None)


def _items(page: Any, source: str) -> list[Any]:
    """The items of a page, as pystac has them."""
    pystac = _library()
    kind = page.get("type") if isinstance(page, dict) else None
    if kind in ("Collection", "Catalog"):
        raise UserError(
            f"{_shown(source)} is a STAC {kind}, which only links to its items; give an item collection, such as a saved search"
        )
    try:
        if kind == "Feature":
            return [pystac.Item.from_dict(page)]
        return list(pystac.ItemCollection.from_dict(page))
    except Exception as error:  # whatever a strange file breaks within
        raise UserError(
            f"{_shown(source)} is no STAC item, and no collection of items ({type(error).__name__}: {str(error)[:200]}); mend it"
        ) from error


def _library() -> Any:
    try:
        import pystac
    except ImportError as error:
        raise UserError(
            "lists of STAC items need pystac, which is not installed; pip install 'glcanet-jax[stac]'"
        ) from error
    return pystac


def _listed(item: Any, source: str, asset: str | None) -> Listed:
    key = _choose(item, asset)
    href, here = str(item.assets[key].href), item.get_self_href() or ("" if source == "-" else source)
    if remote.scheme_of(href) is None and not is_virtual(href) and not os.path.isabs(href) and here:
        href = _library().utils.make_absolute_href(href, here)
    href = href.removeprefix("file://")
    told = {name: item.properties.get(name) for name in ("datetime", "start_datetime", "end_datetime")}
    own = item.get_self_href()
    said = {k: v for k, v in told.items() if isinstance(v, str)}
    if own is not None and remote.scheme_of(own) is not None:
        said["item"] = remote.without_secrets(own)
    name = re.sub(r'[/\\:*?"<>|\x00-\x1f]', "_", item.id).lstrip(".") or "item"
    return Listed(_allowed(href, source, f"item {item.id}"), name, said)


def _choose(item: Any, asset: str | None) -> str:
    """The key of the asset that is mapped."""
    if asset is not None:
        if asset not in item.assets:
            raise UserError(f"the item {item.id} has no asset {asset!r}; it has {', '.join(item.assets) or 'none'}")
        return asset
    images = [key for key, a in item.assets.items() if _is_image(a) and not UNSEEN & set(a.roles or ())]
    data = [key for key in images if "data" in (item.assets[key].roles or ())]
    fit = images if len(images) == 1 else data
    if len(fit) != 1:
        what = (
            f"has several images ({', '.join(images)})"
            if images
            else f"has no image ({', '.join(item.assets) or 'no asset'})"
        )
        raise UserError(f"the item {item.id} {what}; name the asset with --asset")
    return fit[0]


def _is_image(asset: Any) -> bool:
    if asset.media_type:
        return asset.media_type.partition(";")[0].strip().lower() in RASTER
    return Path(remote.without_secrets(asset.href)).suffix.lower() in SUFFIXES
