"""A wall between client and server that falls after a given number of requests, before or after the server heard it."""

from __future__ import annotations

import http.client
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit


class Proxy:
    """Forwards HTTP to ``target``. After ``allowed`` writing requests it cuts every connection.

    ``deaf=False``: the request that is cut first still reaches the server, only the answer is lost.
    """

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.allowed: int | None = None
        self.deaf = True
        self.writes = 0
        self.lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                proxy.forward(self)

            def log_message(self, *_: Any) -> None:
                pass

        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.forward)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reset(self, allowed: int | None = None, *, deaf: bool = True) -> None:
        with self.lock:
            self.allowed, self.deaf, self.writes = allowed, deaf, 0

    def forward(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        path = urlsplit(request.path).path
        is_write = request.command != "GET" and not path.endswith("/search")
        with self.lock:
            self.writes += is_write
            over = self.allowed is not None and self.writes > self.allowed
            first = over and is_write and self.allowed is not None and self.writes == self.allowed + 1
        if over and (self.deaf or not first):
            return self.cut(request)
        connection = http.client.HTTPConnection(self.target.hostname or "", self.target.port, timeout=60)
        try:
            headers = {k: v for k, v in request.headers.items() if k.lower() not in {"host", "connection"}}
            connection.request(request.command, request.path, body, {**headers, "Connection": "close"})
            answer = connection.getresponse()
            content = answer.read()
        except OSError:
            return self.cut(request)
        finally:
            connection.close()
        if over:
            return self.cut(request)
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)
        return None

    @staticmethod
    def cut(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        request.connection.close()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
