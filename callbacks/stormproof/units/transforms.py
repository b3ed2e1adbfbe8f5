"""Detects tensors without values of their own, and reads those of tensor subclasses."""

from __future__ import annotations

from typing import Any

import torch


def is_transforming() -> bool:
    """Returns whether a transform such as ``torch.vmap`` runs, whose tensors have no values of their own."""
    functorch: Any = torch._C._functorch  # type: ignore[attr-defined]  # noqa: SLF001 (torch has no public name for it)
    return functorch.peek_interpreter_stack() is not None


def has_values(tensor: torch.Tensor) -> bool:
    """Returns whether a tensor has values that torch functions can read.

    Subclasses that override the dispatch of operations, such as ``DTensor``, contain other tensors instead.
    """
    kind: Any = type(tensor)
    plain: Any = torch.Tensor
    return (kind is plain or kind.__torch_dispatch__ is plain.__torch_dispatch__) and not tensor.is_meta


def plain_values(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a detached view of a tensor, without the methods that its subclass overrides."""
    if type(tensor) is torch.Tensor or not has_values(tensor):
        return tensor.detach()
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 (documented despite the underscore)
        return torch.Tensor.detach(tensor).as_subclass(torch.Tensor)
