"""The records of all units of a network: what a batch adds to them, and what a pass concludes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.distributed.collectives import everyone
from stormproof.units.all_reduce import over_ranks
from stormproof.units.death_kinds import Kind, bounds, kinds
from stormproof.units.functional_trace import Place
from stormproof.units.hooks import Watches
from stormproof.units.running_min_max import Extremes
from stormproof.units.unit_activity import Pass, UnitRecord


class Census:
    """Counts the living and the dead of a network.

    Attributes:
        records: of each place, in the order in which they were first seen.
        begin: the step at which the watch began; None where no training is watched.
    """

    def __init__(self) -> None:
        self.records: dict[Place, UnitRecord] = {}
        self.begin: int | None = None
        self._sizes: dict[Place, int] = {}  # of those that this process has seen
        self._refused: set[Place] = set()  # the number of whose units changes: it is not units that are counted
        self._told: set[Place] = set()

    def names(self) -> dict[str, Place]:
        """The places by name: the module's, with the layer before it where the module is called behind several."""
        calls = Counter(module for module, _ in self.records)
        return {
            module if calls[module] == 1 else f"{module}@{before}": (module, before) for module, before in self.records
        }

    def named(self) -> dict[str, UnitRecord]:
        """The records by name."""
        return {name: self.records[place] for name, place in self.names().items()}

    def keep(self, watches: Watches) -> None:
        """Forgets the places that a network does not have."""
        self.records = {place: record for place, record in self.records.items() if watches.has(place[0])}

    def start(self, of: Pass) -> None:
        """Begins a new pass."""
        for record in self.records.values():
            record.start(of)

    def add(self, watches: Watches, step: int, to: Pass | None, inputs: int | None) -> None:
        """Adds what a batch left, at the weights after ``step`` steps; of no pass, it counts as signs of life alone.

        Args:
            watches: the network's.
            step: the optimizer steps that were done.
            to: the pass.
            inputs: samples in the batch, None if unknown; of a place whose first dimension is larger, as where that
                counts the steps of sequences, no more inputs than these are counted.
        """
        for watch, before, seen in watches.collect():
            place, units = (watch.name, before), len(seen.low)
            if self._sizes.setdefault(place, units) != units:
                self._refused.add(place)
            if place in self._refused:
                continue
            low, high = seen.low, seen.high
            if watches.compiled:  # it may use their memory again
                low, high = low.clone(), high.clone()
            samples = seen.samples if inputs is None else min(seen.samples, inputs)
            self._record(place, units, low.device).add(Extremes(low, high, samples), seen.nonzero, step, to)

    def conclude(self, of: Pass, step: int, watches: Watches, device: torch.device) -> dict[str, Extremes]:
        """What a pass showed over all ranks, which call this together; it becomes each record's ``activity``.

        Args:
            of: the pass.
            step: the optimizer steps that are done.
            watches: the network's.
            device: on which ranks communicate.

        Returns:
            the merged extremes by name, of the places that were seen.
        """
        self._meet(device)
        tallies = over_ranks([record.tally(of) for record in self.records.values()], device)
        found = {}
        for (name, place), tally in zip(self.names().items(), tallies, strict=True):
            record, extremes = self.records[place], tally.extremes
            if extremes is not None:
                found[name] = extremes
                kinds_found = _kinds(extremes, watches, place[0])
                record.conclude(of, tally, step, place[1], kinds_found, from_begin=self.begin is not None)
            elif of == "validation":
                record.miss()
        return found

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        places = [
            {"module": place[0], "before": place[1], **self.records[place].state_dict()} for place in self.records
        ]
        return {"begin": self.begin, "places": places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``."""
        self.begin = state["begin"]
        self.records = {(each["module"], each["before"]): UnitRecord.from_state(each) for each in state["places"]}

    def _record(self, place: Place, units: int, device: torch.device) -> UnitRecord:
        known = self.records.get(place)
        if known is None or known.units != units:
            known = self.records[place] = UnitRecord(units, self.begin or 0, device)
        return known

    def _meet(self, device: torch.device) -> None:
        """Brings all ranks to the same places: what a network calls may depend on the data."""
        said = everyone(([(place, record.units) for place, record in self.records.items()], self._refused))
        units: dict[Place, int] = {}
        for places, refused in said:
            self._refused |= refused
            self._refused |= {place for place, count in places if units.setdefault(place, count) != count}
        for place in sorted(self._refused - self._told):
            rank_zero_warn(
                f"{place[0]}: the dimension that was taken to count its units changes its size from batch to batch: "
                "nothing is known of them"
            )
        self._told |= self._refused
        kept = [place for place in units if place not in self._refused]
        self.records = {place: self._record(place, units[place], device) for place in kept}


def _kinds(extremes: Extremes, watches: Watches, module: str) -> dict[Kind, int]:
    values = extremes.low[extremes.dead()].tolist()
    watch = watches.named(module)
    if watch.has_pieces:
        return {"never wins": len(values)} if values else {}
    return kinds(values, bounds(watch.function, watch.module))
