"""Computes a digest of a tensor, to compare two tensors bit for bit without keeping both."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import torch


def digest_tensor(tensor: torch.Tensor) -> str:
    """Returns a digest of shape, dtype and content.

    Args:
        tensor: Dense or sparse, on any device. A tensor on a GPU is copied to the host.

    Example:
        >>> digest_tensor(torch.zeros(2)) == digest_tensor(torch.zeros(2))
        True
        >>> digest_tensor(torch.zeros(2)) == digest_tensor(torch.zeros(2, 1))
        False
    """
    digest = blake2b(
        f"{tensor.dtype} {() if tensor.is_nested else tuple(tensor.shape)} {tensor.layout}".encode(), digest_size=16
    )
    for part in _list_dense_parts(tensor.detach()):
        digest.update(read_bytes(part))
    return digest.hexdigest()


def read_bytes(tensor: torch.Tensor) -> memoryview:
    """Returns the content of a dense tensor. Does not copy a contiguous tensor in host memory.

    ``Tensor.numpy`` would make ``resize_`` of the tensor raise an error, which observers for quantization call.
    """
    content = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
    return np.from_dlpack(content).data


def _list_dense_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    if tensor.is_meta:
        return []
    if tensor.is_nested:
        return [part for item in tensor.unbind() for part in _list_dense_parts(item)]
    if tensor.layout == torch.strided:
        return [tensor]
    tensor = tensor.to_sparse_coo().coalesce()
    return [tensor.indices(), tensor.values()]
