"""Tracks the layers and the parts of the batch that each tensor of a step depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from stormproof.internal_errors import isolated_until_error
from stormproof.units.callers_line import call_at_callers_line
from stormproof.units.transforms import has_values, is_transforming
from stormproof.user_objects import read_attributes

BATCH_DEPTH = 2
"""Number of nested objects in a batch that are searched for tensors, such as graphs and dataclasses."""

VALUE_PRESERVING = frozenset({
    "view", "reshape", "view_as", "reshape_as", "squeeze", "unsqueeze", "flatten", "unflatten", "transpose", "permute",
    "movedim", "contiguous", "clone", "to", "float", "double", "type", "type_as", "cpu", "cuda", "expand", "expand_as",
    "__getitem__", "select", "narrow", "detach", "requires_grad_", "squeeze_", "unsqueeze_", "t", "swapaxes", "ravel",
})  # fmt: skip
"""Functions that return the values of their input, so that the producer stays the same."""

CONSTANT_FUNCTIONS = frozenset({
    "ones_like", "zeros_like", "full_like", "empty_like", "new_ones", "new_zeros", "new_full", "new_empty",
})  # fmt: skip
"""Functions that return new tensors of constants with the shape or type of their input."""

FORMAT_FUNCTIONS = frozenset({"to", "type_as", "expand_as", "view_as", "reshape_as"})
"""Functions that use another tensor only for its type, device or shape."""

IN_PLACE_OPERATORS = frozenset({"__setitem__", "__iadd__", "__isub__", "__imul__", "__idiv__", "__itruediv__"})
"""Operators that change their first argument. Other such functions have a name that ends with an underscore."""

ZERO_GRADIENT = frozenset({"round", "floor", "ceil", "trunc", "sign", "sgn", "heaviside"})
"""Functions with a gradient of zero."""


@dataclass(frozen=True)
class Bounds:
    """Range of a tensor.

    Attributes:
        function: Function that bounds the values.
        low: Lowest possible value.
        high: Highest possible value.
    """

    function: str
    low: float
    high: float


BOUNDED_FUNCTIONS = {
    **dict.fromkeys(("relu", "softplus", "exp", "square", "abs"), (0.0, math.inf)),
    **dict.fromkeys(("tanh", "cosine_similarity", "sin", "cos"), (-1.0, 1.0)),
    "relu6": (0.0, 6.0),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
}
"""Ranges of functions, without the underscore of in-place variants."""


ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    **dict.fromkeys(("add", "radd"), lambda limit, number: limit + number),
    "sub": lambda limit, number: limit - number,
    "rsub": lambda limit, number: number - limit,
    **dict.fromkeys(("mul", "rmul"), lambda limit, number: limit * number),
    **dict.fromkeys(("div", "truediv", "true_divide"), lambda limit, number: limit / number if number else math.nan),
}
"""Functions of a tensor and a number, without underscores, as functions of a bound of the tensor and the number."""


@dataclass(frozen=True)
class Origin:
    """Dependencies of a tensor.

    Attributes:
        layers: Layers whose weights the tensor depends on.
        differentiable_layers: Subset of ``layers`` that a gradient of the tensor reaches.
        batch_indices: Indices of the batch tensors that the tensor depends on.
        producer: Function that computed the values.
        layer: Last layer before the tensor. None for data.
        detached_by: First function that cut the graph. None if the graph is intact.
        bounds: Range of the values. None if unbounded or unknown.
        mode_functions: Functions before the tensor that compute something else in evaluation mode.
    """

    layers: frozenset[str] = frozenset()
    differentiable_layers: frozenset[str] = frozenset()
    batch_indices: frozenset[int] = frozenset()
    producer: str = ""
    layer: str | None = None
    detached_by: str | None = None
    bounds: Bounds | None = None
    mode_functions: frozenset[str] = frozenset()


FunctionCallback = Callable[[str, tuple[Any, ...], Mapping[str, Any], torch.Tensor, Origin], None]
"""Called with the name of a function, its arguments, a tensor that it returned, and the origin of the tensor."""


class ProvenanceTracker(TorchFunctionMode):
    """Context manager that tracks the origins of all tensors of a step.

    A tensor that is not the output of a torch function has no origin, such as a converted NumPy array or the output of
    a custom ``autograd.Function``. The tracker keeps only weak references.

    Args:
        layer_names: Layer names by ``id`` of the parameter.
        batch: Tensors of the batch.
        on_call: Function to call after each torch function.

    Attributes:
        error: First error while tracking. Tracking ends after it.
    """

    def __init__(self, layer_names: Mapping[int, str], batch: list[torch.Tensor], on_call: FunctionCallback) -> None:
        super().__init__()
        self._layer_names, self._on_call = layer_names, on_call
        self.error: Exception | None = None
        self._origins: Any = WeakIdKeyDictionary()
        self._indices_by_storage: dict[int, set[int]] = {}  # indices of the batch tensors by address of their memory
        for index, tensor in enumerate(batch):
            self._origins[tensor] = Origin(batch_indices=frozenset({index}))
            self._indices_by_storage.setdefault(_storage_address(tensor), set()).add(index)
        self._indices_by_storage.pop(0, None)

    def origin_of(self, tensor: torch.Tensor) -> Origin:
        """Returns the origin of a tensor. It is empty if unknown."""
        layer = self._layer_names.get(id(tensor))
        if layer is not None:
            layers = frozenset({layer})
            return Origin(layers=layers, differentiable_layers=layers if tensor.requires_grad else frozenset())
        origin = self._origins.get(tensor)
        if origin is None:  # a view that is not made by a torch function, such as by Tensor.as_subclass
            indices = self._indices_by_storage.get(_storage_address(tensor), set())
            return Origin(batch_indices=frozenset(indices if len(indices) == 1 else ()))
        return origin

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs ``func`` and records the origin of its output."""
        kwargs = kwargs or {}
        inputs: list[tuple[torch.Tensor, bool]] = []
        isolated_until_error(self, self._add_inputs)(inputs, (args, kwargs))
        output = call_at_callers_line(func, args, kwargs)
        if inputs:
            isolated_until_error(self, self._record_call)(_function_name(func), args, kwargs, inputs, output)
        return output

    def _add_inputs(self, inputs: list[tuple[torch.Tensor, bool]], arguments: Any) -> None:
        """Adds the tensors among arguments, and whether they require a gradient, which an in-place function changes."""
        inputs += [(tensor, tensor.requires_grad) for tensor in iter_tensors(arguments)]

    def _record_call(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        inputs: list[tuple[torch.Tensor, bool]],
        output: Any,
    ) -> None:
        """Records the origins of the outputs of a function that have values."""
        outputs = (
            [args[0]] if name == "__setitem__" and isinstance(args[0], torch.Tensor) else list(iter_tensors(output))
        )
        if outputs and not is_transforming() and all(map(has_values, outputs)):
            self._record_origins(
                name, args, kwargs, [tensor for tensor, _ in inputs], [flag for _, flag in inputs], outputs
            )

    def _record_origins(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        inputs: list[torch.Tensor],
        requires_grad: list[bool],
        outputs: list[torch.Tensor],
    ) -> None:
        """Merges the origins of the inputs into the origins of the outputs."""
        if name in CONSTANT_FUNCTIONS or _is_product_with_zero(name, args):
            return
        if name in FORMAT_FUNCTIONS:
            inputs, requires_grad = inputs[:1], requires_grad[:1]
        input_origins = [self.origin_of(tensor) for tensor in inputs]
        if not any(origin.layers or origin.batch_indices for origin in input_origins):
            return
        layer = next((self._layer_names[id(tensor)] for tensor in inputs if id(tensor) in self._layer_names), None)
        input_layers = (origin.layer for origin in input_origins if origin.layer is not None)
        merged = Origin(
            layers=frozenset().union(*(origin.layers for origin in input_origins)),
            differentiable_layers=frozenset().union(
                *(
                    origin.differentiable_layers
                    for origin, input_requires_grad in zip(input_origins, requires_grad, strict=True)
                    if input_requires_grad
                )
            ),
            batch_indices=frozenset().union(*(origin.batch_indices for origin in input_origins)),
            producer=input_origins[0].producer
            if name in VALUE_PRESERVING
            else _producer_name(name, input_origins[0].producer),
            layer=layer or next(input_layers, None),
            detached_by=next((origin.detached_by for origin in input_origins if origin.detached_by is not None), None),
            bounds=_find_bounds(name, args, kwargs, input_origins[0].bounds),
            mode_functions=frozenset().union(
                *(origin.mode_functions for origin in input_origins), _find_mode_function(name, args, kwargs)
            ),
        )
        for tensor in outputs:
            origin = merged
            if (not tensor.requires_grad or name.rstrip("_") in ZERO_GRADIENT) and merged.differentiable_layers:
                cut_by = name if torch.is_grad_enabled() else "no_grad"
                origin = replace(merged, differentiable_layers=frozenset(), detached_by=merged.detached_by or cut_by)
            elif not tensor.requires_grad and merged.layers and not torch.is_grad_enabled():
                origin = replace(merged, detached_by=merged.detached_by or "no_grad")
            if id(tensor) not in self._layer_names:
                self._origins[tensor] = origin
                self._forget_values_of_base(name, tensor)
                self._on_call(name, args, kwargs, tensor, origin)

    def _forget_values_of_base(self, name: str, tensor: torch.Tensor) -> None:
        """Removes the producer and the range of a tensor that an in-place function has changed through a view."""
        is_in_place = name in IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
        base = tensor._base if is_in_place else None  # noqa: SLF001 (torch has no public name for it)
        if base is not None and base in self._origins:
            self._origins[base] = replace(self._origins[base], producer=name, bounds=None)


def iter_tensors(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """Yields the tensors in nested lists, tuples and mappings. ``torch.utils._pytree`` skips unregistered mappings.

    Args:
        value: Batch, or arguments or result of a function.
        depth: Number of nested objects whose attributes are searched, see :data:`BATCH_DEPTH`.
    """
    if isinstance(value, torch.Tensor):
        if not value.is_nested:  # a nested tensor does not support most functions
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from iter_tensors(item, depth)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from iter_tensors(item, depth)
    elif depth and not isinstance(value, torch.nn.Module):
        yield from iter_tensors(read_attributes(value), depth - 1)


def batch_size(batch: Any) -> int | None:
    """Returns the first dimension of the first tensor that is not a scalar. None without such a tensor."""
    return next((tensor.size(0) for tensor in iter_tensors(batch, BATCH_DEPTH) if tensor.ndim), None)


def _find_mode_function(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> set[str]:
    """Returns ``batch_norm`` (with running statistics) or ``dropout`` for such a function in training mode."""
    if not kwargs.get("training") or (name == "batch_norm" and (len(args) < 2 or args[1] is None)):
        return set()
    return {"batch_norm"} & {name} or ({"dropout"} if "dropout" in name else set())


def _storage_address(tensor: torch.Tensor) -> int:
    """Returns the address of the memory of a tensor. 0 if it is empty, or not that of a dense tensor."""
    is_dense = has_values(tensor) and tensor.layout is torch.strided
    return tensor.untyped_storage().data_ptr() if is_dense else 0


def _producer_name(name: str, input_producer: str) -> str:
    """Returns the name of the producer. Marks a sigmoid of a sigmoid, which the values do not show."""
    return f"{name} of {input_producer}" if name == input_producer == "sigmoid" else name


def _is_product_with_zero(name: str, args: tuple[Any, ...]) -> bool:
    """Returns whether a function multiplies by the number zero."""
    return name.strip("_") in {"mul", "rmul"} and any(isinstance(value, int | float) and value == 0 for value in args)


def _find_bounds(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], bounds: Bounds | None) -> Bounds | None:
    """Returns the range of the output of a function whose first tensor has ``bounds``. None if unbounded or unknown."""
    function = name.strip("_")
    if function in BOUNDED_FUNCTIONS:
        return Bounds(function, *BOUNDED_FUNCTIONS[function])
    if function == "hardtanh":  # nn.ReLU6 calls it, too
        limits = (*args[1:3], *(kwargs[key] for key in ("min_val", "max_val") if key in kwargs)) or (-1.0, 1.0)
        return Bounds(function, float(limits[0]), float(limits[1])) if len(limits) == 2 else None
    if bounds is None or name in VALUE_PRESERVING:
        return bounds
    numbers = [argument for argument in args if isinstance(argument, int | float) and not isinstance(argument, bool)]
    if function in {"sub", "div"} and numbers and numbers[0] is args[0]:  # torch.sub(1, tensor)
        function = f"r{function}"
    if function == "neg":
        limits = (-bounds.low, -bounds.high)
    elif function not in ARITHMETIC or len(args) != 2 or not numbers or kwargs:
        return None
    else:
        limits = tuple(ARITHMETIC[function](limit, float(numbers[0])) for limit in (bounds.low, bounds.high))
    if any(map(math.isnan, limits)) or limits[0] == limits[1]:
        return None
    return Bounds(bounds.function, min(limits), max(limits))


def _function_name(func: Any) -> str:
    """Returns the name of a torch function or property."""
    name = getattr(func, "__name__", "")
    if name == "__get__":  # a property, such as .data
        return getattr(getattr(func, "__self__", None), "__name__", name)
    return name
