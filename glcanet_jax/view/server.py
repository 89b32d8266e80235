"""The server: what was given, to this machine alone, behind a token; a broken file breaks its tiles and nothing else."""

import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glcanet_jax.errors import UserError
from glcanet_jax.view import answers, tiles
from glcanet_jax.view.answers import Viewer
from glcanet_jax.view.lasting import Kept
from glcanet_jax.view.queries import Refused, number

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".md": "text/plain"}
TILES = 48 * 2**20  # bytes of tiles that are kept
PATIENCE = 30  # seconds that a tile waits for its turn
NEVER = {"Cache-Control": "no-store"}
WHILE = {"Cache-Control": "private, max-age=600"}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def policy(basemap: str | None) -> str:
    """The page's own scripts and pictures, and the tiles of the base map that was asked for."""
    from urllib.parse import urlsplit

    outside = ""
    if basemap is not None:
        url = urlsplit(basemap)
        outside = f" {url.scheme}://{url.netloc}"
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:{outside}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Guarded:
    """What stands before everything: the host must be this machine's, the path must begin with the token, the page be ours.

    A page elsewhere can make a browser ask, by another name for this machine (DNS rebinding) or from another site; neither gets an
    answer that says more than that there is nothing.
    """

    def __init__(self, app: Any, token: str, hosts: Callable[[], set[str]], csp: str):
        self._app, self._token, self._hosts = app, token.encode(), hosts
        self._headers = [
            (k.lower().encode(), v.encode()) for k, v in (HEADERS | {"Content-Security-Policy": csp}).items()
        ]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        inner = self._inner(scope)
        if inner is None:
            await told({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await told({"type": "http.response.body", "body": b""})
            return
        await self._app(scope | {"path": inner, "raw_path": inner.encode(), "root_path": ""}, receive, told)

    def _inner(self, scope: Any) -> str | None:
        """The path behind the token; None where there is no answer."""
        headers = dict(scope["headers"])
        if headers.get(b"host", b"").decode("latin-1").lower() not in self._hosts():
            return None
        site, mode = headers.get(b"sec-fetch-site", b"none"), headers.get(b"sec-fetch-mode", b"")
        if site not in (b"none", b"same-origin") and mode != b"navigate":
            return None
        _, token, rest = (scope["path"].split("/", 2) + ["", ""])[:3]
        if not secrets.compare_digest(token.encode("utf-8", "replace"), self._token):
            return None
        return f"/{rest}"


def application(viewer: Viewer, token: str, hosts: Callable[[], set[str]]) -> Any:
    """The server as an ASGI application."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    turns, kept = threading.BoundedSemaphore(max(2, os.cpu_count() or 2)), Kept(TILES)

    def static(request: Any) -> Any:
        # names are looked up among those that there are: no path is put together from what was asked
        name = request.path_params.get("name", "index.html")
        path = {file.name: file for file in PAGE.iterdir()}.get(name)
        if path is None or path.suffix not in KINDS:
            return Response(status_code=404)
        return Response(
            path.read_bytes(), media_type=KINDS[path.suffix], headers=NEVER if name == "index.html" else WHILE
        )

    def told(answer: Callable[[Viewer, Any], Any]) -> Callable[[Any], Any]:
        def respond(request: Any) -> Any:
            try:
                return JSONResponse(answer(viewer, request), headers=NEVER)
            except Refused:
                return Response(status_code=404)
            except UserError as error:
                return JSONResponse({"problem": str(error)}, headers=NEVER)

        return respond

    def tile(request: Any) -> Any:
        try:
            opened, layer = viewer.opened(request), request.path_params["layer"]
            z, x, y = (number(request.path_params[key]) for key in ("z", "x", "y"))
            place = tiles.place_of(opened.height, opened.width, z, x, y)
            if place is None:
                raise Refused
            asked, key = viewer.look(request, opened), f"{request.url.path}?{request.url.query}"
            data = kept.get(key)
            if data is None:
                data = drawn(opened, layer, place, asked)
                if not viewer.preparing:
                    kept.put(key, data)
            return Response(data, media_type="image/png", headers=NEVER)
        except Refused:
            return Response(status_code=404)
        except (UserError, OSError, MemoryError, ValueError) as error:
            viewer.complain(str(error))
            return Response(tiles.broken(), media_type="image/png", headers=NEVER)

    def drawn(opened: Any, layer: str, place: Any, asked: Any) -> bytes:
        if not turns.acquire(timeout=PATIENCE):
            raise UserError("too much is asked for at once; wait, and look again")
        try:
            rgba = tiles.draw(opened, layer, place, asked)
            if rgba is None:
                raise Refused
            return tiles.png(rgba)
        finally:
            turns.release()

    scene, layers = "/api/scene/{scene}", "/tile/{scene}/{layer}/{z}/{x}/{y}"
    routes = [
        Route("/", static),
        Route("/page/{name}", static),
        Route("/api/gallery", told(answers.gallery)),
        Route("/api/status", told(answers.status)),
        Route(scene, told(answers.scene)),
        Route(f"{scene}/areas", told(answers.areas)),
        Route(f"{scene}/pixel", told(answers.pixel)),
        Route(f"{scene}/spots", told(answers.spots)),
        Route(f"{scene}/attention", told(answers.attention)),
        Route(f"{scene}/make", told(answers.make), methods=["POST"]),
        Route(layers, tile),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return Guarded(app, token, hosts, policy(viewer.basemap))
