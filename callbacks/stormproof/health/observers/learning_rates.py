"""Tracks the learning rates of all parameter groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from stormproof.health.observations.optimizers import ParameterGroup

ZERO_LR_SHARE = 1e-6
"""Share of the highest learning rate below which a learning rate counts as zero."""


class LearningRates:
    """Tracks the learning rate of each parameter group."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self._optimizers = optimizers
        self._groups: dict[str, ParameterGroup] = {}

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """Groups at the last update."""
        return tuple(self._groups.values())

    def update(self, step: int) -> None:
        """Updates the groups after ``step`` steps."""
        for index, optimizer in enumerate(self._optimizers):
            has_several_groups = len(optimizer.param_groups) > 1
            for group_index, group in enumerate(optimizer.param_groups):
                name = f"optimizer {index}, group {group_index}" if has_several_groups else f"optimizer {index}"
                lr = float(group["lr"])
                previous = self._groups.get(name) or ParameterGroup(index, name, lr, lr, lr, lr, None)
                max_lr = max(lr, previous.max_lr)
                base_lr = float(group.get("initial_lr", max_lr))
                zero_since = None
                if math.isfinite(max_lr) and lr <= ZERO_LR_SHARE * max_lr:
                    zero_since = step if previous.zero_since is None else previous.zero_since
                self._groups[name] = ParameterGroup(index, name, lr, previous.initial_lr, max_lr, base_lr, zero_since)

    def state_dict(self) -> dict[str, Any]:
        """Returns the groups as plain values."""
        return {name: list(vars(group).values()) for name, group in self._groups.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the groups."""
        self._groups = {name: ParameterGroup(*values) for name, values in state.items()}
