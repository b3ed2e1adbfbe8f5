"""The training loader is known by its type and its workers."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from stormproof import resumable
from stormproof.health.observers.data_wait import describe_loader
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_loader, make_module, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


class Batches:
    def __iter__(self) -> Any:
        return iter([torch.ones(2, 2)] * 3)


class Graphs(DataLoader[torch.Tensor]):
    """A loader of another library."""


@pytest.mark.parametrize(
    ("given", "known"),
    [
        (make_loader, ("DataLoader", 0)),
        (lambda: resumable(make_loader(num_workers=1)), ("DataLoader", 1)),
        (lambda: Graphs([torch.ones(2)] * 6, batch_size=2), ("Graphs", 0)),
        (Batches, ("Batches", None)),
        (lambda: [make_loader(num_workers=1), Batches()], ("Batches", None)),
    ],
    ids=["a DataLoader", "a resumable one", "of another library", "none of torch", "two"],
)
def test_it_is_known_by_its_type_and_its_workers(given: Any, known: tuple[str, int | None]):
    loaders: list[Any] = []

    class Asks(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            loaders.append(describe_loader(trainer))
            trainer.should_stop = True

    net = make_module()
    net.training_step = lambda *_: None
    make_trainer(callbacks=[Asks()], limit_train_batches=1).fit(net, given())
    assert loaders == [known]
