"""The learning rates of a training: now, at first, at most, and since when they are none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from stormproof.health.record import Group

FADED = 1e-6
"""The share of the highest learning rate down to which it is none."""


class LearningRates:
    """Follows every parameter group.

    Args:
        optimizers: of the training.
    """

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self._optimizers = optimizers
        self._groups: dict[str, Group] = {}

    def look(self, step: int) -> list[Group]:
        """The groups as they are after ``step`` steps."""
        for index, optimizer in enumerate(self._optimizers):
            several = len(optimizer.param_groups) > 1
            for number, group in enumerate(optimizer.param_groups):
                name = f"optimizer {index}, group {number}" if several else f"optimizer {index}"
                lr = float(group["lr"])
                known = self._groups.get(name) or Group(index, name, lr, lr, lr, lr, None)
                most = max(lr, known.most_lr)
                base = float(group.get("initial_lr", most))
                since = None
                if math.isfinite(most) and lr <= FADED * most:
                    since = step if known.zero_since is None else known.zero_since
                self._groups[name] = Group(index, name, lr, known.first_lr, most, base, since)
        return list(self._groups.values())

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {name: list(vars(group).values()) for name, group in self._groups.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        self._groups = {name: Group(*values) for name, values in state.items()}
