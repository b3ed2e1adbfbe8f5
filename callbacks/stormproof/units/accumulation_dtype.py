"""Data type of sums over many values."""

from __future__ import annotations

import torch


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Returns float64, or float32 on MPS, which does not support float64."""
    return torch.float32 if device.type == "mps" else torch.float64
