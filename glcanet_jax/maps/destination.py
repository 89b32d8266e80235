"""Where maps go: a folder of this machine, or an object store by its URL. Both are asked the same.

Maps are always made in a folder (:attr:`Folder.work`). Of a store that is one of this machine, found again by the store's URL, and a map
goes there whole when it is done; its report comes last, and what lies here goes then.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glcanet_jax import backend, border, report
from glcanet_jax.data import disk, remote, stores
from glcanet_jax.errors import UserError

KINDS = {
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".png": "image/png",
    ".json": "application/json",
}
KINDS |= {
    ".geojson": "application/geo+json",
    ".gpkg": "application/geopackage+sqlite3",
    ".csv": "text/csv",
    ".qml": "text/xml",
}
KINDS |= {".xml": "text/xml"}
MANGLED = re.compile(r"^(s3|gs|az):/(?!/)")  # of a URL that was made a Path


def media_type(file: str) -> str:
    """Of a file, by its name."""
    return KINDS.get(Path(file).suffix, "application/octet-stream")


def canonical(path: str | Path) -> str:
    """What two names of the same file have in common."""
    url = remote.url_of(path)
    return os.path.realpath(path) if url is None else url


class Folder:
    """Maps in a folder of this machine."""

    def __init__(self, path: str | Path):
        self.work = Path(path)  # where what is under way lies

    def __str__(self) -> str:
        return str(self.work)

    def at(self, file: str) -> str:
        """The whole name of a file."""
        return str(self.work / file)

    def check(self) -> None:
        """Raises UserError if nothing can be written there; leaves everything as it was."""
        disk.check_folder(self.work)

    @property
    def made(self) -> bool:
        """Whether there may be something."""
        return self.work.is_dir()

    def has(self, file: str) -> bool:
        """Whether something stands under a name.

        Raises:
            UserError: a folder does.
        """
        if (self.work / file).is_dir():
            raise UserError(f"{self.work / file} is a folder where a file of ours belongs; move it away")
        return os.path.lexists(self.work / file)

    def left_by(self, file: str, fingerprint: Mapping[str, Any]) -> bool:
        """Whether a run that made maps of this fingerprint is known to have left a file; here its journal alone can tell."""
        return False

    def text(self, file: str) -> str | None:
        """What a file says; None where there is none.

        Raises:
            UserError: it cannot be read.
        """
        return border.read_text(self.work / file) if os.path.lexists(self.work / file) else None

    def is_link(self, file: str) -> bool:
        """Whether it is a link, which is none of ours."""
        return (self.work / file).is_symlink()

    def local(self, file: str, folder: Path) -> Path:
        """A map that is there, as a file of this machine; a copy would go into ``folder``."""
        return self.work / file

    def put(self, files: Mapping[str, Path], fingerprint: Mapping[str, Any]) -> None:
        """Give files that are whole their names, one after the other; they are moved."""
        for file, path in files.items():
            os.replace(path, self.work / file)

    def write(self, file: str, text: str) -> None:
        """Write a text, whole or not at all."""
        report.write_text(self.work / file, text)

    def remove(self, *files: str) -> None:
        """Remove files; those that are not there are no fault."""
        for file in files:
            (self.work / file).unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        """Of all files, in order."""
        return iter(sorted(path.name for path in self.work.iterdir()))

    # what is under way, and others may go on with
    def share(self, folder: Path, last: str) -> None:
        """Let others see the files of a folder in :attr:`work`, ``last`` after all others; here they do."""

    def has_shared(self, folder: Path, last: str) -> str | None:
        """What the file ``last`` of a shared folder says; None where there is none."""
        return None

    def fetch(self, folder: Path, last: str) -> None:
        """Have here what others have shared below a folder, where ``last`` is there; here it is."""

    def unshare(self, folder: Path) -> None:
        """Remove what was shared below a folder; what is in :attr:`work` stays."""

    def under_way(self, ending: str) -> list[str]:
        """Names of the folders with this ending, shared ones among them."""
        return sorted(path.name for path in self.work.glob(f".*{ending}") if path.is_dir())


class Store(Folder):
    """Maps in an object store."""

    def __init__(self, url: str, work: Path | None = None):
        """Raises UserError if it is no URL of a store, or there is no folder to work in.

        Args:
            work: where that folder is; None: with other things that are kept.
        """
        self._objects = stores.Objects(url)
        super().__init__(_work_of(self._objects.url, work))

    def __str__(self) -> str:
        return self._objects.url

    def at(self, file: str) -> str:
        return self._objects.at(file)

    def check(self) -> None:
        disk.check_folder(self.work)
        next(self._objects.names(), None)  # which also tells that there is a bucket

    @property
    def made(self) -> bool:
        return True

    def has(self, file: str) -> bool:
        return self._objects.look(file) is not None

    def left_by(self, file: str, fingerprint: Mapping[str, Any]) -> bool:
        return self._objects.made_from(file) == _digest(fingerprint)

    def text(self, file: str) -> str | None:
        data = self._objects.read(file)
        return None if data is None else border.decode(data, self.at(file))

    def is_link(self, file: str) -> bool:
        return False

    def local(self, file: str, folder: Path) -> Path:
        path = folder / f"fetched.{file}"
        self._objects.fetch(file, path)
        return path

    def put(self, files: Mapping[str, Path], fingerprint: Mapping[str, Any]) -> None:
        for file, path in files.items():
            self._objects.put(file, path, media_type(file), _digest(fingerprint))

    def write(self, file: str, text: str) -> None:
        self._objects.put(file, text.encode(), media_type(file))

    def remove(self, *files: str) -> None:
        self._objects.remove(files)

    def names(self) -> Iterator[str]:
        return self._objects.names()

    def _name(self, folder: Path) -> str:
        return folder.relative_to(self.work).as_posix()

    def share(self, folder: Path, last: str) -> None:
        files = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != last)
        for file in [*files, last]:
            self._objects.put(f"{self._name(folder)}/{file}", folder / file, media_type(file))

    def has_shared(self, folder: Path, last: str) -> str | None:
        return self.text(f"{self._name(folder)}/{last}")

    def fetch(self, folder: Path, last: str) -> None:
        files: dict[str, list[str]] = {}
        for name in self._objects.below(self._name(folder)):
            files.setdefault(name.rpartition("/")[0], []).append(name.rpartition("/")[2])
        for place, names in files.items():
            here = self.work / place
            if not here.resolve().is_relative_to(folder.resolve()):  # a name made by a stranger
                continue
            if last not in names or not self._differs(here, last):
                continue
            here.mkdir(parents=True, exist_ok=True)
            (here / last).unlink(missing_ok=True)
            for name in [*(name for name in names if name != last), last]:
                with disk.whole(here / name) as path:
                    self._objects.fetch(f"{place}/{name}", path)

    def _differs(self, folder: Path, last: str) -> bool:
        """Whether a folder is not here as it was shared."""
        here = (folder / last).read_text(encoding="utf-8") if (folder / last).is_file() else None
        return here is None or here != self.has_shared(folder, last)

    def unshare(self, folder: Path) -> None:
        self._objects.remove(list(self._objects.below(self._name(folder))))

    def under_way(self, ending: str) -> list[str]:
        shared = [name for name in self._objects.folders() if name.startswith(".") and name.endswith(ending)]
        return sorted({*super().under_way(ending), *shared})


def _digest(fingerprint: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def _work_of(url: str, above: Path | None) -> Path:
    """The folder in which maps for a store are made, the same again for the same URL; without ``above`` this user's alone."""
    above = backend.cache_folder("maps") if above is None else above
    if above is None:
        raise UserError(f"there is no folder of yours to make maps for {url} in; name one with --work")
    return above / hashlib.sha256(url.encode()).hexdigest()[:16]


Out = str | Path | Folder


def of(out: Out, work: Path | None = None) -> Folder:
    """Where maps go, by a path or a URL.

    Args:
        work: of a store: where the folder is in which they are made.

    Raises:
        UserError: it is a URL that nothing can be written to, or ``work`` is given of a folder.
    """
    if isinstance(out, Folder):
        return out
    out = MANGLED.sub(r"\1://", str(out))
    if remote.is_store(out):
        return Store(out, work)
    if remote.scheme_of(out) is not None:
        raise UserError(f"{out} is a web server, which takes no maps; --out must be a folder, or s3://, gs:// or az://")
    if work is not None:
        raise UserError(f"--work is for maps that go to a store, and {out} is a folder; leave it out")
    return Folder(out)
