"""``glcanet view``: the server from its options to its end."""

import contextlib
import re
import secrets
import signal
import socket
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glcanet_jax.errors import UserError
from glcanet_jax.view.answers import Viewer
from glcanet_jax.view.chores import Chores
from glcanet_jax.view.found import Allowed
from glcanet_jax.view.gather import gather
from glcanet_jax.view.labels import Labels
from glcanet_jax.view.opening import Opener
from glcanet_jax.view.rasters import POOL

HOST = "127.0.0.1"
BASEMAP = re.compile(r"https?://[\w.-]+(:\d+)?/[^\s'\";]*")
INSTALL = "pip install 'glcanet-jax[view]'"


def check_installed() -> None:
    """Raises UserError if what the server is made of is missing."""
    try:
        import rio_tiler.reader  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"view needs {error.name or error}, which is not installed; {INSTALL}") from error


def check_basemap(url: str | None) -> None:
    """Raises UserError if an address cannot be that of tiles."""
    if url is None:
        return
    if not BASEMAP.fullmatch(url) or not all(part in url for part in ("{z}", "{x}", "{y}")):
        raise UserError(
            f"--basemap is {url[:80]!r}; it must be a URL of tiles with {{z}}, {{x}} and {{y}}, as "
            "https://tile.openstreetmap.org/{z}/{x}/{y}.png"
        )


@contextlib.contextmanager
def viewer_of(
    paths: Sequence[Path],
    dataset: str | None = None,
    folder: Path | None = None,
    basemap: str | None = None,
    labels: Path | None = None,
):
    """What is looked at, ready to be served; its own files go with it.

    Raises:
        UserError: a path cannot be looked at, or there is nothing.
    """
    check_installed()
    check_basemap(basemap)
    drawn = None if labels is None else Labels(labels)
    given = [*paths, *([folder] if folder is not None else [])]
    with tempfile.TemporaryDirectory(prefix="glcanet_jax-view-") as place:
        chores = Chores()
        try:
            opener = Opener(chores, Path(place), Allowed(given))
            yield Viewer(gather([Path(path) for path in paths], opener, dataset, folder), opener, basemap, drawn)
        finally:
            chores.close()
            POOL.close()


def listening(port: int) -> socket.socket:
    """A socket of this machine alone; port 0: any that is free.

    Raises:
        UserError: the port is taken.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, port))
        sock.listen(128)  # a browser that is faster than the server waits for it
    except OSError as error:
        sock.close()
        raise UserError(
            f"port {port} cannot be listened at ({error.strerror}); give another --port, or none"
        ) from error
    return sock


@contextlib.contextmanager
def _until_ended() -> Iterator[None]:
    """Ctrl-C and SIGTERM, which uvicorn gives again once it has ended, end what is inside, and what is of use to nobody then goes."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def serve(
    paths: Sequence[Path],
    dataset: str | None = None,
    folder: Path | None = None,
    basemap: str | None = None,
    port: int = 0,
    browse: bool = True,
    labels: Path | None = None,
) -> None:
    """Serve until Ctrl-C.

    Raises:
        UserError: as :func:`viewer_of` and :func:`listening`.
    """
    with viewer_of(paths, dataset, folder, basemap, labels) as viewer, contextlib.closing(listening(port)) as sock:
        import uvicorn

        from glcanet_jax.view.server import application

        for note in viewer.gallery.notes:
            print(f"note: {note}")
        token, port = secrets.token_urlsafe(24), sock.getsockname()[1]
        hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        url = f"http://{HOST}:{port}/{token}/"
        options = uvicorn.Config(
            application(viewer, token, lambda: hosts),
            log_level="error", access_log=False, server_header=False, date_header=False, limit_concurrency=128, lifespan="off",
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        scenes = len(viewer.gallery.items)
        print(f"{scenes} scene{'s' * (scenes != 1)} at {url}\nCtrl-C ends it")
        if browse:
            webbrowser.open(url)
        with _until_ended():
            uvicorn.Server(options).run(sockets=[sock])
