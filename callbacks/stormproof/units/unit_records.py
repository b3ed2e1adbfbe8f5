"""Records of the unit activity of a network."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.distributed.collectives import all_gather
from stormproof.units.all_reduce import all_reduce_counts
from stormproof.units.dead_unit_kinds import DeadUnitKind, count_kinds, saturation_bounds
from stormproof.units.functional_trace import ActivationKey
from stormproof.units.hooks import ActivationHooks
from stormproof.units.running_min_max import RunningExtremes
from stormproof.units.unit_activity import Stage, UnitRecord


class UnitRecords:
    """Records the activity of all units of a network.

    Attributes:
        records: Records by key, in the order of their first batch.
        start_step: Step at which recording started. None outside training.
    """

    def __init__(self) -> None:
        self.records: dict[ActivationKey, UnitRecord] = {}
        self.start_step: int | None = None
        self._unit_counts: dict[ActivationKey, int] = {}  # on this rank
        # keys whose number of units changes between batches, so that the dimension cannot be the units
        self._inconsistent_keys: set[ActivationKey] = set()
        self._warned_keys: set[ActivationKey] = set()

    def keys_by_name(self) -> dict[str, ActivationKey]:
        """Returns keys by name: the module, and ``@`` and the layer before it if the module is called after several."""
        calls = Counter(module for module, _ in self.records)
        return {
            module if calls[module] == 1 else f"{module}@{source_layer}": (module, source_layer)
            for module, source_layer in self.records
        }

    def records_by_name(self) -> dict[str, UnitRecord]:
        """Returns records by name."""
        return {name: self.records[key] for name, key in self.keys_by_name().items()}

    def remove_missing(self, hooks: ActivationHooks) -> None:
        """Removes records of watch points that the network does not have."""
        self.records = {key: record for key, record in self.records.items() if hooks.has(key[0])}

    def start_epoch(self, run_stage: Stage) -> None:
        """Starts a new epoch."""
        for record in self.records.values():
            record.start_epoch(run_stage)

    def add(self, hooks: ActivationHooks, step: int, run_stage: Stage | None, batch_size: int | None) -> None:
        """Adds a batch. Without a stage, it only shows which units are alive.

        Args:
            hooks: Hooks of the network.
            step: Number of completed optimizer steps.
            run_stage: Training or validation.
            batch_size: Maximum number of inputs to count for the batch. The first dimension of an output may be larger,
                for example if it is the time of sequences. None if unknown.
        """
        for watch_point, source_layer, batch_extremes in hooks.pop_batch():
            key, units = (watch_point.name, source_layer), len(batch_extremes.low)
            if self._unit_counts.setdefault(key, units) != units:
                self._inconsistent_keys.add(key)
            if key in self._inconsistent_keys:
                continue
            low, high = batch_extremes.low, batch_extremes.high
            if hooks.is_compiled:  # a compiled network may reuse the memory
                low, high = low.clone(), high.clone()
            samples = batch_extremes.samples if batch_size is None else min(batch_extremes.samples, batch_size)
            self._get_or_create(key, units, low.device).add(
                RunningExtremes(low, high, samples), batch_extremes.nonzero_share, step, run_stage
            )

    def finish_epoch(
        self, run_stage: Stage, step: int, hooks: ActivationHooks, device: torch.device
    ) -> dict[str, RunningExtremes]:
        """Ends an epoch and sets the ``activity`` of each record. All ranks must call this together.

        Args:
            run_stage: Training or validation.
            step: Number of completed optimizer steps.
            hooks: Hooks of the network.
            device: Device for communication between ranks.

        Returns:
            Extremes over all ranks by name, of the watch points with inputs.
        """
        self._sync_keys(device, hooks)
        reduced_counts = all_reduce_counts([record.local_counts(run_stage) for record in self.records.values()], device)
        extremes_by_name = {}
        for (name, key), counts in zip(self.keys_by_name().items(), reduced_counts, strict=True):
            record, extremes = self.records[key], counts.extremes
            if extremes is not None:
                extremes_by_name[name] = extremes
                dead_kinds = _count_dead_kinds(extremes, hooks, key[0])
                record.finish_epoch(
                    run_stage, counts, step, key[1], dead_kinds, is_watched_from_start=self.start_step is not None
                )
            elif run_stage == "validation":
                record.discard_exact()
        return extremes_by_name

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain values."""
        record_states = [
            {"module": module, "source_layer": source_layer, **record.state_dict()}
            for (module, source_layer), record in self.records.items()
        ]
        return {"start_step": self.start_step, "records": record_states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state."""
        self.start_step = state["start_step"]
        self.records = {
            (record_state["module"], record_state["source_layer"]): UnitRecord.from_state(record_state)
            for record_state in state["records"]
        }

    def _get_or_create(self, key: ActivationKey, units: int, device: torch.device) -> UnitRecord:
        """Returns the record of a key. Replaces it if the number of units has changed."""
        record = self.records.get(key)
        if record is None or record.units != units:
            record = self.records[key] = UnitRecord(units, self.start_step or 0, device)
        return record

    def _sync_keys(self, device: torch.device, hooks: ActivationHooks) -> None:
        """Gives all ranks the same keys and errors. The modules that a network calls may depend on the data."""
        gathered_keys = all_gather(
            ([(key, record.units) for key, record in self.records.items()], self._inconsistent_keys, hooks.errors)
        )
        units: dict[ActivationKey, int] = {}
        for key_counts, inconsistent_keys, errors in gathered_keys:
            hooks.errors = {**errors, **hooks.errors}
            self._inconsistent_keys |= inconsistent_keys
            self._inconsistent_keys |= {key for key, count in key_counts if units.setdefault(key, count) != count}
        for key in sorted(self._inconsistent_keys - self._warned_keys):
            rank_zero_warn(
                f"{key[0]}: dead units cannot be detected, because the size of the unit dimension changes between "
                "batches."
            )
        self._warned_keys |= self._inconsistent_keys
        consistent_keys = [key for key in units if key not in self._inconsistent_keys and not hooks.has_error(key[0])]
        self.records = {key: self._get_or_create(key, units[key], device) for key in consistent_keys}


def _count_dead_kinds(extremes: RunningExtremes, hooks: ActivationHooks, module: str) -> dict[DeadUnitKind, int]:
    """Returns the number of dead units by kind."""
    values = extremes.low[extremes.is_dead()].tolist()
    watch_point = hooks.get(module)
    if watch_point.has_pieces:
        return {"never wins": len(values)} if values else {}
    return count_kinds(values, saturation_bounds(watch_point.function, watch_point.module))
