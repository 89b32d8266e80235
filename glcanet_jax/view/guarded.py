"""What stands before the server: whoever lacks the token, or is another site's page, is told nothing."""

import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

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
