"""Where a network applies an activation as a function, which no hook of a module sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

_ACTIVATIONS = frozenset({
    "relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus",
    "softsign", "hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink", "tanhshrink", "logsigmoid",
    "sigmoid", "special_expit", "tanh", "threshold", "glu", "softmax", "softmin", "log_softmax",
    "clamp", "clamp_min", "clip",
})  # fmt: skip
_PASS_ON = frozenset({
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "batch_norm",
    "flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "movedim",
    "contiguous", "clone", "to", "type", "float", "half", "bfloat16", "double", "pad", "mean", "amax", "mul",
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
})  # fmt: skip
"""Behind these a unit is constant where it was, and no new unit is made; a product is a gate."""


@dataclass(frozen=True)
class Origin:
    """What a tensor is the output of.

    Attributes:
        function: the activation's name, e.g. ``relu``.
        layer: the layer before it.
        units: the dimension that counted the units in its output, and how many they are.
        watched: the module whose output is watched already; None for a plain function.
    """

    function: str
    layer: str
    units: tuple[int, int]
    watched: str | None = None


class FunctionalActivations(TorchFunctionMode):
    """Follows activations through a network, while one batch passes it, to the layers that consume them.

    Args:
        before: called with an activation's name and the shape of its output; gives its origin, None where no layer is
            before it.
    """

    def __init__(self, before: Callable[[str, torch.Size], Origin | None]) -> None:
        super().__init__()
        self._before = before
        self._origins = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls ``func`` and notes where its output comes from."""
        output = func(*args, **(kwargs or {}))
        if not isinstance(output, torch.Tensor) or output.ndim < 2:
            return output
        name = getattr(func, "__name__", "").removesuffix("_")
        origin = None
        if name in _ACTIVATIONS:
            origin = self._before(name, output.shape)
        elif name in _PASS_ON:
            origin = next((found for found in map(self.origin, args) if found is not None), None)
        if origin is not None:
            self._origins[output] = origin
        return output

    def origin(self, tensor: Any) -> Origin | None:
        """What ``tensor`` is the output of; None if of no activation."""
        return self._origins.get(tensor) if isinstance(tensor, torch.Tensor) else None

    def note(self, output: torch.Tensor, origin: Origin) -> Origin:
        """Notes that ``output`` is that of a watched module, and returns what is known of it."""
        known = replace(self.origin(output) or origin, watched=origin.watched)
        self._origins[output] = known
        return known
