"""What each tensor of a training step was computed from: of which layers' weights, of which parts of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from stormproof.units.callers_line import call_at_callers_line

VALUE_PRESERVING = frozenset({
    "view", "reshape", "view_as", "reshape_as", "squeeze", "unsqueeze", "flatten", "unflatten", "transpose", "permute",
    "movedim", "contiguous", "clone", "to", "float", "double", "type", "type_as", "cpu", "cuda", "expand", "expand_as",
    "__getitem__", "select", "narrow", "detach", "requires_grad_", "squeeze_", "unsqueeze_", "t", "swapaxes", "ravel",
})  # fmt: skip
"""Functions whose output has the values of their input: what made these made it too."""

ZERO_GRADIENT = frozenset({"round", "floor", "ceil", "trunc", "sign", "sgn", "heaviside"})
"""Functions whose gradient is zero, so that none passes."""


@dataclass(frozen=True)
class Origin:
    """What a tensor was computed from.

    Attributes:
        layers: whose weights its value depends on.
        live: those of them that its gradient reaches.
        data: the numbers of the batch's tensors that its value depends on.
        made_by: the function that gave it its values.
        layer: the last layer on the way; None where there was none.
        cut: the function at which the graph was cut first; None if it was not.
    """

    layers: frozenset[str] = frozenset()
    differentiable_layers: frozenset[str] = frozenset()
    batch_indices: frozenset[int] = frozenset()
    producer: str = ""
    layer: str | None = None
    detached_by: str | None = None


FunctionCallback = Callable[[str, tuple[Any, ...], Mapping[str, Any], torch.Tensor, Origin], None]
"""Called with each function, its arguments, a tensor that it gave, and that one's origin."""


class ProvenanceTracker(TorchFunctionMode):
    """Follows a training step while it is run within this context.

    What no function of torch's passes on, such as a NumPy array or the output of a custom ``autograd.Function``, has no
    origin. Nothing is kept alive that the step does not keep.

    Args:
        layer_names: the name of each parameter's layer, by the parameter's ``id``.
        batch: the tensors of the batch.
        on_call: told of every call.

    Attributes:
        error: what went wrong in following; nothing is followed after it.
    """

    def __init__(self, layer_names: Mapping[int, str], batch: list[torch.Tensor], on_call: FunctionCallback) -> None:
        super().__init__()
        self._layer_names, self._on_call = layer_names, on_call
        self.error: Exception | None = None
        self._origins: Any = WeakIdKeyDictionary()
        for index, tensor in enumerate(batch):
            self._origins[tensor] = Origin(batch_indices=frozenset({index}))

    def origin_of(self, tensor: torch.Tensor) -> Origin:
        """What a tensor was computed from; nothing, if that is not known."""
        layer = self._layer_names.get(id(tensor))
        if layer is not None:
            layers = frozenset({layer})
            return Origin(layers=layers, differentiable_layers=layers if tensor.requires_grad else frozenset())
        return self._origins.get(tensor) or Origin()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs ``func``, and notes where its output comes from."""
        kwargs = kwargs or {}
        inputs = list(iter_tensors((args, kwargs)))
        requires_grad = [tensor.requires_grad for tensor in inputs]  # before a function changes one in place
        output = call_at_callers_line(func, args, kwargs)
        name = _function_name(func)
        outputs = (
            [args[0]] if name == "__setitem__" and isinstance(args[0], torch.Tensor) else list(iter_tensors(output))
        )
        if outputs and inputs and self.error is None and _are_plain_tensors(outputs):
            try:
                self._record_origins(name, args, kwargs, inputs, requires_grad, outputs)
            except Exception as error:  # noqa: BLE001 (of all kinds; it would end the user's step)
                self.error = error
        return output

    def _record_origins(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        inputs: list[torch.Tensor],
        requires_grad: list[bool],
        outputs: list[torch.Tensor],
    ) -> None:
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
                self._on_call(name, args, kwargs, tensor, origin)


def iter_tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested lists, tuples and mappings of any kind, which torch's own ``pytree`` does not open."""
    if isinstance(value, torch.Tensor):
        if not value.is_nested:  # of which no part can be looked at
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from iter_tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from iter_tensors(item)


def batch_size(batch: Any) -> int | None:
    """Returns the first dimension of the first tensor of a batch that has one. None if there is none."""
    return next((tensor.size(0) for tensor in iter_tensors(batch) if tensor.ndim), None)


def _are_plain_tensors(tensors: list[torch.Tensor]) -> bool:
    """Whether they are numbers, rather than what a compiler or a transform such as ``vmap`` traces with."""
    have_plain_types = all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in tensors)
    functorch: Any = torch._C._functorch  # type: ignore[attr-defined]  # noqa: SLF001 (there is no public name)
    return have_plain_types and functorch.peek_interpreter_stack() is None


def _producer_name(name: str, input_producer: str) -> str:
    """What made a tensor; of a sigmoid, that it was taken twice, which no number of it shows."""
    return f"{name} of {input_producer}" if name == input_producer == "sigmoid" else name


def _function_name(func: Any) -> str:
    name = getattr(func, "__name__", "")
    if name == "__get__":  # a property, such as .data
        return getattr(getattr(func, "__self__", None), "__name__", name)
    return name
