import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stormproof.checkpoint import Retention, Store, catalog, commit_log
from stormproof.checkpoint.resolution import Resolution, fingerprint
from stormproof.errors import DamagedError, NotResumableError, RanksDisagreeError
from tests.support.checkpoint_files import commit_checkpoint, file_names, flip_bit, forge_manifest, make_store

FIRST, SECOND, THIRD = "000001-step-10", "000002-step-20", "000003-step-30"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "checkpoints")


def _resolve_unchanged(folder: Path) -> Resolution:
    """Resolves the folder, and sees that this changes nothing in it."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = Store(folder).resolve(verify_all=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return result


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "missing"):
        result = Store(folder).resolve()
        assert result == Resolution(None, [], [], [], [], [], [], fingerprint=fingerprint(Store(folder).catalog))
        assert Store(folder).latest_checkpoint() is None
    assert not (tmp_path / "missing").exists()


def test_the_newest_is_chosen_and_the_others_are_older(store: Store):
    result = _resolve_unchanged(store.folder)
    assert result.chosen_checkpoint is not None
    assert result.chosen_checkpoint.name == THIRD
    assert [checkpoint.name for checkpoint in result.older_checkpoints] == [SECOND, FIRST]
    assert (
        result.bad_checkpoints,
        result.lost_names,
        result.leftover_files,
        result.foreign_files,
        result.log_problems,
    ) == (
        [],
        [],
        [],
        [],
        [],
    )
    assert not result.is_log_torn


def test_newest_is_what_was_committed_last_not_the_highest_step(store: Store):
    commit_checkpoint(store, 5)
    latest = store.latest_checkpoint()
    assert latest is not None
    assert latest.step == 5


NEVER_COMMITTED = {
    "a temporary file": ".000004-step-40.ckpt.0123abcd.tmp",
    "a temporary manifest": ".000004-step-40.json.0123abcd.tmp",
    "a file without manifest": "000004-step-40.ckpt",
}


@pytest.mark.parametrize("name", NEVER_COMMITTED.values(), ids=NEVER_COMMITTED.keys())
@pytest.mark.parametrize("first_start", [True, False], ids=["first start", "later"])
def test_what_was_never_committed_is_passed_by_and_removed(name: str, first_start: bool, tmp_path: Path):
    store = Store(tmp_path) if first_start else make_store(tmp_path)
    (tmp_path / name).write_bytes(b"half")
    result = _resolve_unchanged(tmp_path)
    assert list(result.leftover_files) == [name]
    assert (list(result.bad_checkpoints), list(result.lost_names)) == ([], [])
    assert (None if result.chosen_checkpoint is None else result.chosen_checkpoint.name) == (
        None if first_start else THIRD
    )
    store.begin_attempt(result)
    assert name not in file_names(tmp_path)
    assert commit_checkpoint(store, 50).name == "000005-step-50"  # its number is used up


def test_a_foreign_file_is_named_stays_and_blocks_no_first_start(tmp_path: Path):
    for name in ("last.ckpt", "epoch=1-step=20.ckpt", "12-step-5.ckpt"):
        (tmp_path / name).write_bytes(b"another tool's")
    (tmp_path / "notes.txt").write_text("no checkpoint")
    store = Store(tmp_path)
    result = _resolve_unchanged(tmp_path)
    assert result.chosen_checkpoint is None
    assert list(result.foreign_files) == ["12-step-5.ckpt", "epoch=1-step=20.ckpt", "last.ckpt"]
    assert list(result.leftover_files) == []
    assert store.choose_checkpoint(result) is None
    store.begin_attempt(result)
    assert {*result.foreign_files, "notes.txt"} <= file_names(tmp_path)


def _delete_file(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


BAD_COMMITS = {
    "flipped": (lambda folder: flip_bit(folder / f"{THIRD}.ckpt"), "content has changed"),
    "manifest flipped": (lambda folder: flip_bit(folder / f"{THIRD}.json"), "manifest was changed"),
    "manifest emptied": (lambda folder: (folder / f"{THIRD}.json").write_bytes(b""), "truncated or was not written"),
    "file gone": (_delete_file(f"{THIRD}.ckpt"), "its file is missing"),
    "manifest gone": (_delete_file(f"{THIRD}.json"), "its manifest is missing"),
    "another's file": (
        lambda folder: shutil.copy(folder / f"{SECOND}.ckpt", folder / f"{THIRD}.ckpt"), "content has changed"
    ),
    "another's manifest": (
        lambda folder: shutil.copy(folder / f"{SECOND}.json", folder / f"{THIRD}.json"), "belongs to another file"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "reason"), BAD_COMMITS.values(), ids=BAD_COMMITS.keys())
def test_what_is_bad_is_walked_past_and_quarantined(damage: Callable[[Path], object], reason: str, store: Store):
    damage(store.folder)
    bad_files = {path.name: path.read_bytes() for path in store.folder.glob(f"{THIRD}.*")}
    result = _resolve_unchanged(store.folder)
    assert result.chosen_checkpoint is not None
    assert result.chosen_checkpoint.name == SECOND
    assert [bad.name for bad in result.bad_checkpoints] == [THIRD]
    assert reason in result.bad_checkpoints[0].reason
    assert (list(result.leftover_files), list(result.lost_names)) == ([], [])
    store.begin_attempt(result)
    assert {path.name: path.read_bytes() for path in (store.folder / "quarantine").iterdir()} == bad_files
    assert not list(store.folder.glob(f"{THIRD}.*"))
    second_resolution = _resolve_unchanged(store.folder)
    assert second_resolution.chosen_checkpoint == result.chosen_checkpoint
    assert (
        list(second_resolution.bad_checkpoints),
        list(second_resolution.lost_names),
        list(second_resolution.log_problems),
    ) == (
        [],
        [],
        [],
    )


def test_what_is_not_finite_is_walked_past_and_quarantined(store: Store):
    commit_checkpoint(store, 40, finite=False)
    result = _resolve_unchanged(store.folder)
    assert result.chosen_checkpoint is not None
    assert result.chosen_checkpoint.name == THIRD
    assert [bad.reason for bad in result.bad_checkpoints] == ["it contains numbers that are not finite"]
    store.begin_attempt(result)
    assert file_names(store.folder / "quarantine") == {"000004-step-40.ckpt", "000004-step-40.json"}


def test_only_down_to_the_newest_good_one_is_read_unless_asked(store: Store):
    flip_bit(store.folder / f"{FIRST}.ckpt")
    assert [checkpoint.name for checkpoint in store.resolve().older_checkpoints] == [SECOND, FIRST]
    assert [bad.name for bad in store.resolve(verify_all=True).bad_checkpoints] == [FIRST]


def test_what_is_gone_without_a_word_is_lost(store: Store):
    for suffix in ("ckpt", "json"):
        (store.folder / f"{THIRD}.{suffix}").unlink()
    result = _resolve_unchanged(store.folder)
    assert (list(result.lost_names), list(result.bad_checkpoints)) == ([THIRD], [])
    assert result.chosen_checkpoint is not None
    assert result.chosen_checkpoint.name == SECOND
    store.begin_attempt(result)
    assert list(store.resolve().lost_names) == []  # it was told once
    assert commit_checkpoint(store, 30).name == "000004-step-30"


def test_where_only_bad_ones_are_it_refuses_to_start_over_unless_told(store: Store):
    for suffix in ("ckpt", "json"):
        (store.folder / f"{FIRST}.{suffix}").unlink()
    for name in (SECOND, THIRD):
        flip_bit(store.folder / f"{name}.ckpt")
    with pytest.raises(DamagedError, match=r"no good checkpoint \(000003-step-30: .*; 000002-.*; 000001-step-10: lost"):
        store.latest_checkpoint()
    assert store.latest_checkpoint(start_over=True) is None
    store.begin_attempt(store.resolve())
    assert store.latest_checkpoint() is None  # they are aside, and told
    assert commit_checkpoint(store, 10).name == "000004-step-10"


def _cut_log(folder: Path) -> None:
    (folder / "commits.log").write_bytes((folder / "commits.log").read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: flip_bit(folder / "commits.log"), True),
        (lambda folder: flip_bit(folder / "commits.log", 3), True),
        (_delete_file("commits.log"), True),
        (lambda folder: (folder / "commits.log").write_bytes(b""), True),
        (lambda folder: (folder / "commits.log").write_bytes(b"\xff" * 5000), True),
        (_cut_log, False),  # as a crash just after the last commit leaves it
    ],
    ids=["flipped", "flipped at its start", "gone", "emptied", "junk", "torn at its end"],
)
def test_a_damaged_log_is_told_and_keeps_nobody_from_resuming(
    damage: Callable[[Path], object], told: bool, store: Store
):
    damage(store.folder)
    result = _resolve_unchanged(store.folder)
    assert bool(result.log_problems) is told
    assert told or result.is_log_torn
    assert result.chosen_checkpoint is not None
    assert result.chosen_checkpoint.name == THIRD
    assert (list(result.bad_checkpoints), list(result.lost_names), list(result.leftover_files)) == ([], [], [])
    store.begin_attempt(result)
    assert commit_checkpoint(store, 40).name == "000004-step-40"
    assert list(store.resolve().log_problems) == []  # told once: the new manifest knows the log as it is


def test_a_copied_folder_works(store: Store, tmp_path: Path):
    copy = shutil.copytree(store.folder, tmp_path / "elsewhere" / "copy")
    shutil.rmtree(store.folder)
    result = Store(copy).resolve(verify_all=True)
    assert result.chosen_checkpoint is not None
    assert result.chosen_checkpoint.path == copy / f"{THIRD}.ckpt"
    assert (list(result.bad_checkpoints), list(result.log_problems)) == ([], [])
    Store(copy).begin_attempt(result)
    assert commit_checkpoint(Store(copy), 40).path.parent == copy


def test_one_file_with_its_manifest_is_enough(store: Store, tmp_path: Path):
    for suffix in ("ckpt", "json"):
        shutil.copy(store.folder / f"{SECOND}.{suffix}", tmp_path)
    latest = Store(tmp_path).latest_checkpoint()
    assert latest is not None
    assert latest.name == SECOND


@pytest.mark.parametrize("change", ["commit", "retention", "log"])
def test_an_attempt_does_not_begin_on_what_somebody_changed_since(change: str, store: Store):
    result = store.resolve()
    if change == "commit":
        commit_checkpoint(store, 40)
    elif change == "retention":
        (store.folder / f"{FIRST}.json").unlink()
    else:
        (store.folder / "commits.log").unlink()
    with pytest.raises(RanksDisagreeError, match=r"while this attempt began\. Restart the run"):
        store.begin_attempt(result)


def test_a_commit_under_way_is_not_taken_for_bad(store: Store, monkeypatch: pytest.MonkeyPatch):
    """Its line is in the log, and its manifest came after the folder was listed."""
    listed_files = file_names(store.folder) - {f"{THIRD}.json"}
    monkeypatch.setattr(store.catalog, "list_files", lambda: listed_files)
    result = store.resolve()
    assert result.chosen_checkpoint is not None
    assert result.chosen_checkpoint.name == SECOND
    assert (list(result.bad_checkpoints), list(result.leftover_files), list(result.lost_names)) == ([], [], [])


def test_what_a_run_deletes_while_its_folder_is_looked_at_is_not_taken_for_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    """It was still there when the log was read, and had gone when its files were asked for."""
    logs, read_log = [], commit_log.read_log

    def and_then_pruned(log: commit_log.Log) -> commit_log.CommitLog:
        logs.append(read_log(log))
        if len(logs) == 1:
            store.apply_retention(Retention())
        return logs[-1]

    monkeypatch.setattr(catalog, "read_log", and_then_pruned)
    result = store.resolve()
    assert not (store.folder / f"{FIRST}.ckpt").exists()
    assert (list(result.lost_names), list(result.bad_checkpoints)) == ([], [])
    assert result.chosen_checkpoint is not None
    assert result.chosen_checkpoint.name == THIRD


def test_checkpoints_with_a_manifest_of_format_1_are_verified_by_their_sha256(store: Store):
    for checkpoint in store.read_checkpoints():
        sha256 = hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()
        checkpoint.manifest_path.write_bytes(forge_manifest(checkpoint, format=1, digest=None, sha256=sha256))
    flip_bit(store.folder / f"{THIRD}.ckpt")
    result = _resolve_unchanged(store.folder)
    assert result.chosen_checkpoint is not None
    assert result.chosen_checkpoint.name == SECOND
    assert [(bad.name, bad.reason) for bad in result.bad_checkpoints] == [
        (THIRD, "its content has changed since it was committed")
    ]


def test_a_folder_of_a_later_version_is_refused_and_stays_as_it_is(store: Store):
    newest = store.read_checkpoints()[-1]
    newest.manifest_path.write_bytes(forge_manifest(newest, format=4))
    names = file_names(store.folder)
    with pytest.raises(NotResumableError, match=f"{THIRD}.*Update stormproof"):
        store.latest_checkpoint()
    assert file_names(store.folder) == names
