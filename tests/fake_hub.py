"""A Hub on loopback that speaks as much of the Hugging Face Hub's protocol as pulling a model takes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Repositories at one commit, which is `main`; `cuts` are the bytes after which answers with a file break off."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_right"
    cuts: dict[str, list[int]] = field(default_factory=dict)  # by file name
    pause_seconds: dict[str, float] = field(default_factory=dict)  # where a file is cut, by its name
    is_closing: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range

    def add(self, repository: str, directory: Path) -> None:
        """Takes all files of a directory into a repository."""
        files = [path for path in directory.rglob("*") if path.is_file()]
        self.repositories[repository] = {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}

    def fetched(self) -> list[str]:
        """Returns the names of the files whose bytes were asked for, each time."""
        marker = f"/resolve/{COMMIT}/"
        return [path.partition(marker)[2] for method, path, _ in self.requests if method == "GET" and marker in path]


@contextmanager
def serving() -> Iterator[FakeHub]:
    """Serves a Hub until the block ends."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.is_closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - counts the methods' branches as its own
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers["Range"]))
            parts = path.removeprefix("/api/models").split("/", 5)
            repository, what = "/".join(parts[1:3]), parts[3:]
            if refusal := self.refusal(repository, *what[1:2]):
                self.refuse(*refusal)
            else:
                self.send(hub.repositories[repository], *what)

        def refusal(self, repository: str, revision: str = "") -> tuple[int, str] | None:
            authorization = self.headers["Authorization"]
            if repository not in hub.repositories:
                return 404, "RepoNotFound"
            if repository in hub.gated and authorization != f"Bearer {hub.token}":
                return 403 if authorization else 401, "GatedRepo"
            return None if revision in ("main", COMMIT) else (404, "RevisionNotFound")

        def send(self, files: dict[str, bytes], what: str, revision: str, name: str = "") -> None:
            del revision  # there is but one commit
            if what == "revision":
                self.answer(json.dumps({"id": "acme/it", "sha": COMMIT, "siblings": []}).encode())
            elif what == "tree":
                self.answer(json.dumps(tree(files)).encode())
            elif name in files:
                self.send_file(name, files[name])
            else:
                self.refuse(404, "EntryNotFound")

        def send_file(self, name: str, data: bytes) -> None:
            wanted = self.headers["Range"]
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            headers = {"ETag": f'"{oid(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if wanted:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            cuts = hub.cuts.get(name) if self.command == "GET" else None
            cut = cuts.pop(0) if cuts else None
            self.answer(data[start:], status=206 if wanted else 200, headers=headers, cut=cut)
            if name in hub.pause_seconds and cut is not None:
                hub.is_closing.wait(hub.pause_seconds[name])

        def refuse(self, status: int, code: str) -> None:
            self.answer(b"{}", status=status, headers={"X-Error-Code": code, "X-Error-Message": f"this is {code}"})

        def answer(
            self, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:cut])

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Keeps the test's output quiet."""

    return Handler


def oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def tree(files: dict[str, bytes]) -> list[dict[str, object]]:
    return [{"type": "file", "path": name, "size": len(data), "oid": oid(data)} for name, data in files.items()]
