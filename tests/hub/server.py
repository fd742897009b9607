"""A hub on this machine: what huggingface_hub asks of it to make a repository, commit to it, and read from it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

TOKEN = "hf_secret"


class Hub(ThreadingHTTPServer):
    """repos: files by name, of each repository. asked: every request, as method and path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.messages: list[str] = []
        self.private: dict[str, bool] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def revision(self, repo: str) -> str:
        """A commit's name: of what the repository holds."""
        digest = hashlib.sha1(repo.encode())
        for name, content in sorted(self.repos[repo].items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(\w+)/(.+)", self.path):
            repo, revision, name = found.groups()
            files = self.server.repos.get(repo)
            if files is None:
                return self._answer(401, {"error": "no such repository"}, error="RepoNotFound")
            head = self.server.revision(repo)
            if revision not in ("main", head):
                return self._answer(404, {"error": "no such revision"}, error="RevisionNotFound")
            if name not in files:
                return self._answer(404, {"error": "no such file"}, error="EntryNotFound", commit=head)
            return self._answer(200, files[name], commit=head)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/\w+)?", self.path.partition("?")[0]):
            if found[1] in self.server.repos:
                return self._answer(200, {"id": found[1], "sha": self.server.revision(found[1])})
            return self._answer(401, {"error": "no such repository"}, error="RepoNotFound")
        return self._answer(404, {"error": f"no answer to {self.path}"})

    def do_POST(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/validate-yaml":
            head = json.loads(body)["content"].split("---")[1]
            wrong = [] if isinstance(yaml.safe_load(head), dict) else [{"message": "no YAML"}]
            return self._answer(400 if wrong else 200, {"errors": wrong, "warnings": []})
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo.startswith("others/"):
                return self._answer(403, {"error": "You don't have the rights"})
            known = repo in self.server.repos
            self.server.repos.setdefault(repo, {})
            self.server.private.setdefault(repo, asked.get("visibility") == "private" or asked.get("private"))
            return self._answer(409 if known else 200, {"url": f"{self.server.address}/{repo}"})
        found = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(preupload|commit)/(\w+)", self.path.partition("?")[0]
        )
        if found is None:
            return self._answer(404, {"error": f"no answer to {self.path}"})
        if found[2] == "preupload":
            files = json.loads(body)["files"]
            told = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self._answer(200, {"files": told})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            else:
                self.server.repos[found[1]][value["path"]] = base64.b64decode(value["content"])
        head = self.server.revision(found[1])
        url = f"{self.server.address}/{found[1]}/commit/{head}"
        return self._answer(200, {"commitUrl": url, "commitOid": head})

    def _answer(self, status: int, content, *, error: str = "", commit: str = "") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
        if commit:
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
