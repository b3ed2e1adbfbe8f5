from __future__ import annotations

from pathlib import Path

import pytest

from stormproof.hang.liveness import STORAGE_ERROR_FACTOR, LivenessPoll

PATIENCE = 4.0


@pytest.fixture
def ranks(tmp_path: Path) -> list[LivenessPoll]:
    return [LivenessPoll(tmp_path / "notices", rank, PATIENCE) for rank in range(3)]


def poll_ranks(
    ranks: list[LivenessPoll], now: float, stalled_ranks: set[int], exited_ranks: set[int] = frozenset()
) -> list[bool]:  # type: ignore[assignment]
    return [
        poll.timed_out(now, is_stalled=rank in stalled_ranks)
        for rank, poll in enumerate(ranks)
        if rank not in exited_ranks
    ]


def test_nobody_calls_where_all_are_well(ranks: list[LivenessPoll], tmp_path: Path):
    for second in range(20):
        assert poll_ranks(ranks, float(second), set()) == [False] * 3
    assert not (tmp_path / "notices").exists()


def test_where_all_stand_still_it_is_over_after_the_patience(ranks: list[LivenessPoll]):
    poll_results = [poll_ranks(ranks, float(second), {0, 1, 2}) for second in range(5)]
    assert poll_results == [[False] * 3] * 4 + [[True] * 3]


def test_who_answers_keeps_all_others_waiting(ranks: list[LivenessPoll]):
    for second in range(60):
        assert poll_ranks(ranks, float(second), {0, 2}) == [False] * 3
    since = [poll_ranks(ranks, float(second), {0, 1, 2}) for second in range(60, 66)]
    assert [any(waited_flag) for waited_flag in since] == [False] * 3 + [
        True
    ] * 3  # it answered last at 59, and 0 called then


def test_who_is_gone_does_not_answer(ranks: list[LivenessPoll]):
    poll_results = [poll_ranks(ranks, float(second), {0, 2}, exited_ranks={1}) for second in range(5)]
    assert poll_results == [[False] * 2] * 4 + [[True] * 2]


def test_one_concludes_for_all_whatever_they_do(ranks: list[LivenessPoll]):
    ranks[2].declare_hang()
    assert poll_ranks(ranks, 0.0, {0}, exited_ranks={2}) == [True, True]
    assert not ranks[2].timed_out(0.0, is_stalled=False)  # its own word is no news to it


def test_a_call_of_an_earlier_attempt_is_none(ranks: list[LivenessPoll], tmp_path: Path):
    for second in range(5):
        poll_ranks(ranks, float(second), {0, 1, 2})
    ranks[0].declare_hang()
    restarted = [LivenessPoll(tmp_path / "notices", rank, PATIENCE) for rank in range(3)]
    before = (tmp_path / "notices/alive").exists()
    assert poll_ranks(restarted, 100.0, set()) == [False] * 3
    assert (tmp_path / "notices/alive").exists() == before


def test_in_a_folder_that_cannot_be_used_a_rank_decides_alone_and_later(tmp_path: Path):
    (tmp_path / "notices").write_text("a file")
    alone = LivenessPoll(tmp_path / "notices", 0, PATIENCE)
    looks = [
        alone.timed_out(float(second), is_stalled=True) for second in range(int(STORAGE_ERROR_FACTOR * PATIENCE) + 1)
    ]
    assert looks == [False] * int(STORAGE_ERROR_FACTOR * PATIENCE) + [
        True
    ]  # late: the others may be alive, and unheard
