import os
import subprocess
import sys
from pathlib import Path

from stormproof.checkpoint import Store
from stormproof.checkpoint.resolution import BadCheckpoint
from stormproof.cli.main import Listing, list_store
from tests.support.checkpoint_files import commit_checkpoint, flip_bit, make_store


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path):
    assert list_store(Store(tmp_path / "missing")) == list_store(Store(tmp_path)) == Listing([], [], [], [])


def test_a_glance_sees_names_manifests_and_lengths(tmp_path: Path):
    store = make_store(tmp_path, [10, 20, 30, 40, 50])
    flip_bit(tmp_path / "000001-step-10.ckpt")
    store.begin_attempt(store.resolve(verify_all=True))
    flip_bit(tmp_path / "000002-step-20.json")
    os.truncate(tmp_path / "000003-step-30.ckpt", 100)
    (tmp_path / "000004-step-40.ckpt").unlink()
    commit_checkpoint(store, 60, finite=False)
    (tmp_path / "last.ckpt").touch()
    listing = list_store(Store(tmp_path))
    assert [checkpoint.name for checkpoint in listing.checkpoints] == ["000006-step-60", "000005-step-50"]
    size = (tmp_path / "000005-step-50.ckpt").stat().st_size
    assert listing.bad_checkpoints == [
        BadCheckpoint("000004-step-40", "its file is missing"),
        BadCheckpoint("000003-step-30", f"it has 100 bytes but was committed with {size}"),
        BadCheckpoint("000002-step-20", "its manifest was changed after it was written"),
    ]
    assert listing.quarantined_checkpoints == [
        BadCheckpoint("000001-step-10", "its content has changed since it was committed")
    ]
    assert listing.foreign_files == ["last.ckpt"]


def test_a_quarantine_that_the_log_does_not_know_is_listed_without_a_reason(tmp_path: Path):
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "quarantine" / "000001-step-10.ckpt.1").touch()
    assert list_store(Store(tmp_path)).quarantined_checkpoints == [BadCheckpoint("000001-step-10", "")]


def test_a_glance_needs_no_torch(tmp_path: Path):
    make_store(tmp_path)
    code = (
        "import sys; from stormproof.checkpoint import Store; from stormproof.cli.main import list_store\n"
        "print(len(list_store(Store(sys.argv[1])).checkpoints), 'torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "3 False\n"


def test_a_checkpoint_without_its_manifest_is_bad_and_a_folder_called_like_one_is_none(tmp_path: Path):
    make_store(tmp_path, [10])
    (tmp_path / "000001-step-10.json").unlink()
    (tmp_path / "old.ckpt").mkdir()
    assert list_store(Store(tmp_path)) == Listing(
        [], [BadCheckpoint("000001-step-10", "its manifest is missing")], [], []
    )
