"""A server on this machine: files with byte ranges, servers that go wrong, and the endpoints of the
hub that we use.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Request(NamedTuple):
    """One request that came in; `range` as its header says it."""

    method: str
    path: str
    range: str | None
    token: str | None


class Loopback:
    """What the server has and what it saw. files: {path: bytes}; paths tell how they are served.

    /files/ with ranges; /plain/ ignores them; /short/ breaks off halfway; /other/ sends another
    range; /moved/ redirects to /files/; /error/418 answers so. A commit to a repository of the hub
    makes a new version of its files.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.other_host = f"http://localhost:{port}"
        self.files: dict[str, bytes] = {}
        self.log: list[Request] = []
        # repository -> commit -> files
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[tuple[str, str], str] = {}  # (repository, branch) -> commit
        self.private: set[str] = set()

    def ranges(self) -> list[tuple[int, int]]:
        """The byte ranges [start, end) that were asked for, in order."""
        found = [
            re.fullmatch(r"bytes=(\d+)-(\d+)", request.range)
            for request in self.log
            if request.range
        ]
        return [(int(match[1]), int(match[2]) + 1) for match in found if match]

    def commit(self, repository: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Add files to a repository of the hub; return the commit."""
        commits = self.repositories.setdefault(repository, {})
        before = commits.get(self.branches.get((repository, branch), ""), {})
        commit = hashlib.sha1(f"{repository} {branch} {len(commits)}".encode()).hexdigest()
        commits[commit] = {**before, **files}
        self.branches[repository, branch] = commit
        return commit


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Loopback

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/"):  # the hub library's own housekeeping
            return self.answer(404)
        self.note()
        resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if resolved:
            return self.resolve(*resolved.groups())
        if path.startswith("/storage/"):
            _, _, repository, name, commit, file = path.split("/", 5)
            return self.ranged(self.state.repositories[f"{repository}/{name}"][commit][file])
        kind, _, name = path.lstrip("/").partition("/")
        if kind == "error":
            return self.answer(int(name), b"no")
        if kind == "moved":
            return self.answer(302, headers={"Location": f"{self.state.other_host}/files/{name}"})
        if name not in self.state.files:
            return self.answer(404, b"no such file")
        data = self.state.files[name]
        if kind == "plain":
            return self.answer(200, data)
        return self.ranged(data, kind)

    def do_POST(self) -> None:
        self.note()
        body = (
            self.rfile.read(int(self.headers["Content-Length"]))
            if "Content-Length" in self.headers
            else self.chunks()
        )
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            repository = f"{wanted['organization'] or 'me'}/{wanted['name']}"
            if wanted.get("visibility") == "private" or wanted.get("private"):
                self.state.private.add(repository)
            status = 409 if (repository, "main") in self.state.branches else 200
            if status == 200:
                self.state.commit(repository, {})
            return self.answer_json({"url": f"{self.state.url}/{repository}"}, status)
        if self.path == "/api/validate-yaml":
            return self.answer_json({"warnings": [], "errors": []})
        match = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/([^/?]+).*", self.path
        )
        assert match, self.path
        repository, action, branch = match.groups()
        if action == "branch":
            self.state.branches[repository, branch] = self.state.branches[repository, "main"]
            return self.answer_json({})
        if action == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [
                {"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files
            ]
            return self.answer_json({"files": modes})
        lines = [json.loads(line) for line in body.splitlines()]
        sent = [line["value"] for line in lines if line["key"] == "file"]
        added = {each["path"]: base64.b64decode(each["content"]) for each in sent}
        commit = self.state.commit(repository, added, branch)
        answer = {
            "commitUrl": f"{self.state.url}/{repository}/commit/{commit}",
            "commitOid": commit,
        }
        return self.answer_json({**answer, "hookOutput": "", "success": True})

    def resolve(self, repository: str, revision: str, file: str) -> None:
        """The hub's answer for one file: which commit, how large, and where its storage is."""
        commit = self.state.branches.get((repository, revision), revision)
        commits = self.state.repositories.get(repository)
        hidden = (
            repository in self.state.private
            and self.headers.get("Authorization") != "Bearer secret"
        )
        if commits is None or hidden:
            return self.answer(
                401,
                headers={"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"},
            )
        if commit not in commits:
            return self.answer(
                404,
                headers={"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"},
            )
        headers = {"X-Repo-Commit": commit}
        if file not in commits[commit]:
            named = {"X-Error-Code": "EntryNotFound", "X-Error-Message": f"{file} does not exist"}
            return self.answer(404, headers={**headers, **named})
        data = commits[commit][file]
        headers |= {
            "X-Linked-Size": str(len(data)),
            "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
        }
        location = f"{self.state.other_host}/storage/{repository}/{commit}/{file}?signature=key"
        return self.answer(302, headers={**headers, "Location": location})

    def ranged(self, data: bytes, kind: str = "files") -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None:
            return self.answer(200, data)
        start, end = int(match[1]), min(int(match[2]) + 1, len(data))
        if start >= len(data):
            return self.answer(416, headers={"Content-Range": f"bytes */{len(data)}"})
        part = data[start:end]
        if kind == "other":
            start += 1
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        return self.answer(206, part, headers, len(part) // 2 if kind == "short" else None)

    def note(self) -> None:
        token = self.headers.get("Authorization")
        self.state.log.append(Request(self.command, self.path, self.headers.get("Range"), token))

    def chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer_json(self, value: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(
        self,
        status: int,
        data: bytes = b"",
        headers: dict[str, str] | None = None,
        sent: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:sent])
        if sent is not None:
            self.close_connection = True


@contextmanager
def serving() -> Iterator[Loopback]:
    """Serve on a free port of this machine inside a `with` block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = Loopback(server.server_address[1])
    server.RequestHandlerClass = type("BoundHandler", (Handler,), {"state": state})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
