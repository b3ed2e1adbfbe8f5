"""The rules of three other tools, with their defaults, as callbacks for scripts/benchmarks/diagnosis.py.

- SageMaker Debugger (Amazon, "List of Debugger built-in rules"): vanishing_gradient, exploding_tensor, dead_relu,
  loss_not_decreasing and overfit. All but overfit are checked at each step.
- AUTOTRAINER (Zhang et al. 2021, "AUTOTRAINER: An Automatic DNN Training Problem Detection and Repair System"):
  exploding and vanishing gradients, dying ReLU and slow convergence. They are checked at the end of each epoch from the
  second one, and reported only if the accuracy is unsatisfactory. In regressions, only non-finite values are reported.
- UMLAUT (Schoop et al. 2021, "UMLAUT: Debugging Deep Learning Programs using Program Structure and Model Behavior"):
  inputs outside [-1, 1], the range of the learning rate, NaN in the input, and overfitting, checked at the end of each
  epoch. Its checks of Keras source code do not apply here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.observers.tracing.provenance import iter_tensors


class Peer(pl.Callback):
    """Records the first finding of each problem."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.losses: list[float] = []  # of the epoch's batches
        self.means: list[float] = []  # of the epochs
        self.validation: list[float] = []

    def find(self, problem: Problem, step: int) -> None:
        if all(finding.problem != problem for finding in self.findings):
            self.findings.append(Finding(problem, Severity.WARNING, "", step, step))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            self.losses.append(float(loss) * trainer.accumulate_grad_batches)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.losses:
            self.means.append(fmean(self.losses))
            self.losses = []
        if "val_loss" in trainer.callback_metrics:
            self.validation.append(float(trainer.callback_metrics["val_loss"]))


class SageMakerDebugger(Peer):
    VANISHING, INACTIVE, OF_LAYER, STEPS, PERCENT, OVERFIT = 1e-7, 0.01, 0.5, 10, 0.1, 0.1

    def __init__(self) -> None:
        super().__init__()
        self.all_losses: list[float] = []
        self.inactive = False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        for module in pl_module.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(self._check_activity)

    def _check_activity(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        active = (output.detach() > 0).flatten(1).float().mean(0) if output.ndim > 1 else output.new_ones(1)
        self.inactive |= bool((active < self.INACTIVE).float().mean() > self.OF_LAYER)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        step = trainer.global_step
        for parameter in pl_module.parameters():
            if parameter.grad is None:
                continue
            size = float(parameter.grad.abs().mean())
            if not math.isfinite(size):
                self.find(Problem.NON_FINITE, step)
            elif size < self.VANISHING:
                self.find(Problem.VANISHING_GRADIENTS, step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.all_losses += self.losses[-1:]
        if self.inactive:
            self.find(Problem.DEAD_UNITS, trainer.global_step)
        if len(self.all_losses) > self.STEPS:
            before, now = self.all_losses[-1 - self.STEPS], self.all_losses[-1]
            if before and (before - now) / abs(before) * 100 < self.PERCENT:
                self.find(Problem.PLATEAU, trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self.validation and self.means and (self.validation[-1] - self.means[-1]) / self.means[-1] > self.OVERFIT:
            self.find(Problem.OVERFITTING, trainer.global_step)


class AutoTrainer(Peer):
    RATIO, FIRST, EXPLODING, ZEROS, RISE, SATISFIED = 1e-3, 1e-4, 70.0, 0.7, 0.01, 0.7

    def __init__(self) -> None:
        super().__init__()
        self.hits: list[bool] = []
        self.accuracies: list[float] = []
        self.kernels: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        find_layers_with_gradient = [
            tensor.grad.detach().clone() for tensor in pl_module.parameters() if tensor.grad is not None
        ]
        self.kernels = [tensor for tensor in find_layers_with_gradient if tensor.ndim > 1]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        preds, target = (outputs.get(name) if isinstance(outputs, Mapping) else None for name in ("preds", "target"))
        if isinstance(preds, torch.Tensor) and isinstance(target, torch.Tensor) and not target.is_floating_point():
            chosen = preds.argmax(1) if preds.ndim == target.ndim + 1 else preds.reshape(target.shape) > 0
            self.hits += (chosen == target).flatten().tolist()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        step = trainer.global_step
        self.accuracies += [fmean(self.hits)] if self.hits else []
        self.hits = []
        if not all(map(math.isfinite, self.means + self.validation)) or max(self.validation, default=0.0) >= 1e5:
            self.find(Problem.EXPLODING_GRADIENTS, step)
        rises = [after - before for before, after in zip(self.accuracies, self.accuracies[1:], strict=False)]
        slow = max(rises, default=0.0) < self.RISE
        if not self.kernels or not rises or not (max(self.accuracies) < self.SATISFIED or slow):
            return
        first, last = self.kernels[0].norm().item(), self.kernels[-1].norm().item()
        zeros = sum(int((kernel == 0).sum()) for kernel in self.kernels) / sum(
            kernel.numel() for kernel in self.kernels
        )
        ratio = first / last if last else math.inf
        if zeros >= self.ZEROS:
            self.find(Problem.DEAD_UNITS, step)
        elif ratio > self.EXPLODING:
            self.find(Problem.EXPLODING_GRADIENTS, step)
        elif ratio < self.RATIO and first < self.FIRST:
            self.find(Problem.VANISHING_GRADIENTS, step)
        elif slow:
            self.find(Problem.NO_BETTER_THAN_CONSTANT, step)


class Umlaut(Peer):
    LOW, HIGH, LEAST_RATE, MOST_RATE = -1.0, 1.0, 1e-7, 0.01

    def __init__(self) -> None:
        super().__init__()
        self.batch: Any = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.batch = batch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        step = trainer.global_step
        inputs = next((tensor for tensor in iter_tensors(self.batch) if tensor.is_floating_point()), None)
        if inputs is not None and bool(inputs.isnan().any()):
            self.find(Problem.NON_FINITE_DATA, step)
        if inputs is not None and (float(inputs.min()) < self.LOW or float(inputs.max()) > self.HIGH):
            self.find(Problem.INPUT_BADLY_SCALED, step)
        for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
            if group["lr"] > self.MOST_RATE:
                self.find(Problem.LEARNING_RATE_TOO_HIGH, step)
            if group["lr"] < self.LEAST_RATE:
                self.find(Problem.LEARNING_RATE_TOO_LOW, step)
        falls = len(self.means) > 1 and self.means[-1] <= self.means[-2]
        if falls and len(self.validation) > 1 and self.validation[-1] > self.validation[-2]:
            self.find(Problem.OVERFITTING, step)


PEERS = {"SageMaker Debugger": SageMakerDebugger, "AUTOTRAINER": AutoTrainer, "UMLAUT": Umlaut}
