"""GDAL, tamed: its settings and drivers, its errors in one line, and files opened without a word.

Drivers are limited twice. A file that is opened must be of :data:`FORMATS`; and drivers that ask servers are switched off for
the whole process before GDAL registers any, since sources of a VRT and overviews beside a file are opened by any of them.
"""

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glcanet_jax.data import guard, remote
from glcanet_jax.errors import UserError
from glcanet_jax.options import perhaps

CACHE_BYTES = 64 * 2**20  # GDAL's cache of blocks, for all threads together
SIGNED = re.compile(r"(\bhttps?://[^\s'\"?]+)\?[^\s'\"]*")  # a URL with its query
STRIP_ROWS, STRIP_PIXELS = 512, 2**25  # at a time, where a whole file is gone through

# Raster formats that people keep scenes in. Left out: formats of tables of other files (GTI, MRF, STAC), of vectors and
# of grids with their own way to a server (netCDF), and databases.
FORMATS = tuple(
    "GTiff VRT PNG JPEG JPEGXL JP2OpenJPEG JP2KAK JP2ECW JP2MrSID WEBP GIF BIGGIF BMP PNM HEIF AVIF TGA SGI "
    "HFA ENVI EHdr AAIGrid AIG ERS NITF PCIDSK RST RMF SAGA GSAG GSBG GS7BG USGSDEM SRTMHGT DTED BT XYZ KEA KRO "
    "ECW MrSID DIMAP SAFE SENTINEL2 TSX RS2 TIL GPKG MBTiles HDF4 HDF4Image HDF5 HDF5Image BAG FITS ISIS3 PDS PDS4 "
    "VICAR MFF MFF2 PAux GSC LAN MEM".split()
)
# Drivers that open connections, or run programs that do.
SERVERS = tuple(
    "HTTP WMS WMTS WCS WFS CSW OAPIF OGCAPI EEDA EEDAI PLMOSAIC PLSCENES DAAS NGW STACIT STACTA netCDF DODS JPIPKAK "
    "Elasticsearch Carto AmigoCloud PostgreSQL PostGISRaster MySQL MSSQLSpatial OCI GeoRaster ODBC MongoDBv3 ADBC GDALG".split()
)
# Those of the vector library's own GDAL; it complains of names that it does not know, so that they are those of its wheels.
VECTOR_SERVERS = "HTTP WFS CSW OAPIF OGCAPI EEDA PLSCENES NGW Elasticsearch Carto AmigoCloud".split()
ASKED = "GLCANET_DRIVERS"  # an environment variable, for commands without --drivers

_settle_lock = threading.Lock()
_widened: set[str] = set()  # drivers that the user asked for
_settled: set[str] | None = None  # drivers that GDAL has, once it is known


# ------------------------------------------------------------------------------------------------------------- drivers
@contextlib.contextmanager
def _skipping(names: list[str]) -> Iterator[None]:
    """GDAL that registers its drivers inside leaves these out, and those that the environment names."""
    before = os.environ.get("GDAL_SKIP")
    own = [] if before is None else before.split("," if "," in before else None)
    os.environ["GDAL_SKIP"] = ",".join([*own, *names])
    try:
        yield
    finally:
        if before is None:
            del os.environ["GDAL_SKIP"]
        else:
            os.environ["GDAL_SKIP"] = before


def settle() -> set[str]:
    """Let rasterio's GDAL register its drivers, without those that ask servers; returns their names.

    Where the process has used rasterio before, its drivers stay; what files say is then all that is looked at.
    """
    global _settled
    if _settled is not None:
        return _settled
    with _settle_lock:
        if _settled is None:
            import rasterio

            _widened.update(_names(os.environ.get(ASKED)))
            with _skipping([name for name in SERVERS if name not in _widened]), rasterio.Env() as env:
                _settled = set(env.drivers())
    return _settled


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def allow_drivers(text: str | None) -> None:
    """Let GDAL's drivers of these names, divided by commas, open files too; one that asks servers opens the network to files.

    Raises:
        UserError: there is no such driver, or it was switched off before.
    """
    names = [name for name in _names(text) if name not in _widened]
    if _settled is None:
        _widened.update(names)
    there = settle() if names else set()
    for name in names:
        if name not in there:
            _widened.discard(name)
            why = "is no driver of GDAL here"
            if name in SERVERS:
                why = "is none of GDAL here, or was switched off when this process first read a raster: name it at its start"
            raise UserError(f"--drivers: {name!r} {why}{perhaps(name, sorted(there))}")
    _widened.update(names)


def is_online() -> bool:
    """Whether a driver was asked for that opens connections."""
    settle()
    return not _widened.isdisjoint(SERVERS)


def import_pyogrio() -> Any:
    """pyogrio, its GDAL without the drivers that ask servers if this is its first import.

    Raises:
        ImportError: it is not installed.
    """
    with _settle_lock, _skipping([name for name in VECTOR_SERVERS if name not in _widened]):
        import pyogrio.raw
    return pyogrio


# ------------------------------------------------------------------------------------------------------------ settings
_cap_lock = threading.Lock()

_caps: list[int] = []  # of those inside

_cap_before = 0


@contextlib.contextmanager
def environment(cache_bytes: int = CACHE_BYTES, network: bool = False) -> Iterator[None]:
    """GDAL's settings for everything here: 64 MB of cache, broken JPEGs fail, no side files are written, no code runs.

    Several threads may be inside: the cache is one for the whole process, so the lowest cap counts until the last one
    leaves (``rasterio.Env`` alone would lift it when the first does).

    Args:
        network: GDAL may read from servers, for the user named one.
    """
    global _cap_before
    settle()
    import rasterio
    from rasterio.env import get_gdal_config, set_gdal_config

    options = {
        "GDAL_ERROR_ON_LIBJPEG_WARNING": True,
        "GDAL_PAM_ENABLED": False,
        "GDAL_DISABLE_READDIR_ON_OPEN": True,  # side files are still found, by name
        "GDAL_PNG_WHOLE_IMAGE_OPTIM": False,  # the faster way is silent about files that are cut short
        "GDAL_VRT_ENABLE_PYTHON": "NO",
    }
    if network:
        options |= remote.settings()
    elif not is_online():
        options["CPL_VSIL_CURL_ALLOWED_FILENAME"] = "-"  # of /vsicurl/ and all its kind
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


# ------------------------------------------------------------------------------------------------------------- opening
_open_lock = threading.Lock()  # filters of warnings are one for all threads


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No warnings of libraries inside; one thread at a time, for filters of warnings are one for all."""
    with _open_lock, warnings.catch_warnings(action="ignore"):
        yield


def open_raster(path: str | Path, mode: str = "r", **options: Any) -> Any:
    """``rasterio.open``, silent about rasters that lie nowhere; every read goes through here.

    What is read must be of a common format, or of one that was asked for. What a local file draws from is looked at first
    (:func:`glcanet_jax.data.guard.inspect`), and side files (``.aux.xml``) count, whatever the surroundings say.

    Raises:
        UserError: the file draws from the network, or is none.
    """
    import rasterio

    if mode != "r":
        with environment(), _open_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            return rasterio.open(path, mode, **options)
    if os.path.exists(path):
        look_at(path)
    return open_seen(path, **options)


def open_seen(path: str | Path, *, beside: bool = False, **options: Any) -> Any:
    """:func:`open_raster` of a file that was looked at (:func:`look_at`).

    Args:
        beside: of a URL of a server: files beside it are looked for, too.
    """
    import rasterio

    name = os.fspath(path)
    network = guard.is_virtual(name) and guard.is_network(name)
    url = remote.url_of(name) if network else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(environment(network=network))
        if beside:
            stack.enter_context(rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN=True))
        stack.enter_context(side_files())
        if url is None:  # else others would wait for the server
            stack.enter_context(_open_lock)
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        if network and url is None:  # as zip+https://, of which rasterio knows the parts
            return rasterio.open(name, **options)
        # rasterio.open takes no list of drivers in 1.4
        told = remote.gdal_name(name)
        file = rasterio.io.DatasetReader(told, driver=[*FORMATS, *_widened], sharing=False, **options)
        if beside:
            len(file.files)  # GDAL looks for them when it is asked
    try:
        with environment(network=network):
            _check_overviews(name, file)
    except BaseException:
        file.close()
        raise
    return file


def side_files() -> Any:
    """GDAL's setting under which files beside a raster are heeded, which may say where it lies or what is nodata."""
    import rasterio

    return rasterio.Env(GDAL_PAM_ENABLED=True)


def look_at(path: str | Path) -> guard.Drawn:
    """What a local file draws from; where a driver of servers was asked for, only whether it is a file.

    Raises:
        UserError: as :func:`glcanet_jax.data.guard.inspect`.
    """
    if not is_online():
        return guard.inspect(path)
    guard.check_file(path)
    return guard.Drawn((Path(path),), ())


def _check_overviews(name: str, file: Any) -> None:
    """Raises UserError if a raster says in itself that its overviews are on a server."""
    place = file.tags(ns="OVERVIEWS").get("OVERVIEW_FILE", "")
    if guard.is_network(place) and not is_online():
        raise UserError(
            f"{name} draws its overviews from the network ({place[:100]!r}), which local files may not; remove the tag"
        )


def failures() -> tuple[type[Exception], ...]:
    """What rasterio and the system raise when a file cannot be read or written."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    return (RasterioError, CPLE_BaseError, OSError)


def cause(error: BaseException) -> str:
    """The first cause of an error, on one line; of URLs in it no query, which often signs them."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = getattr(error, "errmsg", None) or getattr(error, "strerror", None) or str(error)
    return SIGNED.sub(r"\1", " ".join(str(text).split()).rstrip("."))


def rectangle(rows: slice, columns: slice) -> Any:
    from rasterio.windows import Window

    return Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)


def steps(stop: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, stop)) for start in range(0, stop, step))


def strips(height: int, width: int) -> Iterator[slice]:
    """The rows of a raster, so many at a time that whole ones fit into memory: at most 512, and 32 Mpx unless one has more."""
    return steps(height, max(1, min(STRIP_ROWS, STRIP_PIXELS // width)))
