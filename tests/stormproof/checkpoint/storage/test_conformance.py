"""The storages of Stormproof pass its conformance suite."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stormproof.checkpoint.storage import ObjectStorage, PosixStorage, Storage
from stormproof.testing import StorageSuite

MEMORY = Path("/dev/shm")


class TestFolder(StorageSuite):
    def make_storage(self, folder: Path) -> Storage:
        return PosixStorage(folder)


@pytest.mark.skipif(not MEMORY.is_dir(), reason="this system has no file system in memory")
class TestFolderInMemory(StorageSuite):
    @pytest.fixture
    def tmp_path(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            yield Path(folder)

    def make_storage(self, folder: Path) -> Storage:
        return PosixStorage(folder)


class TestObjectStorage(StorageSuite):
    operation_stride = 5

    @pytest.fixture(autouse=True)
    def _use_server(self, s3_url: str, tmp_path: Path) -> None:
        self._url, self._folder = s3_url, tmp_path

    def make_storage(self, folder: Path) -> Storage:
        return ObjectStorage(f"{self._url}/{folder.relative_to(self._folder)}".rstrip("/."), retry_seconds=5)

    test_a_checkpoint_is_found_after_a_kill_at_each_operation = pytest.mark.slow(
        StorageSuite.test_a_checkpoint_is_found_after_a_kill_at_each_operation
    )
    test_a_checkpoint_is_found_after_an_error_of_each_operation = pytest.mark.slow(
        StorageSuite.test_a_checkpoint_is_found_after_an_error_of_each_operation
    )
    test_a_checkpoint_is_found_after_a_lost_response_of_each_write = pytest.mark.slow(
        StorageSuite.test_a_checkpoint_is_found_after_a_lost_response_of_each_write
    )
