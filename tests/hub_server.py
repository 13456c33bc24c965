"""A Hub on loopback that speaks the few calls reading a model makes, and counts the bytes it sends."""

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
        if path.startswith(f"/api/models/{hub.repo_id}/tree/"):
            files = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40} for p in hub.folder.iterdir() if p.is_file()
            ]
            return self.reply(200, json.dumps(files).encode(), {}, body)
        if path.startswith(f"/api/models/{hub.repo_id}"):
            revision = path.partition("/revision/")[2]
            if revision not in ("", "main", SHA):
                return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            files = [{"rfilename": p.name, "size": p.stat().st_size} for p in hub.folder.iterdir() if p.is_file()]
            return self.reply(200, json.dumps({"id": hub.repo_id, "sha": SHA, "siblings": files}).encode(), {}, body)
        prefix = f"/{hub.repo_id}/resolve/{SHA}/"
        file = hub.folder / path.removeprefix(prefix)
        if not path.startswith(prefix) or not file.is_file():
            return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        status = 200
        if self.headers.get("Range"):
            start, stop = self.headers["Range"].removeprefix("bytes=").split("-")
            total, content, status = len(content), content[int(start) : int(stop) + 1], 206
            headers["Content-Range"] = f"bytes {start}-{stop}/{total}"
        if body:
            hub.sent[file.name] = hub.sent.get(file.name, 0) + len(content)
        return self.reply(status, content, headers, body)

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
