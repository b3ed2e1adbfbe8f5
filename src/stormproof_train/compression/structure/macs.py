"""Counts multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stormproof_train.models.dry_run import dry_run


def count_macs(network: nn.Module, inputs: torch.Tensor) -> int:
    r"""Counts the multiply-accumulates per sample of convolutions, linear layers and attention.

    They are counted in a forward pass in evaluation mode. Norms, activations and sums are not counted.

    Args:
        network: Network. It is not changed.
        inputs: Inputs (batch, \*input_shape), of which the first sample is used.

    Example:
        >>> count_macs(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
        48
    """
    counter = FlopCounterMode(display=False)
    with dry_run(network), torch.no_grad(), _unfused_attention(), counter:
        network(inputs[:1])
    return counter.get_total_flops() // 2  # a product and a sum count as two operations


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Replaces fused attention, which the counter does not support on every device, by matrix products."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(value=False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(value=was_enabled)
