"""Object stores, through ``obstore``: objects looked at, read, and written whole, under a URL such as ``s3://bucket/folder``.

Credentials are those of the environment, by GDAL's names and by those of other programs. Each request is tried again with back-off; an
upload in several parts is completed, or aborted: nobody sees half an object.
"""

import configparser
import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from glcanet_jax.data.guard import BEHIND, INSTEAD
from glcanet_jax.data.remote import (
    LONGEST,
    Patience,
    Stamp,
    as_gdal_has_it,
    in_words,
    is_store,
    look_at_web,
    patience,
    persist,
    scheme_of,
)
from glcanet_jax.errors import UserError

PART_BYTES = 8 * 2**20  # that are sent at once, by so many connections
CONNECTIONS = 4
MOST_PARTS = 9000  # stores take 10 000
LARGEST = 2**28  # bytes of an object that is read into memory
OWN = "glcanet"  # of an object: what it was made from, so that a run that was killed knows its own
YES = ("yes", "true", "on", "1")
READ = ("AWS_", "AZURE_", "GOOGLE_", "GS_", "HOME", "HTTP", "NO_PROXY", "http", "no_proxy", "all_proxy")  # variables
T = TypeVar("T")


# -------------------------------------------------------------------------------------------------------- configuration
def library() -> Any:
    """Raises UserError if it is not installed."""
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise UserError(
            "object stores (s3://, gs://, az://) need obstore, which is not installed; pip install 'glcanet-jax[store]'"
        ) from error
    return obstore


def configuration(scheme: str, bucket: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """What obstore is told of a store beyond the variables that it knows itself, from those that GDAL knows."""
    told = {**environ, **as_gdal_has_it(environ)}
    if scheme == "s3":
        return _s3(bucket, told)
    if scheme == "gs":
        return {"skip_signature": True} if _on(told, "GS_NO_SIGN_REQUEST") else {}
    parts = dict(p.split("=", 1) for p in told.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";") if "=" in p)
    named = {
        "account_name": told.get("AZURE_STORAGE_ACCOUNT") or parts.get("AccountName"),
        "account_key": told.get("AZURE_STORAGE_ACCESS_KEY") or parts.get("AccountKey"),
        "sas_key": told.get("AZURE_STORAGE_SAS_TOKEN") or parts.get("SharedAccessSignature"),
        "endpoint": parts.get("BlobEndpoint"),
        "skip_signature": _on(told, "AZURE_NO_SIGN_REQUEST") or None,
    }
    return {name: value for name, value in named.items() if value is not None}


def _s3(bucket: str, told: Mapping[str, str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if endpoint := told.get("AWS_S3_ENDPOINT"):
        secure = told.get("AWS_HTTPS", "YES").lower() in YES
        apart = _on(told, "AWS_VIRTUAL_HOSTING")
        out["endpoint"] = f"http{'s' * secure}://{f'{bucket}.' * apart}{endpoint.partition('://')[2] or endpoint}"
        out["virtual_hosted_style_request"] = apart
        out["region"] = told.get("AWS_REGION") or told.get("AWS_DEFAULT_REGION") or "us-east-1"
    if _on(told, "AWS_NO_SIGN_REQUEST"):
        return out | {"skip_signature": True}
    known = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
    return out if any(told.get(name) for name in known) else out | _profile(told)


def _profile(told: Mapping[str, str]) -> dict[str, str]:
    """Keys and region of a profile in Amazon's files, which GDAL reads, too."""
    home, name = Path.home() / ".aws", told.get("AWS_PROFILE") or told.get("AWS_DEFAULT_PROFILE") or "default"
    found: dict[str, str] = {}
    for variable, file, section in (
        ("AWS_CONFIG_FILE", "config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", name),
    ):
        reader = configparser.RawConfigParser()
        with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
            reader.read(told.get(variable) or home / file, encoding="utf-8")
            found |= dict(reader[section]) if reader.has_section(section) else {}
    wanted = {"aws_access_key_id": "access_key_id", "aws_secret_access_key": "secret_access_key"}
    wanted |= {"aws_session_token": "session_token", "region": "region"}
    return {own: found[theirs] for theirs, own in wanted.items() if theirs in found}


def _on(told: Mapping[str, str], name: str) -> bool:
    return told.get(name, "").lower() in YES


def _open(url: str) -> tuple[Any, str]:
    """A store of obstore's, and the path within it."""
    scheme, (bucket, _, path) = str(scheme_of(url)), url.partition("://")[2].partition("/")
    if not bucket:
        raise UserError(f"{url} names no bucket; give one, as in {scheme}://bucket/folder")
    environ = {name: value for name, value in sorted(os.environ.items()) if name.startswith(READ)}
    return ask(url, lambda: _made(scheme, bucket, patience(), tuple(environ.items()))), path.strip("/")


@functools.lru_cache(maxsize=16)
def _made(scheme: str, bucket: str, limits: Patience, environ: tuple[tuple[str, str], ...]) -> Any:
    """A store of obstore's, whose connections are kept; another one where the environment is another."""
    obstore, options = library(), configuration(scheme, bucket, dict(environ))
    client = {
        "timeout": timedelta(seconds=limits.whole),
        "connect_timeout": timedelta(seconds=limits.connect),
        "allow_http": str(options.get("endpoint", "")).startswith("http:"),
    }
    back_off = {"init_backoff": timedelta(seconds=limits.delay), "max_backoff": timedelta(seconds=LONGEST), "base": 2}
    most = timedelta(seconds=(limits.retries + 1) * (limits.whole + LONGEST))
    retry = {"max_retries": limits.retries, "retry_timeout": most, "backoff": back_off}
    return obstore.store.from_url(f"{scheme}://{bucket}", config=options, client_options=client, retry_config=retry)


class StoreError(UserError):
    """A store did not do what it was asked for.

    Attributes:
        refused: it said that this is not for these credentials.
    """

    def __init__(self, message: str, refused: bool = False):
        super().__init__(message)
        self.refused = refused


def ask(url: str, action: Callable[[], T]) -> T:
    """What a store answers; what may pass is asked again, where obstore has not done so.

    Raises:
        FileNotFoundError: there is no such object.
        StoreError: it does not answer, or refuses, in one line.
    """
    kinds = library().exceptions

    def passes(error: Exception) -> bool:
        text = str(error).partition("\n")[0]
        return isinstance(error, kinds.GenericError) and " retries," not in text and "Server returned" not in text

    try:
        return persist(action, passes)
    except FileNotFoundError:
        raise
    except (kinds.BaseError, ValueError, OSError) as error:
        text = str(error)
        refused = isinstance(error, (kinds.PermissionDeniedError, kinds.UnauthenticatedError))
        if refused or "403 Forbidden" in text:  # as lists say it
            raise StoreError(f"{url} {in_words(403)}", refused=True) from error
        if "NoSuchBucket" in text:
            raise StoreError(f"{url}: there is no such bucket; make it, or correct the URL") from error
        late = "timed out" in text.lower() or "TimedOut" in text
        what = "does not answer in time" if late else f"cannot be reached or used ({text.partition(chr(10))[0][:300]})"
        raise StoreError(f"{url} {what}; try again later, or correct the URL") from error


# -------------------------------------------------------------------------------------------------------------- objects
class Objects:
    """The objects under a URL, by their names below it."""

    def __init__(self, url: str):
        """Raises UserError if it is no URL of a store, or obstore is missing."""
        if not is_store(url):
            raise UserError(f"{url} is no URL of an object store; it must begin with s3://, gs:// or az://")
        self.url = url.rstrip("/")
        self._store, self._path = _open(self.url)

    def at(self, name: str) -> str:
        """The URL of an object."""
        return f"{self.url}/{name}" if name else self.url

    def _key(self, name: str) -> str:
        return "/".join(filter(None, (self._path, name)))

    def _ask(self, name: str, action: Callable[[str], T]) -> T | None:
        """What the store answers about an object; None where there is none."""
        try:
            return ask(self.at(name), lambda: action(self._key(name)))
        except FileNotFoundError:
            return None

    def look(self, name: str = "") -> Stamp | None:
        """What an object is known by; None where there is none."""
        found = self._ask(name, self._store.head)
        return None if found is None else Stamp(found["size"], found["e_tag"] or str(found["last_modified"]))

    def made_from(self, name: str) -> str | None:
        """What an object that was put here was said to be made from."""
        found = self._ask(name, lambda key: self._store.get(key, options={"head": True}))
        return None if found is None else found.attributes.get(OWN)

    def read(self, name: str = "", largest: int = LARGEST) -> bytes | None:
        """An object, whole; None where there is none.

        Raises:
            UserError: it cannot be read, or is larger than ``largest`` bytes.
        """

        def whole(key: str) -> bytes:
            found = self._store.get(key)
            if found.meta["size"] > largest:
                raise UserError(f"{self.at(name)} has over {largest} bytes; this is no such file: give another URL")
            return bytes(found.bytes())

        return self._ask(name, whole)

    def fetch(self, name: str, path: Path) -> None:
        """Copy an object into a file.

        Raises:
            UserError: it cannot be read whole.
        """

        def copied(key: str) -> int:
            found = self._store.get(key)
            with path.open("wb") as file:
                for chunk in found.stream(PART_BYTES):
                    file.write(chunk)
            return found.meta["size"]

        if self._ask(name, copied) != path.stat().st_size:
            raise StoreError(f"{self.at(name)} could not be read whole; try again later")

    def put(self, name: str, what: Path | bytes, kind: str, made_from: str | None = None) -> None:
        """Write an object, whole or not at all; what stood under the name is replaced.

        Args:
            kind: its media type.
            made_from: what :meth:`made_from` then tells.

        Raises:
            UserError: it could not be written.
        """
        size = len(what) if isinstance(what, bytes) else what.stat().st_size
        attributes = {"Content-Type": kind} | ({} if made_from is None else {OWN: made_from})
        options = {"chunk_size": max(PART_BYTES, -(-size // MOST_PARTS)), "max_concurrency": CONNECTIONS}
        self._ask(name, lambda key: self._store.put(key, what, attributes=attributes, **options))
        there = self.look(name)
        if there is None or there.bytes != size:
            raise StoreError(f"{self.at(name)} is not what was written to it; run again")

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects; those that are not there are no fault."""
        if names:
            self._ask("", lambda _: self._store.delete([self._key(name) for name in names]))

    def names(self, after: str | None = None) -> Iterator[str]:
        """Of all objects right below the URL, in order, or of those after a name; what lies deeper is left out."""
        return (name for name in self.below("", after) if "/" not in name)

    def below(self, folder: str, after: str | None = None) -> Iterator[str]:
        """Names of all objects below a folder, at any depth, in order; or of those after a name."""
        own, prefix = f"{self._path}/" if self._path else "", f"{self._key(folder)}/" if self._key(folder) else ""
        listed = iter(self._store.list(prefix or None, offset=None if after is None else own + after))
        while chunk := self._ask(folder, lambda _: next(listed, None)):
            yield from (entry["path"].removeprefix(own) for entry in chunk)

    def folders(self) -> list[str]:
        """Names of the folders right below the URL."""
        own = f"{self._path}/" if self._path else ""
        found = self._ask("", lambda key: self._store.list_with_delimiter(key or None))
        return [path.strip("/").removeprefix(own) for path in (found or {}).get("common_prefixes", ())]


def look(url: str) -> Stamp:
    """What a file of a server is known by: an object, or one of a web server.

    Raises:
        UserError: it is not there, or not given out.
    """
    if not is_store(url):
        return look_at_web(url)
    found = Objects(url).look()
    if found is None:
        raise UserError(f"{url} {in_words(404)}")
    return found


def beside(url: str) -> list[str] | None:
    """Names of what may lie beside an object as a part of it, by its name without its suffix; None where nothing tells.

    One request, where a store lists from a name on.
    """
    above, _, name = url.rpartition("/")
    if above.endswith(":/"):
        return []
    stem = name.rpartition(".")[0] or name
    around = Objects(above)
    if scheme_of(url) == "az":
        wanted = dict.fromkeys([*(name + end for end in BEHIND), *(stem + end for end in INSTEAD)])
        return [other for other in wanted if other != name and around.look(other) is not None]
    try:
        near = itertools.takewhile(lambda other: other.startswith(f"{stem}."), around.names(f"{stem}."))
        return [other for other in near if other != name]
    except StoreError as error:
        if error.refused:
            return None
        raise
