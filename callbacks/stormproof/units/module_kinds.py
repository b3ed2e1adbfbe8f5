"""Classifies modules as activations, layers or others, and reads their outputs."""

from __future__ import annotations

from inspect import getattr_static
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from stormproof.units.maxout_pieces import MaxoutPieces
from stormproof.units.transforms import plain_values
from stormproof.units.unit_axis import output_units, weight_shape

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def is_watched(module: nn.Module) -> bool:
    """A module is watched if it is an activation, contains MaxoutPieces, or is a user's leaf without parameters."""
    if is_activation(module) or any(isinstance(child, MaxoutPieces) for child in module.children()):
        return True
    is_user_module = not type(module).__module__.startswith(("torch.", "torchmetrics."))
    return is_user_module and not any(True for _ in module.children()) and not any(True for _ in module.parameters())


def is_activation(module: nn.Module) -> bool:
    """Returns True for activations and recurrent networks of torch, and for MaxoutPieces."""
    if isinstance(module, (*RECURRENT, MaxoutPieces)):
        return True
    return type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, nn.MultiheadAttention)


def is_layer(module: nn.Module) -> bool:
    """A module is a layer if it computes units from parameters."""
    if output_units(module) is not None:
        return True
    is_user_module = not type(module).__module__.startswith("torch.")
    return (
        is_user_module
        and not any(True for _ in module.children())
        and any(True for _ in module.parameters(recurse=False))
    )


def makes_no_units(module: nn.Module, arguments: Any, output: Any) -> bool:
    """Returns True if a user's module is not an activation, because it returns its input or changes the shape."""
    if is_activation(module) or any(True for _ in module.children()):
        return False
    takes_tensor = isinstance(output, torch.Tensor) and bool(arguments) and isinstance(arguments[0], torch.Tensor)
    return not takes_tensor or output is arguments[0] or weight_shape(output) != weight_shape(arguments[0])


def output_tensor(output: Any) -> torch.Tensor | None:
    """Returns the detached tensor with the units of an output, or None if there is no floating-point tensor."""
    # recurrent networks return (output, state)
    while isinstance(output, tuple) and output and not isinstance(output, PackedSequence):
        output = output[0]
    tensor = output.data if isinstance(output, PackedSequence) else output
    return plain_values(tensor) if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() else None


def count_samples(module: nn.Module, output: Any, tensor: torch.Tensor) -> int:
    """Returns the number of samples of an output."""
    sequences = output[0] if isinstance(output, tuple) and not isinstance(output, PackedSequence) else output
    if isinstance(sequences, PackedSequence):
        return int(sequences.batch_sizes[0])
    if isinstance(module, nn.RNNBase) and not module.batch_first and tensor.ndim == 3:
        return tensor.size(1)
    return tensor.size(0)


def flatten_nested(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenates the sequences of a nested tensor. Returns other tensors unchanged."""
    return torch.cat(tensor.unbind()) if tensor.is_nested else tensor


def is_compiled(module: nn.Module) -> bool:
    """Returns True if the module, its ``forward`` or a function attribute was compiled with ``torch.compile``."""
    if getattr(module, "_compiled_call_impl", None) is not None:
        return True
    candidates = (*vars(module).values(), type(module).forward)
    return any(getattr_static(candidate, "_torchdynamo_orig_callable", None) is not None for candidate in candidates)
