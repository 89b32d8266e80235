"""What a raster file is besides its pixels: the files it draws from, its stamp, its orientation and its pages."""

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from glcanet_jax.data import remote, stores
from glcanet_jax.data.gdal import failures, open_raster
from glcanet_jax.data.guard import is_virtual
from glcanet_jax.data.remote import without_secrets

ORIENTATION = 0x0112  # the EXIF and TIFF tag
ASKED_AT_ONCE = 8
ARCHIVES = re.compile(r"^/vsi(zip|tar|gzip|7z|rar|sparse|subfile|crypt|cached)/(?:[\d_]+,)?")


def local_file(name: str) -> Path | None:
    """The file on disk behind a path, which may lead into archives; None where there is none."""
    text = (
        name.partition("!")[0].removeprefix("zip+").partition("://")[2]
        if re.match(r"(zip|tar|gzip|file)", name) and "://" in name
        else name
    )
    while match := ARCHIVES.match(text):
        text = text[match.end() :]
    text = text.replace("{", "").replace("}", "")
    if text.startswith("/vsi") or "://" in text:
        return None
    path = Path(text)
    for place in (path, *path.parents):
        if place.is_file():
            return place
    return None


def files_of(path: str | Path, file: Any) -> list[str]:
    """Everything that an open raster draws from, itself first: side files, a VRT's sources, and theirs."""
    found, waiting = [], [str(path), *(name for name in file.files if name != remote.gdal_name(path))]
    while waiting:
        name = waiting.pop(0)
        if name in found:
            continue
        found.append(name)
        if len(found) > 1 and _is_vrt(name):
            with contextlib.suppress(*failures()), open_raster(name) as inner:
                waiting += inner.files
    return [found[0], *sorted(found[1:])]


def _is_vrt(name: str) -> bool:
    with contextlib.suppress(OSError, ValueError), open(name, "rb") as file:
        return b"<VRTDataset" in file.read(2048)
    return False


def stamps(names: Sequence[str]) -> list[list[Any]]:
    """:func:`stamp` of files; servers are asked for several at once."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list(pool.map(stamp, names))


def stamp(name: str) -> list[Any]:
    """A file's name, size and time, or what version a server has of it, which change when it does.

    Of an archive's member those of the archive.
    """
    url = remote.url_of(name)
    if url is not None:
        return [without_secrets(url), *stores.look(url)]
    place = local_file(name)
    if place is None:
        return [without_secrets(name), None, None]
    status = place.stat()
    return [without_secrets(name if is_virtual(name) else place.absolute()), status.st_size, status.st_mtime_ns]


def orientation(path: str | Path, file: Any) -> int:
    """How viewers turn a picture before they show it (EXIF, 1 to 8; 1: not at all). GDAL and GIS do not."""
    if file.driver == "JPEG":
        text = file.tags().get("EXIF_Orientation", "1")
        return int(text) if text in "12345678" and len(text) == 1 else 1
    if file.driver not in ("PNG", "WEBP", "GTiff") or file.crs or not file.transform.is_identity:
        return 1
    place = local_file(str(path))
    if place is None or is_virtual(path):
        return 1
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(place) as picture:
            value = picture.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, Image.DecompressionBombError):
        return 1  # no header of one, or too large for it to be a photograph
    return value if value in range(1, 9) else 1


def notes(turned: int, file: Any) -> Iterator[str]:
    """In phrases, what a user may want to know of a file whose pixels are read as they are stored."""
    if turned != 1:
        yield f"its EXIF orientation ({turned}) is not applied, as in GIS: pixels are read as they are stored"
    pages = [name for name in file.subdatasets if name.startswith("GTIFF_DIR:")]
    if len(pages) > 1:
        yield f"the first of its {len(pages)} pages"
