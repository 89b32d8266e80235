"""An object store on this machine: moto's S3 behind a WSGI layer that fails as it is told and counts what it is asked.

It runs in a process of its own: GDAL asks some things while no other thread of Python can run. ``serving`` starts it, and
talks to the layer by paths that begin with ``/_test/``.
"""

import base64
import importlib.util
import json
import logging
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BUCKET = "maps"
SECONDS = 2.0  # that a client of tests waits for an answer
CONTROL = "/_test/"
NEEDED = ("moto", "werkzeug", "flask", "flask_cors", "boto3")


@dataclass
class Fault:
    """What becomes of some requests: of a method, whose path and query hold some words, so many after so many."""

    kind: str  # "503", "403", "slow", "short": half of the answer, or "to URL"
    method: str = "GET"
    words: str = ""
    times: int = 1
    after: int = 0

    def takes(self, method: str, address: str) -> bool:
        if method != self.method or self.words not in address or self.times == 0:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


@dataclass
class Failing:
    """A WSGI application in front of another."""

    app: Any
    bucket: Any  # returns moto's, with what it holds
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        method, address = environ["REQUEST_METHOD"], f"{environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
        if address.startswith(CONTROL):
            length = int(environ.get("CONTENT_LENGTH") or 0)
            told = getattr(self, environ["PATH_INFO"].removeprefix(CONTROL))(
                json.loads(environ["wsgi.input"].read(length))
            )
            return _answer(start, "200 OK", json.dumps(told).encode())
        with self.lock:
            self.asked.append(f"{method} {address}")
            fault = next((f for f in self.faults if f.takes(method, address)), None)
        if fault is not None and fault.kind in ("503", "403"):
            code = "SlowDown" if fault.kind == "503" else "AccessDenied"
            return _answer(start, f"{fault.kind} {code}", f"<Error><Code>{code}</Code></Error>".encode())
        if fault is not None and fault.kind.startswith("to "):
            start("302 Found", [("Location", fault.kind.removeprefix("to ")), ("Content-Length", "0")])
            return [b""]
        if fault is not None and fault.kind == "slow":
            time.sleep(2.5 * SECONDS)
        answer = self.app(environ, start)
        if fault is None or fault.kind != "short":
            return answer
        whole = b"".join(answer)
        return [whole[: len(whole) // 2]]  # the header promises all of it, and the connection ends

    def fail(self, faults: list[dict[str, Any]]) -> None:
        """Take new faults, and forget what was asked."""
        with self.lock:
            self.faults, self.asked = [Fault(**f) for f in faults], []

    def told(self, _: Any) -> list[str]:
        return self.asked

    def held(self, _: Any) -> dict[str, Any]:
        bucket = self.bucket()
        names = [key for key in bucket.keys if key]
        return {"keys": names, "uploads": [upload.key_name for upload in bucket.multiparts.values()]}

    def get(self, key: str) -> str:
        return base64.b64encode(self.bucket().keys[key].value).decode()

    def clear(self, _: Any) -> None:
        self.fail([])
        bucket = self.bucket()
        for key in list(bucket.keys):
            bucket.keys.pop(key)
        bucket.multiparts.clear()


def _answer(start: Any, status: str, body: bytes) -> list[bytes]:
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def main() -> None:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    layer = Failing(DomainDispatcherApplication(create_backend_app), lambda: backend.buckets[BUCKET])
    server = make_server("127.0.0.1", 0, layer, threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()


@dataclass
class Serving:
    """A server that runs, as tests see it."""

    endpoint: str  # host and port

    def _ask(self, what: str, value: Any = None) -> Any:
        request = urllib.request.Request(f"http://{self.endpoint}{CONTROL}{what}", json.dumps(value).encode())
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return json.loads(answer.read())

    def fail(self, *faults: Fault) -> None:
        self._ask("fail", [asdict(fault) for fault in faults])

    def asked(self, words: str = "") -> list[str]:
        """Requests since faults were set: method, path and query."""
        return [line for line in self._ask("told") if words in line]

    def keys(self) -> list[str]:
        return sorted(self._ask("held")["keys"])

    def uploads(self) -> list[str]:
        """Keys of uploads that were neither completed nor aborted."""
        return self._ask("held")["uploads"]

    def read(self, key: str) -> bytes:
        return base64.b64decode(self._ask("get", key))

    def put(self, key: str, data: bytes) -> None:
        """An object that anybody may read, by its plain URL, too."""
        headers = {"Content-Type": "image/tiff", "x-amz-acl": "public-read"}
        request = urllib.request.Request(self.web(key), data, method="PUT", headers=headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30):
            pass

    def web(self, key: str) -> str:
        """The plain URL of an object."""
        return f"http://{self.endpoint}/{BUCKET}/{key}"

    def clear(self) -> None:
        self._ask("clear")


def settings(endpoint: str) -> dict[str, str]:
    """The environment of a client with little patience, as GDAL names it."""
    return {
        "AWS_ACCESS_KEY_ID": "mine",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_S3_ENDPOINT": endpoint,
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "GDAL_HTTP_TIMEOUT": str(SECONDS),
        "GDAL_HTTP_RETRY_DELAY": "0.05",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@contextmanager
def serving() -> Iterator[Serving]:
    """A store with an empty bucket; skips where something that it needs is not installed."""
    import pytest

    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        pytest.skip(f"{', '.join(lacking)} of moto's server cannot be imported (pip install 'moto[s3,server]')")
    command = [sys.executable, "-W", "ignore", "-m", "tests.data.store_server"]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield Serving(f"127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main()
