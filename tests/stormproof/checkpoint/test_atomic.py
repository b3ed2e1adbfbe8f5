import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stormproof.checkpoint import atomic_write


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


@pytest.mark.parametrize("content", [b"", b"whole", bytes(1_000_000)], ids=["empty", "short", "long"])
@pytest.mark.parametrize("before", [None, b"something longer than what comes"], ids=["new", "replaced"])
def test_what_was_written_stands_under_the_name_and_nothing_beside_it(
    content: bytes, before: bytes | None, tmp_path: Path
):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    _write(path, content)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_may_be_a_word_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with atomic_write("note") as file:
        file.write(b"1")
    assert (tmp_path / "note").read_bytes() == b"1"


def test_the_name_is_the_old_file_until_the_block_ends(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_the_old_file_and_no_other(error: type[BaseException], tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error_of_the_os(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        _write(tmp_path / "missing" / "file", b"1")
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_name_do_not_mix(tmp_path: Path):
    path = tmp_path / "file"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"  # its block ended last
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_are_on_the_disk_before_the_rename_and_the_rename_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "file"
    order = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        order.append(("fsync", Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path, path.exists()))
        fsync(descriptor)

    def recorded_replace(self: Path, target: Path) -> Path:
        order.append(("rename", self.read_bytes()))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    _write(path, b"whole")
    assert order == [("fsync", False, False), ("rename", b"whole"), ("fsync", True, True)]


LIGHT = """
import sys, types
from importlib.util import find_spec

package = types.ModuleType("stormproof")  # without the callbacks: Lightning takes seconds to import
package.__path__ = list(find_spec("stormproof").submodule_search_locations)
sys.modules["stormproof"] = package
from stormproof.checkpoint import atomic_write
"""

KILLED = """
with atomic_write(sys.argv[1]) as file:
    file.write(bytes(1_000_000))
    file.flush()
    print("in the middle", flush=True)
    sys.stdin.read()
"""


def test_a_killed_write_leaves_the_old_file_whole(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with subprocess.Popen(
        [sys.executable, "-c", LIGHT + KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"in the middle\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait(60) == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    (left,) = (entry for entry in tmp_path.iterdir() if entry != path)
    assert left.name.startswith(".file.")
    assert left.suffix == ".tmp"
    _write(path, b"new")
    assert path.read_bytes() == b"new"


FULL = """
import errno, resource, signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic_write(sys.argv[1]) as file:
        file.write(bytes(int(sys.argv[2])))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize("size", [1001, 1_000_000], ids=["at the flush", "at the write"])
def test_a_file_that_may_grow_no_further_is_an_error_and_leaves_the_old_one(size: int, tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    result = subprocess.run(
        [sys.executable, "-c", LIGHT + FULL, str(path), str(size)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout == "EFBIG\n"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    open_path = Path.open

    def open_on_full_disk(self: Path, *args: object, **kwargs: object) -> object:
        open_path(self, *args, **kwargs).close()
        return open_path(Path("/dev/full"), "wb")

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        _write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def _create(path: Path, content: bytes) -> None:
    with atomic_write(path, exclusive=True) as file:
        file.write(content)


def _refuse_link(source: Path, target: Path) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), source)


@pytest.mark.parametrize("has_links", [True, False], ids=["hard links", "no hard links"])
def test_an_exclusive_write_keeps_an_existing_file(has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not has_links:
        monkeypatch.setattr(os, "link", _refuse_link)
    path = tmp_path / "file"
    _create(path, b"first")
    with pytest.raises(FileExistsError):
        _create(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exclusive_write_succeeds_if_nfs_repeats_its_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    _create(tmp_path / "file", b"first")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]
