"""How much better a network is on what it was trained on than on what it was not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback

from stormproof.logging_steps import log_values
from stormproof_train.data.split_data import SplitData
from stormproof_train.metrics import HEADLINE
from stormproof_train.task import Task


class GeneralizationGap(Callback):
    """Measures training samples as validation measures its own: in evaluation mode, without augmentation.

    What is logged as ``train/…`` is of weights that change under it, with dropout and augmentation; its distance from
    validation says little. After each validation this looks at as many training samples, evenly picked and always the
    same ones, and changes no bit of the training. It costs as much as the validation.

    Logged: ``generalization/train_loss`` and ``generalization/train_<headline>`` of these samples, and
    ``generalization/gap``, by how much the headline (accuracy; root mean squared error) is worse on validation.

    Args:
        data: the run's data module; of one that is none of this application's own nobody knows its training samples
            without augmentation, and nothing is measured.
    """

    def __init__(self, data: pl.LightningDataModule) -> None:
        super().__init__()
        self._data = data
        self._loader: Any = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures, and logs."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not isinstance(self._data, SplitData):
            return
        assert isinstance(pl_module, Task)
        if self._loader is None:
            self._loader = self._data.like_validation()
        measured = pl_module.measure(self._batches(trainer))
        headline = HEADLINE[pl_module.spec.task]
        trained, validated = measured[headline.name], float(trainer.callback_metrics[f"val/{headline.name}"])
        gap = trained - validated if headline.higher_is_better else validated - trained
        found = {f"train_{name}": value for name, value in measured.items()} | {"gap": gap}
        log_values(trainer, {f"generalization/{name}": value for name, value in found.items()})

    def _batches(self, trainer: pl.Trainer) -> Iterator[Any]:
        """No more of them than validation takes, as a validation step is given them."""
        for batch in islice(self._loader, int(sum(trainer.num_val_batches))):
            converted = trainer.precision_plugin.convert_input(batch)
            with trainer.precision_plugin.val_step_context():
                yield trainer.strategy.batch_to_device(converted)
