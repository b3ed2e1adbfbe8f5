"""Copies checkpoints into host memory and reuses the buffers."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import torch

_IMMUTABLE = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


class HostStager:
    """Copies a tree of tensors and plain values, so that training can modify the original.

    Copies each storage once and as a whole, as ``torch.save`` does. Tensors that share a storage share its copy, and
    both trees are saved as equal files. A buffer is reused for a storage with the same number of bytes, because
    allocating memory makes the first copy several times as slow as later ones. Buffers for GPU tensors are pinned, for
    which torch allocates up to twice the memory. No additional GPU memory is used.

    Example:
        >>> stager = HostStager()
        >>> weight = torch.zeros(2)
        >>> staged = stager.stage({"state_dict": {"weight": weight}, "step": 1})
        >>> _ = weight.fill_(1.0)
        >>> staged
        {'state_dict': {'weight': tensor([0., 0.])}, 'step': 1}
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []

    @property
    def staged_bytes(self) -> int:
        """Size of the buffers of the last copy, in bytes."""
        return sum(buffer.numel() for buffer in self._buffers)

    @torch.no_grad()
    def stage(self, tree: Any) -> Any:
        """Returns a copy of ``tree`` that is valid until the next call.

        Args:
            tree: Dicts, lists and tuples of tensors and plain values. Other objects are deep-copied. NumPy scalars
                become Python numbers, which ``torch.load(weights_only=True)`` accepts.
        """
        copier = _TreeCopier(self._buffers)
        copied_tree = copier.copy_value(tree)
        for device in copier.devices:  # the copies are asynchronous
            torch.cuda.synchronize(device)
        self._buffers = copier.used_buffers
        return copied_tree


class _TreeCopier:
    """Copies one tree into the buffers of the previous one."""

    def __init__(self, buffers: list[torch.Tensor]) -> None:
        self._free_buffers: defaultdict[tuple[int, bool], list[torch.Tensor]] = defaultdict(list)
        for buffer in buffers:
            self._free_buffers[buffer.numel(), buffer.is_pinned()].append(buffer)
        self._copied_storages: dict[tuple[torch.device, int, int], torch.UntypedStorage] = {}
        self.used_buffers: list[torch.Tensor] = []
        self.devices: set[torch.device] = set()

    def copy_value(self, value: Any) -> Any:
        value_type = type(value)
        if value_type is torch.Tensor or value_type is torch.nn.Parameter:
            return self._copy_tensor(value)
        if value_type is dict:
            return {key: self.copy_value(item) for key, item in value.items()}
        if value_type is OrderedDict:
            ordered_dict = OrderedDict((key, self.copy_value(item)) for key, item in value.items())
            vars(ordered_dict).update(self.copy_value(vars(value)))  # the _metadata of a state_dict
            return ordered_dict
        if value_type is list or value_type is tuple:
            return value_type(self.copy_value(item) for item in value)
        if isinstance(value, np.generic):
            return value.item()
        return value if isinstance(value, _IMMUTABLE) else copy.deepcopy(value)

    def _copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        is_plain_strided = tensor.layout is torch.strided and not (
            tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.is_nested or tensor.is_meta
        )
        if not is_plain_strided:
            detached = tensor.detach()
            if tensor.is_quantized:  # torch does not clone every scheme
                return detached.cpu() if tensor.is_cuda else copy.deepcopy(detached)
            return detached if tensor.is_meta else detached.clone().cpu()
        copied_tensor = torch.empty(0, dtype=tensor.dtype, device="cpu")  # the default device may be a GPU
        copied_tensor.set_(self._copy_storage(tensor), tensor.storage_offset(), tensor.size(), tensor.stride())
        if type(tensor) is torch.nn.Parameter:
            return torch.nn.Parameter(copied_tensor, requires_grad=tensor.requires_grad)
        return copied_tensor.requires_grad_(tensor.requires_grad)

    def _copy_storage(self, tensor: torch.Tensor) -> torch.UntypedStorage:
        storage = tensor.untyped_storage()
        key = (storage.device, storage.data_ptr(), storage.nbytes())
        if key not in self._copied_storages:
            buffer = self._allocate_buffer(storage.nbytes(), pin_memory=storage.device.type == "cuda")
            source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)  # type: ignore[call-overload]  # torch's stubs lack this overload
            is_on_gpu = storage.device.type == "cuda"
            buffer.copy_(source, non_blocking=is_on_gpu)
            if is_on_gpu:
                self.devices.add(storage.device)
            self._copied_storages[key] = buffer.untyped_storage()
        return self._copied_storages[key]

    def _allocate_buffer(self, size: int, *, pin_memory: bool) -> torch.Tensor:
        free_buffers = self._free_buffers[size, pin_memory]
        buffer = (
            free_buffers.pop()
            if free_buffers
            else torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pin_memory)
        )
        self.used_buffers.append(buffer)
        return buffer
