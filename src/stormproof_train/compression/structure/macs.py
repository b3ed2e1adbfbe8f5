"""What one sample costs a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stormproof_train.models.dry_run import dry_run


def count_macs(network: nn.Module, inputs: torch.Tensor) -> int:
    r"""The multiply-accumulates of one sample: of convolutions, linear layers and attention.

    They are counted as the network runs, in evaluation. Norms, activations and sums are not among them.

    Args:
        network: stays as it is.
        inputs: (N, \*input_shape); the first sample is run.

    Example:
        >>> count_macs(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
        48
    """
    counter = FlopCounterMode(display=False)
    with dry_run(network), torch.no_grad(), _unfused_attention(), counter:
        network(inputs[:1])
    return counter.get_total_flops() // 2  # it counts a product and a sum as two


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Fused attention, which the counter does not know on every device, is computed by its matrix products."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(value=False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(value=was_enabled)
