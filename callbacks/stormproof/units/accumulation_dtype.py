"""The type in which sums over many numbers are kept."""

from __future__ import annotations

import torch


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """float64; on MPS, which has none, float32."""
    return torch.float32 if device.type == "mps" else torch.float64
