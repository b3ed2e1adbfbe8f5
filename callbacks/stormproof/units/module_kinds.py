"""What kind of module puts out units, and how its output is to be read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from stormproof.units.maxout_pieces import MaxoutPieces
from stormproof.units.unit_axis import output_units, weight_shape

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def is_watched(module: nn.Module) -> bool:
    """Activations, recurrent networks, pieces and who has them, and modules of one's own without parameters."""
    if is_activation(module) or any(isinstance(child, MaxoutPieces) for child in module.children()):
        return True
    is_user_module = not type(module).__module__.startswith(("torch.", "torchmetrics."))
    return is_user_module and not any(True for _ in module.children()) and not any(True for _ in module.parameters())


def is_activation(module: nn.Module) -> bool:
    """Whether its kind is known to be called in a forward pass and to put out units: torch's own, and pieces."""
    if isinstance(module, (*RECURRENT, MaxoutPieces)):
        return True
    return type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, nn.MultiheadAttention)


def is_layer(module: nn.Module) -> bool:
    """Whether units are made by it: it has parameters, of which each output is a combination."""
    if output_units(module) is not None:
        return True
    is_user_module = not type(module).__module__.startswith("torch.")
    return (
        is_user_module
        and not any(True for _ in module.children())
        and any(True for _ in module.parameters(recurse=False))
    )


def makes_no_units(module: nn.Module, arguments: Any, output: Any) -> bool:
    """Whether a module of one's own makes something else than an activation: of another shape, or nothing at all."""
    if is_activation(module) or any(True for _ in module.children()):
        return False
    takes_tensor = isinstance(output, torch.Tensor) and bool(arguments) and isinstance(arguments[0], torch.Tensor)
    return not takes_tensor or output is arguments[0] or weight_shape(output) != weight_shape(arguments[0])


def output_tensor(output: Any) -> torch.Tensor | None:
    """What of a module's output are its units; None if it is nothing of the kind."""
    while isinstance(output, tuple) and output and not isinstance(output, PackedSequence):  # recurrent: output, state
        output = output[0]
    tensor = output.data if isinstance(output, PackedSequence) else output
    return tensor if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() else None


def count_samples(module: nn.Module, output: Any, tensor: torch.Tensor) -> int:
    """How many inputs an output is of."""
    sequences = output[0] if isinstance(output, tuple) and not isinstance(output, PackedSequence) else output
    if isinstance(sequences, PackedSequence):
        return int(sequences.batch_sizes[0])
    if isinstance(module, nn.RNNBase) and not module.batch_first and tensor.ndim == 3:
        return tensor.size(1)
    return tensor.size(0)


def flatten_nested(tensor: torch.Tensor) -> torch.Tensor:
    """Sequences of several lengths, one behind the other."""
    return torch.cat(tensor.unbind()) if tensor.is_nested else tensor


def is_compiled(module: nn.Module) -> bool:
    """Whether a module, its ``forward`` or a function that it holds went through ``torch.compile``."""
    if getattr(module, "_compiled_call_impl", None) is not None:
        return True
    candidates = (*vars(module).values(), type(module).forward)
    return any(hasattr(candidate, "_torchdynamo_orig_callable") for candidate in candidates)
