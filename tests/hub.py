"""A stand-in for the Hub's HTTP API, as far as an upload needs it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_standin"


class Hub:
    """What was uploaded.

    Attributes:
        files: by repository, then by path.
        private: of the repositories that were made.
        refuses: whether commits are answered with 403.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, Any] = {}
        self.refuses = False
        self.address = ""

    def environment(self) -> dict[str, str]:
        """What makes huggingface_hub talk to it."""
        return {
            "HF_ENDPOINT": self.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip

    def get(self, path: str) -> tuple[int, Any]:
        if path.startswith("/api/whoami"):
            return 200, {"name": "me", "type": "user", "orgs": []}
        if path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5]).split("?")[0]
            if name in self.files:
                return 200, {"id": name, "modelId": name, "sha": "0" * 40, "siblings": []}
        return 404, {"error": "not found"}

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.files.setdefault(name, {})
            self.private[name] = asked.get("private") or asked.get("visibility") == "private"
            return 200, {"url": f"{self.address}/{name}", "name": name, "id": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            answer = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in files
            ]
            return 200, {"files": answer}
        if "/commit/" in path:
            if self.refuses:
                return 403, {"error": "this token may not write"}
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    self.files[name][value["path"]] = base64.b64decode(value["content"])
            return 200, {
                "success": True, "commitOid": "1" * 40, "pullRequestUrl": None,
                "commitUrl": f"{self.address}/{name}/commit/1",
            }  # fmt: skip
        return 404, {"error": f"not found: {path}"}


@contextmanager
def standing_in() -> Iterator[Hub]:
    """A Hub of our own on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._answer(401, {"error": "who are you?"})
                return
            self._answer(*hub.get(self.path))

        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(*hub.post(self.path, body))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
