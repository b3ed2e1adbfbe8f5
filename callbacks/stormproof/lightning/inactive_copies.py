"""Copies of active callbacks."""

from __future__ import annotations

from typing import Any


class InactiveCopies:
    """Mixin whose copies are inactive.

    ``copy.deepcopy`` and ``pickle`` keep arguments and results. Threads, leases, hooks and signal handlers stay with
    the original. ``log`` and ``log_dict``, which Lightning binds to the trained module, are dropped. A copy can be
    added to another trainer.
    """

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name not in {"log", "log_dict"}}
        inactive = self._inactive_state()
        assert inactive.keys() <= state.keys(), inactive.keys() - state.keys()
        return {**state, **inactive}

    def _inactive_state(self) -> dict[str, Any]:
        """Returns the values that a copy gets for attributes that are set only during training."""
        return {}
