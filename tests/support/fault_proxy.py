"""An HTTP proxy in front of an object store that injects network faults.

A fault is chosen for each request by a function of its method, path and number:

- ``slow down``: responds with 503 SlowDown, without forwarding the request
- ``cut upload``: reads half of the body and closes the connection, without forwarding the request
- ``lose response``: forwards the request and closes the connection instead of responding
- ``cut response``: forwards the request, sends half of the response and closes the connection
- ``half close``: forwards the request, ends its side of the connection without a response, and waits for the client
- ``deny``: responds with 403 AccessDenied, without forwarding the request
- ``ignore conditions``: forwards the request without If-Match and If-None-Match, like a server without support for them
- ``slow``: forwards the request and waits before it responds
"""

# ruff: noqa: N815 (http.server names the methods)

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

FAULTS = ("slow down", "cut upload", "lose response", "cut response", "half close", "slow")
Choose = Callable[[str, str, int], str | None]
_REFUSALS = {
    "slow down": (503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"),
    "deny": (403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"),
}
_DELAY_SECONDS = 0.2


def choose_at_random(seed: int, share: float, faults: tuple[str, ...] = FAULTS) -> Choose:
    """Injects a random fault into this share of the requests."""
    generator = random.Random(seed)
    return lambda method, path, number: generator.choice(faults) if generator.random() < share else None


class FaultProxy:
    """Forwards requests to ``port`` on loopback. ``faults`` records the injected faults."""

    def __init__(self, port: int, choose: Choose = lambda method, path, number: None) -> None:
        self.choose = choose
        self.faults: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            target_port = port

            def choose_fault(self) -> str | None:
                with proxy._lock:
                    proxy.requests.append((self.command, self.path))
                    fault = proxy.choose(self.command, self.path, len(proxy.requests))
                    if fault is not None:
                        proxy.faults.append(fault)
                    return fault

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    target_port = 0

    def choose_fault(self) -> str | None:
        raise NotImplementedError

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client or a fault closed the connection
            self.close_connection = True

    def _forward(self) -> None:
        fault = self.choose_fault()
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "cut upload":
            self.rfile.read(length // 2)
            self._close()
            return
        body = self.rfile.read(length)
        if fault in _REFUSALS:
            self._respond(_REFUSALS[fault][0], [("Content-Type", "application/xml")], _REFUSALS[fault][1])
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.target_port, timeout=60)
        dropped = {"connection", *(("if-match", "if-none-match") if fault == "ignore conditions" else ())}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        connection.request(self.command, self.path, body=body, headers=headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if fault == "slow":
            time.sleep(_DELAY_SECONDS)
        if fault in {"lose response", "half close"}:
            if fault == "half close":
                self.connection.shutdown(socket.SHUT_WR)
                time.sleep(_DELAY_SECONDS)
            self._close()
            return
        self._respond(response.status, response.getheaders(), content, is_cut=fault == "cut response")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def _respond(self, status: int, headers: list[tuple[str, str]], content: bytes, *, is_cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", str(len(content)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if is_cut else content)
        if is_cut:
            self._close()

    def _close(self) -> None:
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 (named by http.server)
        pass
