"""A training that diverges is kept from it, or ended."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Callback
from torch.optim import Optimizer

from stormproof import lightning_internals, rollback
from stormproof.agreement import largest, on_rank_zero
from stormproof.beside import recovery_beside
from stormproof.checkpoint import Checkpoint
from stormproof.checkpoint_recovery import CheckpointRecovery
from stormproof.detect.divergence import DivergenceDetector, Illness
from stormproof.errors import DivergedError, NotResumableError
from stormproof.gradient_norms import own_norms
from stormproof.kept_buffers import KeptBuffers
from stormproof.logging_steps import log_values
from stormproof.lowered_rate import LoweredRate
from stormproof.requirements import PLAIN_STRATEGIES
from stormproof.step_losses import StepLosses
from stormproof.stepping import gradients_of, index_of, scaler_of, skip, unscales_itself

AGREEMENT_STEPS = 10
"""How often several ranks tell each other their losses."""
PATIENCE = {"skip": 10, "rollback": 3}
"""Ill steps in a row after which something else is done than to skip them."""


class DivergenceGuard(Callback):
    """Looks at losses and gradients, and does something about a step that is not finite or a spike.

    It looks before the optimizer's update (``every_n_steps=1``): at the norm of the reduced gradient, which all ranks
    share, and the loss of the step, which several ranks tell each other every ten steps. A step that is found ill there
    is skipped, whatever else is done: the weights, the optimizer and the buffers stay as they were. With a greater
    ``every_n_steps`` it reads the losses of so many steps at once, which waits for the device so much less often, and
    finds out afterwards. :class:`stormproof.detect.spikes.SpikeDetector` says what a spike is.

    What it does is up to ``action``:

    - ``skip``: ill steps are skipped. Ten in a row end the training.
    - ``rollback``: if that does not help for three steps, or it was found too late, parameters, buffers, optimizers and
      averages of the weights are set back to the newest checkpoint of the :class:`stormproof.CheckpointRecovery` beside
      it that was healthy for ten steps more. The data, the counters and the schedules go on, and the state is saved.
    - ``stop``: the training ends.

    A training ends by :class:`stormproof.errors.DivergedError`, with exit code 76, on all ranks; as it does when it
    was not finite, or went back, more than ``budget`` times within ``budget_steps``. No state that is known to be ill
    is saved, and what was saved after the state that it goes back to is moved to ``quarantine/``. Ill again soon after
    it went back, it takes the new size of the numbers for good and compares anew.

    A gradient scaler's overflows are no illness, unless twenty steps in a row do. A loss that is zero or below is only
    watched for being finite. In manual optimization losses are not looked at, each optimizer's gradient is. LBFGS is
    left alone. What an ill batch did to metrics stays there: do not stop early by a metric of the training.
    Floating-point buffers are copied at every step that is looked at.

    Args:
        action: what to do.
        every_n_steps: 1, to look before each update, or the steps between two looks. None: 1 for a module on a CPU and
            where ``action`` is ``skip``; else 10.
        lr_factor: what the learning rates are multiplied by after each going back, for good, whatever schedulers say;
            in (0, 1].
        budget: how often that may be within ``budget_steps``, at least 0.
        budget_steps: at least 1.
        window: healthy steps that a value is compared with, at least 32.
        deviations: robust standard deviations, above 0, by which the logarithm of a spike is above the median.

    Attributes:
        skipped: the steps that were skipped.
        rollbacks: how often it was gone back.

    Raises:
        ValueError: if a value is out of its range.

    Example:
        >>> recovery = CheckpointRecovery("runs/mine/checkpoints")
        >>> trainer = pl.Trainer(callbacks=[DivergenceGuard(), recovery], logger=False)  # doctest: +SKIP
        >>> trainer.fit(module, resumable(loader), ckpt_path=recovery.latest())  # doctest: +SKIP

    References:
        PaLM, Chowdhery et al. 2022, section 5.1: going back some 100 steps and on with other data.
    """

    def __init__(
        self,
        action: Literal["skip", "rollback", "stop"] = "rollback",
        every_n_steps: int | None = None,
        lr_factor: float = 1.0,
        budget: int = 5,
        budget_steps: int = 1000,
        window: int = 128,
        deviations: float = 7.0,
    ) -> None:
        if action not in {"skip", "rollback", "stop"}:
            raise ValueError(f"action is {action!r}; it is 'skip', 'rollback' or 'stop'")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be at least 1")
        if action == "skip" and every_n_steps not in {None, 1}:
            raise ValueError(f"every_n_steps is {every_n_steps}; a step can only be skipped where it is 1")
        if not 0 < lr_factor <= 1:
            raise ValueError(f"lr_factor is {lr_factor}; it is above 0 and at most 1")
        if budget < 0 or budget_steps < 1:
            raise ValueError(f"budget is {budget} in {budget_steps} steps; they must be at least 0 and 1")
        self.action, self.every_n_steps, self.lr_factor = action, every_n_steps, lr_factor
        self.budget, self.budget_steps = budget, budget_steps
        self.window, self.deviations = window, deviations
        self._recovery: CheckpointRecovery | None = None
        self._undo: list[Callable[[], None]] = []
        self._each, self._every = True, 1  # whether it looks before each update; the steps from look to look
        self._kept: KeptBuffers | None = None
        self._step = self._trained = 0
        self._losses = StepLosses()
        self._forget()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Looks for what it needs, and forgets an earlier training, unless this one goes on with it."""
        self._recovery = None
        if stage != "fit" or getattr(trainer, "fast_dev_run", False):
            return
        if trainer.global_step == 0 or self._trained != id(pl_module):
            self._forget()
        self._trained = id(pl_module)
        name = type(trainer.strategy).__name__
        if name not in PLAIN_STRATEGIES:
            raise NotResumableError(
                f"DivergenceGuard needs the whole gradient on every rank, and {name} does not keep it: use one of "
                f"{', '.join(sorted(PLAIN_STRATEGIES))}"
            )
        self._recovery = recovery_beside(trainer)
        if self._recovery is None and self.action == "rollback":
            raise NotResumableError(
                "DivergenceGuard goes back to what a CheckpointRecovery saved: put one among the callbacks, or choose "
                "action='skip' or 'stop'"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins to look."""
        self._kept = None
        if getattr(trainer, "fast_dev_run", False):
            return
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
            rank_zero_warn(
                "DivergenceGuard leaves LBFGS alone, whose steps look at the loss and the gradient many times"
            )
            return
        on_cpu = trainer.strategy.root_device.type == "cpu"
        every = self.every_n_steps or (1 if on_cpu or self.action == "skip" else 10)
        self._each, self._every = every == 1, max(every, AGREEMENT_STEPS if trainer.world_size > 1 else 1)
        self._kept = KeptBuffers(pl_module)
        self._kept.take()
        self._step, self._losses = trainer.global_step, StepLosses()
        if not self._each and not pl_module.automatic_optimization:
            rank_zero_warn(
                "DivergenceGuard sees nothing here: of manual optimization it looks at gradients, which takes "
                "every_n_steps=1"
            )
        lowers = self.lr_factor < 1 or self._rate.factor < 1
        self._undo = [
            *(self._rate.attach(trainer.optimizers) if lowers else []),
            lightning_internals.call_between_batches(trainer, lambda: self._between_batches(trainer, pl_module)),
            lightning_internals.call_before_the_update(trainer, lambda optimizer: self._skip(trainer, optimizer)),
        ]
        if self._recovery is not None:
            self._undo.append(self._recovery.call_before_saving(self._before_saving))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the buffers, before the first batch of a step."""
        self._went_backward = False
        if self._kept is not None and self._each and not self._losses.going_on:
            self._kept.take()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Keeps the loss: this batch's part of the step's."""
        self._went_backward = True
        if self._undo and pl_module.automatic_optimization:
            self._losses.add(loss, scaler_of(trainer))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Looks at the step; if it is ill, it is skipped once all other hooks have seen it."""
        self._is_ill = False
        index, gradients = index_of(trainer, optimizer), gradients_of(optimizer)
        if self._kept is None or not self._each or index is None or not gradients:
            return
        scaler = scaler_of(trainer)
        if scaler is not None and not self._went_backward:  # it left the gradient scaled, and no step will be taken
            return
        norm = float(torch.linalg.vector_norm(own_norms(gradients)))
        if scaler is not None and unscales_itself(optimizer):
            norm /= scaler.get_scale()
        numbers = {"gradient norm" if index == 0 else f"gradient norm of optimizer {index}": norm}
        if trainer.world_size == 1 and pl_module.automatic_optimization:
            loss = self._losses.value()
            self._losses.drop()
            numbers |= {} if loss is None else {"loss": loss}
        detector = self._detectors[index]
        illness = detector.look(trainer.global_step + 1, numbers, scaled=scaler is not None)
        if illness is not None:
            self._treat(illness, detector)
            self._is_ill = True
            self.skipped += 1
        if illness is not None or detector.overflows:
            self._losses.drop()
        if illness is not None or (detector.overflows and self._kept.any_broken()):
            self._kept.restore()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes the loss of a step that is done down."""
        if trainer.global_step == self._step:  # gradients are being added up
            return
        self._step = trainer.global_step
        self._losses.keep(self._step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks, so that no ill state is the last."""
        if self._undo:
            self._look(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks, so that no ill state is validated."""
        if self._undo:
            self._look(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks no longer."""
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Looks no longer."""
        self._end()

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as plain values."""
        return {
            "detectors": {str(index): each.state_dict() for index, each in self._detectors.items()},
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "lr_factor": self._rate.factor,
            "proven": list(self._proven),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""
        self._forget()
        for index, state in state_dict["detectors"].items():
            self._detectors[int(index)].load_state_dict(state)
        self.skipped, self.rollbacks = state_dict["skipped"], state_dict["rollbacks"]
        self._rate.factor = state_dict["lr_factor"]
        self._proven = list(state_dict["proven"])

    def _forget(self) -> None:
        detector = partial(DivergenceDetector, self.window, self.deviations, self.budget_steps)
        self._detectors: defaultdict[int, DivergenceDetector] = defaultdict(detector, {0: detector()})  # by optimizer
        self.skipped = self.rollbacks = 0
        self._rate = LoweredRate()
        self._proven: list[int] = []  # steps at which it was gone back
        self._back_from: int | None = None  # the step since which it is ill, where it must go back
        self._must_save = self._is_news = self._is_ill = self._went_backward = False

    def _skip(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        if self._is_ill:
            self._is_ill = False
            skip(optimizer, scaler_of(trainer))

    def _between_batches(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._losses.going_on:  # gradients are being added up
            return
        if self._is_news or self._step % self._every == 0:
            self._look(trainer, module)
        if self._must_save and self._recovery is not None:
            self._recovery.save(trainer, module)

    def _before_saving(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._look(trainer, module)
        self._must_save = False

    def _look(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Looks at the losses of the steps since the last time, and does what is to be done."""
        scaled, detector = scaler_of(trainer) is not None and not self._each, self._detectors[0]
        losses, illness = self._losses.read(self.skipped, trainer.strategy.root_device), None
        for step, loss in losses:
            illness = detector.look(step, {"loss": loss}, scaled=scaled)
            if illness is not None:
                break
        else:
            if scaled and not all(math.isfinite(loss) for _, loss in losses) and self._any_buffer_broken(trainer):
                illness = detector.look(losses[-1][0], {"size of a buffer": math.nan})
        if illness is not None:
            self._treat(illness, detector, late=True)
        if self._back_from is not None:
            self._go_back(trainer, module, self._back_from)
        self._tell_loggers(trainer)

    def _any_buffer_broken(self, trainer: pl.Trainer) -> bool:
        """Whether one is on any rank. A scaler refuses a step that is not finite, and leaves what it did to them."""
        assert self._kept is not None
        return largest([float(self._kept.any_broken())], trainer.strategy.root_device)[0] > 0

    def _treat(self, illness: Illness, detector: DivergenceDetector, *, late: bool = False) -> None:
        """Says so, and decides what is to be done; ``late`` if the step is taken already.

        Raises:
            DivergedError: if nothing is left to be done.
        """
        self._is_news = True
        end = self._why_end(detector)
        if end is not None:
            raise DivergedError(
                f"training diverges at {illness}{end}: lower the learning rate, clip the gradients, or look at the data"
            )
        if detector.in_a_row == 1:
            what = "it showed when the step was taken" if late else "the step is skipped"
            counted = f" ({detector.times} of {self.budget} times in {self.budget_steps} steps)"
            rank_zero_warn(f"{illness}; {what}{'' if illness.spike else counted}")
        if self.action == "rollback" and (late or detector.in_a_row >= PATIENCE[self.action]):
            self._back_from = detector.since

    def _why_end(self, detector: DivergenceDetector) -> str | None:
        """What there is to add to an illness that ends the training; None if it does not."""
        if self.action == "stop":
            return ""
        if detector.times > self.budget:
            return f", the {detector.times}. time within {self.budget_steps} steps, where budget is {self.budget}"
        if self.action == "skip" and detector.in_a_row >= PATIENCE[self.action]:
            return f", the {detector.in_a_row}. such step in a row"
        return None

    def _go_back(self, trainer: pl.Trainer, module: pl.LightningModule, since: int) -> None:
        assert self._recovery is not None
        recovery = self._recovery
        step = trainer.global_step
        self._detectors[0].count(step)
        end = self._why_end(self._detectors[0])
        if end is not None:
            raise DivergedError(
                f"training diverges since step {since}{end}: lower the learning rate, clip the gradients, or look at "
                "the data"
            )
        found = on_rank_zero(lambda: _path_and_step(rollback.choose(recovery, since, self._proven)))
        if found is None:
            raise DivergedError(
                f"training diverges since step {since}, and there is no good checkpoint to go back to in "
                f"{recovery.store.folder}"
            )
        path, back_to = found
        checkpoint = rollback.read(path)
        rollback.set_back(trainer, module, checkpoint)
        if self._kept is not None:
            self._kept.restore(broken_only=True)  # those that no checkpoint holds
        remembered = checkpoint["callbacks"].get(self.state_key, {"detectors": {}})["detectors"]
        recovery.monitored.forget()  # what was validated was other weights
        again = bool(self._proven) and step - self._proven[-1] < self.window
        self._proven.append(step)
        self._rate.factor *= self.lr_factor
        self.rollbacks += 1
        self._losses.forget()
        for index, detector in self._detectors.items():
            # its losses were others then; if that did not help, they may be others for good
            detector.set_back(None if again else remembered.get(str(index)))
        self._back_from, self._must_save, self._is_news = None, True, True
        lowered = f", with {self._rate.factor:.3g} of the learning rate" if self._rate.factor < 1 else ""
        rank_zero_warn(f"step {step}: the weights are again those of step {back_to}, the data goes on{lowered}")

    def _tell_loggers(self, trainer: pl.Trainer) -> None:
        if self._is_news:
            self._is_news = False
            told = {"skipped_steps": self.skipped, "rollbacks": self.rollbacks, "lr_factor": self._rate.factor}
            log_values(trainer, {f"divergence/{name}": float(value) for name, value in told.items()})

    def _end(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._kept = None


def _path_and_step(found: Checkpoint | None) -> tuple[str, int] | None:
    return None if found is None else (str(found.path), found.step)
