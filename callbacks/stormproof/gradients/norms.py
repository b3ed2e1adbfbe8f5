"""Norms of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch

from stormproof.distributed.dtensor import ShardRows, gather_shards, to_local

# One kernel for all tensors, as in torch's clip_grad_norm_. Otherwise, 300 tensors need 300 kernels on a GPU.
_foreach_norm: Callable[..., tuple[torch.Tensor, ...]] = torch._foreach_norm  # noqa: SLF001  # pyright: ignore[reportPrivateImportUsage]


def local_norms(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    r"""Returns the 2-norm :math:`(\sum_j |g_j|^2)^{1/2}` of each gradient, or of the local shard of a ``DTensor``.

    Does not copy gradients or synchronize with the device. Sums half precision in float32, so norms above 1.8e19 are
    infinite.

    Args:
        gradients: n floating-point or complex tensors of any shape. Can be sparse or ``DTensor``.

    Returns:
        Norms, ``(n,)``, on the device of the first gradient.

    Example:
        >>> local_norms([torch.tensor([3.0, 4.0]), torch.ones(2, 2)])
        tensor([5., 2.])
    """
    parts = [gradient if _is_dense_real(gradient) else _to_dense_real(to_local(gradient)) for gradient in gradients]
    dtype = torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32
    norms = _foreach_norm(parts, 2, dtype=dtype)
    device = norms[0].device
    return torch.stack([norm if norm.device == device else norm.to(device) for norm in norms])


class GradientNorms:
    """2-norms of gradients on the device.

    Args:
        gradients: Tensors as for :func:`local_norms`. If some are ``DTensor``, all ranks must call this together.

    Attributes:
        rows: Norms of the shards of all ranks.

    Example:
        >>> GradientNorms([torch.tensor([3.0]), torch.tensor([4.0])]).total
        5.0
    """

    def __init__(self, gradients: Sequence[torch.Tensor]) -> None:
        self.rows: ShardRows = gather_shards(local_norms(gradients)[:, None], gradients)

    @cached_property
    def total(self) -> float:
        """2-norm over all gradients. The first access synchronizes with the device."""
        norms = self.rows[0][1] if len(self.rows) == 1 else torch.cat([norms.flatten() for _, norms in self.rows])
        return float(torch.linalg.vector_norm(norms))


def norm_for_clipping(gradients: Sequence[torch.Tensor], norms: GradientNorms) -> torch.Tensor | None:
    """Returns a norm that is bitwise equal to ``torch.nn.utils.get_total_norm(gradients)``. None if it may differ.

    torch computes norms in the data type of the gradients and groups them by device and data type.

    Args:
        gradients: Tensors. Must not be empty.
        norms: Their norms.

    Example:
        >>> gradients = [torch.tensor([3.0]), torch.tensor([4.0])]
        >>> norm_for_clipping(gradients, GradientNorms(gradients))
        tensor(5.)
    """
    dtype, device = gradients[0].dtype, gradients[0].device
    if dtype not in {torch.float32, torch.float64} or not all(
        _is_dense_real(gradient) and gradient.dtype == dtype and gradient.device == device for gradient in gradients
    ):
        return None
    return torch.linalg.vector_norm(norms.rows[0][1].flatten())


def largest_entry(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the largest absolute value of all entries, as a 0-d tensor.

    Example:
        >>> largest_entry([torch.tensor([3.0, -4.0]), torch.ones(2)])
        tensor(4.)
    """
    parts = [to_local(gradient) for gradient in gradients]
    norms = _foreach_norm([part if part.numel() else part.new_zeros(1) for part in parts], float("inf"))
    local_maxima = torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms])
    return torch.cat([largest.flatten() for _, largest in gather_shards(local_maxima[:, None], gradients)]).amax()


def _is_dense_real(gradient: torch.Tensor) -> bool:
    return type(gradient) is torch.Tensor and gradient.layout is torch.strided and not gradient.is_complex()


def _to_dense_real(gradient: torch.Tensor) -> torch.Tensor:
    gradient = gradient.coalesce().values() if gradient.layout == torch.sparse_coo else gradient
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient
