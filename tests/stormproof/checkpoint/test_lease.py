import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import filelock
import pytest

from stormproof.checkpoint import Store, lease
from stormproof.checkpoint.lease import STALE_SECONDS, Lease, LeaseError, Owner
from stormproof.errors import FolderLostError, FolderTakenError

HOLDER = """
import sys, types
from importlib.util import find_spec
from pathlib import Path

package = types.ModuleType("stormproof")  # without the callbacks: Lightning takes seconds to import
package.__path__ = list(find_spec("stormproof").submodule_search_locations)
sys.modules["stormproof"] = package
from stormproof.checkpoint import Lease

held = Lease(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
held.release()
print("released", flush=True)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease of ``tmp_path`` until its stdin ends."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def _write(folder: Path, owner: Owner, age: float = 0.0) -> None:
    path = folder / "lease.json"
    path.write_text(json.dumps(asdict(owner)))
    timestamp = time.time() - age
    os.utime(path, (timestamp, timestamp))


def test_a_lease_is_a_file_that_names_its_owner_until_it_is_released(tmp_path: Path):
    owned_lease = Lease(tmp_path)
    try:
        assert json.loads((tmp_path / "lease.json").read_text()) == asdict(owned_lease.owner)
        assert owned_lease.owner.pid == os.getpid()
        assert Lease.is_active(tmp_path)
        owned_lease.check()
    finally:
        owned_lease.release()
    assert not (tmp_path / "lease.json").exists()
    assert not Lease.is_active(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_living_process_keeps_its_lease_and_is_named(holder: subprocess.Popen[str], tmp_path: Path):
    before = (tmp_path / "lease.json").read_bytes()
    set_age(tmp_path, 10 * STALE_SECONDS)  # on its own host only the process counts, not its heartbeat
    with pytest.raises(FolderTakenError, match=rf"is in use by process {holder.pid} on "):
        Lease(tmp_path)
    assert (tmp_path / "lease.json").read_bytes() == before
    assert Lease.is_active(tmp_path)


def set_age(folder: Path, seconds: float) -> None:
    timestamp = time.time() - seconds
    os.utime(folder / "lease.json", (timestamp, timestamp))


@pytest.mark.parametrize("waited_for", [True, False], ids=["gone", "zombie"])
def test_a_killed_process_holds_nothing(waited_for: bool, holder: subprocess.Popen[str], tmp_path: Path):
    holder.send_signal(signal.SIGKILL)
    if waited_for:
        assert holder.wait(60) == -signal.SIGKILL
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is still listed
    assert not Lease.is_active(tmp_path)
    owned_lease = Lease(tmp_path)
    owned_lease.check()
    owned_lease.release()


def test_a_process_that_ends_well_gives_the_folder_back(holder: subprocess.Popen[str], tmp_path: Path):
    assert holder.communicate("", timeout=60) == ("released\n", None)
    assert not (tmp_path / "lease.json").exists()


def test_a_second_lease_in_the_same_process_is_refused(tmp_path: Path):
    owned_lease = Lease(tmp_path)
    try:
        with pytest.raises(FolderTakenError, match=f"process {os.getpid()} "):
            Lease(tmp_path)
        owned_lease.check()
    finally:
        owned_lease.release()


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ({}, True),
        ({"host": "another"}, None),
        ({"host": "another", "boot_id": "x"}, None),
        ({"boot_id": "another start of this machine, or another machine of the same name"}, None),
        ({"start_ticks": 1}, False),
        ({"started": 1.0}, True),
        ({"started": 1.0, "start_ticks": None}, False),
        ({"pid": 2**22 + 1}, False),
    ],
    ids=[
        "itself",
        "another host",
        "another host's start",
        "another boot",
        "a pid used again",
        "the clock was set",
        "a pid used again, no ticks",
        "a pid of nobody",
    ],
)
def test_whether_an_owner_runs_is_known_on_its_own_host(change: dict[str, object], runs: bool | None):
    assert replace(Owner.from_this_process(), **change).is_running() is runs


@pytest.mark.parametrize(
    ("age", "holds"),
    [(0, True), (STALE_SECONDS - 10, True), (STALE_SECONDS + 10, False), (-3600, False)],
    ids=["0", "50", "70", "in the future"],
)
def test_a_process_on_another_host_holds_as_long_as_its_heart_beats(age: float, holds: bool, tmp_path: Path):
    elsewhere = replace(Owner.from_this_process(), host="elsewhere", pid=17)
    _write(tmp_path, elsewhere, age)
    assert Lease.is_active(tmp_path) is holds
    if holds:
        with pytest.raises(FolderTakenError, match=r"by process 17 on elsewhere\. Stop that process"):
            Lease(tmp_path)
    else:
        owned_lease = Lease(tmp_path)
        owned_lease.check()
        owned_lease.release()
    assert not list(tmp_path.glob(".lease.*.tmp"))


def test_a_living_process_on_a_machine_of_the_same_name_keeps_its_lease(tmp_path: Path):
    _write(tmp_path, replace(Owner.from_this_process(), boot_id="another", pid=17))
    with pytest.raises(FolderTakenError, match="by process 17 on "):
        Lease(tmp_path)


def test_fields_of_a_later_release_are_ignored(tmp_path: Path):
    owner = Owner.from_this_process()
    (tmp_path / "lease.json").write_text(json.dumps({**asdict(owner), "since": 1}))
    assert Lease.read_owner(tmp_path) == owner


def test_a_lease_that_was_taken_over_is_noticed_and_left_to_its_new_owner(tmp_path: Path):
    owned_lease = Lease(tmp_path)
    _write(tmp_path, replace(Owner.from_this_process(), host="elsewhere", pid=17))
    with pytest.raises(FolderLostError, match=r"because process 17 on elsewhere took it over\. It stops writing"):
        owned_lease.check()
    owned_lease.release()
    assert json.loads((tmp_path / "lease.json").read_text())["pid"] == 17


def test_a_lease_that_was_removed_is_noticed(tmp_path: Path):
    owned_lease = Lease(tmp_path)
    (tmp_path / "lease.json").unlink()
    with pytest.raises(FolderLostError, match=r"because its lease\.json was removed"):
        owned_lease.check()
    owned_lease.release()


class HeartbeatThread:
    """Counts the heartbeats as they are taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._beat = threading.Semaphore(0)
        renew = Lease._renew

        def counted(owned_lease: Lease) -> bool:
            try:
                return renew(owned_lease)
            finally:
                self._beat.release()

        monkeypatch.setattr(Lease, "_renew", counted)
        monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)

    def wait_for(self, beats: int) -> None:
        for _ in range(beats):
            assert self._beat.acquire(timeout=60)


def test_the_heartbeat_renews_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    heart = HeartbeatThread(monkeypatch)
    owned_lease = Lease(tmp_path)
    try:
        set_age(tmp_path, 1000)
        heart.wait_for(2)  # the one that may have been under way, and a whole one
        assert time.time() - (tmp_path / "lease.json").stat().st_mtime < 500
    finally:
        owned_lease.release()
    assert "lease-heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_a_missed_heartbeat_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    heart = HeartbeatThread(monkeypatch)
    owned_lease = Lease(tmp_path)
    path = tmp_path / "lease.json"
    path.rename(tmp_path / "away")
    heart.wait_for(3)
    (tmp_path / "away").rename(path)
    set_age(tmp_path, 1000)
    heart.wait_for(3)
    assert time.time() - path.stat().st_mtime < 500
    owned_lease.release()


def test_a_heart_stops_beating_for_a_lease_that_was_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    owned_lease = Lease(tmp_path)
    try:
        _write(tmp_path, replace(Owner.from_this_process(), host="elsewhere", pid=17))
        owned_lease._heartbeat_thread.join(0.2)  # a beat that was under way may still come
        set_age(tmp_path, 10 * STALE_SECONDS)
        owned_lease._heartbeat_thread.join(0.3)  # some thirty beats
        assert not Lease.is_active(tmp_path)  # the new owner is dead, and nobody else may keep its lease warm
    finally:
        owned_lease.release()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"host": "a"}', '{"pid": 1, "colour": "red"}'])
def test_a_damaged_lease_expires(content: str, tmp_path: Path):
    (tmp_path / "lease.json").write_text(content)
    with pytest.raises(FolderTakenError, match="on an unknown host"):
        Lease(tmp_path)
    assert (tmp_path / "lease.json").read_text() == content
    set_age(tmp_path, STALE_SECONDS + 10)
    owned_lease = Lease(tmp_path)
    owned_lease.check()
    owned_lease.release()


@pytest.mark.parametrize("is_renewed", [False, True])
def test_a_start_waits_for_the_lease_of_a_lost_node(is_renewed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.01)
    _write(tmp_path, replace(Owner.from_this_process(), host="elsewhere", pid=17))
    action = partial(set_age, tmp_path, 1) if is_renewed else partial(monkeypatch.setattr, lease, "STALE_SECONDS", -1.0)
    threading.Timer(0.2, action).start()
    if is_renewed:
        with pytest.raises(FolderTakenError, match="by process 17 on elsewhere"):
            Store(tmp_path).acquire_lease()
    else:
        Store(tmp_path).acquire_lease().release()


def test_a_folder_that_stays_locked_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def timeout(path: Path, timeout: float) -> None:
        raise filelock.Timeout(str(path))

    monkeypatch.setattr(filelock, "FileLock", timeout)
    with pytest.raises(LeaseError, match="cannot be locked"):
        Lease(tmp_path)


def test_of_many_that_start_at_once_one_gets_the_lease(tmp_path: Path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        first_lines = [process.stdout.readline() for process in processes if process.stdout is not None]
        assert sorted(first_lines) == ["", "", "held\n"]
        (winner,) = (process for process, line in zip(processes, first_lines, strict=True) if line)
        assert json.loads((tmp_path / "lease.json").read_text())["pid"] == winner.pid
        for process in processes:
            if process is not winner:
                assert f"in use by process {winner.pid}" in process.communicate(timeout=60)[1]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
