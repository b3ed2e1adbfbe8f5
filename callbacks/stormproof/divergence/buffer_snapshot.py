"""Snapshots of the buffers of a module before a step, such as the running statistics of BatchNorm."""

from __future__ import annotations

import torch
from torch.nn.parameter import is_lazy


class BufferSnapshot:
    """Copies and restores the buffers of a module, which a forward pass may change.

    Floating-point buffers are copied each time, because normalization kernels and code that uses ``.data`` change them
    without a change of torch's version counter. Other buffers are copied if their version counter has changed.

    Args:
        module: Module. Buffers that are registered later are not copied.

    Example:
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> kept = BufferSnapshot(norm)
        >>> kept.capture()
        >>> _ = norm(torch.full((3, 2), torch.nan))
        >>> kept.has_new_non_finite(), kept.restore(), norm.running_mean
        (True, None, tensor([0., 0.]))
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._buffer_locations = [
            (owner, name) for owner in module.modules() for name, _ in owner.named_buffers(recurse=False)
        ]
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}  # by index: buffer, copy, version

    @torch.no_grad()
    def capture(self) -> None:
        """Copies the buffers."""
        sources, copies = [], []
        for index, (owner, name) in enumerate(self._buffer_locations):
            buffer, saved = getattr(owner, name, None), self._copies.get(index)
            if buffer is None or buffer.is_inference() or is_lazy(buffer):
                self._copies.pop(index, None)
            elif saved is None or saved[0] is not buffer or saved[1].shape != buffer.shape:
                self._copies[index] = (buffer, buffer.clone(), _version(buffer))
            elif _may_have_changed(buffer, saved[2]):
                sources.append(buffer)
                copies.append(saved[1])
                self._copies[index] = (buffer, saved[1], _version(buffer))
        if sources:
            torch._foreach_copy_(copies, sources)  # pyright: ignore[reportPrivateImportUsage]

    def restore(self, *, non_finite_only: bool = False) -> None:
        """Restores the values of the last :meth:`capture`.

        Args:
            non_finite_only: Whether to restore only buffers that were finite then and are not finite now.
        """
        for index, (buffer, copy, version) in self._copies.items():
            owner, name = self._buffer_locations[index]
            if non_finite_only and not self._is_new_non_finite(index):
                continue
            if getattr(owner, name, None) is not buffer:
                setattr(owner, name, buffer)
            if _may_have_changed(buffer, version):
                # .data does not change the version counter, which a later backward pass checks
                buffer.data.copy_(copy)

    def has_new_non_finite(self) -> bool:
        """Returns True if a buffer that was finite at :meth:`capture` is not finite now."""
        return any(map(self._is_new_non_finite, self._copies))

    def _is_new_non_finite(self, index: int) -> bool:
        owner, name = self._buffer_locations[index]
        buffer = getattr(owner, name, None)
        return (
            buffer is not None and not bool(buffer.isfinite().all()) and bool(self._copies[index][1].isfinite().all())
        )


def _may_have_changed(buffer: torch.Tensor, version: int) -> bool:
    """Returns True unless the version counter proves that the buffer is unchanged."""
    return buffer.is_floating_point() or buffer.is_complex() or _version(buffer) != version


def _version(tensor: torch.Tensor) -> int:
    """Returns torch's version counter of in-place changes, which has no public name."""
    return tensor._version  # noqa: SLF001
