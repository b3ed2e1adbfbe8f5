"""Copies of callbacks."""

from __future__ import annotations

from typing import Any


class InactiveCopies:
    """Base of what acts during training, and whose copies do not: the original is what the trainer calls.

    ``copy.deepcopy`` and ``pickle`` copy arguments and results. The copy has no threads, no lease, no hooks and no
    signal handlers; it can be added to another trainer. It does not contain the module that is trained, to which
    Lightning binds ``log`` and ``log_dict`` of every callback.
    """

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name not in {"log", "log_dict"}}
        return {**state, **self._inactive()}

    def _inactive(self) -> dict[str, Any]:
        """Returns the attributes that are set only during training, with their values before and after it."""
        return {}
