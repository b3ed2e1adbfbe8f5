"""Which units of a network are dead, exactly, and since when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils._pytree import tree_leaves

from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.lightning.layer_names import join_names
from stormproof.lightning.logging_steps import log_values
from stormproof.monitoring.monitor import Monitor, TableEntries
from stormproof.units import trace_cache
from stormproof.units.hooks import ActivationHooks
from stormproof.units.redo import Redo
from stormproof.units.running_min_max import RunningExtremes
from stormproof.units.unit_activity import Stage, UnitActivity
from stormproof.units.unit_records import UnitRecords

SPARSITY_EVERY = 10
"""Of the sampled batches, in how many zeros are counted: the first of an epoch, and every so many."""


class DeadNeuronDetector(Monitor):
    r"""Finds the units whose output never leaves one value.

    A unit is dead over some inputs if :math:`\max_x h(x) = \min_x h(x)`, without any tolerance: then it says nothing
    about its input. One rule for all kinds: a ReLU that is always 0, a sigmoid that is always 1, a channel that is
    constant over all positions, an output of an LSTM, a gate that is shut; and of a Maxout unit a piece that never wins
    (:class:`stormproof.MaxoutPieces`). Zeros that come and go are sparsity, and no death.

    What is watched: the output of every activation module and recurrent network, of modules of your own without
    parameters that keep the shape, and, where an activation is applied as a function, the input of the first Linear or
    convolution that consumes it. A name is that module's dotted name; of one that is called behind several layers,
    ``<name>@<layer>``. Where it cannot be told which dimension counts the units (heads that were split off a layer's),
    or which layer takes what a function gives, a warning names it, and nothing is claimed.

    Over a validation epoch the weights stay as they are, and the answer is **exact** (:attr:`dead_units`), over all
    ranks. Training batches are a sample: what never fired in n inputs fires on at most 3/n of them (95%); with
    ``every_n_steps=1`` nothing of an epoch is left out. An epoch keeps two numbers a unit, and nothing waits for the
    device before its end. The table reports dead units after 200 inputs, or 30 if all units of a layer are dead.

    Logged: ``units/dead_fraction`` and ``units/dead_fraction/<name>`` after each validation epoch;
    ``units/silent_fraction/<name>``, the same of the sampled training batches, and ``units/sparsity/<name>``, the share
    of zeros in every tenth of those, after each epoch. An epoch with one input logs no dead fraction.

    Args:
        every_n_steps: look at the training batches of the first step and of each multiple of it, at least 1.
        reinit_every_n_steps: Steps between reinitializations of dormant units, as in ReDo. Incoming weights are drawn
            from a normal distribution with their initial standard deviation; outgoing weights and the optimizer's
            moments of both become 0. The same on all ranks. Must be at least 1. Disabled if None.
        dormant_threshold: A unit is dormant if its mean absolute output over the last batch of the step is at most this
            share of the mean over its layer. Must be at least 0. In a small batch, units can seem dormant by chance.
        table: whether to print a table when the training ends.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> dead = DeadNeuronDetector()
        >>> trainer = pl.Trainer(callbacks=[dead])  # doctest: +SKIP
        >>> trainer.fit(module, loader, val_loader)  # doctest: +SKIP
        >>> dead.dead_units["net.2"]  # doctest: +SKIP
        tensor([False, True, False])

    References:
        Dying ReLU and Initialization, Lu et al. 2020; The Dormant Neuron Phenomenon in Deep Reinforcement Learning,
        Sokar et al. 2023 (ReDo, sections 3 and 4).
    """

    def __init__(
        self,
        every_n_steps: int = 10,
        *,
        reinit_every_n_steps: int | None = None,
        dormant_threshold: float = 0.025,
        table: bool = True,
    ) -> None:
        reinit = 1 if reinit_every_n_steps is None else reinit_every_n_steps
        for name, number in (("every_n_steps", every_n_steps), ("reinit_every_n_steps", reinit)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} is {number}; it must be a whole number, at least 1")
        if not dormant_threshold >= 0:
            raise ValueError(f"dormant_threshold is {dormant_threshold}; it must be at least 0")
        super().__init__(table)
        self.every_n_steps = every_n_steps
        self._redo = None if reinit_every_n_steps is None else Redo(reinit_every_n_steps, dormant_threshold)
        self._unit_records = UnitRecords()
        self._hooks: ActivationHooks | None = None
        self._sampled_epoch: int | None = None  # the one that is being sampled
        self._step = 0  # at which the batch that passes began
        self._last_batch_step: int | None = None  # the step at which the last training batch began
        self._is_sampling_step = False  # whether it is that step's turn
        self._sampled_batches = 0  # batches of the epoch
        self._trace_state: dict[str, Any] | None = None  # in a compiled network
        self._warned_names: set[str] = set()

    @property
    def dead_units(self) -> dict[str, torch.Tensor]:
        """Which units are dead, as bool (units,) by name: of the last complete validation epoch, exact."""
        return {
            name: record.dead_units
            for name, record in self._unit_records.records_by_name().items()
            if record.dead_units is not None
        }

    @property
    def activity(self) -> dict[str, UnitActivity]:
        """Activity of each place: of the last validation epoch; before any, of the last epoch's sample."""
        records = self._unit_records.records_by_name().items()
        return {name: record.activity for name, record in records if record.activity is not None}

    @property
    def running_activity(self) -> dict[str, UnitActivity]:
        """What the running epoch's sample shows of each layer's units on this rank. Reading it waits for the device."""
        activities = {
            name: self._unit_records.records[key].running_activity(key[1], self._step)
            for name, key in self._unit_records.keys_by_name().items()
        }
        return {name: activity for name, activity in activities.items() if activity is not None}

    @property
    def dead_counts(self) -> dict[str, list[tuple[int, int]]]:
        """Step and number of dead units of the last epochs, by name."""
        return {name: record.dead_counts for name, record in self._unit_records.records_by_name().items()}

    @property
    def reinitialized(self) -> dict[str, int]:
        """How many units were re-initialized so far, by name; empty without ``reinit_every_n_steps``."""
        counts = self._redo.reinitialized if self._redo else {}
        return {name: counts[key] for name, key in self._unit_records.keys_by_name().items() if key in counts}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets an earlier training, unless this one goes on with it."""
        destroy_gloo_before_exit()
        if stage == "fit" and trainer.global_step == 0:
            self._unit_records, self._sampled_epoch, self._last_batch_step, self._trace_state = (
                UnitRecords(),
                None,
                None,
                None,
            )
            self._redo = self._redo and Redo(self._redo.every_n_steps, self._redo.dormant_threshold)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hooks on to the network: one that is compiled at its first call takes the hooks with it."""
        hooks = self._attach(pl_module)
        self._unit_records.remove_missing(hooks)
        if not self._unit_records.records:
            self._unit_records.start_step = trainer.global_step
        if self._redo is not None:
            self._redo.record_initial_stds(hooks)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says what will not be seen."""
        hooks = self._attach(pl_module)
        if not hooks.is_compiled:
            return
        hooks.reset_coverage()
        if self._trace_state is None:
            rank_zero_warn(
                "the network is compiled and there was no sanity check: activations that it applies as functions are "
                "not watched; set Trainer(num_sanity_val_steps=1) or more, and give fit() a validation loader"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the batch where it is this step's turn; begins a new sample with each epoch."""
        if self._sampled_epoch != trainer.current_epoch:  # resumed at an epoch's last batch, the next one has no start
            self._sampled_epoch, self._sampled_batches = trainer.current_epoch, 0
            self._unit_records.start_epoch("training")
        self._step = step = trainer.global_step
        if step != self._last_batch_step:
            previous_step = (
                step - 1 if self._last_batch_step is None else self._last_batch_step
            )  # with several optimizers, not the one before
            self._is_sampling_step = (
                step == 0 or (step + 1) // self.every_n_steps > (previous_step + 1) // self.every_n_steps
            )
            self._last_batch_step = step
        last_step = step + max(len(trainer.optimizers), 1)  # that the batch may end at
        records_magnitudes = self._redo is not None and self._redo.is_due(step, last_step)
        hooks = self._attach(pl_module)
        is_traceable = not hooks.is_compiled  # what runs eagerly differs in the last bits
        counts_zeros = self._is_sampling_step and self._sampled_batches % SPARSITY_EVERY == 0
        hooks.begin_batch(
            "train",
            records_extremes=self._is_sampling_step,
            counts_zeros=counts_zeros,
            records_magnitudes=records_magnitudes,
            is_traceable=is_traceable,
        )

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Looks away: what is computed again during the backward pass has been seen."""
        if self._hooks is not None:
            self._hooks.active = False

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks again: in manual optimization another forward pass may follow."""
        if self._hooks is not None:
            self._hooks.active = self._hooks.records_batch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds what the batch left to the sample, and revives."""
        hooks = self._hooks
        if hooks is None or not hooks.records_batch:
            return
        hooks.end_batch()
        if self._redo is not None and self._redo.is_due(self._step, trainer.global_step):
            self._redo.reinitialize(trainer.global_step, trainer.optimizers, hooks)
        if self._is_sampling_step:
            self._sampled_batches += 1
            self._unit_records.add(hooks, self._step, "training", _smallest_batch_size(batch))
        hooks.discard_batch()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Concludes the epoch's sample."""
        if self._hooks is not None:
            self._hooks.end_batch()  # a batch that was skipped has no end
        dead_units = _dead_units(self._finish_epoch("training", trainer))
        values = {f"units/silent_fraction/{name}": _dead_fraction(units) for name, units in dead_units.items()}
        sparsities = ((name, activity.sparsity) for name, activity in self.activity.items())
        values |= {f"units/sparsity/{name}": sparsity for name, sparsity in sparsities if sparsity is not None}
        if values:
            log_values(trainer, values)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts an epoch."""
        self._attach(pl_module)
        if not trainer.sanity_checking:
            self._unit_records.start_epoch("validation")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Looks at every batch."""
        hooks = self._attach(pl_module)
        is_traceable = not hooks.is_compiled or trainer.sanity_checking or trainer.state.fn != "fit"
        hooks.begin_batch(f"validate {dataloader_idx}", records_extremes=True, is_traceable=is_traceable)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds what the batch left; in the sanity check, which sees a few batches, as signs of life alone.

        Lightning has another sanity check where it resumes between two epochs, of which an unbroken training shows
        nothing.
        """
        hooks = self._attach(pl_module)
        hooks.end_batch()
        if hooks.is_compiled and trainer.sanity_checking:
            self._trace_state = trace_cache.state_dict(hooks)
        if trainer.sanity_checking and trainer.global_step:
            hooks.discard_batch()
            return
        run_stage = None if trainer.sanity_checking else "validation"
        self._unit_records.add(hooks, trainer.global_step, run_stage, _smallest_batch_size(batch))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends the epoch and logs the dead fractions, before ``EarlyStopping`` and ``ModelCheckpoint`` read them."""
        if trainer.sanity_checking:
            return
        dead_units = _dead_units(self._finish_epoch("validation", trainer))
        if dead_units:
            values = {f"units/dead_fraction/{name}": _dead_fraction(units) for name, units in dead_units.items()}
            log_values(trainer, {"units/dead_fraction": _dead_fraction(torch.cat([*dead_units.values()])), **values})

    def table_entries(self) -> TableEntries:
        """What is known of the units, for the table."""
        return TableEntries(activity=self.activity)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Takes the hooks away."""
        self._detach()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Takes the hooks away."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """What is known and what is being added up, as plain values."""
        redo_state = None if self._redo is None else self._redo.state_dict()
        return {
            "epoch": self._sampled_epoch,
            "begun": self._last_batch_step,
            "turn": self._is_sampling_step,
            "sampled": self._sampled_batches,
            "found": self._trace_state,
            "census": self._unit_records.state_dict(),
            "redo": redo_state,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""
        self._sampled_epoch, self._sampled_batches = state_dict["epoch"], state_dict["sampled"]
        self._last_batch_step, self._is_sampling_step = state_dict["begun"], state_dict["turn"]
        self._trace_state = state_dict["found"]
        self._unit_records.load_state_dict(state_dict["census"])
        if self._redo is not None and state_dict["redo"] is not None:
            self._redo.load_state_dict(state_dict["redo"])

    def _inactive_state(self) -> dict[str, Any]:
        return {"_hooks": None}

    def _attach(self, module: pl.LightningModule) -> ActivationHooks:
        if self._hooks is None:
            self._hooks = ActivationHooks(module)
            if self._hooks.is_compiled and self._trace_state is not None:
                trace_cache.load_state_dict(self._hooks, self._trace_state)
        return self._hooks

    def _detach(self) -> None:
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None

    def _finish_epoch(self, run_stage: Stage, trainer: pl.Trainer) -> dict[str, RunningExtremes]:
        hooks = self._hooks
        assert hooks is not None
        extremes_by_name = self._unit_records.finish_epoch(
            run_stage, trainer.global_step, hooks, trainer.strategy.root_device
        )
        excluded_names = self._warned_names | {
            name.partition("@")[0] for name in extremes_by_name
        }  # other ranks may have seen it
        uncalled_names = [name for name in hooks.uncalled_names() if name not in excluded_names]
        self._warn_once("nothing has passed {}: nothing is known of these units", uncalled_names)
        ambiguous_names = [name for name in hooks.ambiguous_names() if name not in excluded_names]
        self._warn_once(
            "{}: it cannot be told which dimension counts the units, or which layer takes them", ambiguous_names
        )
        return extremes_by_name

    def _warn_once(self, message: str, names: list[str]) -> None:
        """Says what is not known, once."""
        self._warned_names.update(names)
        if names:
            compiled_hint = " (a network that was compiled and called before training keeps no hooks: compile it anew)"
            hint = compiled_hint if self._hooks is not None and self._hooks.is_compiled else ""
            rank_zero_warn(message.format(join_names(names)) + hint)


def _dead_units(extremes_by_name: Mapping[str, RunningExtremes]) -> dict[str, torch.Tensor]:
    """Returns dead units by name. Skips epochs with one input, in which every output is constant."""
    return {name: extremes.is_dead() for name, extremes in extremes_by_name.items() if extremes.inputs > 1}


def _dead_fraction(dead_units: torch.Tensor) -> float:
    return float(dead_units.double().mean())


def _smallest_batch_size(batch: Any) -> int | None:
    """How many samples a batch has, or fewer; None if it holds no tensors."""
    sizes = [leaf.shape[0] for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.ndim]
    return min(sizes, default=None)
