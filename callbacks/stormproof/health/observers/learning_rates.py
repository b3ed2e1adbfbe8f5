"""The learning rates of a training: now, at first, at most, and since when they are none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from stormproof.health.record import ParameterGroup

ZERO_LR_SHARE = 1e-6
"""The share of the highest learning rate down to which it is none."""


class LearningRates:
    """Follows every parameter group.

    Args:
        optimizers: of the training.
    """

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self._optimizers = optimizers
        self._groups: dict[str, ParameterGroup] = {}

    def update(self, step: int) -> list[ParameterGroup]:
        """The groups as they are after ``step`` steps."""
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
        return list(self._groups.values())

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {name: list(vars(group).values()) for name, group in self._groups.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        self._groups = {name: ParameterGroup(*values) for name, values in state.items()}
