from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from stormproof.data import batch_order
from stormproof.data.batch_order import CHUNK_SIZE, BatchOrder
from stormproof.data.rng import capture
from stormproof.data.shard import Replica

sizes = st.integers(1, 5 * CHUNK_SIZE)


def epoch_orders(loader: DataLoader, ranks: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[list[Any]]:
    """The batches of a pass of each rank, and the checks that hold for any of them."""
    every = []
    for rank in range(ranks):
        monkeypatch.setattr(batch_order, "current_replica", lambda rank=rank: Replica(rank, ranks))
        order = BatchOrder(loader, distributed=True)
        before = repr(capture())
        batches = list(order.iterate(seed=7, epoch=2))
        assert repr(capture()) == before
        assert len(batches) == len(order)
        for skip in {0, 1, len(batches) // 2, len(batches), len(batches) + 3}:
            assert list(order.iterate(7, 2, skip)) == batches[skip:]
        every.append(batches)
    assert len({len(batches) for batches in every}) == 1  # or one rank would wait for another for ever
    return every


def batch_positions(batches: list[Any]) -> list[int]:
    return [batch.first_position + index * batch.stride for batch in batches for index in range(_size(batch))]


def _size(batch: Any) -> int:
    return len(batch.indices) if isinstance(batch.indices, list) else 1


@settings(deadline=None)
@given(samples=sizes, ranks=st.integers(1, 5), size=st.none() | st.integers(1, 7), drop_last=st.booleans())
def test_the_ranks_share_a_pass_as_with_torchs_distributed_sampler(
    samples: int, ranks: int, size: int | None, drop_last: bool
):
    with pytest.MonkeyPatch.context() as monkeypatch:
        options = {"batch_size": size} if size is None else {"batch_size": size, "drop_last": drop_last}
        shared = epoch_orders(DataLoader(range(samples), **options), ranks, monkeypatch)  # type: ignore[arg-type]
    for rank, batches in enumerate(shared):
        rank_sampler = DistributedSampler(range(samples), ranks, rank, shuffle=False)  # type: ignore[arg-type]
        expected = list(rank_sampler) if size is None else list(BatchSampler(rank_sampler, size, drop_last))
        assert [batch.indices for batch in batches] == expected
    taken = [position for batches in shared for position in batch_positions(batches)]
    assert len(set(taken)) == len(taken)
    if size is None or not drop_last:
        assert sorted(taken) == list(range(-(-samples // ranks) * ranks))


@pytest.mark.slow
@settings(deadline=None)
@given(samples=sizes, ranks=st.integers(1, 5), size=st.integers(1, 7))
def test_a_users_batches_are_dealt_out_whole(samples: int, ranks: int, size: int):
    class Users(BatchSampler): ...

    whole = list(BatchSampler(range(samples), size, drop_last=False))
    with pytest.MonkeyPatch.context() as monkeypatch:
        loader = DataLoader(range(samples), batch_sampler=Users(range(samples), size, drop_last=False))  # type: ignore[arg-type]
        shared = epoch_orders(loader, ranks, monkeypatch)
    dealt = [batch.indices for turn in zip(*shared, strict=True) for batch in turn]
    assert dealt == (whole * (1 + ranks))[: len(dealt)]
    assert len(whole) <= len(dealt) < len(whole) + ranks
    taken = [position for batches in shared for position in batch_positions(batches)]
    assert len(set(taken)) == len(taken)


@pytest.mark.parametrize("samples", [CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE])
def test_a_sampler_is_asked_for_no_more_than_a_chunk_ahead(samples: int):
    indices: list[int] = []

    class Asked(list):
        def __iter__(self) -> Any:
            return (indices.append(index) or index for index in range(samples))

    order = BatchOrder(DataLoader(range(samples), batch_size=None, sampler=Asked(range(samples))), distributed=True)  # type: ignore[arg-type]
    batches = order.iterate(1, 0, skip=0)
    assert indices == []
    next(batches)
    assert indices == list(range(min(CHUNK_SIZE, samples)))


def test_passes_have_orders_of_their_own_and_each_the_same_whenever_it_is_asked_for():
    order = BatchOrder(DataLoader(range(40), shuffle=True), distributed=True)  # type: ignore[arg-type]
    passes = {(seed, epoch): str(list(order.iterate(seed, epoch))) for seed in range(3) for epoch in range(3)}
    assert len(set(passes.values())) == 9
    for (seed, epoch), expected in reversed(passes.items()):
        assert str(list(order.iterate(seed, epoch))) == expected


@pytest.mark.parametrize("taken", [0, 1, 3, None])
def test_a_pass_leaves_its_sampler_as_it_was_when_the_last_batch_taken_was_asked_for(taken: int | None):
    class Remembers(list):
        def __iter__(self) -> Any:
            for self.last in range(40):
                yield self.last
            self.whole = True

    def loader() -> DataLoader:
        return DataLoader(range(40), batch_size=2, sampler=Remembers(range(40)))  # type: ignore[arg-type]

    plain = loader()
    batches = iter(plain)
    list(batches if taken is None else islice(batches, taken))
    resumable_loader = loader()
    order = BatchOrder(resumable_loader, distributed=True)
    start = order.capture_start_state()
    ahead = order.iterate(1, 0)
    list(ahead if taken is None else islice(ahead, taken and taken + 2))  # as workers do
    order.finish_epoch(1, 0, start, taken)
    assert vars(resumable_loader.sampler) == vars(plain.sampler)
