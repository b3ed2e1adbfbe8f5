"""Each rank gets back what its hooks added to the checkpoint."""

import copy
import enum
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from stormproof.resume import rank_entries


class Kind(enum.IntEnum):
    A = 0
    B = 1


class Own:
    def __init__(self, rank: int) -> None:
        self.rank = rank


def entries_of(rank: int) -> dict[str, Any]:
    """What a hook adds on a rank."""
    itself: list[Any] = []
    itself.append(itself)
    return {
        "same": {"a": 1, "b": torch.ones(2)},
        "number": rank,
        "nested": {"same": 1, "own": {"tensor": torch.full((2,), float(rank))}},
        "keys": {rank * 10 + index: 1 for index in range(3)},
        "counter": Counter({f"k{rank}": 1, "both": rank + 1}),
        "empty": {} if rank else {"a": 1},
        "dict or None": {"a": 1} if rank else None,
        "None": None if rank else 5,
        "list": [rank, torch.tensor(rank), {"a": [rank]}],
        "tuples": {(rank, 1): "a"},
        "set": {rank},
        "text": f"rank {rank}",
        "bytes": bytes([rank]),
        "complex": complex(rank, 1),
        "NumPy": np.int64(rank),
        "weight": {"weight": torch.full((), float(rank))},
        "odd": [torch.empty(2, device="meta"), itself],
        **({"only rank 1": 1} if rank else {"only rank 0": 0}),
    }


def refused_entries_of(rank: int) -> dict[str, Any]:
    """What ``torch.load(weights_only=True)`` refuses."""
    return {"enum": Kind(rank), "keys": {Kind.A: rank}, "mixed": {"count": rank, "object": Own(rank)}}


Captured = list[tuple[list[Any], list[str]]]


def capture_on_ranks(entries: Callable[[int], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Captured:
    """What each of two ranks captures."""
    of_first: list[Any] = []

    def share(value: Any) -> Any:
        if value is not None:
            of_first.append(pickle.dumps(value))
        return pickle.loads(of_first[0])

    monkeypatch.setattr(rank_entries, "world_size", lambda: 2)
    monkeypatch.setattr(rank_entries, "broadcast", share)
    module = torch.nn.Linear(2, 1)
    return [rank_entries.capture_entries(entries(rank), module, is_rank_zero=rank == 0) for rank in range(2)]


def test_a_rank_gets_its_own_entries_back(monkeypatch: pytest.MonkeyPatch):
    kept_entries, lost_entries = capture_on_ranks(entries_of, monkeypatch)[1]
    restored, expected = (
        copy.deepcopy({key: value for key, value in entries_of(0).items() if key != "odd"}),
        entries_of(1),
    )
    rank_entries.restore_entries(restored, kept_entries)
    assert lost_entries == ["odd"]
    assert restored.pop("only rank 0") == 0
    assert restored.pop("nested")["own"]["tensor"].tolist() == [1, 1]
    assert torch.equal(restored.pop("same")["b"], torch.ones(2))
    assert restored == {key: expected[key] for key in restored}


def test_only_what_differs_is_stored(monkeypatch: pytest.MonkeyPatch):
    rank_zero, rank_one = capture_on_ranks(entries_of, monkeypatch)
    assert rank_zero == ([], [])
    assert {keys[0] for keys, _ in rank_one[0]}.isdisjoint({"same", "odd"})
    assert ["nested", "own", "tensor"] in [keys for keys, _ in rank_one[0]]


def test_entries_that_torch_refuses_are_named(monkeypatch: pytest.MonkeyPatch):
    (_, none), (kept_entries, lost_entries) = capture_on_ranks(refused_entries_of, monkeypatch)
    assert lost_entries == ["enum", "keys", "mixed/object"]
    with pytest.warns(UserWarning, match=r"refuses them: enum \(rank 1\), keys \(rank 1\), mixed/object \(rank 1\)\."):
        rank_entries.warn_about_unsaved([none, lost_entries])
    assert kept_entries == [(["mixed", "count"], 1)]


def test_an_entry_of_a_dict_that_was_not_restored_is_skipped():
    checkpoint: dict[str, Any] = {"number": 5}
    rank_entries.restore_entries(checkpoint, [(["mixed", "count"], 1), (["number", "a"], 1)])
    assert checkpoint == {"number": 5}
