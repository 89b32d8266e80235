"""GDAL, tamed: its settings, its errors in one line, and files opened without a word."""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CACHE_BYTES = 64 * 2**20  # GDAL's cache of blocks, for all threads together

_cap_lock = threading.Lock()

_caps: list[int] = []  # of those inside

_cap_before = 0


@contextlib.contextmanager
def environment(cache_bytes: int = CACHE_BYTES) -> Iterator[None]:
    """GDAL's settings for everything here: 64 MB of cache, broken JPEGs fail, no side files are written.

    Several threads may be inside: the cache is one for the whole process, so the lowest cap counts until the last one
    leaves (``rasterio.Env`` alone would lift it when the first does).
    """
    global _cap_before
    import rasterio
    from rasterio.env import get_gdal_config, set_gdal_config

    options = {
        "GDAL_ERROR_ON_LIBJPEG_WARNING": True,
        "GDAL_PAM_ENABLED": False,
        "GDAL_DISABLE_READDIR_ON_OPEN": True,  # side files are still found, by name
        "GDAL_PNG_WHOLE_IMAGE_OPTIM": False,  # the faster way is silent about files that are cut short
    }
    with rasterio.Env(**options):
        with _cap_lock:
            if not _caps:
                _cap_before = int(get_gdal_config("GDAL_CACHEMAX"))
            _caps.append(cache_bytes)
            set_gdal_config("GDAL_CACHEMAX", min(_caps))
        try:
            yield
        finally:
            with _cap_lock:
                _caps.remove(cache_bytes)
                set_gdal_config("GDAL_CACHEMAX", min(_caps, default=_cap_before))


_open_lock = threading.Lock()  # filters of warnings are one for all threads


def open_raster(path: str | Path, *arguments: Any, **options: Any) -> Any:
    """``rasterio.open``, silent about rasters that lie nowhere."""
    import rasterio

    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path, *arguments, **options)


def failures() -> tuple[type[Exception], ...]:
    """What rasterio and the system raise when a file cannot be read or written."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    return (RasterioError, CPLE_BaseError, OSError)


def cause(error: BaseException) -> str:
    """The first cause of an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = getattr(error, "errmsg", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()).rstrip(".")


def rectangle(rows: slice, columns: slice) -> Any:
    from rasterio.windows import Window

    return Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)


def steps(stop: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, stop)) for start in range(0, stop, step))
