"""What is trained: a network, a loss, metrics, and how they are logged."""

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
"""Called with ``optimizer``, and the length of the run under the names that torch's schedules give it."""

LENGTH_ARGUMENTS = ("total_steps", "T_max")
"""What torch's schedules call their length. One that takes it from the run counts steps; any other counts epochs."""


SCALE_KEY, CLASSES_KEY = "target_scale", "classes"
"""The keys of a checkpoint that hold these."""


class Task(pl.LightningModule):
    r"""Trains a network on (input, target) batches.

    The loss of a batch is :math:`L(f(x), (y - a) / b)`, where a and b are 0 and 1 for classification, else the target's
    mean and standard deviation, or what the loss wants instead. Metrics are of :math:`a + b\, \hat y(f(x))`, in the
    target's own unit, where :math:`\hat y` is the loss's way to read a prediction off the outputs: mostly as they are.

    Logged: ``train/loss`` and ``optimizer/lr`` at Lightning's logging steps, the epoch's mean as
    ``train/epoch_loss`` with the training metric, and ``val/…`` or ``test/…`` after a pass; all over the whole job.

    Args:
        network: maps (N, \*input_shape) to (N, num_outputs x what the loss takes for each).
        loss: maps (output, target) to a scalar.
        spec: the data's shapes and scale.
        optimizer: called with the parameters to train.
        scheduler: called with the optimizer; may return None for a constant learning rate.
        counts_steps: whether the schedule advances by the step rather than by the epoch.
        augmentation: changes each training batch; the loss and the metrics of training are of what it makes.
        classes: their names, where they have some.

    Attributes:
        test_predictions: the predictions of the last pass over the test split.
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
        """The numbers (a, b) above, of the data that the weights were trained on."""
        return self._shift, self._scale

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Maps inputs to logits (N, classes), or to predictions (N, outputs) in the target's own unit."""
        return self._unscale(_upcast(self.network(inputs)))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        """The loss of one batch, and what it is of."""
        step_outputs = self._compute_step(self._augmentation(*_cast_labels(batch)), self.train_loss, self.train_metrics)
        if is_logging_step(self.trainer, self.global_step + 1):
            self.log("train/loss", step_outputs["loss"].detach(), sync_dist=True)
            self.log("optimizer/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return step_outputs

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        """Adds one batch to the validation metrics."""
        return self._compute_step(_cast_labels(batch), self.val_loss, self.val_metrics)

    def on_test_epoch_start(self) -> None:
        """Begins to collect predictions."""
        self.test_predictions = PredictionStore(self._output_kind)

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Adds one batch to the test metrics, and keeps its predictions."""
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
        """Logs the epoch's means."""
        self._log_epoch_metrics("epoch_loss", self.train_loss, self.train_metrics, "train")

    def on_validation_epoch_end(self) -> None:
        """Logs the pass."""
        self._log_epoch_metrics("loss", self.val_loss, self.val_metrics, "val")

    def on_test_epoch_end(self) -> None:
        """Logs the pass, and puts the predictions of all ranks together."""
        self._log_epoch_metrics("loss", self.test_loss, self.test_metrics, "test")
        self.test_predictions.gather(self.trainer.test_dataloaders)

    def measure(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
        """The loss and the metrics of training over batches, and over all ranks, which call it together."""
        mean_loss, metrics = MeanLoss().to(self.device), training_metrics(self.spec).to(self.device)
        for batch in batches:
            self._compute_step(_cast_labels(batch), mean_loss, metrics)
        return {name: float(value) for name, value in {"loss": mean_loss.compute(), **metrics.compute()}.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the scale of the targets, and the names of the classes, which the weights are of."""
        checkpoint[SCALE_KEY] = {"shift": self._shift, "scale": self._scale}
        checkpoint[CLASSES_KEY] = self.classes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the scale of the targets that the weights are of, whatever data they meet now.

        Raises:
            UserError: if they are of other classes.
        """
        if SCALE_KEY in checkpoint:
            self._shift, self._scale = checkpoint[SCALE_KEY]["shift"], checkpoint[SCALE_KEY]["scale"]
        checkpoint_classes = checkpoint.get(CLASSES_KEY) or self.classes
        if self.classes and checkpoint_classes != self.classes:
            raise UserError(
                f"the weights tell the classes {_format_names(checkpoint_classes)} apart, and these data have "
                f"{_format_names(self.classes)}"
            )

    def configure_model(self) -> None:
        """Spreads the network over the ranks, where the strategy does."""
        if self.device_mesh is None:
            return
        external_parameters = [
            name
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not name.startswith("network.")
        ]
        if external_parameters:
            raise UserError(
                f"{external_parameters[0]} is trained and no part of the model, which is all that is spread: use "
                f"trainer=ddp"
            )
        shard_network(self.network, self.device_mesh)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over what is to be trained, and its schedule, by the step or by the epoch."""
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
                "scheduler: its length is that of the run, which has none: set trainer.max_epochs or max_steps"
            )
        return int(steps)

    def _compute_step(
        self, batch: tuple[torch.Tensor, torch.Tensor], mean_loss: MeanLoss, metrics: MetricCollection
    ) -> dict[str, torch.Tensor]:
        inputs, target = batch
        outputs = _upcast(self.network(inputs))
        scaled_target = target
        if not self.spec.num_classes:
            target = target.reshape(-1, self.spec.num_outputs)  # (N,) against (N, 1) would broadcast to (N, N)
            scaled_target = (target - self._shift) / self._scale
        loss = self.loss(outputs, scaled_target)
        with torch.no_grad():
            mean_loss.update(loss.detach(), self._normalizer(scaled_target))
            metrics.update(self._unscale(outputs.detach()), self._metric_target(target))
        return {"loss": loss, "preds": outputs.detach(), "target": scaled_target}

    def _metric_target(self, target: torch.Tensor) -> torch.Tensor:
        """What the metrics compare with: the most probable class, where a target is probabilities."""
        return target.argmax(dim=1) if self.spec.num_classes and target.ndim > 1 else target

    def _unscale(self, outputs: torch.Tensor) -> torch.Tensor:
        predictions = self._predict(outputs)
        return predictions if self.spec.num_classes else predictions * self._scale + self._shift

    def _log_epoch_metrics(self, loss_name: str, mean_loss: MeanLoss, metrics: MetricCollection, prefix: str) -> None:
        """Logs a pass over a split; torchmetrics reduces over the ranks when it computes."""
        values = {loss_name: mean_loss.compute(), **metrics.compute()}
        self.log_dict({f"{prefix}/{name}": value for name, value in values.items()})
        mean_loss.reset()
        metrics.reset()


def _cast_labels(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch, with class labels of the one kind of integers that all losses take."""
    inputs, target = batch
    return inputs, target if target.is_floating_point() else target.long()


def _format_names(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}"


def _upcast(outputs: torch.Tensor) -> torch.Tensor:
    """Losses, and targets of any size, want more digits than 16 bits have."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def takes_run_length(scheduler: Callable[..., Any], kwargs: Any) -> bool:
    """Whether a schedule takes its length as ``total_steps`` or ``T_max`` and the config does not give it one."""
    parameters = inspect.signature(scheduler).parameters
    return any(name in parameters and name not in kwargs for name in LENGTH_ARGUMENTS)
