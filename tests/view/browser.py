"""A page in headless Chromium: what it asks for, and what it complains of."""

import contextlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.view.made import TOKEN

CHROMIUM = "chromium", "chromium-browser", "google-chrome"


@contextlib.contextmanager
def browser():
    """Chromium; the test is skipped where it is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.getuid() == 0 else [])
        try:
            yield made
        finally:
            made.close()


@contextlib.contextmanager
def page_of(chromium, url, *, width=1100, height=800, scheme="light", allowed=()):
    """A page that is loaded; in the end it has complained of nothing, and has asked nobody for anything.

    Args:
        allowed: beginnings of addresses that it may ask.
    """
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, told, asked = context.new_page(), [], []
    page.set_default_timeout(60_000)
    bad = lambda message: message.type in ("error", "warning") and "willReadFrequently" not in message.text  # noqa: E731  (a hint)
    page.on("console", lambda message: told.append(message.text) if bad(message) else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", lambda dialog: (told.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(url)
        yield page
        assert not told, told
        outside = [u for u in asked if u != url and not u.startswith(("data:", "blob:", *allowed))]
        assert not outside, outside
    finally:
        context.close()


@contextlib.contextmanager
def served(*paths, **options):
    """The address of a server of paths, in this process."""
    uvicorn = pytest.importorskip("uvicorn", reason="the extra view is not installed")
    pytest.importorskip("rio_tiler", reason="the extra view is not installed")
    from glcanet_jax.view.server import application
    from glcanet_jax.view.serving import HOST, listening, viewer_of

    with viewer_of([Path(path) for path in paths], **options) as viewer, contextlib.closing(listening(0)) as sock:
        port = sock.getsockname()[1]
        app = application(viewer, TOKEN, lambda: {f"{HOST}:{port}"})
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{port}/{TOKEN}/"
        finally:
            server.should_exit = True
            thread.join(timeout=20)
