"""SamplerState captures and restores the state of a loader's samplers."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader, Sampler

from stormproof.data.sampler_state import SamplerState, is_stateful
from stormproof.data.shard import Replica
from tests.stormproof.data.loader_kinds import SAMPLES, NoisyDataset, PassCountingSampler


class Part(Sampler):
    """Has ``rank`` or ``num_replicas``, or both."""

    order: list[int]

    def __init__(self, **attributes: int) -> None:
        vars(self).update(attributes)

    def __iter__(self) -> Iterator[int]:
        return iter(range(SAMPLES))


def test_restoring_deletes_attributes_that_were_added_later():
    sampler = PassCountingSampler()
    states = SamplerState(DataLoader(NoisyDataset(), sampler=sampler))
    attributes, state = dict(vars(sampler)), states.capture()
    assert list(sampler)
    assert sampler.passes == 1
    states.restore(state)
    assert vars(sampler) == attributes


@pytest.mark.parametrize(("order", "captured"), [([2, 0, 1], {}), ([2, 0], {"order": [2, 0]})])
def test_only_attributes_that_have_changed_are_captured(order: list[int], captured: dict[str, Any]):
    sampler = Part()
    sampler.order = [2, 0, 1]
    states = SamplerState(DataLoader(NoisyDataset(), sampler=sampler))
    sampler.order = order
    assert states.capture().get("sampler", {}).get("values", {}) == captured


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [({"rank": 1, "num_replicas": 2}, Replica(1, 2)), ({"rank": 1}, None), ({"num_replicas": 2}, None)],
)
def test_a_sampler_with_rank_and_num_replicas_is_distributed(attributes: dict[str, int], expected: Replica | None):
    assert SamplerState(DataLoader(NoisyDataset(), sampler=Part(**attributes))).replica() == expected


@pytest.mark.parametrize("methods", [{"state_dict"}, {"load_state_dict"}, {"state_dict", "load_state_dict"}])
def test_a_stateful_object_can_save_and_load_its_state(methods: set[str]):
    owner: Any = type("Owner", (), {name: lambda *_: None for name in methods})()
    assert is_stateful(owner) == (len(methods) == 2)
