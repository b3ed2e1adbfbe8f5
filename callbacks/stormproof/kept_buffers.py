"""The buffers of a module as they were before a step, such as the running statistics of BatchNorm."""

from __future__ import annotations

from dataclasses import dataclass

import torch

COUNTED = 1 << 16
"""Entries from which on torch's count of changes says whether a buffer changed. The kernels of normalizations, whose
buffers are small, do not count; queues and the like, which may be large, are changed by what does."""


@dataclass
class _Kept:
    buffer: torch.Tensor
    copy: torch.Tensor
    changes: int


class KeptBuffers:
    """Copies what a step may change of a module beside its parameters, and puts it back.

    Args:
        module: its buffers are those that it has now.

    Example:
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> kept = KeptBuffers(norm)
        >>> kept.take()
        >>> _ = norm(torch.full((3, 2), torch.nan))
        >>> kept.any_broken(), kept.restore(), norm.running_mean
        (True, None, tensor([0., 0.]))
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._places = [(owner, name) for owner in module.modules() for name, _ in owner.named_buffers(recurse=False)]
        self._kept: list[_Kept | None] = [None] * len(self._places)

    @torch.no_grad()
    def take(self) -> None:
        """Copies the buffers as they are."""
        for index, (owner, name) in enumerate(self._places):
            buffer, kept = getattr(owner, name), self._kept[index]
            if buffer is None:
                self._kept[index] = None
            elif kept is None or kept.buffer is not buffer or kept.copy.shape != buffer.shape:
                self._kept[index] = _Kept(buffer, buffer.clone(), _changes(buffer))
            elif _may_have_changed(kept):
                kept.copy.copy_(buffer)
                kept.changes = _changes(buffer)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts them back as they were at :meth:`take`."""
        for (owner, name), kept in zip(self._places, self._kept, strict=True):
            if kept is None:
                continue
            if getattr(owner, name) is not kept.buffer:
                setattr(owner, name, kept.buffer)
            if _may_have_changed(kept):
                kept.buffer.copy_(kept.copy)

    def any_broken(self) -> bool:
        """Whether one that was finite at :meth:`take` is no longer."""
        return any(
            kept is not None and not _is_finite(getattr(owner, name)) and _is_finite(kept.copy)
            for (owner, name), kept in zip(self._places, self._kept, strict=True)
        )


def _may_have_changed(kept: _Kept) -> bool:
    return kept.buffer.numel() < COUNTED or _changes(kept.buffer) != kept.changes


def _changes(tensor: torch.Tensor) -> int:
    """How often it was changed in its place; torch's own count, which has no public name."""
    return tensor._version  # noqa: SLF001


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.isfinite().all())
