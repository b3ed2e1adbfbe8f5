"""The records of all units of a network: what a batch adds to them, and what a pass concludes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.agreement import everyone
from stormproof.units.activity import Pass, UnitRecord
from stormproof.units.extremes import Extremes
from stormproof.units.functional import Place
from stormproof.units.kinds import Kind, bounds, kinds
from stormproof.units.over_ranks import over_ranks
from stormproof.units.watch import Watches


class Census:
    """Counts the living and the dead of a network.

    Attributes:
        records: of each place, in the order in which they were first seen.
        begin: the step at which the watch began.
    """

    def __init__(self) -> None:
        self.records: dict[Place, UnitRecord] = {}
        self.begin = 0
        self._sizes: dict[Place, int] = {}  # of those that this process has seen
        self._refused: set[Place] = set()

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

    def add(self, watches: Watches, step: int, to: Pass | None) -> None:
        """Adds what a batch left, at the weights after ``step`` steps; of no pass, it counts as signs of life alone."""
        for watch, before, seen in watches.collect():
            place, units = (watch.name, before), len(seen.low)
            if self._sizes.setdefault(place, units) != units:
                self._refuse(place)
            if place in self._refused:
                continue
            record = self._record(place, units, seen.low.device)
            # not the batch's own tensors: a compiled network may use their memory again
            batch = Extremes(seen.low.clone(), seen.high.clone(), seen.samples)
            record.add(batch, seen.zeros, step, to)

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
        merged = over_ranks([record.seen(of) for record in self.records.values()], device)
        found = {}
        for (name, place), seen in zip(self.names().items(), merged, strict=True):
            if seen.extremes is None:
                if of == "validation":
                    self.records[place].miss()
                continue
            found[name] = seen.extremes
            self.records[place].conclude(of, seen, step, place[1], _kinds(seen.extremes, watches, place[0]))
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

    def _refuse(self, place: Place) -> None:
        if place not in self._refused:
            self._refused.add(place)
            self.records.pop(place, None)
            rank_zero_warn(
                f"{place[0]}: the dimension that was taken to count its units changes its size from batch to batch: "
                "nothing is known of them"
            )

    def _record(self, place: Place, units: int, device: torch.device) -> UnitRecord:
        known = self.records.get(place)
        if known is None or known.units != units:
            known = self.records[place] = UnitRecord(units, self.begin, device)
        return known

    def _meet(self, device: torch.device) -> None:
        """Brings all ranks to the same places: what a network calls may depend on the data."""
        said = everyone([(place, record.units) for place, record in self.records.items()])
        for place, units in (each for rank in said for each in rank):
            self._record(place, units, device)
        order = dict.fromkeys(place for rank in said for place, _ in rank if place in self.records)
        self.records = {place: self.records[place] for place in order}


def _kinds(extremes: Extremes, watches: Watches, module: str) -> dict[Kind, int]:
    values = extremes.low[extremes.dead()].tolist()
    watch = watches.named(module)
    if watch.has_pieces:
        return {"never wins": len(values)} if values else {}
    return kinds(values, bounds(watch.function, watch.module))
