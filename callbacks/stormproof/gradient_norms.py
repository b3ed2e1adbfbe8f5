"""The norm of a gradient, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.distributed.tensor import DTensor

from stormproof.exact_dtype import exact_dtype
from stormproof.sharded import own_part, sum_over_parts

_norms: Callable[..., tuple[torch.Tensor, ...]] = torch._foreach_norm  # noqa: SLF001  # pyright: ignore[reportPrivateImportUsage] (what torch's clip_grad_norm_ is built on)


def squared_norms(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    r"""The squared 2-norm :math:`\sum_j |g_j|^2` of each gradient.

    One kernel for all of them where torch has one, no copy, no synchronization with the device. Half precision is added
    up in float32, the result is in float64 (float32 on MPS, which has no other).

    Args:
        gradients: n tensors of any shapes and floating or complex types; sparse ones and ``DTensor`` too.

    Returns:
        (n,), on the first one's device.

    Example:
        >>> squared_norms([torch.tensor([3.0, 4.0]), torch.ones(2, 2)])
        tensor([25.,  4.], dtype=torch.float64)
    """
    parts = [gradient if _is_plain(gradient) else _dense(own_part(gradient)) for gradient in gradients]
    wide = torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32
    norms = _norms(parts, 2, dtype=wide)
    device = norms[0].device
    together = norms if all(norm.device == device for norm in norms) else [norm.to(device) for norm in norms]
    squares = torch.stack(list(together)).to(exact_dtype(device)).square()
    return sum_over_parts(squares, gradients)


def largest_entry(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The largest absolute value among all entries, as a 0-d tensor.

    Example:
        >>> largest_entry([torch.tensor([3.0, -4.0]), torch.ones(2)])
        tensor(4.)
    """
    norms = _norms(list(gradients), float("inf"))
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.stack([norm.to(whole[0].device, torch.float32) for norm in whole]).amax()


def by_layer(values: torch.Tensor, layers: torch.Tensor, count: int) -> torch.Tensor:
    """Sums over the tensors of each layer.

    Args:
        values: (..., n), one value a tensor.
        layers: (n,), the number of each one's layer, from 0.
        count: of layers.

    Returns:
        (..., count).

    Example:
        >>> by_layer(torch.tensor([25.0, 4.0, 1.0]), torch.tensor([0, 0, 1]), 2)
        tensor([29.,  1.])
    """
    return values.new_zeros(*values.shape[:-1], count).index_add_(-1, layers, values)


def _is_plain(gradient: torch.Tensor) -> bool:
    return type(gradient) is torch.Tensor and gradient.layout is torch.strided and not gradient.is_complex()


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    gradient = gradient.coalesce().values() if gradient.layout == torch.sparse_coo else gradient
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient
