"""Measures the difference between training and validation metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback

from stormproof.data.rng import ForkedRng
from stormproof.lightning.logging_steps import log_values
from stormproof_train.data.split_data import SplitDataModule
from stormproof_train.metric_direction import HEADLINE
from stormproof_train.task import Task

MAX_SAMPLES = 1000
"""Samples of the training split per validation. The standard error of an accuracy is then at most 0.016."""

TARGET_BATCH_ENTRIES = 2**18
"""Number of input entries per batch, unless a training batch has more. One large batch is faster than several."""


class GeneralizationGap(Callback):
    """Measures training samples in the same way as validation samples: in evaluation mode, without augmentation.

    The metrics ``train/…`` are computed with changing weights, dropout and augmentation, so their distance to the
    validation metrics is not the generalization gap. At the end of each validation, this callback evaluates as many
    training samples as were validated, but at most 1,000. The samples are evenly spaced and always the same. The
    callback does not change the training run. It must precede callbacks that set other weights for validation
    (averages), so it measures the averaged weights.

    Logged: ``generalization/train_loss`` and ``generalization/train_<headline>`` of these samples, and
    ``generalization/gap``, the amount by which the headline metric (accuracy or root mean squared error) is worse on
    validation.

    Args:
        datamodule: Data module of the run. Nothing is measured if it is not a data module of this application, because
            its training samples without augmentation are unknown, or if ``overfit_batches`` makes both splits equal.
    """

    def __init__(self, datamodule: pl.LightningDataModule) -> None:
        super().__init__()
        self._data = datamodule
        self._loader: Any = None
        self._train_metrics: dict[str, float] | None = None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures while the validated weights are active."""
        self._train_metrics = None
        is_validation = trainer.state.fn in {"fit", "validate"} and not trainer.sanity_checking
        if not is_validation or not isinstance(self._data, SplitDataModule) or getattr(trainer, "overfit_batches", 0):
            return
        assert isinstance(pl_module, Task)
        if self._loader is None:
            max_samples = min(MAX_SAMPLES, self._data.num_validation_samples)
            loader = self._data.evenly_spaced_loader(
                max_samples,
                max_batches=int(sum(trainer.num_val_batches)),
                min_batch_size=TARGET_BATCH_ENTRIES // math.prod(pl_module.spec.input_shape),
            )
            self._loader = trainer.strategy.process_dataloader(loader)
        with ForkedRng():
            self._train_metrics = pl_module.measure(self._batches(trainer))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the training metrics and the gap."""
        if self._train_metrics is None or trainer.sanity_checking:
            return
        assert isinstance(pl_module, Task)
        headline = HEADLINE[pl_module.spec.task]
        train_value, validation_value = (
            self._train_metrics[headline.name],
            float(trainer.callback_metrics[f"val/{headline.name}"]),
        )
        gap = train_value - validation_value if headline.higher_is_better else validation_value - train_value
        metrics = {f"train_{name}": value for name, value in self._train_metrics.items()} | {"gap": gap}
        log_values(trainer, {f"generalization/{name}": value for name, value in metrics.items()})
        self._train_metrics = None  # CheckpointRecovery reports attributes that change and are not saved

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Releases the loader and its workers."""
        self._loader = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Releases the loader and its workers."""
        self._loader = None

    def _batches(self, trainer: pl.Trainer) -> Iterator[Any]:
        """Yields batches in the form that a validation step gets."""
        for batch in self._loader:
            converted_batch = trainer.precision_plugin.convert_input(batch)
            with trainer.precision_plugin.val_step_context():
                yield trainer.strategy.batch_to_device(converted_batch)
