"""Files on servers, by the URLs that a user gives: what they are to GDAL, who may be asked, how long, and what they are.

``s3://``, ``gs://``, ``az://`` and ``https://`` are read by GDAL as ``/vsis3/`` and its kind, with the credentials that the environment
holds. What is asked here beside is how large a file is and which version of it, so that a map is known to be of that.
"""

import http.client
import ipaddress
import os
import random
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit

from glcanet_jax.errors import UserError

STORES = {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}
WEB = ("https", "http")
CACHE_BYTES = 32 * 2**20  # of what GDAL has read from servers, for all files together
CHUNK_BYTES = 2**16  # that it reads at least: the head of most files
REDIRECTIONS = 5
METADATA = ipaddress.ip_network("fd00:ec2::/32")  # of a cloud's machines, beside the link-local addresses
LONGEST = 30.0  # seconds between two tries
T = TypeVar("T")


class Stamp(NamedTuple):
    """What a file on a server is known by without being read."""

    bytes: int | None
    version: str | None  # its ETag, else when it was changed


class Patience(NamedTuple):
    """How long a server is waited for; GDAL's variables ``GDAL_HTTP_*`` say otherwise, for what is uploaded, too."""

    connect: float = 10.0  # seconds
    whole: float = 120.0  # seconds for one request, of at most some MB
    slow: float = 30.0  # seconds with hardly a byte
    retries: int = 7
    delay: float = 0.5  # seconds before the first; then twice as long every time

    @property
    def waits(self) -> Iterator[float]:
        """Seconds before each further try; not the same for all who were refused at once."""
        return (min(LONGEST, self.delay * 2**i) * random.uniform(0.5, 1.5) for i in range(self.retries))


VARIABLES = dict(
    zip(Patience._fields, ("CONNECTTIMEOUT", "TIMEOUT", "LOW_SPEED_TIME", "MAX_RETRY", "RETRY_DELAY"), strict=True)
)


def patience(environ: Mapping[str, str] = os.environ) -> Patience:
    """Raises UserError if a variable holds no number."""
    found: dict[str, Any] = {}
    for name, ending in VARIABLES.items():
        text = environ.get(variable := f"GDAL_HTTP_{ending}")
        if text is None:
            continue
        if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text):
            raise UserError(f"the variable {variable} is {text[:40]!r}; it must be a number of at least 0")
        found[name] = int(float(text)) if name == "retries" else float(text)
    return Patience(**found)


def persist(action: Callable[[], T], again: Callable[[Exception], bool], before: Callable[[], None] | None = None) -> T:
    """What an action returns, tried again after failures that may pass; ``before`` is called before each further try."""
    for wait in patience().waits:
        try:
            return action()
        except Exception as error:
            if not again(error):
                raise
        time.sleep(wait)
        if before is not None:
            before()
    return action()


# ---------------------------------------------------------------------------------------------------------------- names
def scheme_of(path: str | Path) -> str | None:
    """The scheme of a URL of a server, in lower case; None of other paths."""
    scheme, there, _ = str(path).partition("://")
    return scheme.lower() if there and scheme.lower() in (*STORES, *WEB) else None


def is_store(path: str | Path) -> bool:
    """Whether a path is a URL of an object store."""
    return scheme_of(path) in STORES


def gdal_name(url: str | Path) -> str:
    """What GDAL calls a URL of a server; any other path as it is."""
    scheme = scheme_of(url)
    if scheme in STORES:
        return STORES[scheme] + str(url).partition("://")[2]
    return f"/vsicurl/{url}" if scheme is not None else str(url)


def url_of(name: str | Path) -> str | None:
    """The URL of what GDAL calls so; None of what is on no server."""
    text = str(name)
    for scheme, prefix in STORES.items():
        if text.startswith(prefix):
            return f"{scheme}://{text.removeprefix(prefix)}"
    text = text.removeprefix("/vsicurl/")
    return text if scheme_of(text) is not None else None


def without_secrets(path: str | Path) -> str:
    """A path as it may be written down: of a URL neither the query, which often signs it, nor a password."""
    text = str(path)
    if text.startswith("/vsi") and "?" in text:  # /vsicurl?use_head=no&url=https%3A...
        head, query = text.split("?", 1)
        text = f"{head}/{parse_qs(query).get('url', [''])[0]}"
    start = text.find("://")
    if start < 0:
        return text.split("?")[0] if text.startswith("/vsi") else text
    start = re.search(r"\w*$", text[:start]).start()
    url = urlsplit(text[start:])
    return text[:start] + urlunsplit((url.scheme, url.netloc.rpartition("@")[2], url.path, "", ""))


def settings(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """GDAL's for files on servers: time limits, retries with back-off, a bounded cache, no listings of folders.

    Without a list of what lies beside a file GDAL asks for 40 names one by one, twice each. It is not to: what lies beside is known
    otherwise (:func:`glcanet_jax.data.stores.beside`), or not heeded.
    """
    limits = patience(environ)
    own: dict[str, Any] = {f"GDAL_HTTP_{VARIABLES[name]}": value for name, value in limits._asdict().items()}
    own |= {
        "GDAL_HTTP_LOW_SPEED_LIMIT": 1000,  # bytes a second
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": True,
        "GDAL_HTTP_MULTIPLEX": True,
        "CPL_VSIL_CURL_CACHE_SIZE": CACHE_BYTES,
        "CPL_VSIL_CURL_CHUNK_SIZE": CHUNK_BYTES,
    }
    own = {name: value for name, value in own.items() if name not in environ}
    # a failure is remembered with what was read, and no try would be another one
    forgotten = {"CPL_VSIL_CURL_NON_CACHED": ":".join((*STORES.values(), "/vsicurl/"))}
    return own | forgotten | {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"} | as_gdal_has_it(environ)


def as_gdal_has_it(environ: Mapping[str, str]) -> dict[str, str]:
    """Of an environment that names a store's endpoint or account as other programs do, what GDAL calls them."""
    out = {}
    endpoint = next(
        (v for v in map(environ.get, ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")) if v), None
    )
    if endpoint and "AWS_S3_ENDPOINT" not in environ:
        found = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        out = {
            "AWS_S3_ENDPOINT": found.netloc + found.path.rstrip("/"),
            "AWS_HTTPS": "NO" if found.scheme == "http" else "YES",
        }
        if "AWS_VIRTUAL_HOSTING" not in environ:  # few but Amazon's have a host for every bucket
            out["AWS_VIRTUAL_HOSTING"] = "FALSE"
    same = {
        "AZURE_STORAGE_ACCOUNT_NAME": "AZURE_STORAGE_ACCOUNT",
        "AZURE_STORAGE_ACCOUNT_KEY": "AZURE_STORAGE_ACCESS_KEY",
    }
    return out | {own: environ[other] for other, own in same.items() if other in environ and own not in environ}


# ---------------------------------------------------------------------------------------------------------- who is asked
def check_host(url: str, first: str) -> None:
    """Raises UserError if a URL, to which ``first`` led, leads to an address that no file of a user lies at.

    Link-local addresses are those of the services that tell a machine of a cloud its credentials. A file elsewhere does not lead
    to this machine itself, and what was asked for under https is not given in the clear.
    """
    to, asked = urlsplit(url), urlsplit(first)
    if to.scheme not in WEB or (asked.scheme == "https" and to.scheme == "http"):
        raise UserError(
            f"{without_secrets(first)} leads to {without_secrets(url)}, which is not https; give the URL of the file itself"
        )
    local = _addresses(asked.hostname)
    for address in _addresses(to.hostname):
        if address.is_link_local or address.is_unspecified or address.is_multicast or address in METADATA:
            raise UserError(f"{without_secrets(first)} leads to {address}, an address of no file; give another URL")
        if address.is_loopback and not any(own.is_loopback for own in local):
            raise UserError(f"{without_secrets(first)} leads to this machine itself ({address}); give another URL")


def _addresses(host: str | None) -> list[Any]:
    """Of a host; none where its name is not known here, as behind a proxy."""
    try:
        found = socket.getaddrinfo(host or "", None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    plain = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return [getattr(address, "ipv4_mapped", None) or address for address in plain]


class _Redirections(urllib.request.HTTPRedirectHandler):
    max_redirections = REDIRECTIONS

    def __init__(self, first: str):
        self.first = first

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_host(newurl, self.first)
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None:
            made.method = req.get_method()  # or a HEAD would become a GET
        return made


def ask(url: str, method: str = "GET", **headers: str) -> Any:
    """An open answer of a web server, with patience; it is to be closed.

    Raises:
        UserError: it is not to be had, and why.
    """
    check_host(url, url)
    opener = urllib.request.build_opener(_Redirections(url))
    request = urllib.request.Request(url, method=method, headers={"User-Agent": "glcanet-jax", **headers})
    limit = min(patience().whole, patience().slow)
    try:
        return persist(lambda: opener.open(request, timeout=limit), _passes)
    except urllib.error.HTTPError as error:
        error.close()
        raise UserError(f"{without_secrets(url)} {in_words(error.code)}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        told = "does not answer in time" if isinstance(reason, TimeoutError) else f"cannot be reached ({reason})"
        raise UserError(f"{without_secrets(url)} {told}; try again later, or correct the URL") from error


def _passes(error: Exception) -> bool:
    """Whether a failure may pass."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 425, 429, 500, 502, 503, 504)
    nameless = isinstance(getattr(error, "reason", error), socket.gaierror)  # there is no such host
    return isinstance(error, OSError | http.client.HTTPException) and not nameless


def in_words(code: int) -> str:
    """What a server's code means, after the URL."""
    if code in (404, 410):
        return "is not there: there is no such object; correct the URL"
    if code in (401, 403):
        return "is not given out: there is no access with these credentials; set those that may read it"
    return f"cannot be read now (the server answers {code}); try again later"


def explain(text: str) -> str | None:
    """What GDAL repeats of a server's answer, after the URL; None where it is of something else."""
    codes = {
        403: ("AccessDenied", "403", "Forbidden"),
        404: ("NoSuchKey", "404"),
        503: ("SlowDown", "503", "500", "502", "504"),
    }
    code = next((code for code, words in codes.items() if any(re.search(rf"\b{word}\b", text) for word in words)), None)
    return None if code is None else in_words(code)


def read(url: str, largest: int) -> bytes:
    """A file of a web server, whole.

    Raises:
        UserError: it is not to be had, or larger than ``largest`` bytes, or its answer ends too early.
    """

    def whole() -> bytes:
        with ask(url) as answer:
            data = answer.read(largest + 1)
            promised = answer.headers.get("Content-Length", "")
        if promised.isdigit() and len(data) < min(int(promised), largest):
            raise ConnectionError("its answer ends too early")
        return data

    try:
        data = persist(whole, lambda error: isinstance(error, OSError | http.client.HTTPException))
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{without_secrets(url)} cannot be read ({error}); try again later") from error
    if len(data) > largest:
        raise UserError(f"{without_secrets(url)} has over {largest} bytes; this is no such file: give another URL")
    return data


def look_at_web(url: str) -> Stamp:
    """What a file of a web server is known by.

    Raises:
        UserError: it is not to be had.
    """
    try:
        with ask(url, "HEAD") as answer:
            return _stamp(answer.headers, answer.headers.get("Content-Length"))
    except UserError as error:
        code = getattr(error.__cause__, "code", None)
        if code not in (400, 401, 403, 405, 501):
            raise
    with ask(url, Range="bytes=0-0") as answer:  # signed for GET alone, or a server without HEAD
        ranged = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return _stamp(answer.headers, ranged or answer.headers.get("Content-Length"))


def _stamp(headers: Any, size: str | None) -> Stamp:
    return Stamp(int(size) if size and size.isdigit() else None, headers.get("ETag") or headers.get("Last-Modified"))


# ---------------------------------------------------------------------------------------------------------- open files
class Held:
    """A file of a server that GDAL has open.

    When one of several open files of a URL is closed, GDAL forgets what it knows of the URL, and if the server then fails it gives
    zeros through the others, without an error. So they are closed together, by the last one; and all must be of one version, since
    they share what was read.
    """

    _lock = threading.RLock()
    _open: ClassVar[dict[str, list["Held"]]] = {}
    _waiting: ClassVar[dict[str, list[Any]]] = {}

    def __init__(self, url: str, version: Any):
        """Raises UserError if another version of it is open."""
        self._url, self._version = url, version
        with self._lock:
            others = self._open.setdefault(url, [])
            if any(other._version != version for other in others):
                raise UserError(f"{without_secrets(url)} has changed while it was read; run again")
            others.append(self)

    def close(self, file: Any) -> None:
        """Close a file of GDAL's, at once if no other one of the URL is open."""
        with self._lock:
            files = [*self._waiting.pop(self._url, ()), file]
            if any(other is not self for other in self._open.get(self._url, ())):
                self._waiting[self._url] = files
                return
        for one in files:
            one.close()

    def release(self) -> None:
        """Nothing of it is open any more; once is enough."""
        with self._lock:
            others = self._open.get(self._url, [])
            if self in others:
                others.remove(self)
            if not others:
                self._open.pop(self._url, None)

    def __del__(self) -> None:
        if hasattr(self, "_version"):
            self.release()
