"""What a resumable loader refuses, in words."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from stormproof import resumable
from stormproof.data.shard import Replica
from stormproof.errors import NotResumableError
from stormproof.resumable_loader import MAX_REWIND_BATCHES


def loader(samples: int = 20, **options: Any) -> Any:
    return resumable(DataLoader(range(samples), **{"batch_size": 2, **options}), seed=1)  # type: ignore[arg-type]


def stop_after(batches: int, **options: Any) -> dict[str, Any]:
    left = loader(**options)
    for _, _ in zip(range(batches), left, strict=False):
        pass
    return left.state_dict()


def test_two_passes_over_one_loader_at_once():
    shared = loader()
    first = iter(shared)
    next(first), next(first)
    second = iter(shared)
    assert next(first).tolist() == [4, 5]  # only asked for
    next(second)
    with pytest.raises(RuntimeError, match=r"Another loop .* \(batches so far: 3\)\. Use a separate loader"):
        next(first)
    assert next(second).tolist() == [2, 3]


def test_a_state_loaded_in_the_midst_of_a_pass():
    busy = loader()
    batches = iter(busy)
    next(batches)
    busy.load_state_dict(stop_after(4))
    with pytest.raises(RuntimeError, match=r"or a state was loaded, before .* \(batches so far: 1\)"):
        next(batches)
    assert next(iter(busy)).tolist() == [8, 9]


CHANGED = {
    "another number of samples": ({"samples": 21}, "saved with samples=20, but this loader has samples=21"),
    "another batch size": ({"batch_size": 4}, "saved with batch_size=2, but this loader has batch_size=4"),
}


@pytest.mark.parametrize(("options", "words"), CHANGED.values(), ids=CHANGED.keys())
def test_other_data_or_batches(options: dict[str, Any], words: str):
    with pytest.raises(NotResumableError, match=words):
        loader(**options).load_state_dict(stop_after(1))


def test_a_stream_in_another_number_of_workers():
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(range(9))

    state = resumable(DataLoader(Stream())).state_dict()
    with pytest.raises(
        NotResumableError, match=r"num_workers=0, but this loader has num_workers=2\. Resume with the same"
    ):
        resumable(DataLoader(Stream(), num_workers=2)).load_state_dict(state)


def test_an_iterable_data_sets_place_with_another_number_of_ranks_which_is_told_each_time_it_is_tried():
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(range(9))

    first = resumable(DataLoader(Stream()), seed=1)
    batches = iter(first)
    next(batches)
    alone = resumable(DataLoader(Stream()), seed=1)
    alone.load_state_dict({**first.state_dict(), "world_size": 2})
    for _ in range(2):
        with pytest.raises(
            NotResumableError,
            match=r"world size 2, but this job has world size 1\. .* only with world size 2",
        ):
            next(iter(alone))


def test_a_state_of_another_kind_of_loader():
    with pytest.raises(NotResumableError, match=r"keys \['_index', 'x'\] was not saved by a resumable loader"):
        loader().load_state_dict({"x": 1, "_index": 2})


@pytest.mark.parametrize("batches", [0, 1, 9])
def test_going_back_further_than_it_remembers(batches: int):
    left = loader()
    for _, _ in zip(range(batches), left, strict=False):
        pass
    possible = min(batches, MAX_REWIND_BATCHES)
    left.state_dict(possible)
    with pytest.raises(ValueError, match=f"`num_prefetched` must be at most {possible}, .* got {possible + 1}"):
        left.state_dict(possible + 1)


def test_going_back_to_before_a_state_was_loaded():
    left = loader()
    next(iter(left))
    left.load_state_dict(stop_after(4))
    with pytest.raises(ValueError, match=r"`num_prefetched` must be at most 0, .* got 1"):
        left.state_dict(1)


@pytest.mark.parametrize("what", [[1, 2], "x", None, torch.zeros(3), {"a": DataLoader([1])}])
def test_what_is_no_loader(what: Any):
    with pytest.raises(TypeError, match=f"`loader` must be a torch DataLoader .* got {type(what).__name__}"):
        resumable(what)


def test_what_is_resumable_already_is_given_back():
    once = loader()
    assert resumable(once) is once


def test_an_error_of_the_data_sets_is_the_users_own_and_the_next_pass_is_another():
    class Broken(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> int:
            return 1 // (index - 1) if index else 0

    broken = resumable(DataLoader(Broken()), seed=1)
    for epoch in range(2):
        batches = iter(broken)
        next(batches)
        assert broken.state_dict()["epoch"] == epoch
        with pytest.raises(ZeroDivisionError):
            next(batches)


OWN_BATCHES = DataLoader(range(4), batch_sampler=[[0, 1], [2, 3]])  # type: ignore[arg-type]
NOT_DIVISIBLE = {
    "batches of its own": (OWN_BATCHES, "Pass an integer `batch_size` to the loader"),
    "no batches": (DataLoader(range(4), batch_size=None), "Pass an integer `batch_size` to the loader"),  # type: ignore[arg-type]
    "a sampler that divides": (
        DataLoader(range(4), sampler=DistributedSampler(range(4), num_replicas=2, rank=0)),  # type: ignore[arg-type]
        "does not support a sampler that divides",
    ),
}


@pytest.mark.parametrize(("given", "words"), NOT_DIVISIBLE.values(), ids=NOT_DIVISIBLE.keys())
def test_what_cannot_be_divided_without_padding(given: Any, words: str):
    with pytest.raises(ValueError, match=words):
        resumable(given, padded=False)


def test_fewer_samples_than_ranks_without_padding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stormproof.data.batch_order.current_replica", lambda: Replica(1, 3))
    few = resumable(DataLoader(range(2)), padded=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 samples are too few for 3 ranks, which need one each"):
        len(few)
