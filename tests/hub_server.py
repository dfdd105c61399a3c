"""A small Hugging Face Hub on the loopback interface: model repositories that the real client can list and download.

The client reads its settings when it is imported, so it runs in a process of its own, with `HubServer.environment`.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import unquote, urlsplit

ACCEPTED = "right"  # the token that may read private repositories


@dataclass
class Repository:
    """Commits, each with its files, and the branches and tags that name them."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], name: str = "main") -> str:
        """A new commit with these files, as which the branch or tag is known from now on; its hash."""
        sha = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = files
        self.names[name] = sha
        return sha


class HubServer:
    """Serves repositories by name; use it as ``with HubServer() as hub``."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repository(self, repo_id: str, *, private: bool = False) -> Repository:
        """A new repository."""
        self.repositories[repo_id] = Repository(private)
        return self.repositories[repo_id]

    def environment(self, home: object) -> dict[str, str]:
        """Variables of a process whose client talks to this server, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def downloads(self) -> list[str]:
        """Names (with folders) of the files whose content was asked for."""
        found = [re.fullmatch(r"/.+/resolve/[^/]+/(.+)", path) for method, path in self.requests if method == "GET"]
        return [match[1] for match in found if match]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = (api or file) and self.hub.repositories.get((api or file)[1])
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token != ACCEPTED:
            return self._refuse(401, "Invalid credentials in Authorization header")
        if not found or (found.private and not token):
            return self._refuse(404 if token else 401, "Repository not found", "RepoNotFound")
        revision = (api[3] or "main") if api else file[2]
        sha = found.names.get(revision, revision)
        if sha not in found.commits:
            return self._refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if file:
            return self._send_file(sha, found.commits[sha].get(file[3]))
        entries = [_entry(name, content) for name, content in sorted(found.commits[sha].items())]
        if api[2] == "tree":
            return self._reply(200, json.dumps(entries).encode())
        info = {"_id": "0", "id": api[1], "modelId": api[1], "sha": sha, "private": found.private, "tags": []}
        info["siblings"] = [{"rfilename": entry["path"]} for entry in entries]
        return self._reply(200, json.dumps(info).encode())

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send_file(self, sha: str, content: bytes | None) -> None:
        if content is None:
            return self._refuse(404, "Entry not found", "EntryNotFound")
        etag = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"'}
        return self._reply(200, content, {**headers, "X-Linked-Size": str(len(content))})

    def _refuse(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._reply(status, json.dumps({"error": message}).encode(), headers)

    def _reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(name: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return {"type": "file", "path": name, "oid": oid, "size": len(content)}
