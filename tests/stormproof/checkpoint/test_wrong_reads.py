"""A single wrong read is no damage: nothing is put into quarantine, skipped or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from stormproof.checkpoint import Retention, Store, hashing, once_per_node
from stormproof.checkpoint.storage import ObjectStorage, PosixStorage
from stormproof.checkpoint.tiers.download import download_newest
from stormproof.checkpoint.tiers.uploader import Uploader
from tests.support.checkpoint_files import flip_bit, make_store
from tests.support.object_stores import make_object_store

FlipOnce = Callable[[Any, str], list[object]]


@pytest.fixture
def flip_once(monkeypatch: pytest.MonkeyPatch) -> FlipOnce:
    """Flips a bit in the first result of a function that returns or yields bytes or a digest."""

    def flip(owner: Any, name: str) -> list[object]:
        function, calls = getattr(owner, name), []

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(arguments)
            result = function(*arguments, **options)
            if len(calls) > 1:
                return result
            if isinstance(result, str):
                return result[:-1] + ("0" if result[-1] != "0" else "1")
            return _flip(result) if isinstance(result, bytes) else iter([_flip(b"".join(result))])

        monkeypatch.setattr(owner, name, call)
        return calls

    return flip


def _flip(content: bytes) -> bytes:
    return content[:300] + bytes([content[300] ^ 64]) + content[301:]


def _check(store: Store) -> None:
    resolution = store.resolve()
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 30
    store.begin_attempt(resolution)
    assert store.list_quarantined_files() == []


@pytest.mark.parametrize("place", [(PosixStorage, "get"), (Path, "read_bytes")], ids=["data", "manifest"])
@pytest.mark.parametrize("is_launched", [False, True])
def test_a_wrong_read_in_a_folder(
    is_launched: bool, place: tuple[Any, str], flip_once: FlipOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = make_store(tmp_path)
    monkeypatch.setattr(once_per_node, "is_launched", lambda: is_launched)
    calls = flip_once(*place)
    _check(store)
    assert len(calls) > 1


@pytest.mark.parametrize("name", ["get", "read"])
@pytest.mark.parametrize("fetch", [False, True])
def test_a_wrong_read_in_an_object_store(fetch: bool, name: str, flip_once: FlipOnce):
    storage = ObjectStorage("s3://bucket/run", store=MemoryStore(), retry_seconds=0.1)
    store = make_object_store(storage)
    if name == "read":
        store._log.read_bytes()  # type: ignore[union-attr]  # so that a manifest is read next
    calls = flip_once(storage, name)
    assert store.resolve(fetch=fetch).chosen_checkpoint is not None
    _check(store)
    assert len(calls) > 1


def test_a_wrong_read_of_a_fresh_checkpoint_ends_nothing(flip_once: FlipOnce, tmp_path: Path):
    store = make_store(tmp_path)
    flip_once(PosixStorage, "get")
    store.read_back(store.read_checkpoints()[-1])


def test_a_wrong_read_during_a_copy(flip_once: FlipOnce, tmp_path: Path):
    local = make_store(tmp_path / "local")
    storage = ObjectStorage("s3://bucket/run", store=MemoryStore(), retry_seconds=0.1)
    calls = flip_once(PosixStorage, "get")
    Uploader(local, storage, Retention()).close(30)
    assert len(calls) == 2
    assert [checkpoint.step for checkpoint in Store(storage).read_checkpoints()] == [30]
    calls = flip_once(storage, "get")
    other = Store(tmp_path / "other")
    downloaded = download_newest(other, storage, other.resolve())
    assert downloaded is not None
    assert (downloaded.step, len(calls)) == (30, 2)


def test_damage_is_read_from_the_storage_and_not_from_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, dropped = make_store(tmp_path), []
    newest = store.read_checkpoints()[-1]
    flip_bit(newest.path)
    monkeypatch.setattr(hashing, "drop_cached_pages", dropped.append)
    assert store.verify(newest) == hashing.CHANGED
    assert hashing.find_content_problem(store.storage, newest.stored_files) == hashing.CHANGED
    assert dropped == 3 * [newest.path]
