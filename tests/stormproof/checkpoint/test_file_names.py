import os
from pathlib import Path

import pytest

from stormproof.checkpoint.file_names import format_stem, is_stem, is_temporary, parse_file_name, parse_sequence
from tests.support.checkpoint_files import commit_checkpoint, file_names, forge_manifest, make_checkpoint, make_store

NAMES = [
    ("000001-step-0.ckpt", ("000001-step-0", 1, 0), 1, False),
    ("000012-step-600.json", ("000012-step-600", 12, 600), 12, False),
    ("1234567-step-5.ckpt", ("1234567-step-5", 1234567, 5), 1234567, False),
    (".000012-step-600.ckpt.0123abcd.tmp", None, 12, True),
    (".000012-step-600.json.0123abcd.tmp", None, 12, True),
    (".lease.json.0123abcd.tmp", None, 0, False),
    (".000012-step-600.ckpt.0123ABCD.tmp", None, 0, False),
    ("000012-step-600.ckpt.0123abcd.tmp", None, 0, False),
    ("0000012-step-600.ckpt", None, 0, False),
    ("12-step-600.ckpt", None, 0, False),
    ("000012-step-0600.ckpt", None, 0, False),
    ("000012-step--6.ckpt", None, 0, False),
    ("000012-step-600.CKPT", None, 0, False),
    ("000012-step-600.ckpt\n", None, 0, False),
    ("../000012-step-600.ckpt", None, 0, False),
    ("/000012-step-600.ckpt", None, 0, False),
    ("٠٠٠٠١٢-step-600.ckpt", None, 0, False),
    ("last.ckpt", None, 0, False),
    ("epoch=1-step=600.ckpt", None, 0, False),
    ("", None, 0, False),
]


@pytest.mark.parametrize(("file", "parsed", "sequence", "temporary"), NAMES)
def test_a_name_is_ours_or_not(file: str, parsed: tuple[str, int, int] | None, sequence: int, temporary: bool):
    assert parse_file_name(file) == parsed
    assert parse_sequence(file) == sequence
    assert is_temporary(file) is temporary
    assert is_stem(file.removesuffix(".ckpt").removesuffix(".json")) is (parsed is not None)


@pytest.mark.parametrize(("sequence", "step"), [(1, 0), (999_999, 1), (1_000_000, 10**9)])
def test_what_is_named_is_read(sequence: int, step: int):
    assert parse_file_name(f"{format_stem(sequence, step)}.ckpt") == (format_stem(sequence, step), sequence, step)


@pytest.mark.parametrize("name", [None, 1, b"000001-step-1", "0" * 199 + "1-step-1", "9" * 5000 + "-step-1"])
def test_what_is_no_name_is_no_stem(name: object):
    assert not is_stem(name)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file beside the folder, that nothing may read as a checkpoint, move or remove."""
    path = tmp_path / "000009-step-90.ckpt"
    path.write_bytes(b"somebody else's")
    return path


@pytest.mark.parametrize("said", ["../000009-step-90.ckpt", "absolute", "000009-step-90.ckpt"])
def test_a_name_in_a_manifest_is_never_followed(said: str, outside: Path, tmp_path: Path):
    store = make_store(tmp_path / "checkpoints", [10])
    last = make_checkpoint(store.folder, 2, 20)
    last.manifest_path.write_bytes(forge_manifest(last, file=str(outside) if said == "absolute" else said))
    resolution = store.resolve(verify_all=True)
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 10
    assert [bad.name for bad in resolution.bad_checkpoints] == ["000002-step-20"]
    store.begin_attempt(resolution)
    assert outside.read_bytes() == b"somebody else's"
    assert file_names(store.folder / "quarantine") == {"000002-step-20.json"}


@pytest.mark.parametrize("suffix", [".ckpt", ".json"])
def test_a_link_is_no_checkpoint_and_its_target_stays(suffix: str, tmp_path: Path):
    store = make_store(tmp_path / "checkpoints", [10, 20])
    file = store.folder / f"000002-step-20{suffix}"
    content = file.read_bytes()
    target = file.rename(tmp_path / f"elsewhere{suffix}")
    file.symlink_to(target)
    resolution = store.resolve()
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 10
    assert "not a regular file" in resolution.bad_checkpoints[0].reason
    store.begin_attempt(resolution)
    assert target.read_bytes() == content
    assert (store.folder / "quarantine" / file.name).is_symlink()


def test_a_link_that_no_commit_finished_is_removed_and_not_its_target(outside: Path, tmp_path: Path):
    store = make_store(tmp_path / "checkpoints", [10])
    (store.folder / outside.name).symlink_to(outside)
    store.begin_attempt(store.resolve())
    assert not os.path.lexists(store.folder / outside.name)
    assert outside.read_bytes() == b"somebody else's"


def test_a_folder_with_a_name_of_ours_is_in_nobodys_way(tmp_path: Path):
    store = make_store(tmp_path / "checkpoints", [10])
    (store.folder / "000002-step-20.ckpt").mkdir()
    (store.folder / "000002-step-20.ckpt" / "notes.txt").touch()
    (store.folder / ".000003-step-30.ckpt.0123abcd.tmp").mkdir()
    store.begin_attempt(store.resolve())
    commit_checkpoint(store, 40)
    assert (store.folder / "000002-step-20.ckpt" / "notes.txt").exists()
    resolution = store.resolve().chosen_checkpoint
    assert resolution is not None
    assert resolution.name == "000004-step-40"
