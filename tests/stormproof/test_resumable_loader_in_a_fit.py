"""Lightning takes a resumable loader wherever it takes one, saves where it is, and leaves its order alone."""

import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from stormproof import resumable
from stormproof.lightning import internals

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),  # Lightning's own, on newer torch
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]
EPOCHS = 3


class Noisy(Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, torch.rand(()).item() + random.random()])


class Stream(Noisy, IterableDataset):
    __len__ = None  # type: ignore[assignment]

    def __iter__(self) -> Any:
        return (self[index] for index in range(10))


def train_loader(kind: str) -> Any:
    dataset = {"samples": Noisy, "stream": Stream}[kind]()
    return resumable(DataLoader(dataset, batch_size=3, shuffle=kind == "samples"), seed=2)


class Module(pl.LightningModule):
    """Writes down its batches, and draws between them."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[Any] = []
        self.loader = loader

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.batches.append((self.current_epoch, batch.tolist()))
        return self.weight * (batch.sum() + torch.rand(()) + random.random())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OwnLoader(Module):
    def train_dataloader(self) -> Any:
        return self.loader


class Data(pl.LightningDataModule):
    def __init__(self, loader: Any) -> None:
        super().__init__()
        self.loader = loader

    def train_dataloader(self) -> Any:
        return self.loader


class Saves(pl.Callback):
    """Saves at the end of each batch, as anyone may: with Lightning's own means."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fit(way: str, kind: str, ckpt_path: Path | None = None, **options: Any) -> list[Any]:
    loader = train_loader(kind)
    module = OwnLoader(loader) if way == "train_dataloader()" else Module()
    fit_arguments = {"handed to fit": {"train_dataloaders": loader}, "a DataModule": {"datamodule": Data(loader)}}.get(
        way, {}
    )
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", **{**quiet, **options})
    trainer.fit(module, **fit_arguments, ckpt_path=ckpt_path)
    return module.batches


@pytest.mark.parametrize("way", ["handed to fit", "a DataModule", "train_dataloader()"])
@pytest.mark.parametrize("limit", [None, 3], ids=["whole epochs", "broken off"])
def test_a_fit_goes_on_with_the_batch_that_is_next(way: str, limit: int | None, tmp_path: Path):
    options = {"limit_train_batches": limit} if limit else {}
    batches = fit(way, "samples", callbacks=[Saves(tmp_path)], **options)
    steps = EPOCHS * (limit or 4)
    assert len(batches) == steps == len(list(tmp_path.iterdir()))
    assert len({str(batch) for _, batch in batches}) == steps
    for step in range(1, steps):
        if step % (limit or 4):  # Lightning itself does not keep a loader's place where an epoch ends
            assert fit(way, "samples", tmp_path / f"{step}.ckpt", **options) == batches[step:], step


@pytest.mark.parametrize("kind", ["samples", "stream"])
@pytest.mark.parametrize("limit", [None, 3], ids=["whole epochs", "broken off"])
def test_what_is_saved_between_two_batches_begins_with_the_second(kind: str, limit: int | None):
    states: list[Any] = []

    class Between(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            loader = trainer.train_dataloader

            def look() -> None:
                state = loader.state_dict(internals.count_prefetched_batches(trainer))
                states.append((len(pl_module.batches), state))

            self.stop = internals.call_between_batches(trainer, look)

        def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.stop()

    options = {"limit_train_batches": limit} if limit else {}
    batches = fit("handed to fit", kind, callbacks=[Between()], **options)
    assert {step for step, _ in states} == set(range(EPOCHS * (limit or 4)))
    for step, state in states:
        fresh = train_loader(kind)
        fresh.load_state_dict(state)
        rest = batches[step:]
        for epoch in range(rest[0][0], EPOCHS):
            expected = [batch for when, batch in rest if when == epoch]
            assert [batch.tolist() for batch in islice(fresh, len(expected))] == expected, (step, epoch)
