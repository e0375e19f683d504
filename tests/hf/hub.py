"""A hub on this machine: the part of its HTTP interface that an upload uses, over real sockets.

Repositories are dicts of name to content; a commit changes one at once or not at all.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """Serves on a free port from `with` on.

    Attributes:
      repos: files by name, by repository.
      private: the repositories that were made private.
      refuse: the first path part or method whose requests are answered with error 500, for tests.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.commits = 0
        self.refuse = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, value, code: int = 200):
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _handle(self):
        body, hub = self._body(), self.server
        path = self.path.partition("?")[0]
        if hub.refuse and hub.refuse in path:
            return self._answer({"error": f"{hub.refuse} refused"}, 403)
        if self.command == "PUT":
            hub.blobs[path.removeprefix("/upload/")] = body
            return self._answer({})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._answer({"warnings": [], "errors": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        repo, _, rest = path.removeprefix("/api/models/").partition("/")
        name, _, action = rest.partition("/")
        repo = f"{repo}/{name}"
        if repo not in hub.repos:
            return self._answer({"error": f"no {repo}"}, 404)
        if action.startswith("preupload/"):
            return self._preupload(json.loads(body))
        if action.startswith("tree/"):
            return self._tree(repo)
        if action.startswith("commit/"):
            return self._commit(repo, body)
        return self._answer({"id": repo, "sha": "0" * 40, "siblings": [], "private": False})

    do_GET = do_POST = do_PUT = _handle

    def _create(self, asked):
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.server.repos:
            known = {"error": "You already created this model repo"}
            return self._answer(known | {"url": f"{self.server.url}/{repo}"}, 409)
        self.server.repos[repo] = {}
        if asked.get("visibility") == "private" or asked.get("private"):
            self.server.private.add(repo)
        return self._answer({"url": f"{self.server.url}/{repo}", "id": repo})

    def _preupload(self, asked):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in asked["files"]
        ]
        return self._answer({"files": files})

    def _batch(self, asked):
        objects = [
            {**file, "actions": {"upload": {"href": f"{self.server.url}/upload/{file['oid']}"}}}
            for file in asked["objects"]
        ]
        return self._answer({"transfer": "basic", "objects": objects})

    def _tree(self, repo):
        files = self.server.repos[repo]
        return self._answer(
            [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in files.items()
            ]
        )

    def _commit(self, repo, body):
        hub, files = self.server, dict(self.server.repos[repo])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                blob = hub.blobs[value["oid"]]
                assert hashlib.sha256(blob).hexdigest() == value["oid"]
                assert len(blob) == value["size"]
                files[value["path"]] = blob
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        hub.repos[repo] = files
        hub.commits += 1
        return self._answer(
            {"success": True, "commitUrl": f"{hub.url}/{repo}/commit/0", "commitOid": "0" * 40}
        )
