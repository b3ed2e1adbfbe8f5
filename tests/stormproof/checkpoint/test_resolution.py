import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stormproof.checkpoint import Retention, Store, commit_log, resolution
from stormproof.checkpoint.resolution import Resolution, resolve, what_is_there
from stormproof.errors import DamagedError, RanksDisagreeError
from tests.support.some_checkpoints import commit, files, filled, flip

ONE, TWO, THREE = "000001-step-10", "000002-step-20", "000003-step-30"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "checkpoints")


def _unchanged(folder: Path) -> Resolution:
    """Resolves the folder, and sees that this changes nothing in it."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = resolve(folder, thorough=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return found


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "missing"):
        found = resolve(folder)
        assert found == Resolution(None, [], [], [], [], [], [], seen=what_is_there(folder))
        assert Store(folder).latest() is None
    assert not (tmp_path / "missing").exists()


def test_the_newest_is_chosen_and_the_others_are_older(store: Store):
    found = _unchanged(store.folder)
    assert found.chosen is not None
    assert found.chosen.name == THREE
    assert [each.name for each in found.older] == [TWO, ONE]
    assert (found.bad, found.lost, found.leftovers, found.foreign, found.log_damage) == ([], [], [], [], [])
    assert not found.log_torn


def test_newest_is_what_was_committed_last_not_the_highest_step(store: Store):
    commit(store, 5)
    latest = store.latest()
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
    store = Store(tmp_path) if first_start else filled(tmp_path)
    (tmp_path / name).write_bytes(b"half")
    found = _unchanged(tmp_path)
    assert list(found.leftovers) == [name]
    assert (list(found.bad), list(found.lost)) == ([], [])
    assert (None if found.chosen is None else found.chosen.name) == (None if first_start else THREE)
    store.begin_attempt(found)
    assert name not in files(tmp_path)
    assert commit(store, 50).name == "000005-step-50"  # its number is used up


def test_a_foreign_file_is_named_stays_and_blocks_no_first_start(tmp_path: Path):
    for name in ("last.ckpt", "epoch=1-step=20.ckpt", "12-step-5.ckpt"):
        (tmp_path / name).write_bytes(b"another tool's")
    (tmp_path / "notes.txt").write_text("no checkpoint")
    store = Store(tmp_path)
    found = _unchanged(tmp_path)
    assert found.chosen is None
    assert list(found.foreign) == ["12-step-5.ckpt", "epoch=1-step=20.ckpt", "last.ckpt"]
    assert list(found.leftovers) == []
    assert store.choose(found) is None
    store.begin_attempt(found)
    assert {*found.foreign, "notes.txt"} <= files(tmp_path)


def _drop(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


COMMITTED_BUT_BAD = {
    "flipped": (lambda folder: flip(folder / f"{THREE}.ckpt"), "content was changed"),
    "manifest flipped": (lambda folder: flip(folder / f"{THREE}.json"), "manifest was changed"),
    "manifest emptied": (lambda folder: (folder / f"{THREE}.json").write_bytes(b""), "no manifest of ours, or torn"),
    "file gone": (_drop(f"{THREE}.ckpt"), "its file is gone"),
    "manifest gone": (_drop(f"{THREE}.json"), "its manifest is gone"),
    "another's file": (
        lambda folder: shutil.copy(folder / f"{TWO}.ckpt", folder / f"{THREE}.ckpt"), "content was changed"
    ),
    "another's manifest": (
        lambda folder: shutil.copy(folder / f"{TWO}.json", folder / f"{THREE}.json"), "that of another file"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "reason"), COMMITTED_BUT_BAD.values(), ids=COMMITTED_BUT_BAD.keys())
def test_what_is_bad_is_walked_past_and_quarantined(damage: Callable[[Path], object], reason: str, store: Store):
    damage(store.folder)
    there = {path.name: path.read_bytes() for path in store.folder.glob(f"{THREE}.*")}
    found = _unchanged(store.folder)
    assert found.chosen is not None
    assert found.chosen.name == TWO
    assert [bad.name for bad in found.bad] == [THREE]
    assert reason in found.bad[0].reason
    assert (list(found.leftovers), list(found.lost)) == ([], [])
    store.begin_attempt(found)
    assert {path.name: path.read_bytes() for path in (store.folder / "quarantine").iterdir()} == there
    assert not list(store.folder.glob(f"{THREE}.*"))
    again = _unchanged(store.folder)
    assert again.chosen == found.chosen
    assert (list(again.bad), list(again.lost), list(again.log_damage)) == ([], [], [])


def test_what_is_not_finite_is_walked_past_and_quarantined(store: Store):
    commit(store, 40, finite=False)
    found = _unchanged(store.folder)
    assert found.chosen is not None
    assert found.chosen.name == THREE
    assert [bad.reason for bad in found.bad] == ["it holds numbers that are not finite"]
    store.begin_attempt(found)
    assert files(store.folder / "quarantine") == {"000004-step-40.ckpt", "000004-step-40.json"}


def test_only_down_to_the_newest_good_one_is_read_unless_asked(store: Store):
    flip(store.folder / f"{ONE}.ckpt")
    assert [each.name for each in store.resolve().older] == [TWO, ONE]
    assert [bad.name for bad in store.resolve(thorough=True).bad] == [ONE]


def test_what_is_gone_without_a_word_is_lost(store: Store):
    for suffix in ("ckpt", "json"):
        (store.folder / f"{THREE}.{suffix}").unlink()
    found = _unchanged(store.folder)
    assert (list(found.lost), list(found.bad)) == ([THREE], [])
    assert found.chosen is not None
    assert found.chosen.name == TWO
    store.begin_attempt(found)
    assert list(store.resolve().lost) == []  # it was told once
    assert commit(store, 30).name == "000004-step-30"


def test_where_only_bad_ones_are_it_refuses_to_start_over_unless_told(store: Store):
    for suffix in ("ckpt", "json"):
        (store.folder / f"{ONE}.{suffix}").unlink()
    for name in (TWO, THREE):
        flip(store.folder / f"{name}.ckpt")
    with pytest.raises(DamagedError, match=r"no good checkpoint \(000003-step-30: .*; 000002-.*; 000001-step-10: lost"):
        store.latest()
    assert store.latest(start_over=True) is None
    store.begin_attempt(store.resolve())
    assert store.latest() is None  # they are aside, and told
    assert commit(store, 10).name == "000004-step-10"


def _cut_log(folder: Path) -> None:
    (folder / "commits.log").write_bytes((folder / "commits.log").read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: flip(folder / "commits.log"), True),
        (lambda folder: flip(folder / "commits.log", 3), True),
        (_drop("commits.log"), True),
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
    found = _unchanged(store.folder)
    assert bool(found.log_damage) is told
    assert told or found.log_torn
    assert found.chosen is not None
    assert found.chosen.name == THREE
    assert (list(found.bad), list(found.lost), list(found.leftovers)) == ([], [], [])
    store.begin_attempt(found)
    assert commit(store, 40).name == "000004-step-40"
    assert list(store.resolve().log_damage) == []  # told once: the new manifest knows the log as it is


def test_a_copied_folder_works(store: Store, tmp_path: Path):
    copy = shutil.copytree(store.folder, tmp_path / "elsewhere" / "copy")
    shutil.rmtree(store.folder)
    found = Store(copy).resolve(thorough=True)
    assert found.chosen is not None
    assert found.chosen.path == copy / f"{THREE}.ckpt"
    assert (list(found.bad), list(found.log_damage)) == ([], [])
    Store(copy).begin_attempt(found)
    assert commit(Store(copy), 40).path.parent == copy


def test_one_file_with_its_manifest_is_enough(store: Store, tmp_path: Path):
    for suffix in ("ckpt", "json"):
        shutil.copy(store.folder / f"{TWO}.{suffix}", tmp_path)
    latest = Store(tmp_path).latest()
    assert latest is not None
    assert latest.name == TWO


@pytest.mark.parametrize("change", ["commit", "retention", "log"])
def test_an_attempt_does_not_begin_on_what_somebody_changed_since(change: str, store: Store):
    found = store.resolve()
    if change == "commit":
        commit(store, 40)
    elif change == "retention":
        (store.folder / f"{ONE}.json").unlink()
    else:
        (store.folder / "commits.log").unlink()
    with pytest.raises(RanksDisagreeError, match="changed while this attempt began: start it again"):
        store.begin_attempt(found)


def test_a_commit_under_way_is_not_taken_for_bad(store: Store, monkeypatch: pytest.MonkeyPatch):
    """Its line is in the log, and its manifest came after the folder was listed."""
    listed = files(store.folder) - {f"{THREE}.json"}
    monkeypatch.setattr("stormproof.checkpoint.resolution.list_files", lambda folder: listed)
    found = store.resolve()
    assert found.chosen is not None
    assert found.chosen.name == TWO
    assert (list(found.bad), list(found.leftovers), list(found.lost)) == ([], [], [])


def test_what_a_run_deletes_while_its_folder_is_looked_at_is_not_taken_for_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    """It was still there when the log was read, and had gone when its files were asked for."""
    logs = []

    def and_then_pruned(path: Path) -> commit_log.Log:
        logs.append(commit_log.read_log(path))
        if len(logs) == 1:
            store.retain(Retention())
        return logs[-1]

    monkeypatch.setattr(resolution, "read_log", and_then_pruned)
    found = store.resolve()
    assert not (store.folder / f"{ONE}.ckpt").exists()
    assert (list(found.lost), list(found.bad)) == ([], [])
    assert found.chosen is not None
    assert found.chosen.name == THREE
