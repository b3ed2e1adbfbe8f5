"""Lightning module with a network, a loss and metrics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import MetricCollection

from stormproof.lightning.logging_steps import is_logging_step
from stormproof_train.augmentation import Augmentation, no_augmentation
from stormproof_train.data.spec import DataSpec
from stormproof_train.errors import UserError
from stormproof_train.evaluation.prediction_store import PredictionStore
from stormproof_train.evaluation.predictions import OutputKind
from stormproof_train.fully_sharded import shard_network
from stormproof_train.losses import Loss, loss_properties
from stormproof_train.metrics import MeanLoss, evaluation_metrics, training_metrics

SchedulerFactory = Callable[..., "LRScheduler | ReduceLROnPlateau | None"]
"""Called with ``optimizer`` and the length of the run, under the argument names of torch's schedules."""

LENGTH_ARGUMENTS = ("total_steps", "T_max")
"""Length arguments of torch's schedules. A schedule that gets its length from the run counts steps."""


SCALE_KEY, CLASSES_KEY = "target_scale", "classes"
"""Keys of a checkpoint for the target scale and the class names."""


class Task(pl.LightningModule):
    r"""Trains a network on (input, target) batches.

    The loss of a batch is :math:`L(f(x), (y - a) / b)`. For classification a is 0 and b is 1. For regression they are
    the mean and standard deviation of the target, or numbers that the loss defines. Metrics use :math:`a + b\, \hat
    y(f(x))`, in the unit of the target, where :math:`\hat y` converts outputs to predictions and is usually the
    identity.

    Logged: ``train/loss`` and ``optimizer/lr`` at Lightning's logging steps, the mean over the epoch as
    ``train/epoch_loss`` with the training metric, and ``val/…`` or ``test/…`` after a pass. All values are over all
    ranks.

    Args:
        network: Maps ``(batch, *input_shape)`` to ``(batch, num_outputs x outputs per target)``.
        loss: Maps (output, target) to a scalar.
        spec: Shapes and target scale of the data.
        optimizer: Called with the parameters to train.
        scheduler: Called with the optimizer. May return None for a constant learning rate.
        counts_steps: If True, the schedule advances per step, else per epoch.
        augmentation: Changes each training batch. Loss and metrics of training use its results.
        classes: Names of the classes. Empty if they have no names.

    Attributes:
        test_predictions: Predictions of the last pass over the test split.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        spec: DataSpec,
        optimizer: Callable[[Any], Optimizer],
        scheduler: SchedulerFactory,
        counts_steps: bool,
        augmentation: Augmentation = no_augmentation,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.spec = spec
        self._predict = loss_properties(loss).prediction
        class_output_kind: OutputKind = "probabilities" if loss_properties(loss).softmax else "scores"
        self._output_kind: OutputKind = class_output_kind if spec.num_classes else "values"
        self._normalizer = loss_properties(loss).normalizer
        self._shift, self._scale = loss_properties(loss).shift_and_scale(spec)
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._counts_steps = counts_steps
        self._augmentation = augmentation
        self.classes = list(classes)
        self.train_metrics = training_metrics(spec)
        self.val_metrics = evaluation_metrics(spec)
        self.test_metrics = evaluation_metrics(spec)
        self.train_loss, self.val_loss, self.test_loss = MeanLoss(), MeanLoss(), MeanLoss()
        self.test_predictions = PredictionStore(self._output_kind)

    @property
    def shift_and_scale(self) -> tuple[float, float]:
        """The numbers (a, b) of the data that the weights were trained on."""
        return self._shift, self._scale

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Maps inputs to logits ``(batch, classes)``, or to predictions ``(batch, outputs)`` in the target's unit."""
        return self._unscale(_upcast(self.network(inputs)))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        """Returns loss, predictions and target of one batch."""
        step_outputs = self._compute_step(self._augmentation(*_cast_labels(batch)), self.train_loss, self.train_metrics)
        if is_logging_step(self.trainer, self.global_step + 1):
            self.log("train/loss", step_outputs["loss"].detach(), sync_dist=True)
            self.log("optimizer/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return step_outputs

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        """Adds one batch to the validation metrics."""
        return self._compute_step(_cast_labels(batch), self.val_loss, self.val_metrics)

    def on_test_epoch_start(self) -> None:
        """Starts collecting predictions."""
        self.test_predictions = PredictionStore(self._output_kind)

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Adds one batch to the test metrics, and stores its predictions."""
        batch = _cast_labels(batch)
        outputs = self._compute_step(batch, self.test_loss, self.test_metrics)["preds"]
        if self.spec.num_classes:
            predictions, target = (
                outputs.softmax(dim=1) if self._output_kind == "probabilities" else outputs,
                self._metric_target(batch[1]),
            )
        else:
            predictions, target = self._unscale(outputs), _upcast(batch[1]).reshape(-1, self.spec.num_outputs)
        self.test_predictions.append(batch[0], predictions, target)

    def on_train_epoch_end(self) -> None:
        """Logs the means over the epoch."""
        self._log_epoch_metrics("epoch_loss", self.train_loss, self.train_metrics, "train")

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics."""
        self._log_epoch_metrics("loss", self.val_loss, self.val_metrics, "val")

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics, and gathers the predictions of all ranks."""
        self._log_epoch_metrics("loss", self.test_loss, self.test_metrics, "test")
        self.test_predictions.gather(self.trainer.test_dataloaders)

    def measure(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
        """Returns the loss and the training metrics over batches and over all ranks, which must call it together."""
        mean_loss, metrics = MeanLoss().to(self.device), training_metrics(self.spec).to(self.device)
        for batch in batches:
            self._compute_step(_cast_labels(batch), mean_loss, metrics)
        return {name: float(value) for name, value in {"loss": mean_loss.compute(), **metrics.compute()}.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the target scale and the class names of the weights."""
        checkpoint[SCALE_KEY] = {"shift": self._shift, "scale": self._scale}
        checkpoint[CLASSES_KEY] = self.classes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the target scale of the weights, independently of the current data.

        Raises:
            UserError: If the weights were trained on other classes.
        """
        if SCALE_KEY in checkpoint:
            self._shift, self._scale = checkpoint[SCALE_KEY]["shift"], checkpoint[SCALE_KEY]["scale"]
        checkpoint_classes = checkpoint.get(CLASSES_KEY) or self.classes
        if self.classes and checkpoint_classes != self.classes:
            raise UserError(
                f"the weights were trained on the classes {_format_names(checkpoint_classes)}, but this data has "
                f"{_format_names(self.classes)}"
            )

    def configure_model(self) -> None:
        """Shards the network over the ranks, if the strategy does."""
        if self.device_mesh is None:
            return
        external_parameters = [
            name
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not name.startswith("network.")
        ]
        if external_parameters:
            raise UserError(
                f"{external_parameters[0]} is trainable but not part of the model, so it cannot be sharded. Use "
                "trainer=ddp."
            )
        shard_network(self.network, self.device_mesh)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns the optimizer for the trainable parameters, and its schedule per step or per epoch."""
        optimizer = self._optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])
        steps = self._total_steps() if self._counts_steps else 0
        scheduler = self._scheduler(
            optimizer=optimizer, total_steps=steps, T_max=steps, max_lr=optimizer.param_groups[0]["lr"]
        )
        if scheduler is None:
            return optimizer
        if isinstance(scheduler, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}
        interval = "step" if self._counts_steps else "epoch"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def _total_steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError(
                "scheduler: needs the length of the run, which is unlimited. Set trainer.max_epochs or max_steps."
            )
        return int(steps)

    def _compute_step(
        self, batch: tuple[torch.Tensor, torch.Tensor], mean_loss: MeanLoss, metrics: MetricCollection
    ) -> dict[str, torch.Tensor]:
        inputs, target = batch
        outputs = _upcast(self.network(inputs))
        scaled_target = target
        if not self.spec.num_classes:
            target = target.reshape(-1, self.spec.num_outputs)  # (batch,) would broadcast against (batch, 1)
            scaled_target = (target - self._shift) / self._scale
        loss = self.loss(outputs, scaled_target)
        with torch.no_grad():
            mean_loss.update(loss.detach(), self._normalizer(scaled_target))
            metrics.update(self._unscale(outputs.detach()), self._metric_target(target))
        return {"loss": loss, "preds": outputs.detach(), "target": scaled_target}

    def _metric_target(self, target: torch.Tensor) -> torch.Tensor:
        """Returns the target for the metrics: the most probable class if the target contains probabilities."""
        return target.argmax(dim=1) if self.spec.num_classes and target.ndim > 1 else target

    def _unscale(self, outputs: torch.Tensor) -> torch.Tensor:
        predictions = self._predict(outputs)
        return predictions if self.spec.num_classes else predictions * self._scale + self._shift

    def _log_epoch_metrics(self, loss_name: str, mean_loss: MeanLoss, metrics: MetricCollection, prefix: str) -> None:
        """Logs a pass over a split. torchmetrics reduces over the ranks in ``compute``."""
        values = {loss_name: mean_loss.compute(), **metrics.compute()}
        self.log_dict({f"{prefix}/{name}": value for name, value in values.items()})
        mean_loss.reset()
        metrics.reset()


def _cast_labels(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the batch with class labels as int64, which all losses accept."""
    inputs, target = batch
    return inputs, target if target.is_floating_point() else target.long()


def _format_names(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}"


def _upcast(outputs: torch.Tensor) -> torch.Tensor:
    """Converts to at least float32, because 16 bits are not precise enough for losses and targets."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def takes_run_length(scheduler: Callable[..., Any], kwargs: Any) -> bool:
    """Returns True if a schedule has an argument ``total_steps`` or ``T_max`` that the config does not set."""
    parameters = inspect.signature(scheduler).parameters
    return any(name in parameters and name not in kwargs for name in LENGTH_ARGUMENTS)
