"""Measures the loss and the gradient norms of a step once for all callbacks of a trainer."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence

import pytorch_lightning as pl
import torch

from stormproof.distributed.dtensor import to_local
from stormproof.gradients.norms import GradientNorms, norm_for_clipping
from stormproof.lightning import internals
from stormproof.lightning.gradient_clipping import call_for_norm_clipping
from stormproof.lightning.logging_steps import log_to_loggers
from stormproof.lightning.method_replacement import is_from_user
from stormproof.lightning.optimizer_step import get_scaler
from stormproof.lightning.per_trainer import PerTrainer
from stormproof.lightning.step_exchange import ExchangedNumbers, StepExchange
from stormproof.probe.budget import Budget, is_decision_step


class Probe(PerTrainer):
    """Shares measurements among the callbacks of a trainer, and chooses their intervals.

    Keeps the last loss and the last gradient norms, so that other callbacks and clipping by Lightning do not measure
    them again. Logs the intervals after each choice:

    | name                      | value                                                        |
    |---------------------------|--------------------------------------------------------------|
    | ``probe/overhead``        | fraction of the time of steps spent on measuring, 0 to 1     |
    | ``probe/<name>_interval`` | interval of ``gradients``, ``units`` or ``traces``, in steps |

    All ranks use the longest interval that any rank chose. If any rank requests extra steps, all ranks measure them
    after the next exchange of numbers. A step lasts from the request for its first batch to the end of
    its last batch.

    Args:
        trainer: Trainer at the start of training.

    Attributes:
        budget: Budget of all measurements.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        super().__init__(trainer)
        self.budget = Budget()
        self._loss: tuple[_MeasuredTensor, float | torch.Tensor] | None = None
        self._norms: tuple[list[_MeasuredTensor], GradientNorms] | None = None
        self._step, self._steps = trainer.global_step, 0
        self._step_start = self._batch_end = 0.0
        self._undo_functions: list[Callable[[], None]] = [
            internals.call_after_batch(trainer, self._end_batch),
            internals.call_between_batches(trainer, self._end_step, run_last=True),
            call_for_norm_clipping(trainer, self._clip),
            internals.skip_idle_profiler(trainer),
        ]
        self._wants_extra_steps = False  # not shared with the other ranks yet
        self._exchanged_numbers: ExchangedNumbers | None = None
        if trainer.world_size > 1:
            self._exchanged_numbers = StepExchange.of(trainer).add(
                lambda: [float(self._wants_extra_steps), *self.budget.choose_intervals()]
            )
            self._undo_functions.append(self._exchanged_numbers.remove)

    def batch_loss(self, loss: torch.Tensor) -> float | torch.Tensor:
        """Returns the loss without the scale of a gradient scaler: a number on the CPU, otherwise a detached tensor.

        Args:
            loss: 0-d tensor on which ``backward`` is called, possibly multiplied by the scale of a gradient scaler.
        """
        if self._loss is None or not self._loss[0].is_same(loss):
            scaler = get_scaler(self._trainer)
            local_loss = to_local(loss)
            if loss.device.type == "cpu":
                value = local_loss.item() / (1.0 if scaler is None else scaler.get_scale())
            else:
                value = local_loss.detach().float()
                value = value if scaler is None else value / scaler.scale(torch.ones_like(value))
            self._loss = _MeasuredTensor(loss), value
        return self._loss[1]

    def gradient_norms(self, gradients: Sequence[torch.Tensor]) -> GradientNorms:
        """Returns the norms of gradients. Measures them once, unless they may have changed since.

        A change through ``.data`` cannot be detected. Therefore, the norms are measured again if a callback outside
        Stormproof and Lightning overrides ``on_before_optimizer_step``. If some gradients are ``DTensor``, all ranks
        must call this together.
        """
        if self._norms is None or not self._are_measured(gradients, self._norms[0]):
            self._norms = list(map(_MeasuredTensor, gradients)), GradientNorms(gradients)
        return self._norms[1]

    def request_extra_measurements(self) -> None:
        """Requests extra measurements of the next steps. Call it if a problem is likely, but not certain yet."""
        self._wants_extra_steps = True

    def close(self) -> None:
        """Restores the hooks."""
        while self._undo_functions:
            self._undo_functions.pop()()

    def _end_batch(self) -> None:
        """Ends a batch after all hooks of callbacks, and before a validation."""
        self._batch_end = time.perf_counter()

    def _are_measured(self, gradients: Sequence[torch.Tensor], measured: Sequence[_MeasuredTensor]) -> bool:
        """Returns whether ``gradients`` are unchanged since they were measured."""
        return (
            len(gradients) == len(measured)
            and all(tensor.is_same(gradient) for tensor, gradient in zip(measured, gradients, strict=True))
            and not any(
                is_from_user(callback, "on_before_optimizer_step") for callback in internals.callbacks(self._trainer)
            )
        )

    def _clip(self, parameters: list[torch.nn.Parameter], max_norm: float) -> bool:
        """Clips gradients with measured norms. Returns False if the result might differ from Lightning's."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self._norms is None or not gradients or not self._are_measured(gradients, self._norms[0]):
            return False
        methods = ("on_before_optimizer_step", "configure_gradient_clipping", "clip_gradients")
        if any(is_from_user(self._trainer.lightning_module, name) for name in methods):
            return False
        total_norm = norm_for_clipping(gradients, self._norms[1])
        if total_norm is None:
            return False
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total_norm)
        return True

    def _end_step(self) -> None:
        """Ends the step if the last batch completed one. Lightning calls this before it fetches a batch."""
        now, step = time.perf_counter(), self._trainer.global_step
        self._start_extra_steps()
        if step == self._step:
            self._step_start = self._step_start or now
            return
        if self._step_start and self.budget.cadences:
            self.budget.end_step(self._batch_end - self._step_start)
        self._step, self._step_start = step, now
        self._steps += 1
        if self.budget.cadences and is_decision_step(self._steps):
            self._choose_intervals()

    def _start_extra_steps(self) -> None:
        """Schedules extra steps on all ranks if any rank wants them. Does not cause a collective."""
        if self._exchanged_numbers is None:
            wants_extra_steps = self._wants_extra_steps
        else:
            wants_extra_steps = any(row[0] for row in self._exchanged_numbers.peek() or ())
        if wants_extra_steps:
            self._request_extra_steps()

    def _request_extra_steps(self) -> None:
        self._wants_extra_steps = False
        self.budget.request_extra_steps()

    def _choose_intervals(self) -> None:
        """Chooses the intervals of all ranks and logs them."""
        cadences = self.budget.cadences
        wants_extra_steps, intervals = 0.0, self.budget.choose_intervals()
        if self._exchanged_numbers is not None:
            wants_extra_steps, *intervals = map(max, zip(*self._exchanged_numbers.read(), strict=True))
        for cadence, interval in zip(cadences.values(), intervals, strict=True):
            cadence.interval = int(interval)
        if wants_extra_steps:
            self._request_extra_steps()
        if not getattr(self._trainer, "log_every_n_steps", 0):
            return
        values = {f"probe/{name}_interval": float(cadence.interval) for name, cadence in cadences.items()}
        # not in callback_metrics, which must be equal after a resume, but times differ
        log_to_loggers(self._trainer, {"probe/overhead": self.budget.overhead, **values})


def close_probe(trainer: pl.Trainer) -> None:
    """Ends the probe of a trainer, if any. Can be called repeatedly."""
    probe = Probe.remove_from(trainer)
    if probe is not None:
        probe.close()


class _MeasuredTensor:
    """Recognizes a tensor that was measured, without keeping it in memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._reference, self._version = weakref.ref(tensor), _version(tensor)

    def is_same(self, tensor: torch.Tensor) -> bool:
        """Returns whether ``tensor`` is the measured one and has not changed in place."""
        return self._reference() is tensor and self._version == _version(tensor)


def _version(tensor: torch.Tensor) -> int:
    """Returns torch's counter of in-place changes, which has no public name."""
    return tensor._version  # noqa: SLF001
