"""What is looked at of the steps of a training, and when."""

from __future__ import annotations

import math
from collections import defaultdict

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from stormproof.distributed.collectives import AGREEMENT_STEPS, largest
from stormproof.divergence.buffer_snapshot import KeptBuffers
from stormproof.divergence.detector import Anomaly, DivergenceDetector
from stormproof.divergence.step_losses import StepLosses
from stormproof.gradients.norms import total_norm
from stormproof.lightning.optimizer_step import gradients_of, index_of, scaler_of, unscales_itself


class Examination:
    """Looks at each step before its update, or at the losses of several once they are taken.

    Before an update there is the norm of the reduced gradient, the same on all ranks, and on a single rank the loss.
    Several ranks tell each other their losses every ten steps, in either case.

    Args:
        trainer: about to train.
        module: what it trains.
        detectors: by the number of the optimizer, which may step for the first time; losses are the first one's.
        every: 1, to look before each update; else the steps whose losses are read at once.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        detectors: defaultdict[int, DivergenceDetector],
        every: int,
    ) -> None:
        self._trainer, self._module, self._detectors = trainer, module, detectors
        self._each = every == 1
        self._every = max(every, AGREEMENT_STEPS if trainer.world_size > 1 else 1)
        self._losses = StepLosses()
        self._step = trainer.global_step
        self._went_backward = False
        self._kept = KeptBuffers(module)
        self._kept.take()

    @property
    def is_within_a_step(self) -> bool:
        """Whether gradients are being added up."""
        return self._losses.going_on

    @property
    def is_due(self) -> bool:
        """Whether losses are to be read, after a step."""
        return self._step % self._every == 0

    def batch_begins(self) -> None:
        """Keeps the buffers, before the first batch of a step."""
        self._went_backward = False
        if self._each and not self._losses.going_on:
            self._kept.take()

    def goes_backward(self, loss: torch.Tensor) -> None:
        """Takes this batch's part of the loss."""
        self._went_backward = True
        if self._module.automatic_optimization:
            self._losses.add(loss, scaler_of(self._trainer))

    def before_update(self, optimizer: Optimizer) -> tuple[Anomaly, DivergenceDetector] | None:
        """What is anomalous about the step that is about to be taken; the buffers are put back then.

        They are, too, where a gradient scaler refuses the step, if it broke them.
        """
        index, gradients = index_of(self._trainer, optimizer), gradients_of(optimizer)
        if not self._each or index is None or not gradients:
            return None
        scaler = scaler_of(self._trainer)
        if scaler is not None and not self._went_backward:  # it left the gradient scaled, and no step will be taken
            return None
        norm = total_norm(gradients)
        if scaler is not None and unscales_itself(optimizer):
            norm /= scaler.get_scale()
        numbers = {"gradient norm" if index == 0 else f"gradient norm of optimizer {index}": norm}
        alone = self._trainer.world_size == 1
        loss = self._losses.value() if alone else None
        if loss is not None:
            numbers["loss"] = loss
        detector = self._detectors[index]
        anomaly = detector.look(self._trainer.global_step + 1, numbers, scaled=scaler is not None)
        if alone or anomaly is not None or detector.overflows:
            self._losses.drop()  # it was looked at
        if anomaly is not None or (detector.overflows and self._kept.any_broken()):
            self._kept.restore()
        return None if anomaly is None else (anomaly, detector)

    def batch_ends(self) -> None:
        """Takes down the loss of a step that is done."""
        if self._trainer.global_step != self._step:
            self._step = self._trainer.global_step
            self._losses.keep(self._step)

    def since_the_last(self, skipped: int) -> Anomaly | None:
        """What is anomalous about the losses since this was called last, the ranks' means. All ranks call it together.

        Args:
            skipped: how many steps this rank has skipped.

        Raises:
            RanksDisagreeError: if they did not skip as many.
        """
        detector, scaled = self._detectors[0], scaler_of(self._trainer) is not None and not self._each
        losses = self._losses.read(skipped, self._trainer.strategy.root_device)
        for step, loss in losses:
            anomaly = detector.look(step, {"loss": loss}, scaled=scaled)
            if anomaly is not None:
                return anomaly
        if scaled and not all(math.isfinite(loss) for _, loss in losses) and self._any_buffer_broken():
            return detector.look(losses[-1][0], {"size of a buffer": math.nan})
        return None

    def start_anew(self) -> None:
        """The training was set back: forgets losses, and puts back broken buffers that no checkpoint holds."""
        self._losses.forget()
        self._kept.restore(broken_only=True)

    def _any_buffer_broken(self) -> bool:
        """Whether one is on any rank. A scaler refuses a step that is not finite, and leaves what it did to them."""
        return largest([float(self._kept.any_broken())], self._trainer.strategy.root_device)[0] > 0
