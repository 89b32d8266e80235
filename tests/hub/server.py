"""A small hub over HTTP, with what ``huggingface_hub`` asks of the real one: looking, fetching, making, committing."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Repositories:
    """What is published: by repository, its commits in order, each a dictionary of files."""

    def __init__(self):
        self.commits = {}
        self.asked = []  # method and path of every request
        self.private = {}

    def commit(self, repository, files):
        before = list(self.commits.get(repository, {}).values())
        whole = (before[-1] if before else {}) | files
        name = hashlib.sha1(repr(sorted((k, bytes(v)) for k, v in whole.items())).encode()).hexdigest()
        self.commits.setdefault(repository, {})[name] = whole
        return name

    def at(self, repository, revision):
        """The commit that a revision stands for, None where there is none."""
        known = self.commits.get(repository, {})
        if revision == "main":
            return list(known)[-1] if known else None
        return revision if revision in known else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: Repositories

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code):
        self.answer(404, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.repositories.asked.append((self.command, self.path))
        path = self.path.partition("?")[0]
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if info is None and file is None:
            return self.missing("Unknown")
        repository, revision, *name = (info or file).groups()
        if repository not in self.repositories.commits:
            return self.missing("RepoNotFound")
        commit = self.repositories.at(repository, revision or "main")
        if commit is None:
            return self.missing("RevisionNotFound")
        files = self.repositories.commits[repository][commit]
        if info is not None:
            told = {"id": repository, "sha": commit, "siblings": [{"rfilename": n} for n in files], "tags": []}
            return self.answer(200, told)
        if name[0] not in files:
            return self.missing("EntryNotFound")
        data = files[name[0]]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.answer(200, data, ETag=etag, X_Repo_Commit=commit, Accept_Ranges="bytes")

    def do_POST(self):
        self.repositories.asked.append((self.command, self.path))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer mine":
            return self.answer(401, {"error": "log in"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.repositories.commits.setdefault(name, {})
            self.repositories.private[name] = asked.get("private") or asked.get("visibility") == "private"
            return self.answer(200, {"url": f"http://{self.headers['Host']}/{name}"})
        if self.path == "/api/validate-yaml":  # what the card begins with
            return self.answer(200, {"errors": [], "warnings": []})
        repository = re.match(r"/api/models/([^/]+/[^/]+)/", self.path)[1]
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        lines = [json.loads(line) for line in body.splitlines() if line]
        files = {v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in lines if v["key"] == "file"}
        commit = self.repositories.commit(repository, files)
        url = f"http://{self.headers['Host']}/{repository}/commit/{commit}"
        return self.answer(200, {"commitOid": commit, "commitUrl": url, "success": True})


@contextmanager
def serving(handler=Handler):
    """The address of a hub, and what it holds."""
    repositories = Repositories()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (handler,), {"repositories": repositories}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", repositories
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
