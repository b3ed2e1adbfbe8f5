import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from stormproof.hang.process_activity import ReceivedBytes
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the bytes of a socket")
SENDS = """
import socket, sys
connection = socket.create_connection(("{host}", {port}))
connection.sendall(bytes({count}))
sys.stdin.read()
"""
RECEIVES = """
import socket, sys
connection = socket.create_connection(("{host}", {port}))
while connection.recv(65536):
    pass
sys.stdin.read()
"""
COUNT = 1_000_000


@pytest.fixture(params=["127.0.0.1", "::1"])
def server(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        server_socket = socket.create_server((request.param, 0), family=family)
    except OSError:
        pytest.skip(f"there is no {request.param}")
    with closing(server_socket):
        yield server_socket


def start(script: str, server: socket.socket) -> subprocess.Popen[bytes]:
    host, port = server.getsockname()[:2]
    text = script.format(host=host, port=port, count=COUNT)
    return subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE)


def test_what_recv_returns_is_counted_and_what_is_sent_is_not(server: socket.socket):
    received = ReceivedBytes()
    peer = start(SENDS, server)
    with closing(server.accept()[0]) as connection:
        left = COUNT
        while left:
            left -= len(connection.recv(65536))
        assert received.update([os.getpid()]) == COUNT
        assert received.update([os.getpid()]) == COUNT  # the same bytes count once
        assert ReceivedBytes().update([peer.pid]) == 0
        peer.communicate(b"")
    assert received.update([os.getpid()]) == COUNT  # its socket is gone


def test_what_a_descendant_receives_is_counted_by_its_number(server: socket.socket):
    received = ReceivedBytes()
    peer = start(RECEIVES, server)
    with closing(server.accept()[0]) as connection:
        connection.sendall(bytes(COUNT))
        wait_for(lambda: received.update([peer.pid]) == COUNT, 30.0)
    peer.communicate(b"")


def test_no_bytes_are_counted_if_netlink_is_unavailable(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(socket, "socket", refuse)
    assert ReceivedBytes().update([os.getpid(), 2**22 + 1]) == 0
