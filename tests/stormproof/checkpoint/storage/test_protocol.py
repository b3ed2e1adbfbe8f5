"""The contract of a storage, for a folder, an object store in memory, and an S3 server."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from obstore.store import MemoryStore

from stormproof.checkpoint.storage import ObjectStorage, PosixStorage, Storage
from stormproof.checkpoint.storage.object_store import PART_BYTES
from stormproof.checkpoint.storage.url import normalize_url
from tests.support.object_stores import overwrite


@pytest.fixture(params=["folder", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return PosixStorage(tmp_path)
    if request.param == "memory":
        return ObjectStorage("s3://bucket/run", store=MemoryStore())
    return ObjectStorage(request.getfixturevalue("s3_url"), retry_seconds=5)


def _read(storage: Storage, name: str, *arguments: int) -> bytes:
    return b"".join(storage.get(name, *arguments))


def test_a_put_is_read_back_whole_and_by_ranges(storage: Storage):
    content = bytes(range(256)) * 300
    storage.put("a.ckpt", lambda file: [file.write(content[:100]), file.write(content[100:])])
    assert _read(storage, "a.ckpt") == content
    assert _read(storage, "a.ckpt", 10, 20) == content[10:20]
    assert _read(storage, "a.ckpt", 76_000, 99_999_999) == content[76_000:]
    storage.put("empty", lambda file: None)
    assert _read(storage, "empty") == b""


def test_a_missing_name_is_not_found(storage: Storage):
    with pytest.raises(FileNotFoundError):
        _read(storage, "missing")


def test_the_stages_of_a_put_come_in_order_and_before_the_name(storage: Storage):
    seen: list[tuple[str, int]] = []

    def on_stage(stage: str) -> None:
        seen.append((stage, len([entry for entry in storage.list() if entry.name == "a"])))

    storage.put("a", lambda file: file.write(b"content"), on_stage)
    assert storage.put_if_absent("b", b"content", on_stage)
    assert [stage for stage, _ in seen] == ["written", "synced", "renamed"] * 2
    assert [count for _, count in seen[:3]] == [0, 0, 1]


@pytest.mark.parametrize("stage", ["written", "synced"])
def test_an_exception_in_a_stage_cancels_the_write(stage: str, storage: Storage):
    def on_stage(reached: str) -> None:
        if reached == stage:
            raise KeyError(stage)

    with pytest.raises(KeyError):
        storage.put("a", lambda file: file.write(b"content"), on_stage)
    with pytest.raises(KeyError):
        storage.put_if_absent("b", b"content", on_stage)
    assert storage.list() == []


def test_an_exception_while_writing_cancels_the_write(storage: Storage):
    def write(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyError

    with pytest.raises(KeyError):
        storage.put("a", write)
    assert storage.list() == []


def test_only_the_first_create_succeeds(storage: Storage):
    assert storage.put_if_absent("a", b"first")
    assert not storage.put_if_absent("a", b"second")
    assert _read(storage, "a") == b"first"


def test_a_swap_needs_the_current_version(storage: Storage):
    version = storage.compare_and_swap("a", b"1", None)
    assert version is not None
    assert storage.compare_and_swap("a", b"other", None) is None
    second_version = storage.compare_and_swap("a", b"22", version)
    assert second_version not in {None, version}
    assert storage.compare_and_swap("a", b"other", version) is None
    assert storage.compare_and_swap("missing", b"other", version) is None
    assert _read(storage, "a") == b"22"
    assert [entry.version for entry in storage.list() if entry.name == "a"] == [second_version]


def test_names_are_listed_by_folder_with_sizes(storage: Storage, tmp_path: Path):
    (tmp_path / "log").mkdir()
    storage.put_if_absent("a", b"123")
    storage.put_if_absent("log/1.jsonl", b"12")
    entries = {entry.name: entry for entry in storage.list()}
    assert {name: (entry.size, entry.is_folder) for name, entry in entries.items()} == {
        "a": (3, False),
        "log": (0, True),
    }
    assert [(entry.name, entry.size) for entry in storage.list("log")] == [("1.jsonl", 2)]


def test_names_are_deleted_in_order_and_a_missing_one_is_ignored(storage: Storage):
    storage.put_if_absent("a", b"1")
    storage.put_if_absent("b", b"1")
    left: list[set[str]] = []

    def names() -> object:
        yield "a"
        left.append({entry.name for entry in storage.list()})
        yield "missing"
        yield "b"

    storage.delete(names())  # type: ignore[arg-type]
    assert left == [{"b"}]
    assert storage.list() == []


def test_one_of_many_swaps_at_the_same_time_succeeds(storage: Storage):
    for number in range(20):

        def swap(version: str | None, index: int, number: int = number) -> bool:
            return storage.compare_and_swap("a", b"%d by %d" % (number, index), version) is not None

        _race(storage, swap)


def test_one_of_many_creates_at_the_same_time_succeeds(s3_url: str):
    storage = ObjectStorage(s3_url)
    for number in range(5):
        _race(storage, lambda version, index, n=number: storage.put_if_absent(f"{n}", b"%d" % index))


def _race(storage: Storage, write: Callable[[str | None, int], bool]) -> None:
    version = next((entry.version for entry in storage.list() if entry.name == "a"), None)
    barrier = threading.Barrier(4)
    winners: list[int] = []

    def run(index: int) -> None:
        barrier.wait()
        if write(version, index):
            winners.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1


@pytest.mark.slow
def test_a_large_upload_appears_only_when_it_is_complete(s3_url: str):
    storage = ObjectStorage(s3_url)
    chunk = bytes(range(256)) * 4096

    def write(file: object) -> None:
        for _ in range(2 * PART_BYTES // len(chunk) + 1):
            file.write(chunk)  # type: ignore[attr-defined]
        assert storage.list() == []

    storage.put("large", write)
    (entry,) = storage.list()
    assert entry.size == 2 * PART_BYTES + len(chunk)
    assert _read(storage, "large", PART_BYTES - 5, PART_BYTES + 5) == (chunk * 2)[-5 + len(chunk) : 5 + len(chunk)]


@pytest.mark.drill
def test_an_upload_and_a_download_need_bounded_memory(s3_url: str):
    storage, process = ObjectStorage(s3_url), psutil.Process()
    chunk = os.urandom(1 << 20)
    start_bytes, peaks = process.memory_info().rss, []

    def write(file: object) -> None:
        for _ in range(384):
            file.write(chunk)  # type: ignore[attr-defined]
            peaks.append(process.memory_info().rss)

    storage.put("large", write)
    for _ in storage.get("large"):
        peaks.append(process.memory_info().rss)  # noqa: PERF401 (the memory at each chunk)
    assert max(peaks) - start_bytes < 200 << 20


def test_objects_of_other_prefixes_are_not_listed(s3_url: str):
    overwrite(ObjectStorage(f"{s3_url}-other"), "a", b"1")
    assert ObjectStorage(s3_url).list() == []


@pytest.mark.parametrize(
    ("url", "normalized"),
    [
        ("s3://bucket/run/", "s3://bucket/run"),
        ("s3://bucket", "s3://bucket"),
        ("s3a://bucket//run", "s3://bucket/run"),
        ("gcs://bucket/a/b", "gs://bucket/a/b"),
        ("az://container/run", "az://container/run"),
    ],
)
def test_urls_are_normalized(url: str, normalized: str):
    assert normalize_url(url) == normalized


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("hdfs://host/run", "hdfs://host/run is not the URL of a supported object store"),
        ("s3:/bucket/run", "s3:/bucket/run is not the URL"),
        ("s3:///run", "s3:///run has no valid bucket name. Write the URL as s3://bucket/prefix."),
        ("s3://bucket/a/../b", "has an invalid prefix"),
        ("s3://bucket/run?x=1", "has an invalid prefix"),
    ],
)
def test_a_bad_url_is_one_sentence_with_the_value_and_a_way_out(url: str, reason: str):
    with pytest.raises(ValueError, match=reason.replace("?", r"\?")):
        ObjectStorage(url)
