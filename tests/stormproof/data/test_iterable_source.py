from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stormproof import resumable


class Stream(IterableDataset):
    """Each worker tells its own numbers; the files it reads are what ``worker_init_fn`` chose."""

    files: tuple[int, ...] = (1, 2, 3, 4)

    def __iter__(self) -> Iterator[list[float]]:
        for file in self.files:
            yield [float(file), torch.rand(()).item()]


def choose_files(worker: int) -> None:
    """As torch's documentation does it: through the data set that the worker has."""
    info = get_worker_info()
    assert info is not None
    info.dataset.files = info.dataset.files[worker :: info.num_workers]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_worker_init_function_may_treat_the_stand_in_as_the_users_own():
    def passes(persistent: bool) -> list[list[tuple[int, float]]]:
        options = {"batch_size": None, "num_workers": 2, "worker_init_fn": choose_files}
        loader = resumable(DataLoader(Stream(), **options, persistent_workers=persistent), seed=1)
        return [[(int(file), number) for file, number in loader] for _ in range(3)]

    epochs = passes(persistent=False)
    assert [sorted(file for file, _ in epoch) for epoch in epochs] == [[1, 2, 3, 4]] * 3
    assert len({number for epoch in epochs for _, number in epoch}) == 12
    assert passes(persistent=True) == epochs


def test_a_state_is_taken_as_it_is_and_does_not_change_with_its_owner():
    samples: list[int] = []
    owner = SimpleNamespace(
        state_dict=lambda: {"seen": samples}, load_state_dict=lambda state: samples.extend(state["seen"])
    )

    class Stateful(Stream):
        state_dict: Any = staticmethod(owner.state_dict)
        load_state_dict: Any = staticmethod(owner.load_state_dict)

        def __iter__(self) -> Iterator[int]:
            for index in range(5):
                samples.append(index)
                yield index

    loader = resumable(DataLoader(Stateful(), batch_size=None), seed=1)
    batches = iter(loader)
    next(batches), next(batches), next(batches)
    state = loader.state_dict()
    next(batches)
    assert state["position"]["owner"] == {"seen": [0, 1]}
    assert state["position"]["num_refetched"] == 1
