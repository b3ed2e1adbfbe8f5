"""The ranks of a node divide the files of a sharded checkpoint among them, and each file is read once."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from stormproof.checkpoint import Checkpoint, once_per_node
from stormproof.checkpoint.hashing import StoredFile
from stormproof.checkpoint.storage import PosixStorage, Storage
from tests.support.checkpoint_files import flip_bit
from tests.support.sharded_checkpoints import make_sharded_store


def verify_once_per_node(checkpoint: Checkpoint) -> str | None:
    return once_per_node.verify_once_per_node(PosixStorage(checkpoint.path.parent), checkpoint)


FILES = [".metadata", "__0_0.distcp", "meta.pt"]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return make_sharded_store(tmp_path / "checkpoints", [10]).read_checkpoints()[0]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content was read."""
    names: list[str] = []
    real = once_per_node.find_content_problem

    def recording(storage: Storage, files: Mapping[str, StoredFile]) -> str | None:
        names.extend(name.rpartition("/")[2] for name in files)
        return real(storage, files)

    monkeypatch.setattr(once_per_node, "find_content_problem", recording)
    return names


@pytest.mark.parametrize("local_rank", [0, 1, 2, 4])
def test_a_rank_begins_with_the_file_of_its_own_number(
    local_rank: int, checkpoint: Checkpoint, reads: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    assert verify_once_per_node(checkpoint) is None
    start = local_rank % 3
    assert reads == [*FILES[start:], *FILES[:start]]


def test_a_file_that_another_rank_has_verified_is_not_read_again(
    checkpoint: Checkpoint, reads: list[str], monkeypatch: pytest.MonkeyPatch
):
    for local_rank in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        assert verify_once_per_node(checkpoint) is None
    assert sorted(reads) == FILES


@pytest.mark.parametrize("file", FILES)
def test_every_rank_finds_a_damaged_file(
    file: str, checkpoint: Checkpoint, reads: list[str], monkeypatch: pytest.MonkeyPatch
):
    flip_bit(checkpoint.path / file)
    for local_rank in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        assert verify_once_per_node(checkpoint) == "its content has changed since it was committed"
    assert reads.count(file) == 6  # a single read may be wrong


def test_a_file_that_changes_after_its_verification_is_read_again(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert verify_once_per_node(checkpoint) is None
    flip_bit(checkpoint.path / "meta.pt")
    assert verify_once_per_node(checkpoint) == "its content has changed since it was committed"
