"""Detects dead units exactly, and the step at which they died."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils._pytree import tree_leaves

from stormproof.arguments import check_arguments
from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.internal_errors import isolate_errors, isolated
from stormproof.lightning.layer_names import join_names
from stormproof.lightning.layout import Layout
from stormproof.lightning.logging_steps import log_to_loggers, log_values
from stormproof.monitoring.monitor import Monitor, TableEntries
from stormproof.probe.budget import Cadence
from stormproof.probe.probe import Probe, close_probe
from stormproof.units import trace_cache
from stormproof.units.hooks import WHOLE_NETWORK, ActivationHooks
from stormproof.units.redo import Redo
from stormproof.units.running_min_max import RunningExtremes
from stormproof.units.unit_activity import Stage, UnitActivity
from stormproof.units.unit_records import UnitRecords

SPARSITY_EVERY = 10
"""Interval of the sampled batches in which zeros are counted. The first one of each epoch is included."""


class DeadNeuronDetector(Monitor):
    r"""Detects dead units, and optionally reinitializes dormant units.

    A unit is dead over a set of inputs if its output is constant: :math:`\max_x h(x) = \min_x h(x)` (exact equality).
    The same rule applies to all activations:

    - a ReLU that is always 0
    - a sigmoid that is always 1
    - a channel that is constant over all positions
    - an output of an LSTM, or a closed gate
    - a piece of a Maxout unit that is never the maximum (:class:`stormproof.MaxoutPieces`)

    The detector watches the outputs of activation modules, recurrent networks, and user modules without parameters that
    preserve the shape. If an activation is applied as a function, it watches the input of the first Linear or
    convolution that consumes it. Units are listed under the dotted name of this module, or under ``<name>@<layer>`` if
    the module is called after several layers. A warning names modules whose unit dimension is ambiguous, for example
    after a split into heads, and functions whose consuming layer is unknown. They are excluded.

    During a validation epoch, the weights do not change, so the result is **exact** over all ranks
    (:attr:`dead_units`). Training batches are a sample: a unit that never fired on n inputs fires on at most 3/n of all
    inputs (95% confidence). By default, the first 20 steps of a run are sampled. Further steps are sampled as often as
    ``budget`` allows. With ``every_n_steps=1``, the sample is the whole epoch. The detector stores two values per unit
    and synchronizes with the device at the end of an epoch only. The table reports dead units after 200 inputs,
    or after 30 if all units of a layer are dead.

    Logged values:

    | name                             | value                 | when             |
    |----------------------------------|-----------------------|------------------|
    | ``units/dead_fraction``          | dead units            | after validation |
    | ``units/dead_fraction/<name>``   | dead units per module | after validation |
    | ``units/silent_fraction/<name>`` | dead in the sample    | after each epoch |
    | ``units/sparsity/<name>``        | zero outputs          | after each epoch |

    All values are fractions in [0, 1]. The last two are measured in the sampled training batches, and sparsity in every
    tenth of them. With a budget, they are not in ``trainer.callback_metrics``, because the sample depends on time.
    Fractions of dead units are not logged for an epoch with a single input.

    Args:
        every_n_steps: Interval of the sampled training batches in optimizer steps. The first step is always sampled.
            Must be at least 1. If None, ``budget`` determines the interval.
        budget: Fraction of the training time that measurements may take, as in
            :class:`stormproof.GradientNormMonitor`.
        reinit_every_n_steps: Steps between reinitializations of dormant units, as in ReDo. Incoming weights are drawn
            from a normal distribution with their initial standard deviation. Outgoing weights and the optimizer states
            of both are set to 0. Must be at least 1 and equal on all ranks. Disabled if None.
        dormant_threshold: A unit is dormant if its mean absolute output over the last batch of the step is at most this
            fraction of the mean over its layer. Must be at least 0. In small batches, units can be dormant by chance.
        table: Whether to print a table at the end of training.

    Raises:
        ValueError: If an argument is out of range.
        StormproofError: In ``setup``, with tensor parallelism, because each rank computes other units of a layer.

    Example:
        >>> detector = DeadNeuronDetector(every_n_steps=50, reinit_every_n_steps=1000)
        >>> trainer = pl.Trainer(callbacks=[detector])  # doctest: +SKIP
        >>> trainer.fit(module, loader, val_loader)  # doctest: +SKIP
        >>> detector.dead_units["net.2"]  # doctest: +SKIP
        tensor([False, True, False])

    References:
        Lu et al., Dying ReLU and initialization, 2020.
        Sokar et al., The dormant neuron phenomenon in deep reinforcement learning, 2023 (ReDo, sections 3 and 4).
    """

    @check_arguments(
        every_n_steps="at least 1",
        budget="above 0 and at most 1",
        reinit_every_n_steps="at least 1",
        dormant_threshold="at least 0",
    )
    def __init__(
        self,
        every_n_steps: int | None = None,
        *,
        budget: float | None = None,
        reinit_every_n_steps: int | None = None,
        dormant_threshold: float = 0.025,
        table: bool = True,
    ) -> None:
        super().__init__(table)
        self.every_n_steps, self.budget = every_n_steps, budget
        self._cadence = Cadence(every_n_steps)
        self._redo = None if reinit_every_n_steps is None else Redo(reinit_every_n_steps, dormant_threshold)
        self._unit_records = UnitRecords()
        self._hooks: ActivationHooks | None = None
        self._sampled_epoch: int | None = None
        self._step = 0  # optimizer steps at the start of the current batch
        self._last_batch_step: int | None = None  # optimizer steps at the start of the last training batch
        self._is_sampling_step = False  # whether batches of the current step are sampled
        self._sampled_batches = 0  # in the current epoch
        self._trace_state: dict[str, Any] | None = None  # of a compiled network
        self._warned_names: set[str] = set()

    @property
    def dead_units(self) -> dict[str, torch.Tensor]:
        """Exact masks of dead units in the last complete validation epoch, boolean ``(units,)``, by name."""
        return {
            name: record.dead_units
            for name, record in self._unit_records.records_by_name().items()
            if record.dead_units is not None
        }

    @property
    def activity(self) -> dict[str, UnitActivity]:
        """Activity by name, in the last validation epoch or, before any, in the sample of the last training epoch."""
        records = self._unit_records.records_by_name().items()
        return {name: record.activity for name, record in records if record.activity is not None}

    @property
    def running_activity(self) -> dict[str, UnitActivity]:
        """Activity by name in the current epoch, on this rank. Synchronizes with the device."""
        activities = {
            name: self._unit_records.records[key].running_activity(key[1], self._step)
            for name, key in self._unit_records.keys_by_name().items()
        }
        return {name: activity for name, activity in activities.items() if activity is not None}

    @property
    def dead_counts(self) -> dict[str, list[tuple[int, int]]]:
        """Steps and numbers of dead units of the last epochs, by name."""
        return {name: record.dead_counts for name, record in self._unit_records.records_by_name().items()}

    @property
    def reinitialized(self) -> dict[str, int]:
        """Number of reinitialized units so far, by name. Empty without ``reinit_every_n_steps``."""
        counts = self._redo.reinitialized if self._redo else {}
        return {name: counts[key] for name, key in self._unit_records.keys_by_name().items() if key in counts}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses tensor parallelism. Resets the state, unless ``fit`` continues an earlier run."""
        destroy_gloo_before_exit()
        Layout.of(trainer).refuse_tensor_parallelism(self)
        if stage == "fit" and trainer.global_step == 0:
            self._unit_records, self._sampled_epoch, self._last_batch_step, self._trace_state = (
                UnitRecords(),
                None,
                None,
                None,
            )
            self._redo = self._redo and Redo(self._redo.every_n_steps, self._redo.dormant_threshold)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Registers the hooks before the first call of the network, which may compile it."""
        hooks = self._attach(pl_module)
        self._unit_records.remove_missing(hooks)
        if not self._unit_records.records:
            self._unit_records.start_step = trainer.global_step
        if self._redo is not None:
            self._redo.record_initial_stds(hooks)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Creates the cadence of the samples. Warns if activations cannot be traced."""
        self._cadence = Probe.of(trainer).budget.add("units", Cadence(self.every_n_steps), self.budget)
        hooks = self._attach(pl_module)
        if not hooks.is_compiled:
            return
        hooks.reset_coverage()
        if self._trace_state is None:
            rank_zero_warn(
                "Activations that are applied as functions are not watched, because the network is compiled and there "
                "was no sanity check. Pass a validation loader to fit() and set num_sanity_val_steps to at least 1."
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Records the batch if its step is due. Starts a new sample in each epoch."""
        # not in on_train_epoch_start, which is not called after a resume at the last batch of an epoch
        if self._sampled_epoch != trainer.current_epoch:
            self._sampled_epoch, self._sampled_batches = trainer.current_epoch, 0
            self._unit_records.start_epoch("training")
        self._step = step = trainer.global_step
        if step != self._last_batch_step:
            # with several optimizers, the previous batch may start several steps earlier
            previous_step = step - 1 if self._last_batch_step is None else self._last_batch_step
            self._is_sampling_step = self._cadence.is_due(step, previous_step)
            self._last_batch_step = step
        last_step = step + max(len(trainer.optimizers), 1)  # upper bound for the end of the batch
        records_magnitudes = self._redo is not None and self._redo.is_due(step, last_step)
        hooks = self._attach(pl_module)
        is_traceable = not hooks.is_compiled  # eager results of a compiled network differ by rounding errors
        counts_zeros = self._is_sampling_step and self._sampled_batches % SPARSITY_EVERY == 0
        hooks.begin_batch(
            "train",
            records_extremes=self._is_sampling_step,
            counts_zeros=counts_zeros,
            records_magnitudes=records_magnitudes,
            is_traceable=is_traceable,
        )

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Pauses the hooks, because activation checkpointing repeats the forward pass."""
        if self._hooks is not None:
            self._hooks.active = False
            if self._redo is not None and not self._redo.has_initial_stds:
                self._redo.record_initial_stds(self._hooks)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Resumes the hooks, because with manual optimization another forward pass may follow."""
        if self._hooks is not None:
            self._hooks.active = self._hooks.records_batch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the batch to the sample and reinitializes dormant units if due."""
        hooks = self._hooks
        if hooks is None or not hooks.records_batch:
            return
        hooks.end_batch()
        if self._redo is not None and self._redo.is_due(self._step, trainer.global_step):
            self._redo.reinitialize(trainer.global_step, trainer.optimizers, hooks)
        if self._is_sampling_step:
            self._sampled_batches += 1
            with self._cadence.timed():
                self._add_batch(hooks, self._step, "training", batch)
            self._cadence.step_cost += hooks.seconds
        hooks.discard_batch()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends the sample of the epoch and logs it."""
        if self._hooks is not None:
            self._hooks.end_batch()  # on_train_batch_end is not called for skipped batches
        dead_units = _dead_units(self._finish_epoch("training", trainer))
        values = {f"units/silent_fraction/{name}": _dead_fraction(units) for name, units in dead_units.items()}
        sparsities = ((name, activity.sparsity) for name, activity in self.activity.items())
        values |= {f"units/sparsity/{name}": sparsity for name, sparsity in sparsities if sparsity is not None}
        if values:
            (log_values if self._cadence.is_fixed else log_to_loggers)(trainer, values)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts a validation epoch."""
        self._attach(pl_module)
        if not trainer.sanity_checking:
            self._unit_records.start_epoch("validation")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Records every batch."""
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
        """Adds the batch. A sanity check has only a few batches, so that it only shows which units are alive.

        The sanity check of a resumed run is ignored, because an uninterrupted run does not have it.
        """
        hooks = self._attach(pl_module)
        hooks.end_batch()
        if hooks.is_compiled and trainer.sanity_checking:
            self._trace_state = trace_cache.state_dict(hooks)
        if trainer.sanity_checking and trainer.global_step:
            hooks.discard_batch()
            return
        self._add_batch(hooks, trainer.global_step, None if trainer.sanity_checking else "validation", batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends the epoch and logs the dead fractions, before ``EarlyStopping`` and ``ModelCheckpoint`` read them."""
        if trainer.sanity_checking:
            return
        dead_units = _dead_units(self._finish_epoch("validation", trainer))
        if dead_units:
            values = {f"units/dead_fraction/{name}": _dead_fraction(units) for name, units in dead_units.items()}
            log_values(trainer, {"units/dead_fraction": _dead_fraction(torch.cat([*dead_units.values()])), **values})

    def table_entries(self) -> TableEntries:
        """Returns the activity of the units."""
        return TableEntries(activity=self.activity)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the probe of the trainer."""
        close_probe(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Removes the hooks."""
        self._detach()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Closes the probe of the trainer and removes the hooks."""
        close_probe(trainer)
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain values."""
        redo_state = None if self._redo is None else self._redo.state_dict()
        return {
            "sampled_epoch": self._sampled_epoch,
            "last_batch_step": self._last_batch_step,
            "is_sampling_step": self._is_sampling_step,
            "sampled_batches": self._sampled_batches,
            "trace": self._trace_state,
            "unit_records": self._unit_records.state_dict(),
            "redo": redo_state,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state."""
        self._sampled_epoch, self._sampled_batches = state_dict["sampled_epoch"], state_dict["sampled_batches"]
        self._last_batch_step, self._is_sampling_step = state_dict["last_batch_step"], state_dict["is_sampling_step"]
        self._trace_state = state_dict["trace"]
        self._unit_records.load_state_dict(state_dict["unit_records"])
        if self._redo is not None and state_dict["redo"] is not None:
            self._redo.load_state_dict(state_dict["redo"])

    def _inactive_state(self) -> dict[str, Any]:
        return {"_hooks": None}

    def _attach(self, module: pl.LightningModule) -> ActivationHooks:
        """Returns the hooks. Registers them in the first call."""
        if self._hooks is None:
            isolated(self._register, self._disable)(module)
        assert self._hooks is not None
        return self._hooks

    def _register(self, module: torch.nn.Module) -> None:
        self._hooks = ActivationHooks(module)
        if self._hooks.is_compiled and self._trace_state is not None:
            trace_cache.load_state_dict(self._hooks, self._trace_state)

    def _disable(self, error: Exception) -> None:
        """Records nothing after an error outside of the hooks. The ranks exchange errors at the end of an epoch."""
        self._detach()
        self._hooks = ActivationHooks(torch.nn.Module())
        self._hooks.add_error(WHOLE_NETWORK, error)

    @isolate_errors
    def _add_batch(self, hooks: ActivationHooks, step: int, run_stage: Stage | None, batch: Any) -> None:
        """Adds the records of a batch to the epoch."""
        self._unit_records.add(hooks, step, run_stage, _smallest_batch_size(batch))

    def _detach(self) -> None:
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None

    def _finish_epoch(self, run_stage: Stage, trainer: pl.Trainer) -> dict[str, RunningExtremes]:
        """Ends an epoch, warns about unknown units, and returns extremes over all ranks by name."""
        hooks = self._hooks
        assert hooks is not None
        extremes_by_name = self._unit_records.finish_epoch(
            run_stage, trainer.global_step, hooks, trainer.strategy.root_device
        )
        # includes modules that were called on other ranks only
        excluded_names = {name.partition("@")[0] for name in extremes_by_name}
        for error in dict.fromkeys(hooks.errors.values()):
            names = [name for name, name_error in hooks.errors.items() if name_error == error]
            self._warn_once(f"measuring {error}", names, excluded_names)
        self._warn_once("the module was not called", hooks.uncalled_names(), excluded_names)
        self._warn_once("the unit dimension or the consuming layer is unknown", hooks.ambiguous_names(), excluded_names)
        return extremes_by_name

    def _warn_once(self, reason: str, names: list[str], excluded_names: set[str]) -> None:
        """Warns once about each name."""
        names = [name for name in names if name not in excluded_names | self._warned_names]
        self._warned_names.update(names)
        if names:
            compiled_hint = ". A network that was compiled and called before fit() runs without hooks: compile it again"
            hint = compiled_hint if self._hooks is not None and self._hooks.is_compiled else ""
            rank_zero_warn(f"{join_names(names)}: dead units cannot be detected, because {reason}{hint}")


def _dead_units(extremes_by_name: Mapping[str, RunningExtremes]) -> dict[str, torch.Tensor]:
    """Returns dead units by name. Skips epochs with one input, in which every output is constant."""
    return {name: extremes.is_dead() for name, extremes in extremes_by_name.items() if extremes.inputs > 1}


def _dead_fraction(dead_units: torch.Tensor) -> float:
    return float(dead_units.double().mean())


def _smallest_batch_size(batch: Any) -> int | None:
    """Returns a lower bound of the number of samples in a batch. None if the batch contains no tensors."""
    leaves = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor) and not leaf.is_nested]
    sizes = [leaf.shape[0] for leaf in leaves if leaf.ndim]
    return min(sizes, default=None)
