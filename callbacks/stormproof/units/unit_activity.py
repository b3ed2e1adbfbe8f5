"""What is known of the units of one place, and for how long."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from stormproof.units.all_reduce import Tally
from stormproof.units.death_kinds import Kind
from stormproof.units.running_min_max import Extremes

INPUTS, FEW = 200, 30
"""Minimum samples to report dead units. A unit without output in 200 fires on less than 1.5% of inputs (95%). 30 are
enough if no unit of a layer fires or if the output is the same for all inputs."""
HISTORY = 64
"""Passes whose counts are remembered."""

Pass = Literal["training", "validation"]
Trend = Literal["rising", "stable", "falling"]


@dataclass(frozen=True)
class UnitActivity:
    """How the units of one place behaved over the last pass.

    Attributes:
        layer: the layer before the activation, which has the weights of the units; None if none is known.
        units: how many there are; of pieces, all of all units.
        dead: how many of them never left one value.
        kinds: how many of these in which way.
        inputs: samples seen in the pass, over all ranks.
        exact: whether it was a pass over the validation data, during which the weights stay as they are. Else it was a
            sample of an epoch's training batches.
        bound: of a sample, what each of these units fires on at most, as a share of all inputs, with 95% confidence:
            3/n for n inputs (Hanley & Lippman-Hand 1983). None where it is exact.
        since_step: the optimizer steps after which the first of the dead units gave no sign of life any more, 0 for
            before training; None if none is dead, or the training was not watched.
        born: how many of them never gave one, from the first step on.
        trend: whether the dead have become more or fewer since the pass before.
        sparsity: share of zeros among the outputs in the sampled training batches, which is no death; None before.
        step: the optimizer steps that were done at the pass.
    """

    layer: str | None
    units: int
    dead: int
    kinds: dict[Kind, int]
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
        """Minimum number of inputs to report dead units: ``FEW`` if all are dead, 0 if none is, else ``INPUTS``."""
        if not self.dead:
            return 0
        return FEW if self.dead == self.units else INPUTS


class UnitRecord:
    """The units of one place over a run.

    Args:
        units: how many there are.
        begin: the step at which they began to be watched.
        device: where what is added up is kept.
    """

    def __init__(self, units: int, begin: int, device: torch.device) -> None:
        self.units = units
        self.activity: UnitActivity | None = None
        self.dead: torch.Tensor | None = None  # of the last validation pass
        self._alive_at = torch.full((units,), begin - 1, device=device)  # the step of each one's last sign of life
        self._passes: dict[Pass, Extremes | None] = {"training": None, "validation": None}
        self._nonzero: Any = 0.0  # a sum of shares, on the device
        self._shares = 0
        self._counts: deque[tuple[int, int]] = deque(maxlen=HISTORY)
        self._latest: torch.Tensor | None = None  # the values of the last batch, if it was one input

    @property
    def counts(self) -> list[tuple[int, int]]:
        """The step of each of the last passes, and how many units were dead."""
        return list(self._counts)

    def start(self, of: Pass) -> None:
        """Begins a new pass."""
        self._passes[of] = None
        if of == "training":
            self._nonzero, self._shares = 0.0, 0

    def add(self, batch: Extremes, nonzero: torch.Tensor | None, step: int, to: Pass | None) -> None:
        """Adds what a batch left at the weights after ``step`` steps; of no pass, it is signs of life alone."""
        device = batch.low.device
        moved = batch.high > batch.low
        if batch.inputs == 1:  # a batch of one shows nothing but beside the one before
            moved |= False if self._latest is None else batch.low != self._latest.to(batch.low)
            self._latest = batch.low
        self._alive_at = torch.where(moved, step, self._alive_at.to(device))
        if to is None:
            return
        before = self._passes[to]
        self._passes[to] = batch if before is None else before.to(device).merge(batch)
        if nonzero is not None:
            self._nonzero, self._shares = self._nonzero + nonzero, self._shares + 1

    def tally(self, of: Pass) -> Tally:
        """What this rank saw."""
        return Tally(self._passes[of], self._alive_at, float(self._nonzero), self._shares)

    def so_far(self, layer: str | None, step: int) -> UnitActivity | None:
        """What the running epoch's sample shows on this rank, but in which way units are dead; None before a batch."""
        extremes = self._passes["training"]
        if extremes is None:
            return None
        dead = extremes.dead()
        last = self._alive_at.to(dead.device)[dead]
        count = len(last)
        return UnitActivity(
            layer=layer,
            units=self.units,
            dead=count,
            kinds={},
            inputs=extremes.inputs,
            exact=False,
            bound=min(3 / extremes.inputs, 1.0),
            since_step=int(last.min()) + 1 if count else None,
            born=int((last < 0).sum()),
            trend=self._trend(count),
            sparsity=None,
            step=step,
        )

    def miss(self) -> None:
        """A validation pass did not come by here: what one before found is of other weights."""
        self.dead = None
        if self.activity is not None and self.activity.exact:
            self.activity = None

    def conclude(
        self, of: Pass, tally: Tally, step: int, layer: str | None, kinds: dict[Kind, int], *, from_begin: bool
    ) -> None:
        """Takes what all ranks saw as what is known; a sample does not take the place of an exact pass.

        Args:
            of: the pass.
            tally: of all ranks.
            step: the optimizer steps that are done.
            layer: the one before.
            kinds: in which way how many are dead.
            from_begin: whether the training has been watched, so that it can be told since when they are dead.
        """
        extremes = tally.extremes
        assert extremes is not None
        sparsity = 1 - tally.nonzero / tally.shares if tally.shares else None
        if of == "training" and self.activity is not None and self.activity.exact:
            self.activity = replace(self.activity, sparsity=sparsity)
            return
        dead, alive_at = extremes.dead(), tally.alive_at
        if of == "validation":
            self.dead = dead
            alive_at = torch.where(dead, alive_at, step)
        self._alive_at = alive_at
        count, last = int(dead.sum()), alive_at[dead]
        trend = self._trend(count)
        self._counts.append((step, count))
        self.activity = UnitActivity(
            layer=layer,
            units=self.units,
            dead=count,
            kinds=kinds,
            inputs=extremes.inputs,
            exact=of == "validation",
            bound=None if of == "validation" else min(3 / extremes.inputs, 1.0),
            since_step=int(last.min()) + 1 if count and from_begin else None,
            born=int((last < 0).sum()) if from_begin else 0,
            trend=trend,
            sparsity=sparsity,
            step=step,
        )

    def _trend(self, count: int) -> Trend:
        """Whether ``count`` dead ones are more or fewer than in the pass before."""
        before = self._counts[-1][1] if self._counts else count
        return "stable" if count == before else "rising" if count > before else "falling"

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        training = self._passes["training"]
        return {
            "alive_at": self._alive_at.tolist(),
            "training": training and [training.low.tolist(), training.high.tolist(), training.inputs],
            "nonzero": [float(self._nonzero), self._shares],
            "counts": [list(each) for each in self._counts],
            "activity": self.activity and asdict(self.activity),
            "dead": None if self.dead is None else self.dead.nonzero().flatten().tolist(),
            "latest": None if self._latest is None else self._latest.tolist(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> UnitRecord:
        """The record whose :meth:`state_dict` was ``state``, on the CPU."""
        record = cls(len(state["alive_at"]), 0, torch.device("cpu"))
        record._alive_at = torch.tensor(state["alive_at"], dtype=torch.int64)
        if state["training"] is not None:
            low, high, inputs = state["training"]
            exact = torch.float64  # whatever it was: to compare, nothing is lost
            record._passes["training"] = Extremes(
                torch.tensor(low, dtype=exact), torch.tensor(high, dtype=exact), inputs
            )
        record._nonzero, record._shares = state["nonzero"]
        record._counts.extend((step, dead) for step, dead in state["counts"])
        record.activity = state["activity"] and UnitActivity(**state["activity"])
        if state["dead"] is not None:
            record.dead = torch.zeros(record.units, dtype=torch.bool)
            record.dead[state["dead"]] = True
        if state["latest"] is not None:
            record._latest = torch.tensor(state["latest"], dtype=torch.float64)
        return record
