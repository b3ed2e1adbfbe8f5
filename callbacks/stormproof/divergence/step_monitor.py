"""Feeds the losses and gradient norms of training steps to the divergence detectors."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from stormproof.distributed.collectives import SYNC_EVERY_N_STEPS, all_gather_rows, all_reduce_max
from stormproof.divergence.detector import Anomaly, DivergenceDetector
from stormproof.errors import RanksDisagreeError
from stormproof.internal_errors import with_plain_tensors
from stormproof.lightning.layout import Layout
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
        self._uses_tensor_parallelism = Layout.of(trainer).tensor_parallel_size > 1
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


class BufferSnapshot:
    """Copies and restores the buffers of a module, which a forward pass may change.

    Floating-point buffers are copied each time, because normalization kernels and code that uses ``.data`` change them
    without a change of torch's version counter. Other buffers are copied if their version counter has changed.

    Args:
        module: Module. Buffers that are registered later are not copied.

    Example:
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> kept = BufferSnapshot(norm)
        >>> kept.capture()
        >>> _ = norm(torch.full((3, 2), torch.nan))
        >>> kept.has_new_non_finite(), kept.restore(), norm.running_mean
        (True, None, tensor([0., 0.]))
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._buffer_locations = [
            (owner, name) for owner in module.modules() for name, _ in owner.named_buffers(recurse=False)
        ]
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}  # by index: buffer, copy, version

    @with_plain_tensors
    @torch.no_grad()
    def capture(self) -> None:
        """Copies the buffers."""
        sources, copies = [], []
        for index, (owner, name) in enumerate(self._buffer_locations):
            buffer, saved = getattr(owner, name, None), self._copies.get(index)
            if buffer is None or buffer.is_inference() or is_lazy(buffer):
                self._copies.pop(index, None)
            elif saved is None or saved[0] is not buffer or saved[1].shape != buffer.shape:
                self._copies[index] = (buffer, buffer.clone(), _version(buffer))
            elif _may_have_changed(buffer, saved[2]):
                sources.append(buffer)
                copies.append(saved[1])
                self._copies[index] = (buffer, saved[1], _version(buffer))
        if sources:
            torch._foreach_copy_(copies, sources)  # pyright: ignore[reportPrivateImportUsage]

    @with_plain_tensors
    def restore(self, *, non_finite_only: bool = False) -> None:
        """Restores the values of the last :meth:`capture`.

        Args:
            non_finite_only: Whether to restore only buffers that were finite then and are not finite now.
        """
        for index, (buffer, copy, version) in self._copies.items():
            owner, name = self._buffer_locations[index]
            if non_finite_only and not self._is_new_non_finite(index):
                continue
            if getattr(owner, name, None) is not buffer:
                setattr(owner, name, buffer)
            if _may_have_changed(buffer, version):
                # .data does not change the version counter, which a later backward pass checks
                buffer.data.copy_(copy)

    @with_plain_tensors
    def has_new_non_finite(self) -> bool:
        """Returns True if a buffer that was finite at :meth:`capture` is not finite now."""
        return any(map(self._is_new_non_finite, self._copies))

    def _is_new_non_finite(self, index: int) -> bool:
        owner, name = self._buffer_locations[index]
        buffer = getattr(owner, name, None)
        return (
            buffer is not None and not bool(buffer.isfinite().all()) and bool(self._copies[index][1].isfinite().all())
        )


def _may_have_changed(buffer: torch.Tensor, version: int) -> bool:
    """Returns True unless the version counter proves that the buffer is unchanged."""
    return buffer.is_floating_point() or buffer.is_complex() or _version(buffer) != version


def _version(tensor: torch.Tensor) -> int:
    """Returns torch's version counter of in-place changes, which has no public name."""
    return tensor._version  # noqa: SLF001


class StepLosses:
    """Sums the losses of the batches of each step and keeps the sums on the device until they are read.

    Args:
        gathered_steps: Number of steps whose losses are exchanged together. Must be at least 1.

    Example:
        >>> losses = StepLosses(gathered_steps=10)
        >>> losses.add(0.25)
        >>> losses.add(0.5)
        >>> losses.finish_step(step=1)
        >>> row = losses.row(skipped_steps=0, device=torch.device("cpu"))
        >>> losses.read([row.tolist()])
        [(1, 0.75)]
    """

    def __init__(self, gathered_steps: int) -> None:
        self._gathered_steps = gathered_steps
        self._batch_losses: list[float | torch.Tensor] = []
        self._step_losses: list[tuple[int, float | torch.Tensor]] = []

    @property
    def is_accumulating(self) -> bool:
        """True if the current step has losses and was neither finished nor discarded."""
        return bool(self._batch_losses)

    def add(self, loss: float | torch.Tensor) -> None:
        """Adds the loss of a batch to the current step, as a number or a 0-d tensor."""
        self._batch_losses.append(loss)

    def accumulated_loss(self) -> float | None:
        """Returns the loss of the current step on this rank, or None without batches. Synchronizes with the device."""
        return float(sum(self._batch_losses)) if self._batch_losses else None

    def discard_step(self) -> None:
        """Discards the losses of the current step."""
        self._batch_losses = []

    def finish_step(self, step: int) -> None:
        """Ends the current step, which is optimizer step ``step``."""
        if self._batch_losses:
            self._step_losses.append((step, sum(self._batch_losses)))
        self._batch_losses = []

    def clear(self) -> None:
        """Discards all losses."""
        self._batch_losses, self._step_losses = [], []

    @property
    def has_finished(self) -> bool:
        """True if finished steps have unread losses."""
        return bool(self._step_losses)

    def row(self, skipped_steps: int, device: torch.device) -> torch.Tensor:
        """Returns the values that the ranks exchange.

        They are the number of skipped steps, the number of finished steps, and the losses of the first
        ``gathered_steps`` finished steps, padded with zeros.

        Returns:
            float32 values, ``(2 + gathered_steps,)``.
        """
        losses = [
            torch.as_tensor(loss, dtype=torch.float32, device=device).reshape(1)
            for _, loss in self._step_losses[: self._gathered_steps]
        ]
        counts = torch.tensor([skipped_steps, len(self._step_losses)], dtype=torch.float32, device=device)
        return torch.cat([counts, *losses, counts.new_zeros(self._gathered_steps - len(losses))])

    def read(self, rows: list[list[float]]) -> list[tuple[int, float]]:
        """Removes up to ``gathered_steps`` finished steps and returns them with their mean losses over all ranks.

        Raises:
            RanksDisagreeError: If the ranks have skipped or finished different numbers of steps.
        """
        for index, verb in enumerate(("skipped", "finished")):
            counts = [int(row[index]) for row in rows]
            if counts != counts[:1] * len(counts):
                raise RanksDisagreeError(
                    f"the ranks have {verb} different numbers of steps ({counts}), so their gradients differed: "
                    "restart all ranks"
                )
        finished, self._step_losses = (
            self._step_losses[: self._gathered_steps],
            self._step_losses[self._gathered_steps :],
        )
        means = torch.tensor(rows, dtype=torch.float32)[:, 2:].mean(0).tolist()
        return [(step, mean) for (step, _), mean in zip(finished, means, strict=False)]
