"""A small TCP proxy before a real server: passes on, hangs, answers 429 or 503 itself, cuts off, or damages."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Literal

Mode = Literal["pass", "hang", "429", "503", "cut", "flip"]


class Proxy:
    """Listens on loopback; :attr:`mode` may be changed at any time and holds for bytes that come after it.

    ``hang`` accepts and never answers; ``429`` and ``503`` answer without asking the server; ``cut`` lets the request
    through and closes the connection before the reply, so that the client cannot know whether it was obeyed; ``flip``
    changes one bit of what a client sends after its first 64 KiB, which spares the heads of requests.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.mode: Mode = "pass"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: set[socket.socket] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def set(self, mode: Mode) -> None:
        """Change the mode and end the connections that were opened in the old one, hanging ones too."""
        self.mode = mode
        for connection in list(self._open):
            self._close(connection)

    def stop(self) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.set(self.mode)
        self._thread.join(5)

    def _accept(self) -> None:
        while not self._stopping:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        mode = self.mode
        with contextlib.suppress(OSError):
            if mode in {"429", "503"}:
                while client.recv(1 << 16):
                    body = b"not now"
                    head = f"HTTP/1.1 {mode} No\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                    client.sendall(head.encode() + body)
                    break
            elif mode == "hang":
                while client.recv(1 << 16):
                    pass
            else:
                server = socket.create_connection(("127.0.0.1", self.target))
                self._open.add(server)
                back = threading.Thread(target=self._pump, args=(server, client, mode == "cut"), daemon=True)
                back.start()
                self._pump(client, server, flip=mode == "flip")
                back.join(30)
        self._close(client)

    def _pump(self, source: socket.socket, target: socket.socket, cut: bool = False, flip: bool = False) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                if cut:
                    break
                if flip and passed > 1 << 16:
                    chunk, flip = bytes([chunk[0] ^ 1]) + chunk[1:], False
                passed += len(chunk)
                target.sendall(chunk)
        self._close(source)
        self._close(target)

    def _close(self, connection: socket.socket) -> None:
        self._open.discard(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
