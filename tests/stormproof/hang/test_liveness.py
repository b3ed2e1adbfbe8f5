from __future__ import annotations

from pathlib import Path

import pytest

from stormproof.hang.liveness import UNHEARD, RollCall

PATIENCE = 4.0


@pytest.fixture
def ranks(tmp_path: Path) -> list[RollCall]:
    return [RollCall(tmp_path / "notices", rank, PATIENCE) for rank in range(3)]


def look(ranks: list[RollCall], now: float, stand: set[int], gone: set[int] = frozenset()) -> list[bool]:  # type: ignore[assignment]
    return [each.is_over(now, stands=rank in stand) for rank, each in enumerate(ranks) if rank not in gone]


def test_nobody_calls_where_all_are_well(ranks: list[RollCall], tmp_path: Path):
    for second in range(20):
        assert look(ranks, float(second), set()) == [False] * 3
    assert not (tmp_path / "notices").exists()


def test_where_all_stand_still_it_is_over_after_the_patience(ranks: list[RollCall]):
    said = [look(ranks, float(second), {0, 1, 2}) for second in range(5)]
    assert said == [[False] * 3] * 4 + [[True] * 3]


def test_who_answers_keeps_all_others_waiting(ranks: list[RollCall]):
    for second in range(60):
        assert look(ranks, float(second), {0, 2}) == [False] * 3
    since = [look(ranks, float(second), {0, 1, 2}) for second in range(60, 66)]
    assert [any(each) for each in since] == [False] * 3 + [True] * 3  # it answered last at 59, and 0 called then


def test_who_is_gone_does_not_answer(ranks: list[RollCall]):
    said = [look(ranks, float(second), {0, 2}, gone={1}) for second in range(5)]
    assert said == [[False] * 2] * 4 + [[True] * 2]


def test_one_concludes_for_all_whatever_they_do(ranks: list[RollCall]):
    ranks[2].conclude()
    assert look(ranks, 0.0, {0}, gone={2}) == [True, True]
    assert not ranks[2].is_over(0.0, stands=False)  # its own word is no news to it


def test_a_call_of_an_earlier_attempt_is_none(ranks: list[RollCall], tmp_path: Path):
    for second in range(5):
        look(ranks, float(second), {0, 1, 2})
    ranks[0].conclude()
    again = [RollCall(tmp_path / "notices", rank, PATIENCE) for rank in range(3)]
    before = (tmp_path / "notices/alive").exists()
    assert look(again, 100.0, set()) == [False] * 3
    assert (tmp_path / "notices/alive").exists() == before


def test_in_a_folder_that_cannot_be_used_a_rank_decides_alone_and_later(tmp_path: Path):
    (tmp_path / "notices").write_text("a file")
    alone = RollCall(tmp_path / "notices", 0, PATIENCE)
    looks = [alone.is_over(float(second), stands=True) for second in range(int(UNHEARD * PATIENCE) + 1)]
    assert looks == [False] * int(UNHEARD * PATIENCE) + [True]  # late: the others may be alive, and unheard
