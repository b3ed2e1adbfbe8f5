"""Objects of the user that answer every name or raise do not end a training run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from stormproof import CheckpointRecovery, resumable
from tests.support.hostile_objects import HOSTILE_OBJECTS
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, RegressionModule, make_loader, make_module, make_trainer

pytestmark = [
    *LIGHTNING_WARNING_FILTERS,
    pytest.mark.filterwarnings("ignore:A resume will not be exact", "ignore:Checkpoints do not contain"),
]


class _Data(Dataset[torch.Tensor]):
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.inner[index]


class _Order(Sampler[int]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))


PLACES: dict[str, Callable[[pl.LightningModule, pl.Callback, DataLoader[Any]], Any]] = {
    "module": lambda module, callback, loader: module,
    "callback": lambda module, callback, loader: callback,
    "data set": lambda module, callback, loader: loader.dataset,
    "sampler": lambda module, callback, loader: loader.sampler,
}


@pytest.mark.parametrize("find_owner", PLACES.values(), ids=PLACES.keys())
def test_attributes_that_answer_every_name_or_raise_do_not_end_a_run(find_owner: Callable[..., Any], tmp_path: Path):
    module, callback, plain = make_module(kind=RegressionModule), pl.Callback(), make_loader(6)
    loader = DataLoader(_Data(plain.dataset), plain.batch_size, sampler=_Order(len(plain.dataset)))
    owner = find_owner(module, callback, loader)
    for number, make in enumerate(HOSTILE_OBJECTS.values()):
        vars(owner)[f"hostile_{number}"] = make()
    vars(owner)["hostile_objects"] = [make() for make in HOSTILE_OBJECTS.values()]
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1)
    make_trainer(callbacks=[recovery, callback], max_epochs=1).fit(module, resumable(loader))
    assert recovery.store.latest_checkpoint() is not None
