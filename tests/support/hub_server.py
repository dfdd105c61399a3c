"""A small Hugging Face Hub on the loopback interface, which the real, unmodified clients read from and write to.

It serves what `huggingface_hub` and `datasets` need of models, datasets and Spaces: create, settings, upload (regular
files and LFS), commits, branches, tags and pull requests, listings and downloads; and it fails on request::

    with HubServer() as hub:
        subprocess.run(program, env={**os.environ, **hub.environment(home), "HF_TOKEN": ACCEPTED})
        hub.fail("POST", "/commit/", status=412)
        hub.requests  # what was asked for and how it was answered

The clients read their settings when they are imported, so they run in processes of their own, with
`HubServer.environment`. Not served: Xet (switched off there), multipart uploads, discussions, quotas.
"""

import base64
import hashlib
import json
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

ACCEPTED = "hf_RightfulOwnerOfEverything"  # a token of the user OWNER that may read and write
READING = "hf_MayReadAndNothingElse"  # another one of the same user, read-only
STRANGER = "hf_SomebodyElseAltogether"  # of another user
OWNER = "someone"

LFS_SUFFIXES = (".parquet", ".arrow", ".png", ".jpg", ".webp", ".npy", ".safetensors", ".bin", ".zip")
LFS_THRESHOLD = 10 * 2**20
URL_PREFIX = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}


class Refusal(Exception):  # noqa: N818 (an answer of the Hub, not a fault of the tests)
    """An answer that is not 200; ``code`` is what the client tells its errors by."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | dict(headers or {})


class Request(NamedTuple):
    """What was asked for, and the status of the answer; 0 where the connection was cut."""

    method: str
    path: str
    status: int


@dataclass
class Fault:
    """An answer to requests to come: an error, or a connection that is cut (status 0)."""

    method: str
    path: re.Pattern[str]
    status: int
    times: int
    skip: int
    carried_out: bool

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request is one that fails; counts it."""
        if self.times <= 0 or method != self.method or not self.path.search(path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass
class Commit:
    """All files as of one commit."""

    files: dict[str, bytes]
    parent: str | None
    title: str
    author: str
    description: str = ""
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"))


@dataclass
class Repository:
    """Commits, each with its files, and the branches, tags and pull requests (``refs/pr/1``) that name them."""

    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)

    def commit(
        self,
        files: dict[str, bytes],
        name: str = "main",
        *,
        title: str = "by hand",
        author: str = OWNER,
        text: str = "",
    ) -> str:
        """A new commit with just these files, as which the branch or tag is known from now on; its hash."""
        sha = secrets.token_hex(20)  # never the same again: clients keep what they read of a commit
        self.commits[sha] = Commit(files, self.names.get(name), title, author, text)
        self.names[name] = sha
        return sha

    def edit(self, files: Mapping[str, bytes], name: str = "main") -> str:
        """A new commit in which these files are new or changed and all others stay."""
        return self.commit({**self.files(name), **files}, name)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files as of a branch, tag, pull request or commit."""
        return self.commits[self.sha(revision)].files

    def sha(self, revision: str) -> str:
        """The commit of a revision."""
        sha = self.names.get(revision.removeprefix("refs/heads/"), revision)
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha


class HubServer:
    """Serves repositories by name; use it as ``with HubServer() as hub``.

    Args:
        tokens: The user of each token.
        readonly: Tokens that may not write.

    Attributes:
        repositories: By kind (``models``, ``datasets``, ``spaces``) and name.
        requests: In order.
        before_commit: Called with the repository before a commit is looked at; a test may slip in another one.
    """

    def __init__(self, tokens: Mapping[str, str] | None = None, readonly: Iterable[str] = (READING,)) -> None:
        self.tokens = dict(tokens or {ACCEPTED: OWNER, READING: OWNER, STRANGER: "stranger"})
        self.readonly = set(readonly)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.before_commit: Callable[[Repository], None] | None = None
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def clear(self) -> None:
        """As new: no repositories, nothing uploaded, no faults to come."""
        for kept in (self.repositories, self.blobs, self.requests, self.faults):
            kept.clear()
        self.before_commit = None

    def repository(self, repo_id: str, *, private: bool = False, kind: str = "models") -> Repository:
        """A new repository without a commit."""
        self.repositories[kind, repo_id] = Repository(private)
        return self.repositories[kind, repo_id]

    def dataset(self, repo_id: str) -> Repository:
        """The repository of a dataset that is there."""
        return self.repositories["datasets", repo_id]

    def fail(
        self, method: str, path: str, *, status: int = 503, times: int = 1, skip: int = 0, carried_out: bool = False
    ) -> None:
        """Let requests fail whose path (still quoted) has this pattern.

        Args:
            method: ``"GET"``, ``"HEAD"``, ``"POST"`` or ``"PUT"``.
            path: A regular expression that is searched for.
            status: Of the answer; 0 = the connection is cut in the middle of what the client sends.
            times: How many of the requests fail.
            skip: How many are let through before.
            carried_out: What was asked for is done all the same; the client just does not hear of it.
        """
        self.faults.append(Fault(method, re.compile(path), status, times, skip, carried_out))

    def environment(self, home: object) -> dict[str, str]:
        """Variables of a process whose client talks to this server, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_ETAG_TIMEOUT": "60",  # seconds: on a busy machine, the usual 10 are too few
            "HF_HUB_DOWNLOAD_TIMEOUT": "60",
        }

    def downloads(self) -> list[str]:
        """Names (with folders) of the files whose content was asked for."""
        found = [re.fullmatch(r"/.+/resolve/[^/]+/(.+)", r.path) for r in self.requests if r.method == "GET"]
        return [match[1] for match in found if match]

    # Who may do what

    def user(self, authorization: str | None) -> tuple[str | None, str | None]:
        """The user and the token of a request; None, None for a stranger."""
        if not authorization:
            return None, None
        token = authorization.removeprefix("Bearer ").strip()
        if token not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens[token], token

    def require_writer(self, who: tuple[str | None, str | None], namespace: str) -> None:
        """Refuse who may not write there."""
        user, token = who
        if user is None:
            raise Refusal(401, "Authentication required")
        if token in self.readonly or namespace != user:
            raise Refusal(403, f"You don't have the rights to write in the namespace {namespace}")

    def find(self, who: tuple[str | None, str | None], kind: str, repo_id: str, *, write: bool = False) -> Repository:
        """The repository, if this user may see it (and write to it)."""
        repository, namespace = self.repositories.get((kind, repo_id)), repo_id.split("/", maxsplit=1)[0]
        if repository is None or (repository.private and who[0] != namespace):
            raise Refusal(401 if who[0] is None else 404, "Repository not found", "RepoNotFound")
        if write:
            self.require_writer(who, namespace)
        return repository


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was cut off, or was killed, is not a fault of the server's."""


_REPO = r"(?P<kind>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
_FILES = r"/(?:(?P<prefix>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+?)"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece: of two, the second would wait for the client's acknowledgment
    disable_nagle_algorithm = True
    hub: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        """Whatever the method: the route whose pattern the path has, unless a fault strikes."""
        split = urlsplit(self.path)
        with self.hub.lock:
            fault = next((fault for fault in self.hub.faults if fault.strikes(self.command, self.path)), None)
        try:
            if fault and fault.status == 0 and not fault.carried_out:
                return self._cut(read=int(self.headers.get("Content-Length") or 0) // 2)
            self.raw = self._body()
            if fault is None or fault.carried_out:
                answer = self._route(split.path, {k: v[-1] for k, v in parse_qs(split.query).items()})
            if fault and fault.status == 0:
                return self._cut()
            status, content, headers = answer if fault is None else _refused(Refusal(fault.status, "injected fault"))
        except Refusal as refusal:
            status, content, headers = _refused(refusal)
        return self._reply(status, content, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 (the names that http.server calls)

    def _route(self, path: str, query: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, serve in ROUTES:
            if method == wanted and (match := pattern.fullmatch(path)):
                found = {name: unquote(value) if value else value for name, value in match.groupdict().items()}
                if "prefix" in found:
                    found["kind"] = found.pop("prefix") or "models"
                # Addresses of blobs are signed on the real Hub, and take no token.
                who = (None, None) if path.startswith("/_lfs/") else self.hub.user(self.headers.get("Authorization"))
                with self.hub.lock:
                    answer = serve(Call(self.hub, who, self.raw, query, self.headers.get("Range")), **found)
                if isinstance(answer, tuple):
                    return answer
                return 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}
        raise Refusal(404, f"not served here: {self.command} {path}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _cut(self, read: int = 0) -> None:
        self.rfile.read(read)
        self.hub.requests.append(Request(self.command, unquote(urlsplit(self.path).path), 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _reply(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.hub.requests.append(Request(self.command, unquote(urlsplit(self.path).path), status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _refused(refusal: Refusal) -> tuple[int, bytes, dict[str, str]]:
    content = json.dumps({"error": refusal.message}).encode()
    return refusal.status, content, {"Content-Type": "application/json", **refusal.headers}


@dataclass
class Call:
    """A request as the functions below see it."""

    hub: HubServer
    who: tuple[str | None, str | None]
    raw: bytes
    query: dict[str, str]
    range: str | None

    @property
    def json(self) -> dict[str, Any]:
        """The body."""
        return json.loads(self.raw or b"{}")


# Account and repositories


def whoami(call: Call) -> object:
    """Whose token it is, and whether it may write."""
    user, token = call.who
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    role = "read" if token in call.hub.readonly else "write"
    access = {"type": "access_token", "accessToken": {"displayName": "a token", "role": role}}
    return {"type": "user", "id": "0", "name": user, "fullname": user, "isPro": False, "orgs": [], "auth": access}


def validate_yaml(call: Call) -> object:
    """Refuses a card whose metadata is not a YAML mapping."""
    require_card(call.json["content"])
    return {"errors": [], "warnings": []}


def require_card(text: str) -> None:
    """Refuse a card whose metadata cannot be read."""
    match = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        raise Refusal(400, f"Invalid metadata in README.md: {error}") from error
    if not isinstance(data, dict) or (match is None and text.startswith("---")):
        raise Refusal(400, "Invalid metadata in README.md: not a mapping")


def create(call: Call) -> object:
    """A new repository with a first commit, as the Hub makes it."""
    args = call.json
    kind, namespace = args.get("type", "model") + "s", args.get("organization") or call.who[0]
    call.hub.require_writer(call.who, namespace or "")
    repo_id = f"{namespace}/{args['name']}"
    url = f"{call.hub.url}/{URL_PREFIX[kind]}{repo_id}"
    if (kind, repo_id) in call.hub.repositories:
        answer = {"error": f"You already created this {kind[:-1]} repo", "url": url}
        return 409, json.dumps(answer).encode(), {}
    private = args.get("visibility") == "private" or bool(args.get("private"))
    attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
    call.hub.repository(repo_id, private=private, kind=kind).commit(
        {".gitattributes": attributes.encode()}, title="initial commit", author=str(call.who[0])
    )
    return {"url": url, "name": repo_id, "id": repo_id}


def settings(call: Call, kind: str, repo_id: str) -> object:
    """Private or public."""
    repository = call.hub.find(call.who, kind, repo_id, write=True)
    if {"visibility", "private"} & set(call.json):
        repository.private = call.json.get("visibility") == "private" or bool(call.json.get("private"))
    return {"private": repository.private}


def listing(call: Call, kind: str) -> object:
    """The repositories of a kind that this user may see."""
    owner = call.query.get("author")
    return [
        {key: value for key, value in _info(name, repository, "main").items() if key != "siblings"}
        for (of_kind, name), repository in call.hub.repositories.items()
        if of_kind == kind
        and owner in (None, name.split("/")[0])
        and (not repository.private or call.who[0] == name.split("/")[0])
    ]


def info(call: Call, kind: str, repo_id: str, revision: str | None = None) -> object:
    """A repository at a revision."""
    return _info(repo_id, call.hub.find(call.who, kind, repo_id), revision or "main")


def _info(repo_id: str, repository: Repository, revision: str) -> dict[str, Any]:
    sha = repository.sha(revision)
    commit = repository.commits[sha]
    siblings = [{"rfilename": path, "size": len(content)} for path, content in sorted(commit.files.items())]
    return {
        "_id": hashlib.md5(repo_id.encode(), usedforsecurity=False).hexdigest()[:24],
        "id": repo_id,
        "modelId": repo_id,
        "author": repo_id.split("/", maxsplit=1)[0],
        "sha": sha,
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "lastModified": commit.date,
        "createdAt": commit.date,
        "siblings": siblings,
    }


def refs(call: Call, kind: str, repo_id: str) -> object:
    """Branches, tags and pull requests."""
    repository = call.hub.find(call.who, kind, repo_id)
    pulls = {name for name in repository.names if name.startswith("refs/pr/")}

    def named(names: Iterable[str], where: str) -> list[dict[str, str]]:
        return [{"name": n, "ref": where + n, "targetCommit": repository.names[n]} for n in sorted(names)]

    return {
        "branches": named(set(repository.names) - pulls - repository.tags, "refs/heads/"),
        "tags": named(repository.tags, "refs/tags/"),
        "pullRequests": named(pulls, "") if call.query.get("include_prs") else [],
        "converts": [],
    }


def commits(call: Call, kind: str, repo_id: str, revision: str) -> object:
    """The history of a revision, the newest first."""
    repository = call.hub.find(call.who, kind, repo_id)
    sha: str | None = repository.sha(revision)
    found = []
    while sha:
        commit = repository.commits[sha]
        told = {"id": sha, "title": commit.title, "message": commit.description, "date": commit.date}
        found.append({**told, "authors": [{"user": commit.author}]})
        sha = commit.parent
    return found


def branch(call: Call, kind: str, repo_id: str, revision: str) -> object:
    """A new branch."""
    repository = call.hub.find(call.who, kind, repo_id, write=True)
    if revision in repository.names:
        raise Refusal(409, f"Reference already exists: {revision}")
    repository.names[revision] = repository.sha(call.json.get("startingPoint") or "main")
    return {}


def tag(call: Call, kind: str, repo_id: str, revision: str) -> object:
    """A new tag."""
    repository, name = call.hub.find(call.who, kind, repo_id, write=True), call.json["tag"]
    if name in repository.names:
        raise Refusal(409, f"Reference already exists: {name}")
    repository.names[name] = repository.sha(revision)
    repository.tags.add(name)
    return {}


# Upload


def preupload(call: Call, kind: str, repo_id: str, revision: str) -> object:
    """Which files go through LFS, and which are there already."""
    files = call.hub.find(call.who, kind, repo_id, write=True).files(revision)
    answers = []
    for file in call.json["files"]:
        path = file["path"]
        old = _entry(path, files[path]) if path in files else {}
        mode = "lfs" if is_lfs(path, file["size"]) else "regular"
        oid = old.get("lfs", old).get("oid")
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": answers}


def is_lfs(path: str, size: int) -> bool:
    """Whether a file goes through LFS."""
    return path.endswith(LFS_SUFFIXES) or size >= LFS_THRESHOLD


def lfs_batch(call: Call, kind: str, repo_id: str) -> object:
    """Where blobs go that are not there; those that are have no "actions", and the client leaves them out."""
    call.hub.find(call.who, kind, repo_id, write=True)
    objects = []
    for wanted in call.json["objects"]:
        found = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in call.hub.blobs:
            upload = {"href": f"{call.hub.url}/_lfs/{wanted['oid']}", "header": {}}
            found["actions"] = {"upload": upload, "verify": {"href": f"{call.hub.url}/_lfs/verify", "header": {}}}
        objects.append(found)
    return {"transfer": "basic", "objects": objects, "hash_algo": "sha256"}


def lfs_put(call: Call, oid: str) -> object:
    """A blob arrives."""
    if hashlib.sha256(call.raw).hexdigest() != oid:
        raise Refusal(400, "the content does not have that sha256")
    call.hub.blobs[oid] = call.raw
    return 200, b"", {}


def lfs_verify(call: Call) -> object:
    """Whether a blob has arrived."""
    if len(call.hub.blobs.get(call.json["oid"], b"")) != call.json["size"]:
        raise Refusal(404, "no such object, or another size")
    return {}


def make_commit(call: Call, kind: str, repo_id: str, revision: str) -> object:
    """All operations of a commit, or none of them."""
    repository = call.hub.find(call.who, kind, repo_id, write=True)
    if call.hub.before_commit:
        call.hub.before_commit(repository)
    lines = [json.loads(line) for line in call.raw.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if revision in repository.tags or revision in repository.commits:
        raise Refusal(400, "commits go to branches")
    head = repository.sha(revision)
    if header.get("parentCommit") not in (None, head):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    files = dict(repository.files(head))
    for line in lines:
        _carry_out(call.hub, files, line["key"], line["value"])
    if kind == "datasets" and "README.md" in files:
        require_card(files["README.md"].decode())
    answer: dict[str, object] = {"success": True, "hookOutput": ""}
    place = f"{call.hub.url}/{URL_PREFIX[kind]}{repo_id}"
    if call.query.get("create_pr"):
        number = 1 + sum(name.startswith("refs/pr/") for name in repository.names)
        revision = f"refs/pr/{number}"
        answer["pullRequestUrl"] = f"{place}/discussions/{number}"
        repository.names[revision] = head
    text = {"title": header["summary"], "text": header.get("description", ""), "author": str(call.who[0])}
    sha = repository.commit(files, revision.removeprefix("refs/heads/"), **text)
    return {**answer, "commitOid": sha, "commitUrl": f"{place}/commit/{sha}"}


def _carry_out(hub: HubServer, files: dict[str, bytes], key: str, value: dict[str, str]) -> None:
    """One operation of a commit."""
    path = value.get("path", "")
    if key == "file":
        files[path] = base64.b64decode(value["content"])
    elif key == "lfsFile":
        if value["oid"] not in hub.blobs:
            raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
        files[path] = hub.blobs[value["oid"]]
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
            del files[name]


# Listing and download


def tree(call: Call, kind: str, repo_id: str, revision: str, path: str | None = None) -> object:
    """Files (and folders) under a folder."""
    files = call.hub.find(call.who, kind, repo_id).files(revision)
    prefix = f"{path.rstrip('/')}/" if path else ""
    is_recursive = call.query.get("recursive", "").lower() in ("1", "true")
    found: dict[str, dict[str, object]] = {}
    for name in sorted(name for name in files if name.startswith(prefix)):
        parts = name.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if is_recursive else min(2, len(parts))):
            folder = prefix + "/".join(parts[:depth])
            found.setdefault(folder, _folder(folder))
        if is_recursive or len(parts) == 1:
            found[name] = _entry(name, files[name])
    if path and not found:
        raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
    return list(found.values())


def paths_info(call: Call, kind: str, repo_id: str, revision: str) -> object:
    """What of some paths is there."""
    files = call.hub.find(call.who, kind, repo_id).files(revision)
    wanted = call.json if call.raw.startswith(b"{") else parse_qs(call.raw.decode())
    found = []
    for path in wanted.get("paths", []):
        if path in files:
            found.append(_entry(path, files[path]))
        elif any(name.startswith(f"{path.rstrip('/')}/") for name in files):
            found.append(_folder(path))
    return found


def _entry(path: str, content: bytes) -> dict[str, Any]:
    pointer = content
    lfs: dict[str, object] = {}
    if is_lfs(path, len(content)):
        sha = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {len(content)}\n".encode()
        lfs = {"lfs": {"oid": sha, "size": len(content), "pointerSize": len(pointer)}}
    oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer, usedforsecurity=False).hexdigest()
    return {"type": "file", "path": path, "oid": oid, "size": len(content), **lfs}


def _folder(path: str) -> dict[str, object]:
    oid = hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "path": path, "oid": oid, "size": 0}


def resolve(call: Call, kind: str, repo_id: str, revision: str, path: str) -> object:
    """The content of a file."""
    repository = call.hub.find(call.who, kind, repo_id)
    sha = repository.sha(revision)
    content = repository.files(sha).get(path)
    if content is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": sha})
    entry = _entry(path, content)
    etag = entry.get("lfs", entry)["oid"]
    headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
    if "lfs" in entry:
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", call.range or "")
    if not wanted:
        return 200, content, headers
    first, last = wanted.groups()
    start = int(first) if first else max(0, len(content) - int(last))
    end = min(int(last), len(content) - 1) if first and last else len(content) - 1
    if start >= len(content):
        raise Refusal(416, "range not satisfiable", headers={"Content-Range": f"bytes */{len(content)}"})
    return 206, content[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"}


_ROUTES: list[tuple[str, str, Callable[..., object]]] = [
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("POST", r"/api/repos/create", create),
    ("PUT", rf"/api/{_REPO}/settings", settings),
    ("GET", r"/api/(?P<kind>models|datasets|spaces)", listing),
    ("GET", rf"/api/{_REPO}(?:/revision/(?P<revision>.+))?", info),
    ("GET", rf"/api/{_REPO}/refs", refs),
    ("GET", rf"/api/{_REPO}/commits/(?P<revision>[^/]+)", commits),
    ("POST", rf"/api/{_REPO}/branch/(?P<revision>[^/]+)", branch),
    ("POST", rf"/api/{_REPO}/tag/(?P<revision>[^/]+)", tag),
    ("POST", rf"/api/{_REPO}/preupload/(?P<revision>[^/]+)", preupload),
    ("POST", rf"{_FILES}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
    ("POST", r"/_lfs/verify", lfs_verify),
    ("POST", rf"/api/{_REPO}/commit/(?P<revision>[^/]+)", make_commit),
    ("GET", rf"/api/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", tree),
    ("POST", rf"/api/{_REPO}/paths-info/(?P<revision>[^/]+)", paths_info),
    ("GET", rf"{_FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
]
ROUTES = [(method, re.compile(pattern + "/?"), serve) for method, pattern, serve in _ROUTES]
