"""Feeds the losses and gradient norms of training steps to the divergence detectors."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from stormproof.distributed.collectives import SYNC_EVERY_N_STEPS, all_gather_rows, all_reduce_max
from stormproof.divergence.buffer_snapshot import BufferSnapshot
from stormproof.divergence.detector import Anomaly, DivergenceDetector
from stormproof.divergence.step_losses import StepLosses
from stormproof.lightning import internals
from stormproof.lightning.optimizer_step import find_optimizer_index, get_gradients, get_scaler, unscales_gradients
from stormproof.lightning.step_exchange import StepExchange
from stormproof.probe.probe import Probe, close_probe


class StepMonitor:
    """Checks each step before its update, or the losses of several steps after their updates.

    Before an update, it checks the norm of the reduced gradient, which is equal on all ranks, and with one rank the
    loss. With tensor parallelism, it checks the largest norm of any rank. With several ranks, losses are exchanged
    every ten steps.

    Args:
        trainer: Trainer at the start of training.
        module: Module that it trains.
        detectors: Detectors by optimizer index. Losses belong to optimizer 0.
        every_n_steps: If 1, steps are checked before their updates. Otherwise, the number of steps whose losses are
            read together.
        count_skipped: Returns the number of steps that this rank has skipped.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        detectors: defaultdict[int, DivergenceDetector],
        every_n_steps: int,
        count_skipped: Callable[[], int],
    ) -> None:
        self._trainer, self._module, self._detectors = trainer, module, detectors
        self._checks_every_step = every_n_steps == 1
        self._uses_tensor_parallelism = internals.tensor_parallel_size(trainer) > 1
        self._every_n_steps = max(every_n_steps, SYNC_EVERY_N_STEPS if trainer.world_size > 1 else 1)
        self._probe = Probe.of(trainer)
        self._count_skipped = count_skipped
        self._losses = StepLosses(self._every_n_steps)
        self._exchanged_losses = StepExchange.of(trainer).add(self._losses_row)
        self._step = trainer.global_step
        self._has_backward = False
        self._buffer_snapshot = BufferSnapshot(module)
        self._buffer_snapshot.capture()

    @property
    def is_accumulating(self) -> bool:
        """True between the first batch of a step and its update."""
        return self._losses.is_accumulating

    @property
    def is_due(self) -> bool:
        """True after a step if losses must be read."""
        return self._step % self._every_n_steps == 0

    def stop(self) -> None:
        """Closes the probe of the trainer and removes the losses from the exchange."""
        close_probe(self._trainer)
        self._exchanged_losses.remove()

    def on_train_batch_start(self) -> None:
        """Captures the buffers before the first batch of a step."""
        self._has_backward = False
        if self._checks_every_step and not self._losses.is_accumulating:
            self._buffer_snapshot.capture()

    def on_before_backward(self, loss: torch.Tensor) -> None:
        """Adds the loss of a batch."""
        self._has_backward = True
        if self._module.automatic_optimization:
            self._losses.add(self._probe.batch_loss(loss))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> tuple[Anomaly, DivergenceDetector] | None:
        """Returns the anomaly of the next update and its detector, or None. Restores the buffers after an anomaly.

        Also restores the buffers if a gradient scaler skips the step and a buffer is not finite.
        """
        index, gradients = find_optimizer_index(self._trainer, optimizer), get_gradients(optimizer)
        if not self._checks_every_step or index is None or not gradients:
            return None
        scaler = get_scaler(self._trainer)
        if scaler is not None and not self._has_backward:  # the gradient is still scaled, and no update will follow
            return None
        norm = self._probe.gradient_norms(gradients).total
        if self._uses_tensor_parallelism:  # gradients of replicated parameters are not reduced over the group
            norm = float(all_gather_rows(torch.tensor([norm], device=self._trainer.strategy.root_device)).max())
        if scaler is not None and unscales_gradients(optimizer):
            norm /= scaler.get_scale()
        values = {"gradient norm" if index == 0 else f"gradient norm of optimizer {index}": norm}
        is_single_rank = self._trainer.world_size == 1
        loss = self._losses.accumulated_loss() if is_single_rank else None
        if loss is not None:
            values["loss"] = loss
        detector = self._detectors[index]
        anomaly = detector.update(self._trainer.global_step + 1, values, has_grad_scaler=scaler is not None)
        if is_single_rank or anomaly is not None or detector.consecutive_overflows:
            self._losses.discard_step()  # already checked
        if anomaly is not None or (detector.consecutive_overflows and self._buffer_snapshot.has_new_non_finite()):
            self._buffer_snapshot.restore()
        return None if anomaly is None else (anomaly, detector)

    def on_train_batch_end(self) -> None:
        """Records the loss if the batch completed a step."""
        step = self._trainer.global_step
        if step != self._step:
            self._step = step
            self._losses.finish_step(step)

    def check_losses(self) -> Anomaly | None:
        """Returns the first anomaly of the mean losses since the last call, or None. All ranks must call this together.

        Raises:
            RanksDisagreeError: If the ranks have skipped different numbers of steps.
        """
        detector, has_grad_scaler = (
            self._detectors[0],
            get_scaler(self._trainer) is not None and not self._checks_every_step,
        )
        losses = self._read_losses()
        for step, loss in losses:
            anomaly = detector.update(step, {"loss": loss}, has_grad_scaler=has_grad_scaler)
            if anomaly is not None:
                return anomaly
        if has_grad_scaler and not all(math.isfinite(loss) for _, loss in losses) and self._any_buffer_non_finite():
            return detector.update(losses[-1][0], {"value of a buffer": math.nan})
        return None

    def reset_after_rollback(self) -> None:
        """Discards losses after a rollback and restores non-finite buffers that are not part of checkpoints."""
        self._losses.clear()
        self._buffer_snapshot.restore(non_finite_only=True)

    def _read_losses(self) -> list[tuple[int, float]]:
        """Returns finished steps since the last call and the mean of their losses over all ranks."""
        if self._trainer.world_size == 1 and not self._losses.has_finished:
            return []
        losses = self._losses.read(self._exchanged_losses.read())  # several ranks also compare their numbers of steps
        while self._losses.has_finished:
            losses += self._losses.read(self._exchanged_losses.read())
        return losses

    def _losses_row(self) -> torch.Tensor:
        return self._losses.row(self._count_skipped(), self._trainer.strategy.root_device)

    def _any_buffer_non_finite(self) -> bool:
        """Returns True if a buffer became non-finite on any rank. A gradient scaler skips only the update."""
        return (
            all_reduce_max([float(self._buffer_snapshot.has_new_non_finite())], self._trainer.strategy.root_device)[0]
            > 0
        )
