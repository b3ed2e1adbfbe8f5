"""Decides which rank writes which tensors of a sharded checkpoint."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan

from stormproof.distributed.collectives import all_gather, gather, world_size

PlannedValue = torch.Tensor | bytes
"""This rank's shard of a tensor, or a pickled value."""


@dataclass(frozen=True)
class ShardPlan:
    """Content that one rank writes.

    Attributes:
        save_plan: torch's ``SavePlan`` for this rank.
        metadata: Names and shapes of all tensors, on rank 0.
    """

    save_plan: SavePlan
    metadata: Metadata | None


class ShardPlanner:
    """Plans a sharded checkpoint. Reuses the plan as long as no rank's state changes its names or shapes.

    If several ranks have the same shard or a replicated tensor, the lowest rank writes it.
    """

    def __init__(self) -> None:
        self._local_plan: SavePlan | None = None
        self._plan: ShardPlan | None = None

    def plan(self, state: Mapping[str, Any]) -> tuple[ShardPlan, dict[MetadataIndex, PlannedValue]]:
        """Plans one checkpoint. All ranks call it together.

        Args:
            state: Nested dicts of tensors and plain values.

        Returns:
            The plan, and the values that this rank writes. The tensors are not copied.
        """
        planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
        is_coordinator = world_size() == 1 or dist.get_rank() == 0
        planner.set_up_planner(dict(state), is_coordinator=is_coordinator)
        local_plan = planner.create_local_plan()
        is_changed = self._local_plan is None or local_plan.items != self._local_plan.items
        if self._plan is None or any(all_gather(is_changed)):
            self._local_plan, self._plan = local_plan, _create_global_plan(planner, local_plan)
        planner.finish_plan(self._plan.save_plan)
        values = {}
        for item in self._plan.save_plan.items:
            value = planner.resolve_data(item)
            values[item.index] = value.getvalue() if isinstance(value, io.BytesIO) else value.detach()
        return self._plan, values


def _create_global_plan(planner: DefaultSavePlanner, local_plan: SavePlan) -> ShardPlan:
    """Distributes the items among the ranks, and names the file of each rank."""
    local_plans, metadata = gather(local_plan), None
    outputs: list[Any] = [None] * world_size()
    if local_plans is not None:
        try:
            plans, metadata = planner.create_global_plan(local_plans)
            named_plans = FileSystemWriter(".").prepare_global_plan(plans)
            outputs = [(plan, None) for plan in named_plans]
        except Exception as error:  # noqa: BLE001 (raised on every rank)
            outputs = [(None, error)] * world_size()
    if world_size() > 1:
        received: list[Any] = [None]
        dist.scatter_object_list(received, outputs if local_plans is not None else None, src=0)
        outputs = received
    plan, error = outputs[0]
    if error is not None:
        raise error
    return ShardPlan(plan, metadata)
