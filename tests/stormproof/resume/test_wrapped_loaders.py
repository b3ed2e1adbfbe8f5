"""CheckpointRecovery(wrap_loaders=True) makes loaders resumable that only the trainer sees."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset

from stormproof import CheckpointRecovery, resumable
from tests.support.small_fits import (
    BOTH_PACKAGES,
    LIGHTNING_PYTORCH,
    LIGHTNING_WARNING_FILTERS,
    RegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = LIGHTNING_WARNING_FILTERS


class RecordedBatches(pl.Callback):
    """Keeps the batches of each epoch; optionally interrupts the training run after ``last`` batches."""

    def __init__(self, last: int | None = None) -> None:
        self.epochs: dict[int, list[Any]] = {}
        self.last = last
        self.count = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.epochs.setdefault(trainer.current_epoch, []).append(_to_lists(batch))
        self.count += 1
        if self.count == self.last:
            raise ZeroDivisionError


def _to_lists(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.tolist()
    return {name: _to_lists(value) for name, value in batch.items()}


def fit(
    folder: Path, make: Any, last: int | None = None, lightning: Any = pl, kind: type = RegressionModule, **options: Any
) -> Any:
    """Trains for two epochs on what the module's ``train_dataloader`` returns; resumes if there is a checkpoint."""

    class Hiding(kind):  # type: ignore[misc, valid-type]
        def train_dataloader(self) -> Any:
            return make()

    recorded = (
        RecordedBatches(last)
        if lightning is pl
        else type("RecordedBatches", (RecordedBatches, LIGHTNING_PYTORCH.Callback), {})(last)
    )
    recovery = CheckpointRecovery(folder, every_n_train_steps=1, async_save=False, wrap_loaders=True)
    hiding = make_module(lightning, kind=Hiding)
    fitting = make_trainer(lightning, callbacks=[recorded, recovery], **{"max_epochs": 2, **options})
    try:
        fitting.fit(hiding, ckpt_path=recovery.latest_checkpoint())
    except ZeroDivisionError:
        assert last is not None
    return hiding.layer.weight.detach().clone(), recorded.epochs


class Noisy(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index / 12, 1.0]) + 0.1 * torch.randn(2)


def shuffled() -> DataLoader[torch.Tensor]:
    return DataLoader(Noisy(), batch_size=2, shuffle=True)


class OfBoth(RegressionModule):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch["a"] + batch["b"], batch_idx)


@BOTH_PACKAGES
def test_hidden_loaders_resume_exactly(tmp_path: Path, lightning: Any):
    expected, batches = fit(tmp_path / "whole", shuffled, lightning=lightning)
    fit(tmp_path / "killed", shuffled, last=4, lightning=lightning)
    resumed, rest = fit(tmp_path / "killed", shuffled, lightning=lightning)
    assert torch.equal(expected, resumed)
    assert rest == {0: batches[0][3:], 1: batches[1]}  # the fourth batch was interrupted before it was saved


def test_several_hidden_loaders_resume_exactly_and_draw_different_numbers(tmp_path: Path):
    def both() -> CombinedLoader:
        return CombinedLoader({"a": shuffled(), "b": shuffled()}, "max_size")

    expected, batches = fit(tmp_path / "whole", both, kind=OfBoth)
    fit(tmp_path / "killed", both, last=4, kind=OfBoth)
    assert torch.equal(expected, fit(tmp_path / "killed", both, kind=OfBoth)[0])
    assert all(batch["a"] != batch["b"] for batch in batches[0])


def test_the_order_of_one_hidden_loader_is_that_of_resumable(tmp_path: Path):
    pl.seed_everything(3, verbose=False)
    _, hidden = fit(tmp_path, shuffled)
    recorded = RecordedBatches()
    make_trainer(callbacks=[recorded], max_epochs=2).fit(make_module(), resumable(shuffled()))
    assert hidden == recorded.epochs


def test_loaders_that_are_reloaded_every_epoch_have_another_order_and_resume_exactly(tmp_path: Path):
    options: dict[str, Any] = {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 3}
    expected, batches = fit(tmp_path / "whole", shuffled, **options)
    assert sorted(map(str, batches[0])) != sorted(map(str, batches[1]))
    for last in (4, 8):
        fit(tmp_path / f"{last}", shuffled, last=last, **options)
        assert torch.equal(expected, fit(tmp_path / f"{last}", shuffled, **options)[0])


def test_overfit_batches_repeats_the_same_samples(tmp_path: Path):
    with pytest.warns(match="overfit"):
        _, batches = fit(tmp_path, lambda: make_loader(shuffle=True), overfit_batches=2)
    assert batches[0] == batches[1] == [_to_lists(batch) for batch in list(make_loader())[:2]]


def test_loaders_of_other_kinds_are_left_as_they_are_with_a_warning(tmp_path: Path):
    class Batches:
        def __iter__(self) -> Any:
            return iter(make_loader())

    with pytest.warns(match="its Batches does not save its position: pass a torch DataLoader"):
        _, batches = fit(tmp_path, Batches)
    assert len(batches[0]) == 6


def test_the_trainer_is_left_as_it_was(tmp_path: Path):
    fitting = make_trainer(callbacks=[CheckpointRecovery(tmp_path, wrap_loaders=True)])
    fitting.fit(make_module(), make_loader())
    assert "dataloader" not in vars(fitting.fit_loop._data_source)
