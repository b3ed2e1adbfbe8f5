"""The buffers of a module as they were before a step, such as the running statistics of BatchNorm."""

from __future__ import annotations

import torch
from torch.nn.parameter import is_lazy


class BufferSnapshot:
    """Copies what a step may change of a module beside its parameters, and puts it back.

    Floating-point buffers are copied each time: the kernels of normalizations, and code that goes by ``.data``, change
    them without being counted. The others are copied where torch's count of changes says that they changed.

    Args:
        module: its buffers are those that it has now.

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
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}  # by place: buffer, copy, count of changes

    @torch.no_grad()
    def capture(self) -> None:
        """Copies the buffers as they are."""
        for index, (owner, name) in enumerate(self._buffer_locations):
            buffer, saved = getattr(owner, name, None), self._copies.get(index)
            if buffer is None or buffer.is_inference() or is_lazy(buffer):
                self._copies.pop(index, None)
            elif saved is None or saved[0] is not buffer or saved[1].shape != buffer.shape:
                self._copies[index] = (buffer, buffer.clone(), _version(buffer))
            elif _may_have_changed(buffer, saved[2]):
                self._copies[index] = (buffer, saved[1].copy_(buffer), _version(buffer))

    def restore(self, *, non_finite_only: bool = False) -> None:
        """Puts them back as they were at :meth:`capture`.

        Args:
            non_finite_only: only those that were finite then and are no longer.
        """
        for index, (buffer, copy, version) in self._copies.items():
            owner, name = self._buffer_locations[index]
            if non_finite_only and not self._is_new_non_finite(index):
                continue
            if getattr(owner, name, None) is not buffer:
                setattr(owner, name, buffer)
            if _may_have_changed(buffer, version):
                buffer.data.copy_(copy)  # uncounted: a backward pass that is still to come may need it

    def has_new_non_finite(self) -> bool:
        """Whether one that was finite at :meth:`capture` is no longer."""
        return any(map(self._is_new_non_finite, self._copies))

    def _is_new_non_finite(self, index: int) -> bool:
        owner, name = self._buffer_locations[index]
        buffer = getattr(owner, name, None)
        return (
            buffer is not None and not bool(buffer.isfinite().all()) and bool(self._copies[index][1].isfinite().all())
        )


def _may_have_changed(buffer: torch.Tensor, version: int) -> bool:
    return buffer.is_floating_point() or buffer.is_complex() or _version(buffer) != version


def _version(tensor: torch.Tensor) -> int:
    """How often it was changed in its place; torch's own count, which has no public name."""
    return tensor._version  # noqa: SLF001
