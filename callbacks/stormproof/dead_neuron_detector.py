"""Which units of a network are dead, exactly, and since when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils._pytree import tree_leaves

from stormproof.distributed.gloo_shutdown import part_before_exit
from stormproof.lightning.layer_names import join_names
from stormproof.lightning.logging_steps import log_values
from stormproof.monitoring.monitor import Measured, Monitor
from stormproof.units import trace_cache
from stormproof.units.hooks import Watches
from stormproof.units.redo import Redo
from stormproof.units.running_min_max import Extremes
from stormproof.units.unit_activity import Pass, UnitActivity
from stormproof.units.unit_records import Census

SPARSITY_EVERY = 10
"""Of the sampled batches, in how many zeros are counted: the first of an epoch, and every so many."""


class DeadNeuronDetector(Monitor):
    r"""Finds the units whose output never leaves one value.

    A unit is dead over some inputs if :math:`\max_x h(x) = \min_x h(x)`, without any tolerance: then it says nothing
    about its input. One rule for all kinds: a ReLU that is always 0, a sigmoid that is always 1, a channel that is
    constant over all positions, an output of an LSTM, a gate that is shut; and of a Maxout unit a piece that never wins
    (:class:`stormproof.Pieces`). Zeros that come and go are sparsity, and no death.

    What is watched: the output of every activation module and recurrent network, of modules of your own without
    parameters that keep the shape, and, where an activation is applied as a function, the input of the first Linear or
    convolution that consumes it. A name is that module's dotted name; of one that is called behind several layers,
    ``<name>@<layer>``. Where it cannot be told which dimension counts the units (heads that were split off a layer's),
    or which layer takes what a function gives, a warning names it, and nothing is claimed.

    Over a validation pass the weights stay as they are, and the answer is **exact** (:attr:`dead_units`), over all
    ranks. Training batches are a sample: what never fired in n inputs fires on at most 3/n of them (95%); with
    ``every_n_steps=1`` nothing of an epoch is left out. A pass keeps two numbers a unit, and nothing waits for the
    device before its end. The table reports dead units after 200 inputs, or 30 if all units of a layer are dead.

    Logged: ``units/dead_fraction`` and ``units/dead_fraction/<name>`` after each validation pass;
    ``units/silent_fraction/<name>``, the same of the sampled training batches, and ``units/sparsity/<name>``, the share
    of zeros in every tenth of those, after each epoch. A pass with one input logs no dead fraction.

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
        self._census = Census()
        self._watches: Watches | None = None
        self._epoch: int | None = None  # the one that is being sampled
        self._step = 0  # at which the batch that passes began
        self._begun: int | None = None  # the step at which the last training batch began
        self._turn = False  # whether it is that step's turn
        self._sampled = 0  # batches of the epoch
        self._found: dict[str, Any] | None = None  # in a compiled network
        self._told: set[str] = set()

    @property
    def dead_units(self) -> dict[str, torch.Tensor]:
        """Which units are dead, as bool (units,) by name: of the last complete validation pass, exact."""
        return {name: record.dead for name, record in self._census.named().items() if record.dead is not None}

    @property
    def activity(self) -> dict[str, UnitActivity]:
        """What is known of each layer's units: of the last validation pass; before any, of the last epoch's sample."""
        records = self._census.named().items()
        return {name: record.activity for name, record in records if record.activity is not None}

    @property
    def running_activity(self) -> dict[str, UnitActivity]:
        """What the running epoch's sample shows of each layer's units on this rank. Reading it waits for the device."""
        known = {
            name: self._census.records[place].so_far(place[1], self._step)
            for name, place in self._census.names().items()
        }
        return {name: activity for name, activity in known.items() if activity is not None}

    @property
    def counts(self) -> dict[str, list[tuple[int, int]]]:
        """Of the last passes, the step and the number of dead units, by name."""
        return {name: record.counts for name, record in self._census.named().items()}

    @property
    def revived(self) -> dict[str, int]:
        """How many units were re-initialized so far, by name; empty without ``reinit_every_n_steps``."""
        revived = self._redo.revived if self._redo else {}
        return {name: revived[place] for name, place in self._census.names().items() if place in revived}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets an earlier training, unless this one goes on with it."""
        part_before_exit()
        if stage == "fit" and trainer.global_step == 0:
            self._census, self._epoch, self._begun, self._found = Census(), None, None, None
            self._redo = self._redo and Redo(self._redo.every_n_steps, self._redo.dormant_threshold)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hooks on to the network: one that is compiled at its first call takes the hooks with it."""
        watches = self._attach(pl_module)
        self._census.keep(watches)
        if not self._census.records:
            self._census.begin = trainer.global_step
        if self._redo is not None:
            self._redo.learn(watches)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says what will not be seen."""
        watches = self._attach(pl_module)
        if not watches.compiled:
            return
        watches.look_anew()
        if self._found is None:
            rank_zero_warn(
                "the network is compiled and there was no sanity check: activations that it applies as functions are "
                "not watched; set Trainer(num_sanity_val_steps=1) or more, and give fit() a validation loader"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the batch where it is this step's turn; begins a new sample with each epoch."""
        if self._epoch != trainer.current_epoch:  # resumed at an epoch's last batch, the next one has no start
            self._epoch, self._sampled = trainer.current_epoch, 0
            self._census.start("training")
        self._step = step = trainer.global_step
        if step != self._begun:
            before = step - 1 if self._begun is None else self._begun  # with several optimizers, not the one before
            self._turn = step == 0 or (step + 1) // self.every_n_steps > (before + 1) // self.every_n_steps
            self._begun = step
        most = step + max(len(trainer.optimizers), 1)  # that the batch may end at
        sizing = self._redo is not None and self._redo.is_due(step, most)
        watches = self._attach(pl_module)
        traceable = not watches.compiled  # what runs eagerly differs in the last bits
        zeros = self._turn and self._sampled % SPARSITY_EVERY == 0
        watches.begin("train", counts=self._turn, counting_zeros=zeros, sizing=sizing, traceable=traceable)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Looks away: what is computed again during the backward pass has been seen."""
        if self._watches is not None:
            self._watches.active = False

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks again: in manual optimization another forward pass may follow."""
        if self._watches is not None:
            self._watches.active = self._watches.looks

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds what the batch left to the sample, and revives."""
        watches = self._watches
        if watches is None or not watches.looks:
            return
        watches.end()
        if self._redo is not None and self._redo.is_due(self._step, trainer.global_step):
            self._redo.revive(trainer.global_step, trainer.optimizers, watches)
        if self._turn:
            self._sampled += 1
            self._census.add(watches, self._step, "training", _inputs(batch))
        watches.forget()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Concludes the epoch's sample."""
        if self._watches is not None:
            self._watches.end()  # a batch that was skipped has no end
        dead = _dead(self._conclude("training", trainer))
        values = {f"units/silent_fraction/{name}": _share(units) for name, units in dead.items()}
        sparsities = ((name, activity.sparsity) for name, activity in self.activity.items())
        values |= {f"units/sparsity/{name}": sparsity for name, sparsity in sparsities if sparsity is not None}
        if values:
            log_values(trainer, values)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins a pass."""
        self._attach(pl_module)
        if not trainer.sanity_checking:
            self._census.start("validation")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Looks at every batch."""
        watches = self._attach(pl_module)
        traceable = not watches.compiled or trainer.sanity_checking or trainer.state.fn != "fit"
        watches.begin(f"validate {dataloader_idx}", counts=True, traceable=traceable)

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
        watches = self._attach(pl_module)
        watches.end()
        if watches.compiled and trainer.sanity_checking:
            self._found = trace_cache.found(watches)
        if trainer.sanity_checking and trainer.global_step:
            watches.forget()
            return
        to = None if trainer.sanity_checking else "validation"
        self._census.add(watches, trainer.global_step, to, _inputs(batch))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Concludes the pass."""
        if trainer.sanity_checking:
            return
        dead = _dead(self._conclude("validation", trainer))
        if dead:
            values = {f"units/dead_fraction/{name}": _share(units) for name, units in dead.items()}
            log_values(trainer, {"units/dead_fraction": _share(torch.cat([*dead.values()])), **values})

    def measured(self) -> Measured:
        """What is known of the units, for the table."""
        return Measured(activity=self.activity)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Takes the hooks away."""
        self._detach()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Takes the hooks away."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """What is known and what is being added up, as plain values."""
        redo = None if self._redo is None else self._redo.state_dict()
        return {
            "epoch": self._epoch,
            "begun": self._begun,
            "turn": self._turn,
            "sampled": self._sampled,
            "found": self._found,
            "census": self._census.state_dict(),
            "redo": redo,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""
        self._epoch, self._sampled = state_dict["epoch"], state_dict["sampled"]
        self._begun, self._turn = state_dict["begun"], state_dict["turn"]
        self._found = state_dict["found"]
        self._census.load_state_dict(state_dict["census"])
        if self._redo is not None and state_dict["redo"] is not None:
            self._redo.load_state_dict(state_dict["redo"])

    def _inactive(self) -> dict[str, Any]:
        return {"_watches": None}

    def _attach(self, module: pl.LightningModule) -> Watches:
        if self._watches is None:
            self._watches = Watches(module)
            if self._watches.compiled and self._found is not None:
                trace_cache.know(self._watches, self._found)
        return self._watches

    def _detach(self) -> None:
        if self._watches is not None:
            self._watches.remove()
            self._watches = None

    def _conclude(self, of: Pass, trainer: pl.Trainer) -> dict[str, Extremes]:
        watches = self._watches
        assert watches is not None
        found = self._census.conclude(of, trainer.global_step, watches, trainer.strategy.root_device)
        known = self._told | {name.partition("@")[0] for name in found}  # other ranks may have seen it
        unseen = [name for name in watches.unseen() if name not in known]
        self._tell("nothing has passed {}: nothing is known of these units", unseen)
        unclear = [name for name in watches.unclear() if name not in known]
        self._tell("{}: it cannot be told which dimension counts the units, or which layer takes them", unclear)
        return found

    def _tell(self, sentence: str, names: list[str]) -> None:
        """Says what is not known, once."""
        self._told.update(names)
        if names:
            compiled = " (a network that was compiled and called before training keeps no hooks: compile it anew)"
            hint = compiled if self._watches is not None and self._watches.compiled else ""
            rank_zero_warn(sentence.format(join_names(names)) + hint)


def _dead(found: Mapping[str, Extremes]) -> dict[str, torch.Tensor]:
    """Returns dead units by name. Skips passes with one input, in which every output is constant."""
    return {name: extremes.dead() for name, extremes in found.items() if extremes.inputs > 1}


def _share(dead: torch.Tensor) -> float:
    return float(dead.double().mean())


def _inputs(batch: Any) -> int | None:
    """How many samples a batch has, or fewer; None if it holds no tensors."""
    sizes = [leaf.shape[0] for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.ndim]
    return min(sizes, default=None)
