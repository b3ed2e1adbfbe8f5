"""What each tensor of a training step was computed from: of which layers' weights, of which parts of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from stormproof.units.callers_line import call_at_callers_line

PASS_ON = frozenset({
    "view", "reshape", "view_as", "reshape_as", "squeeze", "unsqueeze", "flatten", "unflatten", "transpose", "permute",
    "movedim", "contiguous", "clone", "to", "float", "double", "type", "type_as", "cpu", "cuda", "expand", "expand_as",
    "__getitem__", "select", "narrow", "detach", "requires_grad_", "squeeze_", "unsqueeze_", "t", "swapaxes", "ravel",
})  # fmt: skip
"""Functions whose output has the values of their input: what made these made it too."""

FLAT = frozenset({"round", "floor", "ceil", "trunc", "sign", "sgn", "heaviside"})
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
    live: frozenset[str] = frozenset()
    data: frozenset[int] = frozenset()
    made_by: str = ""
    layer: str | None = None
    cut: str | None = None


Look = Callable[[str, tuple[Any, ...], Mapping[str, Any], torch.Tensor, Origin], None]
"""Called with each function, its arguments, a tensor that it gave, and that one's origin."""


class Origins(TorchFunctionMode):
    """Follows a training step while it is run within this context.

    What no function of torch's passes on, such as a NumPy array or the output of a custom ``autograd.Function``, has no
    origin. Nothing is kept alive that the step does not keep.

    Args:
        layers: the name of each parameter's layer, by the parameter's ``id``.
        batch: the tensors of the batch.
        look: told of every call.

    Attributes:
        error: what went wrong in following; nothing is followed after it.
    """

    def __init__(self, layers: Mapping[int, str], batch: list[torch.Tensor], look: Look) -> None:
        super().__init__()
        self._layers, self._look = layers, look
        self.error: Exception | None = None
        self._origins: Any = WeakIdKeyDictionary()
        for number, part in enumerate(batch):
            self._origins[part] = Origin(data=frozenset({number}))

    def of(self, tensor: torch.Tensor) -> Origin:
        """What a tensor was computed from; nothing, if that is not known."""
        layer = self._layers.get(id(tensor))
        if layer is not None:
            named = frozenset({layer})
            return Origin(layers=named, live=named if tensor.requires_grad else frozenset())
        return self._origins.get(tensor) or Origin()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs ``func``, and notes where its output comes from."""
        kwargs = kwargs or {}
        taken = list(tensors_in((args, kwargs)))
        needs_gradient = [each.requires_grad for each in taken]  # before a function changes one in place
        given = call_at_callers_line(func, args, kwargs)
        name = _name_of(func)
        made = [args[0]] if name == "__setitem__" and isinstance(args[0], torch.Tensor) else list(tensors_in(given))
        if made and taken and self.error is None and _are_values(made):
            try:
                self._note(name, args, kwargs, taken, needs_gradient, made)
            except Exception as error:  # noqa: BLE001 (of all kinds; it would end the user's step)
                self.error = error
        return given

    def _note(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        taken: list[torch.Tensor],
        needs_gradient: list[bool],
        made: list[torch.Tensor],
    ) -> None:
        before = [self.of(each) for each in taken]
        if not any(each.layers or each.data for each in before):
            return
        layer = next((self._layers[id(each)] for each in taken if id(each) in self._layers), None)
        ways = (each.layer for each in before if each.layer is not None)
        joined = Origin(
            layers=frozenset().union(*(each.layers for each in before)),
            live=frozenset().union(*(each.live for each, needs in zip(before, needs_gradient, strict=True) if needs)),
            data=frozenset().union(*(each.data for each in before)),
            made_by=before[0].made_by if name in PASS_ON else _made(name, before[0].made_by),
            layer=layer or next(ways, None),
            cut=next((each.cut for each in before if each.cut is not None), None),
        )
        for tensor in made:
            origin = joined
            if (not tensor.requires_grad or name.rstrip("_") in FLAT) and joined.live:
                how = name if torch.is_grad_enabled() else "no_grad"
                origin = replace(joined, live=frozenset(), cut=joined.cut or how)
            elif not tensor.requires_grad and joined.layers and not torch.is_grad_enabled():
                origin = replace(joined, cut=joined.cut or "no_grad")
            if id(tensor) not in self._layers:
                self._origins[tensor] = origin
                self._look(name, args, kwargs, tensor, origin)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested lists, tuples and mappings of any kind, which torch's own ``pytree`` does not open."""
    if isinstance(value, torch.Tensor):
        if not value.is_nested:  # of which no part can be looked at
            yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)


def batch_size(batch: Any) -> int | None:
    """Returns the first dimension of the first tensor of a batch that has one. None if there is none."""
    return next((each.size(0) for each in tensors_in(batch) if each.ndim), None)


def _are_values(tensors: list[torch.Tensor]) -> bool:
    """Whether they are numbers, rather than what a compiler or a transform such as ``vmap`` traces with."""
    plain = all(type(each) in (torch.Tensor, torch.nn.Parameter) for each in tensors)
    functorch: Any = torch._C._functorch  # type: ignore[attr-defined]  # noqa: SLF001 (there is no public name)
    return plain and functorch.peek_interpreter_stack() is None


def _made(name: str, before: str) -> str:
    """What made a tensor; of a sigmoid, that it was taken twice, which no number of it shows."""
    return f"{name} of {before}" if name == before == "sigmoid" else name


def _name_of(func: Any) -> str:
    name = getattr(func, "__name__", "")
    if name == "__get__":  # a property, such as .data
        return getattr(getattr(func, "__self__", None), "__name__", name)
    return name
