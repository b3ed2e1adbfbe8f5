"""Activity of the units of one watch point."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from stormproof.units.all_reduce import ReducedCounts
from stormproof.units.dead_unit_kinds import DeadUnitKind
from stormproof.units.running_min_max import RunningExtremes

MIN_INPUTS, MIN_INPUTS_ALL_DEAD = 200, 30
"""Minimum samples to report dead units. A unit without output in 200 fires on less than 1.5% of inputs (95%). 30 are
enough if no unit of a layer fires or if the output is the same for all inputs."""
MAX_DEAD_COUNTS = 64
"""Number of epochs whose dead-unit counts are kept."""

Stage = Literal["training", "validation"]
Trend = Literal["rising", "stable", "falling"]


@dataclass(frozen=True)
class UnitActivity:
    """Activity of the units of one watch point in the last epoch.

    Attributes:
        layer: Layer before the activation, which has the weights of the units. None if unknown.
        units: Number of units. For MaxoutPieces, the number of pieces of all units.
        dead: Number of dead units, whose output is constant.
        kinds: Number of dead units by kind.
        inputs: Number of samples in the epoch, over all ranks.
        exact: True for a validation epoch, in which the weights do not change. False for a sample of training batches.
        bound: For a sample, the upper 95% confidence bound of the fraction of inputs on which a dead unit fires: 3/n
            for n inputs. None if exact.
        since_step: Optimizer steps after which the first dead unit became constant, from 0 (before training). None if
            no unit is dead or if training was not watched.
        dead_from_start: Number of dead units that were constant from the start of training.
        trend: Change of the number of dead units since the previous epoch.
        sparsity: Fraction of zeros among the outputs in the sampled training batches. None before the first sample.
        step: Optimizer steps at the end of the epoch.

    References:
        Hanley and Lippman-Hand, If nothing goes wrong, is everything all right?, 1983 (the bound 3/n).
    """

    layer: str | None
    units: int
    dead: int
    kinds: dict[DeadUnitKind, int]
    inputs: int
    exact: bool
    bound: float | None
    since_step: int | None
    dead_from_start: int
    trend: Trend
    sparsity: float | None
    step: int

    @property
    def inputs_needed(self) -> int:
        """Minimum number of inputs for a report. Smaller if all units are dead, and 0 without dead units."""
        if not self.dead:
            return 0
        return MIN_INPUTS_ALL_DEAD if self.dead == self.units else MIN_INPUTS


class UnitRecord:
    """Activity of the units of one watch point over a run.

    Args:
        units: Number of units.
        start_step: Optimizer step at which recording started.
        device: Device of the recorded tensors.
    """

    def __init__(self, units: int, start_step: int, device: torch.device) -> None:
        self.units = units
        self.activity: UnitActivity | None = None
        self.dead_units: torch.Tensor | None = None  # of the last validation epoch
        # last step at which the output of each unit was not constant
        self._alive_at = torch.full((units,), start_step - 1, device=device)
        self._extremes_by_stage: dict[Stage, RunningExtremes | None] = {"training": None, "validation": None}
        self._nonzero_sum: Any = 0.0  # sum of the fractions of nonzero outputs over batches, on the device
        self._nonzero_batches = 0
        self._dead_counts: deque[tuple[int, int]] = deque(maxlen=MAX_DEAD_COUNTS)
        self._last_batch_values: torch.Tensor | None = None  # outputs of the last batch with one input

    @property
    def dead_counts(self) -> list[tuple[int, int]]:
        """Step and number of dead units of the last epochs."""
        return list(self._dead_counts)

    def start_epoch(self, run_stage: Stage) -> None:
        """Starts a new epoch."""
        self._extremes_by_stage[run_stage] = None
        if run_stage == "training":
            self._nonzero_sum, self._nonzero_batches = 0.0, 0

    def add(
        self, batch_extremes: RunningExtremes, nonzero_share: torch.Tensor | None, step: int, run_stage: Stage | None
    ) -> None:
        """Adds a batch that was computed after ``step`` steps. Without a stage, it only shows which units are alive."""
        device = batch_extremes.low.device
        is_active = batch_extremes.high > batch_extremes.low
        if batch_extremes.inputs == 1:  # outputs of a single input are constant, so compare with the previous batch
            is_active |= (
                False
                if self._last_batch_values is None
                else batch_extremes.low != self._last_batch_values.to(batch_extremes.low)
            )
            self._last_batch_values = batch_extremes.low
        self._alive_at = torch.where(is_active, step, self._alive_at.to(device))
        if run_stage is None:
            return
        epoch_extremes = self._extremes_by_stage[run_stage]
        self._extremes_by_stage[run_stage] = (
            batch_extremes if epoch_extremes is None else epoch_extremes.to(device).merge(batch_extremes)
        )
        if nonzero_share is not None:
            self._nonzero_sum, self._nonzero_batches = self._nonzero_sum + nonzero_share, self._nonzero_batches + 1

    def local_counts(self, run_stage: Stage) -> ReducedCounts:
        """Returns the counts of this rank."""
        return ReducedCounts(
            self._extremes_by_stage[run_stage], self._alive_at, float(self._nonzero_sum), self._nonzero_batches
        )

    def running_activity(self, layer: str | None, step: int) -> UnitActivity | None:
        """Returns the activity in the current epoch on this rank, without kinds. None before the first batch."""
        extremes = self._extremes_by_stage["training"]
        if extremes is None:
            return None
        dead = extremes.is_dead()
        last_alive = self._alive_at.to(dead.device)[dead]
        dead_count = len(last_alive)
        return UnitActivity(
            layer=layer,
            units=self.units,
            dead=dead_count,
            kinds={},
            inputs=extremes.inputs,
            exact=False,
            bound=min(3 / extremes.inputs, 1.0),
            since_step=int(last_alive.min()) + 1 if dead_count else None,
            dead_from_start=int((last_alive < 0).sum()),
            trend=self._trend(dead_count),
            sparsity=None,
            step=step,
        )

    def discard_exact(self) -> None:
        """Discards the result of an earlier validation epoch, because this one did not call the watch point."""
        self.dead_units = None
        if self.activity is not None and self.activity.exact:
            self.activity = None

    def finish_epoch(
        self,
        run_stage: Stage,
        counts: ReducedCounts,
        step: int,
        layer: str | None,
        kinds: dict[DeadUnitKind, int],
        *,
        is_watched_from_start: bool,
    ) -> None:
        """Stores the counts of an epoch. A sample of training batches does not replace an exact result.

        Args:
            run_stage: Training or validation.
            counts: Counts of all ranks.
            step: Number of completed optimizer steps.
            layer: Layer before the watch point.
            kinds: Number of dead units by kind.
            is_watched_from_start: Whether training was watched, so that ``since_step`` is known.
        """
        extremes = counts.extremes
        assert extremes is not None
        sparsity = 1 - counts.nonzero_sum / counts.nonzero_batches if counts.nonzero_batches else None
        if run_stage == "training" and self.activity is not None and self.activity.exact:
            self.activity = replace(self.activity, sparsity=sparsity)
            return
        dead, alive_at = extremes.is_dead(), counts.alive_at
        if run_stage == "validation":
            self.dead_units = dead
            alive_at = torch.where(dead, alive_at, step)
        self._alive_at = alive_at
        dead_count, last_alive = int(dead.sum()), alive_at[dead]
        trend = self._trend(dead_count)
        self._dead_counts.append((step, dead_count))
        self.activity = UnitActivity(
            layer=layer,
            units=self.units,
            dead=dead_count,
            kinds=kinds,
            inputs=extremes.inputs,
            exact=run_stage == "validation",
            bound=None if run_stage == "validation" else min(3 / extremes.inputs, 1.0),
            since_step=int(last_alive.min()) + 1 if dead_count and is_watched_from_start else None,
            dead_from_start=int((last_alive < 0).sum()) if is_watched_from_start else 0,
            trend=trend,
            sparsity=sparsity,
            step=step,
        )

    def _trend(self, dead_count: int) -> Trend:
        """Returns the change of the number of dead units since the previous epoch."""
        previous_count = self._dead_counts[-1][1] if self._dead_counts else dead_count
        return "stable" if dead_count == previous_count else "rising" if dead_count > previous_count else "falling"

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain values."""
        training = self._extremes_by_stage["training"]
        return {
            "alive_at": self._alive_at.tolist(),
            "training_extremes": training and [training.low.tolist(), training.high.tolist(), training.inputs],
            "nonzero": [float(self._nonzero_sum), self._nonzero_batches],
            "dead_counts": [list(dead_count) for dead_count in self._dead_counts],
            "activity": self.activity and asdict(self.activity),
            "dead_units": None if self.dead_units is None else self.dead_units.nonzero().flatten().tolist(),
            "last_batch_values": None if self._last_batch_values is None else self._last_batch_values.tolist(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> UnitRecord:
        """Creates a record on the CPU from the result of :meth:`state_dict`."""
        record = cls(len(state["alive_at"]), 0, torch.device("cpu"))
        record._alive_at = torch.tensor(state["alive_at"], dtype=torch.int64)
        if state["training_extremes"] is not None:
            low, high, inputs = state["training_extremes"]
            exact = torch.float64  # represents the values of all smaller types exactly
            record._extremes_by_stage["training"] = RunningExtremes(
                torch.tensor(low, dtype=exact), torch.tensor(high, dtype=exact), inputs
            )
        record._nonzero_sum, record._nonzero_batches = state["nonzero"]
        record._dead_counts.extend((step, dead) for step, dead in state["dead_counts"])
        record.activity = state["activity"] and UnitActivity(**state["activity"])
        if state["dead_units"] is not None:
            record.dead_units = torch.zeros(record.units, dtype=torch.bool)
            record.dead_units[state["dead_units"]] = True
        if state["last_batch_values"] is not None:
            record._last_batch_values = torch.tensor(state["last_batch_values"], dtype=torch.float64)
        return record
