"""How ranks share a pass in which each sample comes once."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from stormproof import resumable
from stormproof.data.shard import Replica


def shares(samples: int, ranks: int, size: int, drop_last: bool = False) -> list[list[list[int]]]:
    """The batches of each rank."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(ranks):
            patch.setattr("stormproof.data.batch_order.replica", lambda rank=rank: Replica(rank, ranks))
            loader: Any = DataLoader(range(samples), batch_size=size, drop_last=drop_last)  # type: ignore[arg-type]
            mine = resumable(loader, seed=0, padded=False)
            found.append([batch.tolist() for batch in mine])
            assert len(mine) == len(found[-1])
    return found


@pytest.mark.slow
@given(ranks=st.integers(1, 5), extra=st.integers(0, 60), size=st.integers(1, 9))
def test_each_sample_is_on_one_rank_and_all_ranks_have_as_many_batches(ranks: int, extra: int, size: int):
    samples = ranks + extra
    found = shares(samples, ranks, size)
    assert sorted(number for mine in found for batch in mine for number in batch) == list(range(samples))
    assert len({len(mine) for mine in found}) == 1
    assert all(batch for mine in found for batch in mine)
    assert max(len(batch) for mine in found for batch in mine) <= max(size, 2)


@pytest.mark.slow
@given(ranks=st.integers(1, 5), extra=st.integers(0, 60), size=st.integers(1, 9))
def test_the_batches_of_all_ranks_together_are_the_next_samples(ranks: int, extra: int, size: int):
    """So that another number of ranks sees the same samples in the same step, as far as batches are full."""
    found = shares(ranks + extra, ranks, size)
    full = extra // (ranks * size)  # and ranks more samples than these need
    for step in range(full):
        together = sorted(number for mine in found for number in mine[step])
        assert together == list(range(step * ranks * size, (step + 1) * ranks * size))


@pytest.mark.slow
@given(ranks=st.integers(1, 5), extra=st.integers(0, 60), size=st.integers(1, 9))
def test_what_fills_no_batch_of_all_ranks_can_be_dropped(ranks: int, extra: int, size: int):
    found = shares(ranks + extra, ranks, size, drop_last=True)
    assert {len(mine) for mine in found} == {(ranks + extra) // (ranks * size)}
    assert {len(batch) for mine in found for batch in mine} <= {size}


def test_a_batch_of_one_takes_the_sample_that_is_left_over():
    assert shares(5, ranks=2, size=1) == [[[0], [2, 4]], [[1], [3]]]
