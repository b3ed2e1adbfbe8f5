"""The buffers of a module as they were before a step, such as the running statistics of BatchNorm."""

from __future__ import annotations

import torch
from torch.nn.parameter import is_lazy


class KeptBuffers:
    """Copies what a step may change of a module beside its parameters, and puts it back.

    Floating-point buffers are copied each time: the kernels of normalizations, and code that goes by ``.data``, change
    them without being counted. The others are copied where torch's count of changes says that they changed.

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
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}  # by place: buffer, copy, count of changes

    @torch.no_grad()
    def take(self) -> None:
        """Copies the buffers as they are."""
        for index, (owner, name) in enumerate(self._places):
            buffer, kept = getattr(owner, name, None), self._kept.get(index)
            if buffer is None or buffer.is_inference() or is_lazy(buffer):
                self._kept.pop(index, None)
            elif kept is None or kept[0] is not buffer or kept[1].shape != buffer.shape:
                self._kept[index] = (buffer, buffer.clone(), _changes(buffer))
            elif _may_have_changed(buffer, kept[2]):
                self._kept[index] = (buffer, kept[1].copy_(buffer), _changes(buffer))

    def restore(self, *, broken_only: bool = False) -> None:
        """Puts them back as they were at :meth:`take`.

        Args:
            broken_only: only those that were finite then and are no longer.
        """
        for index, (buffer, copy, changes) in self._kept.items():
            owner, name = self._places[index]
            if broken_only and not self._is_broken(index):
                continue
            if getattr(owner, name, None) is not buffer:
                setattr(owner, name, buffer)
            if _may_have_changed(buffer, changes):
                buffer.data.copy_(copy)  # uncounted: a backward pass that is still to come may need it

    def any_broken(self) -> bool:
        """Whether one that was finite at :meth:`take` is no longer."""
        return any(map(self._is_broken, self._kept))

    def _is_broken(self, index: int) -> bool:
        owner, name = self._places[index]
        now = getattr(owner, name, None)
        return now is not None and not bool(now.isfinite().all()) and bool(self._kept[index][1].isfinite().all())


def _may_have_changed(buffer: torch.Tensor, changes: int) -> bool:
    return buffer.is_floating_point() or buffer.is_complex() or _changes(buffer) != changes


def _changes(tensor: torch.Tensor) -> int:
    """How often it was changed in its place; torch's own count, which has no public name."""
    return tensor._version  # noqa: SLF001
