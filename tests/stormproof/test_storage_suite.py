"""The conformance suite detects storages that break a promise."""

from collections.abc import Callable
from pathlib import Path

import pytest
from examples.sqlite_storage import SqliteStorage

from stormproof.checkpoint import Store
from stormproof.checkpoint.storage.conditions import UnsupportedStoreError
from stormproof.testing import StorageSuite
from tests.support.broken_storages import (
    DeletesAtOnce,
    IgnoresCreate,
    IgnoresVersions,
    ListsLate,
    ReadsThenWrites,
    ReusesVersions,
    ShowsHalfAWrite,
)

suite = StorageSuite


@pytest.mark.parametrize(
    ("storage_type", "test", "message"),
    [
        (IgnoresCreate, suite.test_only_the_first_create_succeeds, "second put_if_absent: expected False, got True"),
        (IgnoresVersions, suite.test_a_swap_needs_the_current_version, "a name that exists: expected None, got '2'"),
        (IgnoresVersions, suite.test_processes_lose_no_update, "the counter after 30 increments: expected 30"),
        (ReadsThenWrites, suite.test_one_of_many_writers_at_the_same_time_succeeds, "the number of threads that wrote"),
        (ShowsHalfAWrite, suite.test_the_stages_of_a_write_come_in_order_and_before_the_name, "the stages of put"),
        (ShowsHalfAWrite, suite.test_a_killed_process_leaves_no_part_of_a_write, "whether 'put half written' exists"),
        (ReusesVersions, suite.test_a_version_never_returns, "the number of different versions: expected 41, got 2"),
        (DeletesAtOnce, suite.test_names_are_deleted_in_order, "the names after each deletion"),
        (ListsLate, suite.test_a_checkpoint_is_found_after_a_kill_at_each_operation, "after operation 1"),
    ],
)  # fmt: skip
def test_a_broken_promise_fails_a_test_with_its_name(
    storage_type: type[SqliteStorage], test: Callable[[StorageSuite, Path], None], message: str, tmp_path: Path
):
    class Suite(StorageSuite):
        def make_storage(self, folder: Path) -> SqliteStorage:
            return storage_type(folder / "checkpoints.db")

    with pytest.raises(AssertionError, match=message):
        test(Suite(), tmp_path)


@pytest.mark.parametrize("storage_type", [IgnoresCreate, IgnoresVersions])
def test_a_run_refuses_a_storage_that_ignores_conditions(storage_type: type[SqliteStorage], tmp_path: Path):
    with pytest.raises(UnsupportedStoreError, match=r"checkpoints\.db does not support conditional writes"):
        Store(storage_type(tmp_path / "checkpoints.db")).acquire_lease()
