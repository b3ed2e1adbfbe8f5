"""Copies are sent to another node by TCP."""

import socket
import warnings
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Client
from typing import Any

import pytest

from stormproof.checkpoint import Attempt, CommitInfo
from stormproof.checkpoint.hashing import put_hashed
from stormproof.checkpoint.tiers import peer
from stormproof.checkpoint.tiers.memory_folder import MemoryFolder, name_folder
from stormproof.checkpoint.tiers.peer import PeerReceiver, PeerSender
from tests.support.checkpoint_files import state_writer

pytestmark = pytest.mark.usefixtures("memory")


def make_folder(location: str) -> MemoryFolder:
    folder = MemoryFolder(name_folder(location, Attempt(1, 0, 1.0)))
    folder.prepare()
    return folder


def commit(folder: MemoryFolder, step: int) -> Any:
    return folder.commit(state_writer(step), 1, CommitInfo(step=step, epoch=0, world_size=1), 1)


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Iterator[PeerSender]:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(peer, "TIMEOUT_SECONDS", 20.0)
    sender = PeerSender()
    yield sender
    sender.close()


def test_each_copy_is_stored_before_send_returns(sender: PeerSender):
    source, target = make_folder("a"), make_folder("b")
    PeerReceiver(target, sender.address)
    for step in (5, 7):
        sender.send(source, commit(source, step))
        newest = target.find_newest()
        assert newest is not None
        assert newest.step == step


def test_clear_deletes_the_copies_of_the_other_node(sender: PeerSender):
    source, target = make_folder("a"), make_folder("b")
    PeerReceiver(target, sender.address)
    sender.send(source, commit(source, 5))
    sender.clear()
    assert not target.path.exists()
    sender.send(source, commit(source, 7))
    assert target.find_newest() is not None


def test_the_receiver_ends_when_rank_0_closes_and_keeps_the_copy(sender: PeerSender):
    source, target = make_folder("a"), make_folder("b")
    receiver = PeerReceiver(target, sender.address)
    sender.send(source, commit(source, 5))
    sender.close()
    receiver.wait_until_closed()
    assert target.find_newest() is not None


def test_an_error_of_the_other_node_causes_one_warning(sender: PeerSender, monkeypatch: pytest.MonkeyPatch):
    source, target = make_folder("a"), make_folder("b")

    def fail(*_: Any) -> None:
        raise OSError(28, "0 MB are free")

    monkeypatch.setattr(target, "receive", fail)
    PeerReceiver(target, sender.address)
    with pytest.warns(UserWarning, match=r"no longer copied to the memory of another node: .*0 MB are free"):
        sender.send(source, commit(source, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sender.send(source, commit(source, 7))


def test_a_node_that_does_not_connect_causes_one_warning(sender: PeerSender, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peer, "TIMEOUT_SECONDS", 0.1)
    source = make_folder("a")
    with pytest.warns(UserWarning, match="no connection within"):
        sender.send(source, commit(source, 5))


def test_another_program_that_connects_first_is_ignored(sender: PeerSender):
    with socket.create_connection(("127.0.0.1", sender.address.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    source, target = make_folder("a"), make_folder("b")
    PeerReceiver(target, sender.address)
    sender.send(source, commit(source, 5))
    assert target.find_newest() is not None


@pytest.fixture
def impatient_sender(monkeypatch: pytest.MonkeyPatch) -> Iterator[PeerSender]:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(peer, "AUTHENTICATION_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(peer, "TIMEOUT_SECONDS", 0.2)
    sender = PeerSender()
    monkeypatch.setattr(peer, "TIMEOUT_SECONDS", 20.0)
    yield sender
    sender.close()


def test_another_program_that_connects_first_and_sends_nothing_is_ignored(impatient_sender: PeerSender):
    source, target = make_folder("a"), make_folder("b")
    with socket.create_connection(("127.0.0.1", impatient_sender.address.port)):
        PeerReceiver(target, impatient_sender.address)
        assert impatient_sender.send(source, commit(source, 5))
    assert target.find_newest() is not None


def test_a_node_that_stops_reading_causes_one_warning(impatient_sender: PeerSender):
    address, source = impatient_sender.address, make_folder("a")
    source.make_room("000001-step-5.ckpt", 1)
    name = "000001-step-5.ckpt/__0_0.distcp"
    file = put_hashed(source.storage, name, lambda stream: stream.write(bytes(50_000_000)))
    with (
        Client((address.host, address.port), authkey=address.key),
        pytest.warns(UserWarning, match="another node: no data accepted within"),
    ):
        assert not impatient_sender.send_file(source, name, file)


def test_a_sender_without_a_receiver_closes_its_port(impatient_sender: PeerSender):
    impatient_sender.close()
    impatient_sender._accept_job.join(10)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", impatient_sender.address.port)).close()


def test_a_file_of_a_sharded_copy_is_stored_before_send_file_returns(sender: PeerSender):
    source, target, name = make_folder("a"), make_folder("b"), "000001-step-5.ckpt/__0_0.distcp"
    content = bytes(range(256)) * 10_000
    source.make_room("000001-step-5.ckpt", 1)
    file = put_hashed(source.storage, name, lambda stream: stream.write(content))
    PeerReceiver(target, sender.address)
    sender.send_file(source, name, file)
    assert (target.path / name).read_bytes() == content


def test_a_file_that_was_damaged_in_transit_is_reported_once(sender: PeerSender, monkeypatch: pytest.MonkeyPatch):
    source, target, name = make_folder("a"), make_folder("b"), "000001-step-5.ckpt/__0_0.distcp"
    problems: list[str] = []
    monkeypatch.setattr(sender, "_report", problems.append)
    source.make_room("000001-step-5.ckpt", 1)
    file = put_hashed(source.storage, name, lambda stream: stream.write(b"content"))
    PeerReceiver(target, sender.address)
    for _ in range(2):
        sender.send_file(source, name, replace(file, digest="sha256:00"))
    assert problems == [f"{name} was damaged in transit."]
    assert not (target.path / name).exists()


def test_the_key_is_not_printed(sender: PeerSender):
    assert "key" not in repr(sender.address)
