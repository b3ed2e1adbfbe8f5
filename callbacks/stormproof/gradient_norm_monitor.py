"""How large the gradients are, layer by layer, and what the optimizer makes of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from stormproof.distributed.gloo_shutdown import part_before_exit
from stormproof.gradients.measurement import GradientMeasurement, MeasuredParameters, Measuring
from stormproof.lightning import internals
from stormproof.lightning.logging_steps import log_values, passed_logging_step
from stormproof.lightning.optimizer_step import index_of, scaler_of, unscales_itself
from stormproof.monitoring.monitor import Measured, Monitor


class GradientNormMonitor(Monitor):
    r"""Measures the norm of the gradient, layer by layer, every so many optimizer steps.

    .. math:: \|g_l\| = \Big(\sum_{\theta \in l} \sum_j g_{\theta,j}^2\Big)^{1/2}, \qquad
        \|g\| = \Big(\sum_l \|g_l\|^2\Big)^{1/2}

    where g is the gradient that the optimizer gets, of the whole job: reduced over the ranks, accumulated, unscaled,
    and before clipping. A layer is the module that owns the parameters. With several optimizers each is measured at
    every n-th of its own steps. Between logging steps nothing waits for the device.

    Logged at Lightning's logging steps, of the last measured one: ``gradients/norm``, ``gradients/norm/<layer>``;
    ``updates/ratio`` and ``updates/ratio/<layer>``, the size of the update relative to the weights, estimated from some
    256 entries a tensor (:class:`stormproof.gradients.update_ratio.WeightSampler`); ``gradients/clipped_fraction``
    where something clips and ``gradients/skipped_fraction`` where something skips: shares of the measured steps in
    :attr:`history`.

    In manual optimization, what ``self.clip_gradients`` clips is measured before it; what a function of torch's clips,
    after it.

    Args:
        every_n_steps: measure the first step and each multiple of it, at least 1.
        history: measurements to remember, at least 1.
        table: whether to print a table when the training ends.

    Raises:
        ValueError: if a number is below 1.

    Example:
        >>> norms = GradientNormMonitor()
        >>> trainer = pl.Trainer(callbacks=[norms])  # doctest: +SKIP
        >>> trainer.fit(module, loader)  # doctest: +SKIP
        >>> norms.last  # doctest: +SKIP
        {'total': 0.83, 'net.0': 0.41, 'net.2': 0.72}

    References:
        On the difficulty of training recurrent neural networks, Pascanu et al. 2013 (norms and clipping).
    """

    def __init__(self, every_n_steps: int = 10, *, history: int = 100, table: bool = True) -> None:
        for name, number in (("every_n_steps", every_n_steps), ("history", history)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} is {number}; it must be a whole number, at least 1")
        super().__init__(table)
        self.every_n_steps = every_n_steps
        self.first: dict[str, float] = {}
        self._records: deque[GradientMeasurement] = deque(maxlen=history)
        self._pending: deque[Measuring] = deque(maxlen=history)  # their numbers are on the device
        self._last: dict[int, GradientMeasurement] = {}  # with a gradient, by optimizer
        self._lasts: dict[str, float] = {}  # by layer, whenever that was
        self._firsts: list[Measuring] = []  # those of them with which layers came up
        self._open: dict[int, Measuring] = {}  # by optimizer: measured, and its step not done yet
        self._begun: dict[int, int] = {}  # steps that each optimizer has begun
        self._at: dict[int, int] = {}  # the global step of the last of them: one step may ask for several gradients
        self._plans: dict[tuple[int, tuple[bool, ...]], MeasuredParameters] = {}
        self._steps = 0
        self._trained = False
        self._ends: list[Callable[[], None]] = []

    @property
    def history(self) -> list[GradientMeasurement]:
        """The last measurements, oldest first. Reading it waits for the device."""
        self._read()
        return list(self._records)

    @property
    def last(self) -> dict[str, float]:
        """``total`` and the norm of each layer that had a gradient in the last measured step; empty before.

        Of several optimizers it is the last measured step of each, and the total is over all of them.
        """
        self._read()
        norms = {layer: norm for record in self._last.values() for layer, norm in record.norms.items()}
        return {"total": math.hypot(*norms.values()), **norms} if norms else {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets an earlier training, unless this one goes on with it."""
        part_before_exit()
        if stage == "fit" and trainer.global_step == 0:
            self.load_state_dict({"history": [], "first": {}, "begun": []})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins to look at what the optimizers do."""
        self._steps, self._trained = trainer.global_step, False
        self._plans, self._at, self._open = {}, {}, {}
        if len(trainer.optimizers) == 1:
            self._begun = {0: trainer.global_step}
        self._ends = [
            internals.call_before_clipping(trainer, partial(self._before_clipping, trainer, pl_module)),
            *(self._after_each_step(optimizer, index) for index, optimizer in enumerate(trainer.optimizers)),
        ]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measures the gradient, where it is this step's turn."""
        index = index_of(trainer, optimizer)
        if index is None or self._at.get(index) == trainer.global_step:
            return
        self._measure(trainer, pl_module, optimizer, index, scaled=unscales_itself(optimizer))
        self._begun[index] = self._begun.get(index, 0) + 1
        self._at[index] = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the last measurement at a logging step."""
        self._trained = True
        logging_step = passed_logging_step(trainer, self._steps, trainer.global_step)
        self._steps = trainer.global_step
        if logging_step and self._pending:
            self._log(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads what is left, and looks no longer."""
        self._read()
        self._stop()
        if self._trained and not self._records:
            rank_zero_warn(
                "no gradient was measured: no optimizer of configure_optimizers has stepped in this training"
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Looks no longer."""
        self._stop()

    def measured(self) -> Measured:
        """Each layer's first and last norm, for the table."""
        self._read()
        return Measured(first=self.first, last=self._lasts)

    def state_dict(self) -> dict[str, Any]:
        """The history, as plain values."""
        return {
            "history": [record.state_dict() for record in self.history],
            "first": dict(self.first),
            "begun": [self._begun.get(index, 0) for index in range(len(self._begun))],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""
        self._pending.clear()
        self._firsts.clear()
        self._records.clear()
        self._last, self._lasts = {}, {}
        for each in state_dict["history"]:
            self._remember(GradientMeasurement.from_state(each))
        self.first = dict(state_dict["first"])
        self._begun = dict(enumerate(state_dict["begun"]))

    def _inactive(self) -> dict[str, Any]:
        return {"_ends": [], "_plans": {}, "_open": {}}

    def _read(self) -> None:
        for measuring in self._firsts:
            for layer, norm in measuring.read().norms.items():
                self.first.setdefault(layer, norm)
        for measuring in self._pending:
            self._remember(measuring.read())
        self._firsts.clear()
        self._pending.clear()

    def _remember(self, record: GradientMeasurement) -> None:
        self._records.append(record)
        self._lasts |= record.norms
        if record.norms:
            self._last[record.optimizer] = record

    def _before_clipping(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer, clip_val: float, by_value: bool
    ) -> None:
        index = index_of(trainer, optimizer)
        if index is None:
            return
        if not module.automatic_optimization:  # before the step, and so before the gradient is unscaled
            self._measure(trainer, module, optimizer, index, scaled=True)
        if index in self._open:
            self._open[index].clip(clip_val, by_value)

    def _measure(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer, index: int, *, scaled: bool
    ) -> None:
        step = self._begun.get(index, 0) + 1
        if index in self._open and self._open[index].step == step:
            return
        self._open.pop(index, None)  # that step was skipped
        if step > 1 and step % self.every_n_steps:
            return
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        key = (index, tuple(parameter.grad is not None for parameter in held))
        if key not in self._plans:
            self._plans[key] = MeasuredParameters(
                module, [parameter for parameter in held if parameter.grad is not None]
            )
        measuring = Measuring(step, index, self._plans[key], scaler_of(trainer), scaled=scaled)
        self._open[index] = measuring
        self._pending.append(measuring)
        if not self.first.keys() >= set(measuring.layers):
            self._firsts.append(measuring)

    def _after_each_step(self, optimizer: Optimizer, index: int) -> Callable[[], None]:
        def done(*_: Any) -> None:
            if index in self._open:
                self._open.pop(index).stepped()

        return optimizer.register_step_post_hook(done).remove

    def _log(self, trainer: pl.Trainer) -> None:
        norms = self.last
        values = {_name("gradients/norm", layer): norm for layer, norm in norms.items()}
        updates = {layer: ratio for record in self._last.values() for layer, ratio in record.updates.items()}
        if len(self._last) > 1:
            updates.pop("total", None)  # each optimizer has its own
        values |= {_name("updates/ratio", layer): ratio.value for layer, ratio in updates.items() if ratio is not None}
        clipped = [record.clipped for record in self._records if record.clipped is not None]
        if clipped:
            values["gradients/clipped_fraction"] = sum(clipped) / len(clipped)
        skipped = [record.skipped for record in self._records]
        if any(skipped) or scaler_of(trainer) is not None:
            values["gradients/skipped_fraction"] = sum(skipped) / len(skipped)
        log_values(trainer, values)

    def _stop(self) -> None:
        for end in self._ends:
            end()
        self._ends = []
        self._plans, self._open = {}, {}


@cache
def _name(group: str, layer: str) -> str:
    return group if layer == "total" else f"{group}/{layer}"
