"""A small Hugging Face hub on a socket of its own, which the real client library talks to."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "1" * 40


class FakeHub:
    """Serves the files of one directory as the model `name`, at one commit."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.fetched: list[str] = []
        """Files whose contents were asked for."""
        self.status: int | None = None
        """What everything is answered with instead, if set."""
        self.headers: dict[str, str] = {}
        self.url = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of a GET or HEAD."""
        if self.status is not None:
            return self.status, self.headers, b"{}"
        revision, _, file = path.removeprefix(f"/{self.name}/resolve/").partition("/")
        known = ("main", "v1", COMMIT)
        if path.startswith(f"/{self.name}/resolve/") and revision in known:
            content = (self.directory / file).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            return 200, {"etag": f'"{etag}"', "x-repo-commit": COMMIT}, content
        for kind in ("revision", "tree"):
            prefix = f"/api/models/{self.name}/{kind}/"
            if path.startswith(prefix) and path.removeprefix(prefix) in known:
                return 200, {"content-type": "application/json"}, self._listing(kind)
        code = "RevisionNotFound" if self.name in path else "RepoNotFound"
        return 404, {"x-error-code": code}, b"{}"

    def _listing(self, kind: str) -> bytes:
        names = sorted(file.name for file in self.directory.iterdir())
        if kind == "revision":
            siblings = [{"rfilename": name} for name in names]
            return json.dumps({"id": self.name, "sha": COMMIT, "siblings": siblings}).encode()
        entries = [
            {
                "type": "file",
                "path": name,
                "size": (self.directory / name).stat().st_size,
                "oid": "",
            }
            for name in names
        ]
        return json.dumps(entries).encode()


@contextmanager
def fake_hub(name: str, directory: Path) -> Iterator[FakeHub]:
    """A hub for the length of a `with`; its `url` is what HF_ENDPOINT should be."""
    hub = FakeHub(name, directory)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            status, headers, body = hub.answer(path)
            if self.command == "GET" and "/resolve/" in path:
                hub.fetched.append(path.rpartition("/")[2])
            self.send_response(status)
            for key, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
