"""A copy of a checkpoint in host memory, whose buffers are used again for the next one."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import torch

_IMMUTABLE = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


class HostCopy:
    """Copies a tree of tensors and plain values, so that the original may go on changing.

    Whole storages are copied, each once, as ``torch.save`` writes them: tensors that share one share its copy, and a
    file of the copy is a file of the original. A buffer is used again where a storage has as many bytes; asking for
    fresh memory is what makes the first copy several times as slow as the others. Buffers of what lies on a GPU are
    pinned, for which torch takes up to twice the memory, and nothing more is put on the GPU.

    Example:
        >>> copies = HostCopy()
        >>> weight = torch.zeros(2)
        >>> copied = copies.take({"state_dict": {"weight": weight}, "step": 1})
        >>> _ = weight.fill_(1.0)
        >>> copied
        {'state_dict': {'weight': tensor([0., 0.])}, 'step': 1}
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []

    @torch.no_grad()
    def take(self, tree: Any) -> Any:
        """A copy of ``tree``, which holds until the next call.

        Args:
            tree: dictionaries, lists and tuples of tensors and plain values; anything else in it is deep-copied. NumPy
                scalars become Python numbers, which ``torch.load(weights_only=True)`` accepts.
        """
        walk = _Walk(self._buffers)
        copied = walk.copy_of(tree)
        for device in walk.devices:  # so far the copies only stand in a queue
            torch.cuda.synchronize(device)
        self._buffers = walk.used
        return copied


class _Walk:
    """Through one tree, with the buffers of the one before."""

    def __init__(self, buffers: list[torch.Tensor]) -> None:
        self._free: defaultdict[tuple[int, bool], list[torch.Tensor]] = defaultdict(list)
        for buffer in buffers:
            self._free[buffer.numel(), buffer.is_pinned()].append(buffer)
        self._copied: dict[tuple[torch.device, int, int], torch.UntypedStorage] = {}
        self.used: list[torch.Tensor] = []
        self.devices: set[torch.device] = set()

    def copy_of(self, value: Any) -> Any:
        kind = type(value)
        if kind is torch.Tensor or kind is torch.nn.Parameter:
            return self._tensor(value)
        if kind is dict:
            return {key: self.copy_of(item) for key, item in value.items()}
        if kind is OrderedDict:
            ordered = OrderedDict((key, self.copy_of(item)) for key, item in value.items())
            vars(ordered).update(self.copy_of(vars(value)))  # a state_dict has its versions there
            return ordered
        if kind is list or kind is tuple:
            return kind(self.copy_of(item) for item in value)
        if isinstance(value, np.generic):
            return value.item()
        return value if isinstance(value, _IMMUTABLE) else copy.deepcopy(value)

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        if not plain:
            return tensor.detach().clone().cpu()
        copied = torch.empty(0, dtype=tensor.dtype, device="cpu")  # whatever the default device is
        copied.set_(self._storage(tensor), tensor.storage_offset(), tensor.size(), tensor.stride())
        if type(tensor) is torch.nn.Parameter:
            return torch.nn.Parameter(copied, requires_grad=tensor.requires_grad)
        return copied.requires_grad_(tensor.requires_grad)

    def _storage(self, tensor: torch.Tensor) -> torch.UntypedStorage:
        storage = tensor.untyped_storage()
        key = (storage.device, storage.data_ptr(), storage.nbytes())
        if key not in self._copied:
            buffer = self._buffer(storage.nbytes(), pinned=storage.device.type == "cuda")
            source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)  # type: ignore[call-overload]  # torch's stubs know no storage by itself
            on_gpu = storage.device.type == "cuda"
            buffer.copy_(source, non_blocking=on_gpu)
            if on_gpu:
                self.devices.add(storage.device)
            self._copied[key] = buffer.untyped_storage()
        return self._copied[key]

    def _buffer(self, size: int, *, pinned: bool) -> torch.Tensor:
        free = self._free[size, pinned]
        buffer = free.pop() if free else torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        self.used.append(buffer)
        return buffer
