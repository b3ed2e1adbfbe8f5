"""How ranks share a pass in which each sample comes once."""

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.utils.data import DataLoader

from stormproof import resumable
from stormproof.data.shard import Replica, current_replica
from tests.support.ranks import call_on_ranks


def rank_batches(samples: int, ranks: int, size: int, drop_last: bool = False) -> list[list[list[int]]]:
    """The batches of each rank."""
    batches_by_rank = []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(ranks):
            patch.setattr("stormproof.data.batch_order.current_replica", lambda rank=rank: Replica(rank, ranks))
            loader: Any = DataLoader(range(samples), batch_size=size, drop_last=drop_last)  # type: ignore[arg-type]
            rank_loader = resumable(loader, seed=0, padded=False)
            batches_by_rank.append([batch.tolist() for batch in rank_loader])
            assert len(rank_loader) == len(batches_by_rank[-1])
    return batches_by_rank


@pytest.mark.slow
@given(ranks=st.integers(1, 5), extra=st.integers(0, 60), size=st.integers(1, 9))
def test_each_sample_is_on_one_rank_and_all_ranks_have_as_many_batches(ranks: int, extra: int, size: int):
    samples = ranks + extra
    batches_by_rank = rank_batches(samples, ranks, size)
    assert sorted(number for own_batches in batches_by_rank for batch in own_batches for number in batch) == list(
        range(samples)
    )
    assert len({len(own_batches) for own_batches in batches_by_rank}) == 1
    assert all(batch for own_batches in batches_by_rank for batch in own_batches)
    assert max(len(batch) for own_batches in batches_by_rank for batch in own_batches) <= max(size, 2)


@pytest.mark.slow
@given(ranks=st.integers(1, 5), extra=st.integers(0, 60), size=st.integers(1, 9))
def test_the_batches_of_all_ranks_together_are_the_next_samples(ranks: int, extra: int, size: int):
    """So that another number of ranks sees the same samples in the same step, as far as batches are full."""
    batches_by_rank = rank_batches(ranks + extra, ranks, size)
    full = extra // (ranks * size)  # and ranks more samples than these need
    for step in range(full):
        together = sorted(number for own_batches in batches_by_rank for number in own_batches[step])
        assert together == list(range(step * ranks * size, (step + 1) * ranks * size))


@pytest.mark.slow
@given(ranks=st.integers(1, 5), extra=st.integers(0, 60), size=st.integers(1, 9))
def test_what_fills_no_batch_of_all_ranks_can_be_dropped(ranks: int, extra: int, size: int):
    batches_by_rank = rank_batches(ranks + extra, ranks, size, drop_last=True)
    assert {len(own_batches) for own_batches in batches_by_rank} == {(ranks + extra) // (ranks * size)}
    assert {len(batch) for own_batches in batches_by_rank for batch in own_batches} <= {size}


def test_a_batch_of_one_takes_the_sample_that_is_left_over():
    assert rank_batches(5, ranks=2, size=1) == [[[0], [2, 4]], [[1], [3]]]


def check_replicas(rank: int, port: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="4", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo")
    assert current_replica() == Replica(rank, 4)
    for data_parallel_size in (2, 1, 4, 2):
        size = 4 // data_parallel_size
        names = ("data_parallel", "tensor_parallel")
        mesh = init_device_mesh("cpu", (data_parallel_size, size), mesh_dim_names=names)
        assert current_replica() == Replica(mesh["data_parallel"].get_local_rank(), data_parallel_size)
    distributed.destroy_process_group()
    assert current_replica() == Replica(0, 1)


@pytest.mark.slow
def test_the_ranks_of_a_tensor_parallel_group_of_the_last_mesh_take_the_same_samples():
    call_on_ranks(4, check_replicas, get_free_port())
