"""A Hub on loopback that speaks the few calls reading and pushing a model make, and counts the bytes it sends."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHA = "1" * 40


class Hub(ThreadingHTTPServer):
    def __init__(self, repo_id: str, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repo_id, self.folder = repo_id, folder
        self.sent: dict[str, int] = {}
        self.tokens: set[str | None] = set()
        self.received: dict[str, bytes] = {}  # large files by hash
        self.commits: list[dict] = []  # header, query and branch of each
        self.requests: list[tuple[str, dict]] = []
        self.broken = False  # commits fail
        self.faults: list[
            str
        ] = []  # what goes wrong with the next answers to GET: a status, "drop", "short" or "whole"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body: bool = True):
        hub, path = self.server, self.path.split("?")[0]
        hub.tokens.add(self.headers.get("Authorization"))
        fault = hub.faults.pop(0) if body and hub.faults else ""
        if fault.isdecimal():
            return self.reply(int(fault), b"{}", {}, body)
        if fault == "drop":
            return self.connection.close()
        if path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == "Bearer hf_secret"
            return self.reply(
                200 if known else 401, b'{"name": "someone", "type": "user"}' if known else b"{}", {}, body
            )
        if path.startswith(f"/api/models/{hub.repo_id}/tree/"):
            files = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
                for p in hub.folder.iterdir()
                if p.is_file()
            ]
            return self.reply(200, json.dumps(files).encode(), {}, body)
        if path.startswith(f"/api/models/{hub.repo_id}"):
            revision = path.partition("/revision/")[2]
            if revision not in ("", "main", SHA):
                return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            files = [{"rfilename": p.name, "size": p.stat().st_size} for p in hub.folder.iterdir() if p.is_file()]
            return self.reply(200, json.dumps({"id": hub.repo_id, "sha": SHA, "siblings": files}).encode(), {}, body)
        stem = f"/{hub.repo_id}/resolve/"
        prefix = f"{stem}main/" if path.startswith(f"{stem}main/") else f"{stem}{SHA}/"  # older clients name the branch
        file = hub.folder / path.removeprefix(prefix)
        if not path.startswith(prefix):
            return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        if not file.is_file():
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA}, body)
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        status = 200
        if self.headers.get("Range") and fault != "whole":
            start, stop = self.headers["Range"].removeprefix("bytes=").split("-")
            total, content, status = len(content), content[int(start) : int(stop) + 1], 206
            headers["Content-Range"] = f"bytes {start}-{stop}/{total}"
        if fault == "short":
            content = content[: len(content) // 2]
        if body:
            hub.sent[file.name] = hub.sent.get(file.name, 0) + len(content)
        return self.reply(status, content, headers, body)

    def do_POST(self):
        hub, (path, _, query) = self.server, self.path.partition("?")
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == f"/api/models/{hub.repo_id}/commit/main" or path.startswith(f"/api/models/{hub.repo_id}/commit/"):
            return self.commit(path.rpartition("/")[2], query, content)
        data = json.loads(content or b"{}")
        hub.requests.append((path, data))
        if path == "/api/repos/create":
            answer = {"url": f"{hub.url}/{hub.repo_id}", "name": hub.repo_id}
        elif path == "/api/validate-yaml" or path.startswith(f"/api/models/{hub.repo_id}/branch/"):
            answer = {}
        elif path.startswith(f"/api/models/{hub.repo_id}/preupload/"):
            modes = [(f["path"], "lfs" if f["path"].endswith(".safetensors") else "regular") for f in data["files"]]
            answer = {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]}
        elif path == f"/{hub.repo_id}.git/info/lfs/objects/batch":
            objects = []
            for o in data["objects"]:
                upload = (
                    {"actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}}
                    if o["oid"] not in hub.received
                    else {}
                )
                objects.append({"oid": o["oid"], "size": o["size"], "authenticated": True, **upload})
            answer = {"transfer": "basic", "objects": objects}
        else:
            return self.reply(404, b"{}", {}, True)
        return self.reply(200, json.dumps(answer).encode(), {}, True)

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name = self.path.removeprefix("/lfs/")
        assert hashlib.sha256(content).hexdigest() == name
        self.server.received[name] = content
        self.server.requests.append((self.path, {}))
        self.reply(200, b"", {}, True)

    def commit(self, branch: str, query: str, content: bytes):
        hub = self.server
        if hub.broken:
            return self.reply(503, b"{}", {}, True)
        lines = [json.loads(line) for line in content.splitlines() if line]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                (hub.folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (hub.folder / value["path"]).write_bytes(hub.received[value["oid"]])
        hub.commits.append({**lines[0]["value"], "query": query, "branch": branch})
        answer = {"success": True, "commitOid": SHA, "commitUrl": f"{hub.url}/{hub.repo_id}/commit/{SHA}"}
        if "create_pr=1" in query:
            answer["pullRequestUrl"] = f"{hub.url}/{hub.repo_id}/discussions/1"
        return self.reply(200, json.dumps(answer).encode(), {}, True)

    def reply(self, status: int, content: bytes, headers: dict, body: bool):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextmanager
def serve(repo_id: str, folder: Path):
    hub = Hub(repo_id, folder)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
