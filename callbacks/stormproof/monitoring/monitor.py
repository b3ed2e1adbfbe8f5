"""Prints the measurements of all monitoring callbacks in one table at the end of training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import pytorch_lightning as pl
from pytorch_lightning import Callback

from stormproof.distributed.rank import is_rank_zero
from stormproof.lightning import internals
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.monitoring.table import monitoring_table
from stormproof.standard_output import print_text
from stormproof.units.unit_activity import UnitActivity


@dataclass(frozen=True)
class TableEntries:
    """Measurements of a callback for the table.

    Attributes:
        first_norms: First gradient norm by layer.
        last_norms: Last gradient norm by layer.
        activity: Activity of the units by name of the watched module.
    """

    first_norms: dict[str, float] = field(default_factory=dict)
    last_norms: dict[str, float] = field(default_factory=dict)
    activity: dict[str, UnitActivity] = field(default_factory=dict)


class Monitor(InactiveCopies, Callback, ABC):
    """Base class of monitoring callbacks. The last one of a trainer prints the table of all of them.

    Args:
        table: Whether the table includes the measurements of this callback.
    """

    def __init__(self, table: bool) -> None:
        self.table = table

    @abstractmethod
    def table_entries(self) -> TableEntries:
        """Returns the measurements for the table."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the table if this is the last monitoring callback."""
        callbacks = internals.callbacks(trainer)
        monitors = [callback for callback in callbacks if isinstance(callback, Monitor) and callback.table]
        if not is_rank_zero() or not monitors or monitors[-1] is not self:
            return
        tables = [monitor.table_entries() for monitor in monitors]
        first_norms = {layer: norm for entries in tables for layer, norm in entries.first_norms.items()}
        last_norms = {layer: norm for entries in tables for layer, norm in entries.last_norms.items()}
        activity = {name: unit_activity for entries in tables for name, unit_activity in entries.activity.items()}
        print_text("".join(f"{line}\n" for line in monitoring_table(first_norms, last_norms, activity)))
