"""What a local file draws from, looked at before GDAL does: nothing of the network, and nothing that is no file.

A VRT, a ``.aux.xml`` or a ``.ovr`` beside a raster may name anything that GDAL can open: servers, or pipes that nobody writes
to. So their text is read here first. Whoever types a URL has asked for the network, and is not stopped.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote
from xml.parsers import expat

from glcanet_jax.errors import UserError

LARGEST = 128 * 2**20  # bytes of a description: a mosaic of some 300 000 scenes
HEAD = 4096  # bytes by which GDAL knows a format, and more
# beside a raster, GDAL looks for these: behind the whole name, or in the place of its suffix
BEHIND = (".aux.xml", ".ovr", ".msk", ".msk.ovr", ".aux")
INSTEAD = (".aux", ".wld", ".tfw", ".tifw", ".jgw", ".pgw", ".tab", ".prj", ".hdr", ".rpb", ".imd", ".xml")
BASE = ":::BASE:::"  # before the name of an overview: it lies beside its raster
NEEDED = frozenset(("sourcefilename", "sourcedataset"))  # elements of a VRT that name files
DRIVER = re.compile(r"[A-Za-z]\w+:")  # NETCDF:file.nc:name
SOURCES = frozenset(("sourcefilename", "sourcedataset", "argument", "mdi"))  # elements of a VRT that may name files
# elements whose text GDAL opens nothing of; a licence or a namespace often is a URL
WORDS = frozenset(("Description", "CategoryNames", "GDALRasterAttributeTable", "Histograms", "GCPList", "UnitType"))
LOCAL = ("file", "vrt", "zip", "tar", "gzip")  # schemes that lead to files of this machine
_SCHEME = re.compile(r"(?<![a-z0-9.+-])([a-z][a-z0-9+-]+)://")
_HTTP = re.compile(r"\b(https?|ftp):")
_VSI = re.compile(r"/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)")
_SERVICE = re.compile(r"<\s*(gdal_w[a-z]*s|wms_capabilities|wmt_ms_capabilities|wmscapabilities|gdal_ogcapi)\b")
_SERVER = re.compile(
    r"\s*(wms|wmts|wcs|wfs|csw|ogcapi|oapif|http|eedai?|plmosaic|plscenes|daas|ngw|stacit|stacta|es|carto|amigocloud|pg"
    r"|postgresql|mysql|mssql|oci|geor|georaster|odbc|mongodbv3|jpips?|ecwps?|adbc|dods):"
)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Drawn(NamedTuple):
    """The files that GDAL reads for one that is opened."""

    files: tuple[Path, ...]  # itself first; sources of a VRT, overviews and masks after it
    outside: tuple[Path, ...]  # those among them that a VRT names outside its own folder
    alone: bool = False  # what lies beside it could not be looked for

    @property
    def note(self) -> str | None:
        """What lies outside, in a phrase; or that nothing was heeded that lies beside."""
        if self.alone:
            return "no file beside it is heeded: its store may not be listed with these credentials"
        if not self.outside:
            return None
        more = f" and {len(self.outside) - 3} more" if len(self.outside) > 3 else ""
        return f"drawn from outside the VRT's folder: {', '.join(map(str, self.outside[:3]))}{more}"


def check_file(path: str | Path) -> os.stat_result:
    """The status of a file that can be read.

    Raises:
        UserError: there is none, or it is a folder, a pipe, a device, a link that leads nowhere, or may not be read.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be opened ({reason}); correct the path") from error
    kind = next((words for test, words in _KINDS if test(status.st_mode)), None)
    if kind is not None:
        raise UserError(f"{path} is {kind}, where a file is wanted; name a file")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be opened (Permission denied); make it readable")
    return status


def is_network(text: str) -> bool:
    """Whether a name leads GDAL to a server: a URL, a ``/vsicurl/`` path, a driver's prefix, a server's description."""
    text = text.lower()
    for _ in range(3):  # what is hidden behind percent signs, even twice
        text = unquote(text)
    if any(pattern.search(text) for pattern in (_VSI, _HTTP, _SERVICE)) or _SERVER.match(text):
        return True
    return any(scheme not in LOCAL for scheme in _SCHEME.findall(text))


def is_virtual(path: str | Path) -> bool:
    """Whether a path is GDAL's own: in an archive, in memory or on a server."""
    return "://" in str(path) or str(path).startswith("/vsi")


_CRS_URL = re.compile(r"https?://(?:www\.)?opengis\.net/def/crs/(\w+)/([\w.]+)/(\w+)/?")
_CRS_TEXT = re.compile(
    r"\s*(urn:ogc:def:crs|[A-Za-z_]+\s*\[|[\[{]|\+(proj|init)=|[A-Za-z]\w*:[\w.,+:-]+$|[\w +()/.,'&-]+$)"
)


def crs_text(text: str) -> str:
    """A CRS's name or definition that PROJ reads without opening anything: OGC's own URLs become URNs.

    Raises:
        ValueError: it is a URL, or the name of a file.
    """
    text = text.strip()
    if match := _CRS_URL.fullmatch(text):
        authority, version, code = match.groups()
        return f"urn:ogc:def:crs:{authority}:{'' if version == '0' else version}:{code}"
    named = not text.startswith(("+", "{")) and "[" not in text
    if (named or text.startswith("+")) and is_network(text):
        raise ValueError(f"{text[:80]} is a URL, which is not fetched")
    if named and os.path.lexists(text):  # PROJ would open it
        raise ValueError(f"{text[:80]} is a file")
    if not _CRS_TEXT.match(text):
        raise ValueError(f"{text[:80]!r} is no name of a CRS")
    return text


def inspect(path: str | Path) -> Drawn:
    """Look at a local file and all that GDAL would read for it.

    All that a VRT names must be there: GDAL tells once that it is not, and while another VRT is open, later reads leave what was
    in memory, in silence.

    Raises:
        UserError: one of them is no file or is missing, draws from the network, holds code, or is XML that cannot be read.
    """
    first = Path(path)
    todo, seen, outside = [first], {}, {}
    while todo:
        file = todo.pop()
        place = os.path.realpath(file)
        if place in seen:
            continue
        seen[place] = file
        check_file(file)
        named = _sources(file)
        for side in _beside(file):
            check_file(side)
            if side.name.endswith((".ovr", ".msk")):
                todo.append(side)
            elif side.name.endswith(".aux.xml"):
                seen[os.path.realpath(side)] = side
                named |= dict.fromkeys(_read(side, _start_of(side)).keys() - named.keys(), False)
        for source, needed in named.items():
            if not os.path.exists(source):
                if needed and not any(DRIVER.match(part) for part in source.parts):
                    raise UserError(
                        f"{file} draws from {source}, which is not there; restore it, or make {file.name} anew"
                    )
                continue
            todo.append(source)
            if not Path(os.path.realpath(source)).is_relative_to(os.path.realpath(file.parent)):
                outside[source] = None
    return Drawn(tuple(seen.values()), tuple(outside))


def _beside(file: Path) -> list[Path]:
    """What lies beside a raster that GDAL would look into."""
    whole = str(file)
    stem = os.path.splitext(whole)[0]
    names = {whole + end for end in BEHIND} | {stem + end for end in INSTEAD}
    return [Path(name) for name in sorted(names - {whole}) if os.path.exists(name)]


def _start_of(file: Path, size: int = LARGEST + 1) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(size)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); restore or replace the file") from error


def _sources(file: Path) -> dict[Path, bool]:
    """The files that a VRT names, if the file is one whatever it is called; as :func:`_read`.

    Raises:
        UserError: it describes a server, or as :func:`_read`.
    """
    head = _start_of(file, HEAD).split(b"\0")[0].decode("latin-1").lower()
    if head.lstrip("\xef\xbb\xbf \t\r\n").startswith("<") and (service := _SERVICE.search(head)):
        raise UserError(
            f"{file} describes a server ({service[1].upper()}), which is not asked for images; save what it serves as a "
            "file with gdal_translate, or allow GDAL's driver for it with --drivers"
        )
    return _read(file, _start_of(file)) if "<vrtdataset" in head else {}


def _read(file: Path, data: bytes, depth: int = 0) -> dict[Path, bool]:
    """The files that a VRT or a side file may name, and whether they are surely files that it draws from.

    Raises:
        UserError: it draws from the network, holds code, or cannot be read.
    """
    if len(data) > LARGEST or depth > 8:
        raise UserError(
            f"{file} is a description of over {LARGEST / 1e6:.0f} MB, or one in another too often; make it anew"
        )
    reading = _Description(file)
    parser = expat.ParserCreate("iso-8859-1")  # whatever it says of itself: GDAL reads bytes, and our words are ASCII
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = reading.start, reading.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = reading.add, reading.refuse_types
    try:
        parser.Parse(data.removeprefix(b"\xef\xbb\xbf").rstrip(b"\0 \r\n\t"), True)
    except expat.ExpatError as error:
        raise UserError(f"{file} cannot be read as XML ({error}); make it anew, or remove it") from error
    found = dict(reading.files)
    for text in reading.inner:  # a VRT as the source of another
        found |= _read(file, text.encode("latin-1", "replace"), depth + 1)
    return found


class _Element(NamedTuple):
    """One that is open."""

    name: str
    attributes: Mapping[str, str]
    parts: list[str]  # of its text


class _Description:
    """What the elements of a VRT or a side file say, one after the other."""

    def __init__(self, file: Path):
        self.file, self.files, self.inner = file, {}, []
        self._open: list[_Element] = []
        self._words = 0  # elements that are open whose text is no name

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        domain = attributes.get("domain", "")
        words = name in WORDS or (name == "Metadata" and (domain == "" or domain.startswith("xml:")))
        self._words += bool(self._words or words)
        self._open.append(_Element(name, attributes, []))
        for key, value in attributes.items():
            if not self._words and not key.startswith(("xmlns", "xsi:")):
                self._check(name, value)

    def add(self, text: str) -> None:
        if self._open and not self._words:
            self._open[-1].parts.append(text)

    def end(self, name: str) -> None:
        element = self._open.pop()
        if self._words:
            self._words -= 1
            return
        text = "".join(element.parts).strip()
        if name == "SRS" or name.endswith("SRS"):  # a definition may speak of URLs, and not be one
            with _told(self.file):
                crs_text(text or "EPSG:4326")
            return
        self._check(name, text)
        kind = name.lower()
        if kind == "pixelfunctionlanguage" and text.lower() == "python" or kind == "pixelfunctioncode":
            raise UserError(
                f"{self.file} holds code in Python, which is never run; save its pixels with gdal_translate"
            )
        if kind in SOURCES and text:
            self._name(text, element.attributes, kind in NEEDED)

    def _check(self, name: str, text: str) -> None:
        if is_network(text):
            raise UserError(
                f"{self.file} draws from the network ({name} {_readable(text)[:100]!r}), which local files may not; "
                "save what it draws from as a file, or give the URL itself"
            )

    def _name(self, text: str, attributes: Mapping[str, str], needed: bool) -> None:
        """Keep what an element names: a file, or another description."""
        if "<vrtdataset" in text[:HEAD].lower():
            self.inner.append(text)
            return
        name = _readable(text)
        if name.lower().startswith("vrt://"):
            name = name[6:].partition("?")[0]
        relative = attributes.get("relativeToVRT", attributes.get("relativetoVRT", "0")) == "1"
        relative, name = relative or name.startswith(BASE), name.removeprefix(BASE)
        if len(name) < HEAD and "\0" not in name and not name.startswith("/vsi"):
            path = self.file.parent / name if relative else Path(name)
            self.files[path] = needed or self.files.get(path, False)

    def refuse_types(self, *_: object) -> None:
        raise UserError(f"{self.file} declares a document type, which no description of a raster does; make it anew")


def _readable(text: str) -> str:
    """Text that was taken byte by byte."""
    return text.encode("latin-1", "replace").decode("utf-8", "replace")


@contextlib.contextmanager
def _told(file: Path) -> Iterator[None]:
    """What is no CRS as a UserError."""
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"{file} names its CRS by what would be fetched or opened ({error}); write its definition"
        ) from error
