"""A hub in this process: what of the hub's protocol the real client uses, on repositories that live in a dict.

    with HubServer(tokens={"hf_good"}) as server: HfApi(endpoint=server.url, token="hf_good").create_repo("me/model")

Files come inline or, with `lfs=True`, weights by the Git LFS batch API; `breaks` names requests that are cut off.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse


def speak_to(monkeypatch, server: "HubServer", home) -> None:
    """Make this process, whose client was told of the real hub when it was imported, speak to the server.

    Args:
        home: a folder for what is downloaded.
    """
    constants = "huggingface_hub.constants."
    monkeypatch.setattr(constants + "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants + "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants + "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants + "HF_HUB_CACHE", str(home))
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # made once, for the hub of that time
    monkeypatch.setenv("HF_TOKEN", "hf_good")


@dataclass
class Repository:
    """Branches: name → (commit, files)."""

    private: bool
    branches: dict[str, tuple[str, dict[str, bytes]]] = field(default_factory=dict)
    commits: int = 0

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        self.commits += 1
        sha = hashlib.sha1(f"{branch}{self.commits}{sorted(files)}".encode()).hexdigest()
        self.branches[branch] = (sha, files)
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        return self.branches.get(revision) or next((b for b in self.branches.values() if b[0] == revision), None)


class HubServer(ThreadingHTTPServer):
    """The server, on a free port of this machine while the context lasts."""

    daemon_threads = True

    def __init__(self, tokens=("hf_good",), lfs: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens, self.lfs = set(tokens), lfs
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.breaks: list[str] = []  # regular expressions of "METHOD path"; each cuts one request off
        self.refuses: tuple[str, int, str] | None = None  # such a request, status, what is said
        self.requests: list[str] = []
        self.bodies: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.shutdown()
        self.server_close()

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.repositories[repo].branches[branch][1]

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args) -> None:
        """Nothing on the tests' output."""

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    # ---- one request

    def answer(self, method: str) -> None:
        path = unquote(urlparse(self.path).path)
        self.body = self.read_body()
        self.server.requests.append(f"{method} {path}")
        self.server.bodies.append(self.body)
        for pattern in self.server.breaks:
            if re.search(pattern, f"{method} {path}"):
                self.server.breaks.remove(pattern)
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
        if self.server.refuses and re.search(self.server.refuses[0], f"{method} {path}"):
            self.reply(self.server.refuses[1], {"error": self.server.refuses[2]})
            return
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.known = given in self.server.tokens
        if given and not self.known:
            self.reply(401, {"error": "Invalid username or password."})
            return
        for verb, pattern, handler in ROUTES:
            found = re.fullmatch(pattern, path)
            if verb == method and found:
                handler(self, *found.groups())
                return
        self.reply(404, {"error": f"no route {method} {path}"})

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, status: int, content, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def repository(self, repo: str) -> Repository | None:
        """A repository that the caller may see, or None with the answer sent."""
        found = self.server.repositories.get(repo)
        if found is None or (found.private and not self.known):
            code = 404 if self.known else 401  # as the hub does: it does not tell strangers what is there
            self.reply(code, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def may_write(self) -> bool:
        if not self.known:
            self.reply(401, {"error": "Invalid username or password."})
        return self.known

    # ---- the routes

    def create(self) -> None:
        if not self.may_write():
            return
        wanted = json.loads(self.body)
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if repo in self.server.repositories:
            self.reply(409, {"error": "exists", "url": f"{self.server.url}/{repo}"})
            return
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        made = self.server.repositories[repo] = Repository(private)
        made.commit("main", {".gitattributes": b""})
        self.reply(200, {"url": f"{self.server.url}/{repo}", "id": repo, "name": repo})

    def info(self, repo: str, revision: str | None = None) -> None:
        found = self.repository(repo)
        if found is None:
            return
        there = found.at(revision or "main")
        if there is None:
            self.reply(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
            return
        self.reply(
            200,
            {
                "id": repo,
                "sha": there[0],
                "private": found.private,
                "tags": [],
                "downloads": 0,
                "siblings": [{"rfilename": name, **lfs_of(name, data)} for name, data in there[1].items()],
            },
        )

    def tree(self, repo: str, revision: str) -> None:
        found = self.repository(repo)
        if found is None:
            return
        there = found.at(revision)
        if there is None:
            self.reply(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
            return
        self.reply(
            200,
            [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in there[1].items()
            ],
        )

    def branch(self, repo: str, name: str) -> None:
        found = self.repository(repo)
        if found is None or not self.may_write():
            return
        if name in found.branches:
            self.reply(409, {"error": "Reference already exists"})
            return
        found.branches[name] = found.branches["main"]
        self.reply(200, {})

    def whoami(self) -> None:
        if self.may_write():
            self.reply(200, {"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate(self) -> None:
        self.reply(200, {"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        if self.repository(repo) is None or not self.may_write():
            return
        mode = {True: "lfs", False: "regular"}
        self.reply(
            200,
            {
                "files": [
                    {
                        "path": entry["path"],
                        "shouldIgnore": False,
                        "uploadMode": mode[self.server.lfs and entry["path"].endswith(".safetensors")],
                    }
                    for entry in json.loads(self.body)["files"]
                ]
            },
        )

    def lfs_batch(self, repo: str) -> None:
        if self.repository(repo) is None or not self.may_write():
            return
        objects = []
        for entry in json.loads(self.body)["objects"]:
            there = entry["oid"] in self.server.objects
            actions = {} if there else {"actions": {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}}}
            objects.append({"oid": entry["oid"], "size": entry["size"], **actions})
        self.reply(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.reply(400, {"error": "the content is not what its hash says"})
            return
        self.server.objects[oid] = self.body
        self.reply(200, {})

    def commit(self, repo: str, revision: str) -> None:
        found = self.repository(repo)
        if found is None or not self.may_write():
            return
        sha, files = found.branches[revision][0], dict(found.branches[revision][1])
        if json.loads(self.body.splitlines()[0])["value"].get("parentCommit", sha) != sha:
            self.reply(412, {"error": "A commit has happened since."})
            return
        for line in self.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        sha = found.commit(revision, files)
        self.reply(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{repo}/commit/{sha}"})

    def resolve(self, repo: str, revision: str, name: str) -> None:
        found = self.repository(repo)
        if found is None:
            return
        there = found.at(revision)
        if there is None or name not in there[1]:
            code = "RevisionNotFound" if there is None else "EntryNotFound"
            self.reply(404, {"error": "not found"}, {"X-Error-Code": code})
            return
        data = there[1][name]
        headers = {"X-Repo-Commit": there[0], "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        self.reply(200, data, headers)


def lfs_of(name: str, data: bytes) -> dict:
    """What the hub says of a large file."""
    if not name.endswith(".safetensors"):
        return {}
    return {"size": len(data), "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}}


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    ("POST", r"/api/repos/create", Handler.create),
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("GET", rf"/api/models/{REPO}", Handler.info),
    ("GET", rf"/api/models/{REPO}/revision/(.+)", Handler.info),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)", Handler.tree),
    ("POST", rf"/api/models/{REPO}/branch/(.+)", Handler.branch),
    ("POST", rf"/api/models/{REPO}/preupload/(.+)", Handler.preupload),
    ("POST", rf"/api/models/{REPO}/commit/(.+)", Handler.commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", Handler.lfs_put),
    ("GET", rf"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
    ("HEAD", rf"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
)
