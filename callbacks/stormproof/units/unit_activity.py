"""What is known of the units of one place, and for how long."""

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
    """Activity of the units of one place over the last epoch.

    Attributes:
        layer: the layer before the activation, which has the weights of the units; None if none is known.
        units: how many there are; of pieces, all of all units.
        dead: how many of them never left one value.
        kinds: how many of these in which way.
        inputs: number of samples in the epoch, over all ranks.
        exact: whether it was a validation epoch, during which the weights stay as they are. Else it was a
            sample of an epoch's training batches.
        bound: of a sample, what each of these units fires on at most, as a share of all inputs, with 95% confidence:
            3/n for n inputs (Hanley & Lippman-Hand 1983). None where it is exact.
        since_step: the optimizer steps after which the first of the dead units gave no sign of life any more, 0 for
            before training; None if none is dead, or the training was not watched.
        born: how many of them never gave one, from the first step on.
        trend: whether the number of dead units has changed since the previous epoch.
        sparsity: share of zeros among the outputs in the sampled training batches, which is no death; None before.
        step: optimizer steps before the epoch ended.
    """

    layer: str | None
    units: int
    dead: int
    kinds: dict[DeadUnitKind, int]
    inputs: int
    exact: bool
    bound: float | None
    since_step: int | None
    born: int
    trend: Trend
    sparsity: float | None
    step: int

    @property
    def inputs_needed(self) -> int:
        """Minimum number of inputs for a report, which is smaller if all units are dead, and 0 if none is."""
        if not self.dead:
            return 0
        return MIN_INPUTS_ALL_DEAD if self.dead == self.units else MIN_INPUTS


class UnitRecord:
    """The units of one place over a run.

    Args:
        units: how many there are.
        start_step: the step at which they began to be watched.
        device: where what is added up is kept.
    """

    def __init__(self, units: int, start_step: int, device: torch.device) -> None:
        self.units = units
        self.activity: UnitActivity | None = None
        self.dead_units: torch.Tensor | None = None  # of the last validation epoch
        self._alive_at = torch.full((units,), start_step - 1, device=device)  # the step of each one's last sign of life
        self._extremes_by_stage: dict[Stage, RunningExtremes | None] = {"training": None, "validation": None}
        self._nonzero_sum: Any = 0.0  # a sum of shares, on the device
        self._nonzero_batches = 0
        self._dead_counts: deque[tuple[int, int]] = deque(maxlen=MAX_DEAD_COUNTS)
        self._last_batch_values: torch.Tensor | None = None  # the values of the last batch, if it was one input

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
        if batch_extremes.inputs == 1:  # a batch of one shows nothing but beside the one before
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
        """What this rank saw."""
        return ReducedCounts(
            self._extremes_by_stage[run_stage], self._alive_at, float(self._nonzero_sum), self._nonzero_batches
        )

    def running_activity(self, layer: str | None, step: int) -> UnitActivity | None:
        """What the running epoch's sample shows on this rank, but in which way units are dead; None before a batch."""
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
            born=int((last_alive < 0).sum()),
            trend=self._trend(dead_count),
            sparsity=None,
            step=step,
        )

    def discard_exact(self) -> None:
        """Discards the result of an earlier validation epoch, because this one did not reach the place."""
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
        """Stores what all ranks counted. A sample does not replace the result of an exact epoch.

        Args:
            run_stage: Training or validation.
            counts: of all ranks.
            step: the optimizer steps that are done.
            layer: the one before.
            kinds: in which way how many are dead.
            is_watched_from_start: whether the training has been watched, so that it can be told since when they are
                dead.
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
            born=int((last_alive < 0).sum()) if is_watched_from_start else 0,
            trend=trend,
            sparsity=sparsity,
            step=step,
        )

    def _trend(self, dead_count: int) -> Trend:
        """Returns whether there are more or fewer dead units than in the previous epoch."""
        previous_count = self._dead_counts[-1][1] if self._dead_counts else dead_count
        return "stable" if dead_count == previous_count else "rising" if dead_count > previous_count else "falling"

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        training = self._extremes_by_stage["training"]
        return {
            "alive_at": self._alive_at.tolist(),
            "training": training and [training.low.tolist(), training.high.tolist(), training.inputs],
            "nonzero": [float(self._nonzero_sum), self._nonzero_batches],
            "counts": [list(dead_count) for dead_count in self._dead_counts],
            "activity": self.activity and asdict(self.activity),
            "dead": None if self.dead_units is None else self.dead_units.nonzero().flatten().tolist(),
            "latest": None if self._last_batch_values is None else self._last_batch_values.tolist(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> UnitRecord:
        """The record whose :meth:`state_dict` was ``state``, on the CPU."""
        record = cls(len(state["alive_at"]), 0, torch.device("cpu"))
        record._alive_at = torch.tensor(state["alive_at"], dtype=torch.int64)
        if state["training"] is not None:
            low, high, inputs = state["training"]
            exact = torch.float64  # whatever it was: to compare, nothing is lost
            record._extremes_by_stage["training"] = RunningExtremes(
                torch.tensor(low, dtype=exact), torch.tensor(high, dtype=exact), inputs
            )
        record._nonzero_sum, record._nonzero_batches = state["nonzero"]
        record._dead_counts.extend((step, dead) for step, dead in state["counts"])
        record.activity = state["activity"] and UnitActivity(**state["activity"])
        if state["dead"] is not None:
            record.dead_units = torch.zeros(record.units, dtype=torch.bool)
            record.dead_units[state["dead"]] = True
        if state["latest"] is not None:
            record._last_batch_values = torch.tensor(state["latest"], dtype=torch.float64)
        return record
