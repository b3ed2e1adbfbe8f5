"""Takes down what the rules look at, while a training goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from statistics import fmean
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from stormproof.gradients.measurement import GradientMeasurement
from stormproof.health.observers.baselines import Comparing
from stormproof.health.observers.constant_targets import SameTargets
from stormproof.health.observers.data_wait import Waiting
from stormproof.health.observers.gradient_reset import KeptGradients
from stormproof.health.observers.learning_rates import LearningRates
from stormproof.health.observers.non_finite_origin import where_it_broke
from stormproof.health.observers.parameter_groups import (
    frozen_layers,
    held_twice,
    not_held,
    not_reached,
    weights_by_layer,
    with_gradient,
    without_optimizer,
)
from stormproof.health.observers.provenance import batch_size, tensors_in
from stormproof.health.observers.rank_compute_time import OwnTime
from stormproof.health.observers.step_trace import CloserLook
from stormproof.health.observers.traced_step import watch_step
from stormproof.health.observers.training_loader import loader_of
from stormproof.health.observers.validation_losses import ValidationLosses
from stormproof.health.record import Broken, Comparison, Probe, Record, Validated
from stormproof.health.rules.dead_units import choose_measurements
from stormproof.lightning import internals
from stormproof.lightning.layer_names import layer_of
from stormproof.lightning.optimizer_step import index_of, scaler_of
from stormproof.units.module_kinds import is_compiled
from stormproof.units.unit_activity import INPUTS, UnitActivity

EARLY = frozenset({0, 1, 2, 4, 7, 9, 12, 14, 17, 19, 24, 29, 34, 39, 44, 49, 59, 69, 79, 89, 99})
"""Steps, from 0, whose batches are looked at closely: most mistakes show within the first."""
STRUCTURE = 3
"""Steps after which it is settled which parameters get a gradient."""
PROBES = 64
"""Close looks that are remembered, beside the first four."""
PASSES = 8
"""Validations that are remembered, beside the best."""
FIRST = 20
"""Losses that are remembered for good."""


class GradientSource(Protocol):
    """Source of gradient measurements, for example :class:`stormproof.GradientNormMonitor`."""

    @property
    def history(self) -> list[GradientMeasurement]:
        """The last measurements, oldest first."""
        ...


class UnitSource(Protocol):
    """Source of unit measurements, for example :class:`stormproof.DeadNeuronDetector`."""

    @property
    def activity(self) -> dict[str, UnitActivity]:
        """Activity by layer from the last validation pass, or from the last training epoch before the first pass."""
        ...

    @property
    def running_activity(self) -> dict[str, UnitActivity]:
        """Activity by layer in the current training epoch, on this rank."""
        ...


class Examiner:
    """Looks at a training, and keeps a :class:`Record` of it.

    Args:
        trainer: about to train.
        module: what it trains.
        norms: measures gradients.
        dead: counts dead units.
        loss: of (preds, target); None if the user did not tell.
        validation_metric: its name; None for none.
        every: steps between two close looks, after the first ones.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        norms: GradientSource,
        dead: UnitSource,
        loss: Callable[..., Any] | None,
        validation_metric: str | None,
        every: int,
    ) -> None:
        self._trainer, self._module = trainer, module
        self._norms, self._dead = norms, dead
        self._validation_metric, self._every = validation_metric, every
        self._layer_names = {id(parameter): layer_of(name) for name, parameter in module.named_parameters()}
        self._follows = not any(is_compiled(each) for each in module.modules())
        self._on_cpu = trainer.strategy.root_device.type == "cpu"
        self._rates = LearningRates(trainer.optimizers)
        alone = trainer.world_size == 1 or not self._follows
        self._own_time = None if alone else OwnTime(module, trainer.strategy.root_device)
        self._waiting = Waiting(self._own_time)
        self._stop_clock = internals.call_between_batches(trainer, self._waiting.fetch_begins, last=True)
        self._same_targets = SameTargets()
        self._sampled: dict[str, UnitActivity] = {}
        self._batch_norm = any(isinstance(each, _BatchNorm) and each.track_running_stats for each in module.modules())
        self._comparing = Comparing(module, loss)
        self._validation = ValidationLosses(module, follows=self._follows)
        self._kept = {index: KeptGradients(each) for index, each in enumerate(trainer.optimizers)}
        self._batch: Any = None
        self._batch_idx = self._batch_size = self._backwards = 0
        self._device_losses: list[tuple[int, torch.Tensor]] = []
        self._since_validated = [0.0, 0]  # the sum and the number of losses
        self._stepped: set[int] = set()  # optimizers
        self._look: CloserLook | None = None
        self._stop: Callable[[], None] | None = None
        self._output: Any = None
        self._broke = False  # in the batch that goes on
        self.record = Record(planned=_planned_steps(trainer), skipping=scaler_of(trainer) is not None)
        self.record.accumulates = trainer.accumulate_grad_batches
        self.record.loader, self.record.workers = loader_of(trainer)
        self.record.twice = held_twice(module, trainer.optimizers)
        self.record.groups = self._rates.look(trainer.global_step)

    def stop(self) -> None:
        """Looks no longer."""
        self._stop_clock()
        self._waiting.stop()
        if self._own_time is not None:
            self._own_time.stop()
        self._end_look()
        self._validation.stop()
        for each in self._kept.values():
            each.stop()

    def batch_begins(self, batch: Any, batch_idx: int) -> None:
        """Takes a batch; looks closely at its step where it is that one's turn."""
        self._waiting.batch_comes()
        if self._own_time is not None:
            self._own_time.batch_comes()
        self._batch, self._batch_idx, self._backwards = batch, batch_idx, 0
        self._batch_size = batch_size(batch) or 0
        self._end_look()
        step = self._trainer.global_step or self.record.batches // self.record.accumulates  # some count none of theirs
        if step in EARLY or (step + 1) % self._every == 0:
            self._begin_look()

    def goes_backward(self, loss: torch.Tensor) -> None:
        """Takes the loss of a batch; looks where it comes from, if it is not finite."""
        if self._own_time is not None:
            self._own_time.goes_backward()
        self._backwards += 1
        self.record.backwards += self._backwards == 1
        self.record.one_loss &= self._backwards == 1
        scaler, step = scaler_of(self._trainer), self._trainer.global_step
        parts = self._trainer.accumulate_grad_batches if self._module.automatic_optimization else 1
        if not self._on_cpu:
            part = loss.detach().float() * parts
            self._device_losses.append((step, part if scaler is None else part / scaler.scale(torch.ones_like(part))))
            return
        value = loss.item() * parts / (1.0 if scaler is None else scaler.get_scale())
        self._take_loss(step, value)
        if not math.isfinite(value) and self.record.broken is None and scaler is None:
            self._broke = True
            self.record.broken = where_it_broke(
                self._module, self._batch, self._batch_idx, step, self._layer_names, self.record.in_order,
                follows=self._follows,
            )  # fmt: skip

    def before_update(self, optimizer: Optimizer) -> None:
        """Looks at whose gradients there are."""
        if self._look is None or (index := index_of(self._trainer, optimizer)) is None:
            return
        optimizers = self._trainer.optimizers
        if not self.record.has_gradient and all(each.grad is None for each in self._module.parameters()):
            self.record.without_gradient += 1
        new = with_gradient(self._module, self.record.has_gradient)
        if new and not self.record.has_gradient:
            self.record.gradient_since = self._trainer.global_step
        self.record.has_gradient |= new
        self._stepped.add(index)
        if self._trainer.global_step < STRUCTURE and len(self._stepped) == len(optimizers):
            self.record.unowned, strangers = without_optimizer(self._module, optimizers)
            self.record.stale = strangers if self.record.unowned else 0

    def batch_ends(self) -> bool:
        """Takes down what the batch showed; whether there is more to diagnose than before."""
        record, looked = self.record, self._look is not None
        if looked:
            self._waiting.leave_out()
        record.step = self._trainer.global_step
        record.batches += 1
        if looked:
            record.groups = self._rates.look(record.step)
            self._conclude_look()
        if self._same_targets.samples is not None:
            self._same_targets.add(list(tensors_in(self._batch)), self._comparing.targets, self._batch_size)
        news = looked or self._broke
        if news:
            self.look_up()
        self._batch, self._broke = None, False
        return news

    def own_times(self) -> tuple[list[float], list[tuple[float, float]]]:
        """What this rank took for itself on the last batches, and their seconds of waiting and of work."""
        return self._own_time.seconds() if self._own_time else [], list(self._waiting.batches)

    def look_up(self) -> None:
        """Reads what waits on the device, and what the monitors have measured."""
        record = self.record
        self._read_losses()
        for each in self._kept.values():
            if each.is_done:
                each.stop()
        record.kept = {index: (each.times, each.looked) for index, each in self._kept.items()}
        record.stepped = record.stepped or any(each.has_stepped for each in self._kept.values())
        record.waits = list(self._waiting.batches)
        record.same_targets = self._same_targets.samples
        if not record.related:  # more samples show more
            record.related = self._comparing.samples.are_related()
        record.gradients = self._norms.history
        validated = {name: each for name, each in self._dead.activity.items() if each.exact}
        for (
            name,
            sample,
        ) in self._dead.running_activity.items():  # keeps the previous epoch's until this one's is large enough
            if sample.inputs >= INPUTS or name not in self._sampled:
                self._sampled[name] = sample
        record.places, lagging = choose_measurements(self._sampled, validated, batch_norm=self._batch_norm)
        if self._sampled.keys() & validated.keys():
            record.lagging = lagging
        last = record.gradients[-1] if record.gradients else None
        if last is not None and record.broken is None and not record.skipping:
            broken = [layer for layer, norm in last.norms.items() if not math.isfinite(norm)]
            if broken:
                ordered = [layer for layer in record.in_order if layer in broken] or broken
                record.broken = Broken(last.step - 1, self._batch_idx, "gradient", ordered[-1], in_data=False)

    def epoch_ends(self, difference: float) -> None:
        """An epoch is done, and the replicas' weights differ by that."""
        self.record.epoch = self._trainer.current_epoch + 1
        self.record.step = self._trainer.global_step
        self.record.replicas_differ = max(self.record.replicas_differ, difference)
        self.look_up()

    def validation_begins(self) -> None:
        """A pass begins."""
        self._validation.begin()

    def validation_batch_begins(self, batch: Any) -> None:
        """Watches a batch of the pass."""
        self._validation.batch_begins(batch, self._comparing.objective)

    def validation_batch_ends(self, outputs: Any) -> None:
        """Takes its loss."""
        self._validation.batch_ends(outputs, self._comparing.objective)

    def validation_ends(self) -> None:
        """A pass is done."""
        self._waiting.leave_out()
        record, losses = self.record, self._validation.read()
        record.step = self._trainer.global_step
        self.look_up()
        total, count = self._since_validated
        self._since_validated = [0.0, 0]
        training = total / count if count else None
        if losses:
            samples = self._validation.samples
            record.keep_validation(Validated(record.step, tuple(losses), fmean(losses), training, samples), PASSES)
        elif self._validation_metric is not None and self._validation_metric in self._trainer.callback_metrics:
            value = float(self._trainer.callback_metrics[self._validation_metric])
            record.keep_validation(Validated(record.step, (), value, training, self._validation.samples), PASSES)

    def state_dict(self) -> dict[str, Any]:
        """The numbers that later ones are compared with, as plain values."""
        record = self.record
        return {
            "first": list(record.first),
            "recent": [list(each) for each in record.recent],
            "comparisons": [list(vars(each).values()) for each in record.comparisons],
            "validations": [
                [each.step, list(each.losses), each.loss, each.training, each.samples] for each in record.validations
            ],
            "epoch": record.epoch,
            "same_targets": self._same_targets.samples,
            "rates": self._rates.state_dict(),
            "since_validated": list(self._since_validated),
            "targets": self._comparing.pool.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        record = self.record
        record.first = list(state["first"])
        record.recent.extend((step, loss) for step, loss in state["recent"])
        record.comparisons = [Comparison(*each) for each in state["comparisons"]]
        record.validations = [
            Validated(step, tuple(losses), loss, training, *samples)  # absent in checkpoints of earlier versions
            for step, losses, loss, training, *samples in state["validations"]
        ]
        record.epoch = state["epoch"]
        self._same_targets.samples = state["same_targets"]
        self._rates.load_state_dict(state["rates"])
        record.groups = self._rates.look(self._trainer.global_step)
        self._since_validated = list(state["since_validated"])
        self._comparing.pool.load_state_dict(state["targets"])

    def _take_loss(self, step: int, loss: float) -> None:
        if len(self.record.first) < FIRST:
            self.record.first.append(loss)
        self.record.recent.append((step, loss))
        self._since_validated = [self._since_validated[0] + loss, self._since_validated[1] + 1]

    def _read_losses(self) -> None:
        if not self._device_losses:
            return
        steps, losses = zip(*self._device_losses, strict=True)
        self._device_losses = []
        for step, loss in zip(steps, torch.stack(losses).tolist(), strict=True):
            self._take_loss(step, loss)
            if not math.isfinite(loss) and self.record.broken is None and not self.record.skipping:
                self.record.broken = Broken(step, self._batch_idx, "loss", "", in_data=False)

    def _begin_look(self) -> None:
        self._look = CloserLook(self._layer_names, list(tensors_in(self._batch)), self._batch_size)
        self._output = None
        context = self._look.origins if self._follows else nullcontext()
        self._stop = watch_step(self._module, "training_step", context, self._receive, before=self._weigh)

    def _end_look(self) -> None:
        if self._stop is not None:
            self._stop()
        if self._look is not None:
            self._look.forget()
        self._stop, self._look, self._output = None, None, None

    def _weigh(self) -> None:
        self.record.keep_weights(self._trainer.global_step, weights_by_layer(self._module), PROBES)

    def _receive(self, output: Any) -> None:
        self._output = output

    def _conclude_look(self) -> None:
        look, record, output, step = self._look, self.record, self._output, self._trainer.global_step
        assert look is not None
        if look.origins.error is not None:
            raise look.origins.error
        loss = output.get("loss") if isinstance(output, Mapping) else output
        with torch.no_grad():
            facts, compared = self._comparing.look(
                look, output, loss, step, self._trainer.current_epoch, one_loss=record.one_loss
            )
            layers = tuple(look.layers)
        if compared is not None:
            record.comparisons = [*record.comparisons, compared][-2 * PROBES :]
        record.keep_probe(Probe(step, layers, tuple(look.activations), tuple(look.stretched), facts), PROBES)
        if layers and not record.in_order:
            record.in_order = list(dict.fromkeys(call.layer for call in layers))
        record.inputs = record.inputs or look.input_facts()
        record.hidden = max(record.hidden, not_held(look.hidden, self._trainer.optimizers))
        if step <= STRUCTURE and self._follows and self._module.automatic_optimization:
            record.frozen = frozen_layers(self._module)
            if isinstance(loss, torch.Tensor):
                record.cut, record.unused = not_reached(
                    self._module, self._trainer.optimizers, look.origins.of(loss), look, record.has_gradient
                )
        self._end_look()


def _planned_steps(trainer: pl.Trainer) -> int | None:
    """The optimizer steps of the whole training; None where there is no end."""
    batches = trainer.num_training_batches
    most = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
    if trainer.max_epochs is None or trainer.max_epochs < 0 or not math.isfinite(batches):
        return most
    steps = trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches)
    return steps if most is None else min(steps, most)
