"""The storage of the guide passes the conformance suite, and a run resumes from it."""

from pathlib import Path

import pytest
import torch
from examples.sqlite_storage import CHUNK_BYTES, SqliteStorage

from stormproof import CheckpointRecovery
from stormproof.checkpoint import Store
from stormproof.checkpoint.storage import Storage
from stormproof.testing import StorageSuite
from tests.support.recovery_fits import fit_with_recovery


class TestSqliteStorage(StorageSuite):
    operation_stride = 20

    def make_storage(self, folder: Path) -> Storage:
        return SqliteStorage(folder / "checkpoints.db")


def test_a_content_of_several_chunks_is_read_by_ranges(tmp_path: Path):
    storage = SqliteStorage(tmp_path / "checkpoints.db")
    content = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"end"
    storage.put("a", lambda file: file.write(content))
    for start, stop in [(0, None), (CHUNK_BYTES - 1, CHUNK_BYTES + 1), (2 * CHUNK_BYTES, None), (5, 3 << 20)]:
        assert b"".join(storage.get("a", start, stop)) == content[start:stop]


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*", "ignore:.*does not have many workers.*")
def test_a_run_resumes_exactly_from_it(tmp_path: Path):
    storage = SqliteStorage(tmp_path / "checkpoints.db")
    uninterrupted = fit_with_recovery(CheckpointRecovery(tmp_path / "other"), max_epochs=2)
    fit_with_recovery(CheckpointRecovery(storage, every_n_train_steps=2), max_epochs=1)
    assert Store(storage).latest_checkpoint().step == 6
    resumed = fit_with_recovery(CheckpointRecovery(storage, every_n_train_steps=2), max_epochs=2)
    weights = [trainer.lightning_module.state_dict() for trainer in (uninterrupted, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    checkpoints = Store(storage).read_checkpoints()
    assert [checkpoint.step for checkpoint in checkpoints] == [10, 12]
    assert {checkpoint.attempt for checkpoint in checkpoints} == {2}
