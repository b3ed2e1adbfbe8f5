"""Minimal training runs with a :class:`CheckpointRecovery`, and a clock that tests control."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from stormproof import CheckpointRecovery, resumable
from tests.support.small_fits import RegressionModule, ValidatedRegressionModule, make_loader, make_module, make_trainer


class FakeClock:
    """A clock for the callback, which the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("stormproof.checkpoint_recovery.time", self)
        monkeypatch.setattr("stormproof.resume.save_coordinator.time", self)
        monkeypatch.setattr("stormproof.checkpoint.progress_file.time", self)

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class BatchEndCallback(pl.Callback):
    """Calls ``function(global_step)`` at the end of each batch."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.function(trainer.global_step)


def checkpoint_steps(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in CheckpointRecovery(folder).store.read_checkpoints()]


def fit_with_recovery(
    recovery: CheckpointRecovery, *callbacks: pl.Callback, lightning: Any = pl, **options: Any
) -> Any:
    """Trains six steps per epoch. Resumes if the folder contains a checkpoint."""
    fit = make_trainer(lightning, callbacks=[*callbacks, recovery], **options)
    kind, val_loaders = (
        (ValidatedRegressionModule, [make_loader(2)]) if options.get("val_check_interval") else (RegressionModule, [])
    )
    fit.fit(
        make_module(lightning, kind), resumable(make_loader()), *val_loaders, ckpt_path=recovery.latest_checkpoint()
    )
    return fit
