from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from stormproof.checkpoint import PRUNING_POINTS, Retention, Store, observe_fault_points
from stormproof.checkpoint.retention import select_for_deletion
from stormproof.errors import DamagedError, FolderLostError
from tests.support.checkpoint_files import commit_checkpoint, flip_bit, make_checkpoint, make_store

# Each checkpoint is (step, score); a step below 0 is one that is not finite.
TABLE = {
    "fewer than it keeps": ([(10, None)], {"keep_last": 2}, []),
    "as many as it keeps": ([(10, None), (20, None)], {"keep_last": 2}, []),
    "the oldest goes": ([(10, None), (20, None), (30, None)], {"keep_last": 2}, [1]),
    "the last three": ([(s, None) for s in (10, 20, 30, 40, 50)], {"keep_last": 3}, [1, 2]),
    "newest by commit, not by step": ([(30, None), (10, None), (20, None)], {"keep_last": 2}, [1]),
    "the best stays": ([(10, 0.1), (20, 0.3), (30, 0.2), (40, 0.4)], {"save_top_k": 1}, [2]),
    "the best by max": ([(10, 0.1), (20, 0.3), (30, 0.2), (40, 0.4)], {"save_top_k": 2, "mode": "max"}, [1]),
    "of equal ones the newer": ([(10, 0.1), (20, 0.1), (30, 0.2), (40, 0.2)], {"save_top_k": 1}, [1]),
    "no score is never best": ([(10, None), (20, 0.9), (30, None), (40, None)], {"save_top_k": 1}, [1]),
    "the best may be among the last": ([(10, 0.3), (20, 0.2), (30, 0.1), (40, 0.4)], {"save_top_k": 1}, [1, 2]),
    "every n-th": ([(s, None) for s in (5, 10, 15, 21, 25, 30, 35)], {"keep_every_n_train_steps": 10}, [1, 3, 5]),
    "the first at or after": ([(s, None) for s in (1, 12, 18, 24, 50, 60)], {"keep_every_n_train_steps": 10}, [1, 3]),
    "a later one of the same span at a smaller step": (
        [(18, None), (12, None), (30, None), (40, None)], {"keep_every_n_train_steps": 10}, [1],
    ),
    "step 0 is no multiple": ([(0, None), (10, None), (20, None), (30, None)], {"keep_every_n_train_steps": 10}, [1]),
    "gone back": (
        [(10, None), (20, None), (10, None), (20, None), (21, None)], {"keep_every_n_train_steps": 10}, [1, 2],
    ),
    "not finite counts for none": ([(10, None), (-20, None), (30, None)], {"keep_last": 2}, []),
    "not finite goes with the old": ([(10, None), (-20, None), (30, None), (40, None)], {"keep_last": 2}, [1, 2]),
    "not finite is not best": ([(-10, 0.1), (20, 0.3), (30, 0.4), (40, 0.5)], {"save_top_k": 1}, [1]),
    "the newest not finite": ([(10, None), (20, None), (30, None), (-40, None)], {"keep_last": 2}, [1]),
    "none finite": ([(-10, None), (-20, None), (-30, None)], {"keep_last": 2}, []),
}  # fmt: skip


@pytest.mark.parametrize(("given", "policy", "deleted"), TABLE.values(), ids=TABLE.keys())
def test_what_is_deleted(given: Sequence[tuple[int, float | None]], policy: dict, deleted: list[int], tmp_path: Path):
    checkpoints = [
        make_checkpoint(tmp_path, number, abs(step), score=score, finite=step >= 0)
        for number, (step, score) in enumerate(given, 1)
    ]
    for order in (checkpoints, checkpoints[::-1]):
        assert [checkpoint.sequence for checkpoint in select_for_deletion(order, Retention(**policy))] == deleted


@pytest.mark.parametrize(
    ("score", "best", "mode", "kept"),
    [
        (0.5, 0, "min", False), (0.5, 3, "min", True), (0.15, 1, "min", False), (0.05, 1, "min", True),
        (0.15, 2, "min", True), (0.2, 2, "min", False), (0.15, 2, "max", True), (0.25, 1, "max", True),
        (float("nan"), 3, "min", False), (float("nan"), 0, "min", False),
    ],
)  # fmt: skip
def test_whether_a_score_would_be_among_the_best(
    score: float, best: int, mode: Literal["min", "max"], kept: bool, tmp_path: Path
):
    existing = [
        make_checkpoint(tmp_path, 1, score=0.1),
        make_checkpoint(tmp_path, 2, score=0.2),
        make_checkpoint(tmp_path, 3),
    ]
    assert Retention(save_top_k=best, mode=mode).would_keep(score, existing) is kept


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"keep_last": 1}, "at least 2"), ({"save_top_k": -1}, "at least 0"), ({"mode": "low"}, "'min' or 'max'"),
     ({"keep_every_n_train_steps": 0}, "at least 1")],
)  # fmt: skip
def test_a_policy_that_cannot_be_is_a_sentence(fields: dict, reason: str):
    with pytest.raises(ValueError, match=reason):
        Retention(**fields)


def test_at_every_instant_there_is_a_good_checkpoint(tmp_path: Path):
    store = make_store(tmp_path, [10])
    snapshots = []

    def look(point: str) -> None:
        snapshots.append(point)
        assert store.latest_checkpoint() is not None
        assert not store.resolve(verify_all=True).bad_checkpoints

    with observe_fault_points(look):
        for step in range(20, 90, 10):
            commit_checkpoint(store, step)
            store.apply_retention(Retention())
    assert set(snapshots) >= set(PRUNING_POINTS)
    assert [checkpoint.step for checkpoint in store.read_checkpoints()] == [70, 80]
    assert store.resolve().leftover_files == []


class _KilledError(BaseException):
    pass


@pytest.mark.parametrize("point", PRUNING_POINTS)
@pytest.mark.parametrize("which", [1, 2], ids=["first", "second"])
def test_a_retention_that_ends_at_any_point_leaves_no_ruin(point: str, which: int, tmp_path: Path):
    store = make_store(tmp_path, [10, 20, 30, 40])
    count = 0

    def kill(reached: str) -> None:
        nonlocal count
        count += reached == point
        if reached == point and count == which:
            raise _KilledError

    with observe_fault_points(kill):
        try:
            store.apply_retention(Retention())
        except _KilledError:
            assert count == which
        else:
            assert (point, which) in {("pruning", 2), ("pruned", 2)}  # these come once
    resolution = store.resolve(verify_all=True)
    assert resolution.chosen_checkpoint is not None
    assert (resolution.chosen_checkpoint.step, list(resolution.bad_checkpoints), list(resolution.lost_names)) == (
        40,
        [],
        [],
    )
    store.begin_attempt(resolution)
    store.apply_retention(Retention())
    assert [checkpoint.step for checkpoint in store.read_checkpoints()] == [30, 40]
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"000003-step-30.ckpt", "000004-step-40.ckpt"}


def test_nothing_is_deleted_while_the_newest_is_bad(tmp_path: Path):
    store = make_store(tmp_path, [10, 20, 30])
    flip_bit(tmp_path / "000003-step-30.ckpt")
    with pytest.raises(DamagedError, match=r"000003-step-30\.ckpt was just committed but is bad: .* No older"):
        store.apply_retention(Retention())
    assert len(list(tmp_path.glob("*.ckpt"))) == 3


def test_a_fence_keeps_all_as_it_is(tmp_path: Path):
    store = make_store(tmp_path, [10, 20, 30])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def lost() -> None:
        raise FolderLostError("lost")

    with pytest.raises(FolderLostError):
        store.apply_retention(Retention(), fence=lost)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_was_deleted_is_said(tmp_path: Path):
    store: Store = make_store(tmp_path, [10, 20, 30, 40])
    assert [checkpoint.step for checkpoint in store.apply_retention(Retention())] == [10, 20]
    assert store.apply_retention(Retention()) == []
    assert store.resolve().lost_names == []
