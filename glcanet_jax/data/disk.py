"""Files that are written: whole or not at all, under their own names, and never through a link to somewhere else."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from glcanet_jax import border
from glcanet_jax.errors import UserError

BLOCK = 2**20  # bytes


def part_of(path: Path, own: bool = False) -> Path:
    """Where a file lies until it is whole: hidden, beside its place; ``own``: no other process has it there."""
    return path.with_name(f".{path.stem}{f'.{os.getpid()}' * own}.part{path.suffix}")


@contextlib.contextmanager
def whole(path: str | Path, *, shared: bool = False) -> Iterator[Path]:
    """A place to write a file to, which gets its name at the end; what stood under the name is replaced, a link too.

    Args:
        shared: other processes may write it at the same time; the last one's stays.

    Raises:
        UserError: it could not be written; nothing is left of it then, and what stood there stays.
    """
    path = Path(path)
    temporary = part_of(path, shared)
    try:
        temporary.unlink(missing_ok=True)  # of a run that was killed, or a link
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path} could not be written whole ({error.strerror or error}); free space in {path.parent}, or make it "
            "writable, then run again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_place(path: str | Path, reads: Iterable[Path] = ()) -> None:
    """See to it that a file can be written under a name that somebody gave: its folder is made.

    Args:
        reads: files that it must not replace, as what it is made from.

    Raises:
        UserError: something else than a file stands there, or one of those; or its folder cannot be made.
    """
    path = Path(path)
    try:
        if path.exists():
            other = border.what_is_there(path)
            if other is not None:
                raise UserError(f"{path} is {other}; give the name of a file to write")
            if any(own.exists() and path.samefile(own) for own in reads):
                raise UserError(f"{path} is what is read, and would be replaced; give another name")
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        told = "there is a file in its way" if isinstance(error, FileExistsError) else getattr(error, "strerror", None)
        raise UserError(f"{str(path)[:300]} cannot be made ({told or error}); give another name") from error


def check_folder(out: Path) -> None:
    """Raises UserError if files cannot be written to a folder, which need not be there; leaves everything as it was."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out must be a folder")
    missing = [folder for folder in (out, *out.parents) if not os.path.lexists(folder)]
    made: list[Path] = []
    try:
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            made.append(folder)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"{out} cannot be written to ({error.strerror or error}); give another --out") from error
    finally:
        with contextlib.suppress(OSError):  # another process may be writing there by now
            for folder in reversed(made):
                folder.rmdir()


def is_at(path: Path, file: Any) -> bool:
    """Whether a path leads to an open file: it may have been removed, or got another name, while its lock was asked for."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def lock(file: Any, wait: bool = False) -> bool | None:
    """Whether an open file is this process's alone from now on, until it is closed; False: it is another's.

    None: nobody can tell, as on Windows and some network disks. ``wait``: for another process to let it go.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a disk that knows no locks
        return None
    return True


@contextlib.contextmanager
def held(folder: Path, cure: str) -> Iterator[None]:
    """A folder that no other process holds meanwhile; the system lets it go when this one ends, however it does.

    Where it cannot be held (Windows, some network disks) nothing is asked.

    Raises:
        UserError: another process holds it; ``cure`` says what to do.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        if lock(handle) is False:
            raise UserError(f"a run is under way in {folder}; {cure}")
        yield
    finally:
        os.close(handle)


def claim(folder: Path) -> None:
    """Make a folder that is ours alone ready to write in.

    A link in its place, links in it and files that have another name elsewhere are removed: what they lead to stays as it is.

    Raises:
        UserError: something is in its place, or in it, that was not made here.
    """
    if folder.is_symlink():
        folder.unlink()
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is a file where a folder of ours belongs; move it away")
    folder.mkdir(parents=True, exist_ok=True)
    for entry in sorted(folder.iterdir()):
        status = entry.lstat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{entry} is a folder, which was not made here; move it away")
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            entry.unlink()


def own(path: Path) -> None:
    """Turn a file that is written to in place, a link or one with two names, into one of its own, with what it holds.

    Raises:
        UserError: it is a folder, or a link to one, or cannot be read.
    """
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder, where a file is written; move it away")
    status = path.lstat()
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return
    data = path.read_bytes() if path.is_file() else b""  # of a pipe, or a link to nothing, nothing is kept
    with whole(path) as place:
        place.write_bytes(data)


def check_no_links(folder: Path) -> None:
    """Raises UserError if a folder that is written to, or one in it, is a link: files would be removed elsewhere."""
    for place in (folder, *folder.glob("*"), *folder.glob("*/*")):
        if place.is_symlink():
            raise UserError(
                f"{place} is a link to {os.readlink(place)}, and nothing is written or removed there; put what it holds in "
                f"its place, or make {folder.parent} itself the link"
            )


def reserve(file: Any, size: int) -> None:
    """Give an open file its size, and every byte of it a place on the disk: writing to it through memory cannot fail then.

    Raises:
        OSError: the disk has no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    zeros = bytes(BLOCK)
    for start in range(0, size, BLOCK):
        file.write(zeros[: size - start])
    file.flush()
