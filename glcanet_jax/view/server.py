"""The server: what was given, to this machine alone, behind a token; a broken file breaks its tiles and nothing else."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glcanet_jax.errors import UserError
from glcanet_jax.maps.map_report import strict
from glcanet_jax.view import answers, tiles
from glcanet_jax.view.answers import Viewer
from glcanet_jax.view.guarded import Guarded, policy
from glcanet_jax.view.labels import LARGEST
from glcanet_jax.view.lasting import Kept
from glcanet_jax.view.queries import Refused, number

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".md": "text/plain"}
TILES = 48 * 2**20  # bytes of tiles that are kept
PATIENCE = 30  # seconds that a tile waits for its turn
NEVER = {"Cache-Control": "no-store"}
SCENE = "/api/scene/{scene}"


def static(request: Any) -> Any:
    """A file of the page. Names are looked up among those that there are: no path is put together from what was asked."""
    from starlette.responses import Response

    name = request.path_params.get("name", "index.html")
    path = {file.name: file for file in PAGE.iterdir()}.get(name)
    if path is None or path.suffix not in KINDS:
        return Response(status_code=404)
    return Response(path.read_bytes(), media_type=KINDS[path.suffix], headers=NEVER)


def told(viewer: Viewer, answer: Callable[[Viewer, Any], Any]) -> Callable[[Any], Any]:
    """An answer as JSON; what cannot be told is a problem in words, what there is not is not found."""
    from starlette.responses import JSONResponse, Response

    def respond(request: Any) -> Any:
        try:
            return JSONResponse(strict(answer(viewer, request)), headers=NEVER)
        except Refused:
            return Response(status_code=404)
        except (UserError, OSError, MemoryError) as error:
            return JSONResponse({"problem": str(error)}, headers=NEVER)

    return respond


def taken(viewer: Viewer, answer: Callable[[Viewer, Any, bytes], Any]) -> Callable[[Any], Any]:
    """As :func:`told`, of what was sent: JSON, as no form of another site's page can send it, and no more than there may be."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import Response

    async def respond(request: Any) -> Any:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return Response(status_code=404)
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > LARGEST:
                return Response(status_code=413, headers={"Connection": "close"})
        return await run_in_threadpool(
            told(viewer, lambda viewer, request: answer(viewer, request, bytes(data))), request
        )

    return respond


class TileServer:
    """Tiles as PNG; few are drawn at once, and those that were are kept for a while."""

    def __init__(self, viewer: Viewer):
        self._viewer, self._kept = viewer, Kept(TILES)
        self._turns = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))

    def answer(self, request: Any) -> Any:
        from starlette.responses import Response

        try:
            data = self._tile(request)
        except Refused:
            return Response(status_code=404)
        except (UserError, OSError, MemoryError, ValueError) as error:
            self._viewer.complain(str(error))
            data = tiles.broken()
        return Response(data, media_type="image/png", headers=NEVER)

    def _tile(self, request: Any) -> bytes:
        opened, layer = self._viewer.opened(request), request.path_params["layer"]
        place = tiles.place_of(opened.height, opened.width, *(number(request.path_params[key]) for key in "zxy"))
        if place is None:
            raise Refused
        asked = self._viewer.look(request, opened)
        key = f"{request.url.path} {asked}"
        data = self._kept.get(key)
        if data is None:
            chores = self._viewer.opener.chores
            done = chores.done
            data = self._drawn(opened, layer, place, asked)
            if not self._viewer.preparing and chores.done == done:  # else it was drawn before something was ready
                self._kept.put(key, data)
        return data

    def _drawn(self, opened: Any, layer: str, place: tiles.Place, asked: dict[str, Any]) -> bytes:
        if not self._turns.acquire(timeout=PATIENCE):
            raise UserError("too much is asked for at once; wait, and look again")
        try:
            rgba = tiles.draw(opened, layer, place, asked)
            if rgba is None:
                raise Refused
            return tiles.png(rgba)
        finally:
            self._turns.release()


def application(viewer: Viewer, token: str, hosts: Callable[[], set[str]]) -> Any:
    """The server as an ASGI application.

    Args:
        hosts: what the header Host may say, in lower case.
    """
    from starlette.applications import Starlette
    from starlette.routing import Route

    asked = {
        "/api/gallery": answers.gallery,
        "/api/status": answers.status,
        SCENE: answers.scene,
        f"{SCENE}/areas": answers.areas,
        f"{SCENE}/pixel": answers.pixel,
        f"{SCENE}/spots": answers.spots,
        f"{SCENE}/attention": answers.attention,
    }
    routes = [
        Route("/", static),
        Route("/page/{name}", static),
        *(Route(path, told(viewer, answer)) for path, answer in asked.items()),
        Route(f"{SCENE}/make", told(viewer, answers.make), methods=["POST"]),
        Route(f"{SCENE}/labels", told(viewer, answers.labels)),
        Route(f"{SCENE}/labels", taken(viewer, answers.keep_labels), methods=["POST"]),
        Route("/tile/{scene}/{layer}/{z}/{x}/{y}", TileServer(viewer).answer),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return Guarded(app, token, hosts, policy(viewer.basemap))
