"""Detects function transforms of torch."""

from __future__ import annotations

from typing import Any

import torch


def is_transforming() -> bool:
    """Returns whether a transform such as ``torch.vmap`` runs, whose tensors have no values of their own."""
    functorch: Any = torch._C._functorch  # type: ignore[attr-defined]  # noqa: SLF001 (torch has no public name for it)
    return functorch.peek_interpreter_stack() is not None
