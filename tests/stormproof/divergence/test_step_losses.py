import pytest
import torch

from stormproof.divergence.step_monitor import StepLosses
from stormproof.errors import RanksDisagreeError


def _make_losses(count: int, gathered_steps: int = 4) -> StepLosses:
    losses = StepLosses(gathered_steps)
    for step in range(1, count + 1):
        losses.add(float(step))
        losses.finish_step(step)
    return losses


def _rows(*losses: StepLosses, skipped_steps: int = 3) -> list[list[float]]:
    return [rank_losses.row(skipped_steps, torch.device("cpu")).tolist() for rank_losses in losses]


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_rows_have_one_size_and_all_losses_are_read_in_order(count: int):
    losses, read = _make_losses(count), []
    while losses.has_finished:
        rows = _rows(losses)
        assert len(rows[0]) == 6
        read += losses.read(rows)
    assert read == [(step, float(step)) for step in range(1, count + 1)]


def test_losses_are_means_over_the_ranks():
    first, second = _make_losses(1), StepLosses(gathered_steps=4)
    second.add(torch.tensor(5.0))
    second.finish_step(1)
    assert first.read(_rows(first, second)) == [(1, 3.0)]


def test_ranks_that_have_skipped_different_numbers_of_steps_stop():
    losses = _make_losses(2)
    rows = [*_rows(losses), *_rows(losses, skipped_steps=4)]
    with pytest.raises(RanksDisagreeError, match=r"the ranks have skipped different numbers of steps \(\[3, 4\]\)"):
        losses.read(rows)


def test_ranks_that_have_finished_different_numbers_of_steps_stop():
    losses = _make_losses(2)
    with pytest.raises(RanksDisagreeError, match=r"the ranks have finished different numbers of steps \(\[2, 3\]\)"):
        losses.read(_rows(losses, _make_losses(3)))
