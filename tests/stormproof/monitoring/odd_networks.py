"""Networks whose batches, activations, parameters or gradients monitors may be unable to measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self
from unittest.mock import MagicMock

import torch
from torch import nn
from torch.utils._pytree import tree_map_only


class Labelled(torch.Tensor):
    """A tensor whose methods need an attribute that the results of torch functions lack, as PINA's LabelTensor."""

    labels: list[str]

    @classmethod
    def label(cls, tensor: torch.Tensor) -> Labelled:
        labelled: Any = tensor.as_subclass(cls)
        labelled.labels = ["x", "y"]
        return labelled

    def to(self, *args: Any, **kwargs: Any) -> Labelled:
        moved: Any = super().to(*args, **kwargs)
        moved.labels = self.labels
        return moved

    def detach(self) -> Labelled:
        detached: Any = super().detach()
        detached.labels = self.labels
        return detached


class Strict(torch.Tensor):
    """A tensor that supports only the functions of its network, and counts their calls."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in {"linear", "relu", "as_subclass", "__get__"}:
            raise NotImplementedError(f"{func} is not supported.")
        Strict.calls += 1
        return super().__torch_function__(func, types, args, kwargs)


class Wrapped(torch.Tensor):
    """A tensor that holds another one, as quantized and distributed tensors do."""

    data_: torch.Tensor

    def __new__(cls, data: torch.Tensor) -> Self:
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype, requires_grad=data.requires_grad)

    def __init__(self, data: torch.Tensor) -> None:
        self.data_ = data

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "amin" in str(func) or "amax" in str(func) or "norm" in str(func):
            raise NotImplementedError(f"{func} is not supported.")
        args, kwargs = tree_map_only(Wrapped, lambda value: value.data_, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, Wrapped, func(*args, **kwargs))


class Unwrap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wrapped: Any) -> torch.Tensor:
        return wrapped.data_ if isinstance(wrapped, Wrapped) else wrapped

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        return grad_outputs[0]


class OddParameter(nn.Module):
    """A network with a trained parameter of a tensor subclass, so that its gradient is one, too."""

    def __init__(self, kind: type[torch.Tensor]) -> None:
        super().__init__()
        self.scale, self.last = nn.Parameter(torch.ones(8).as_subclass(kind)), nn.Linear(8, 3)
        self.kind = kind

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(inputs * plain(self.scale))


class Unmeasured(torch.Tensor):
    """A tensor that optimizers can update, but that has no norm."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "norm" in getattr(func, "__name__", "") or getattr(func, "__name__", "") in {"cat", "any", "sum", "numel"}:
            raise NotImplementedError(f"{func} is not supported.")
        return super().__torch_function__(func, types, args, kwargs)


class Then(nn.Module):
    """Applies a function, as a leaf without parameters, which DeadNeuronDetector watches."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


@dataclass
class Output:
    hidden: torch.Tensor


class NamedOutput(NamedTuple):
    hidden: torch.Tensor


class Encoding(Mapping[str, Any]):
    """A mapping whose attributes are its entries, and that computes its values at each access."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self._entries = {"hidden": hidden}

    def __getitem__(self, key: str) -> Any:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        if name in {"items", "values"}:
            raise RuntimeError("Entries are only accessible by key.")
        return self._entries[name]


class Answering(nn.Module):
    """A layer that answers every attribute with a mock, and has one as a parameterless attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.settings = nn.Linear(8, 8), MagicMock()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return MagicMock()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs)


class Hidden(nn.Module):
    """A network with an odd part between a first and a last layer."""

    def __init__(self, *odd: Any) -> None:
        super().__init__()
        self.first, self.odd, self.last = nn.Linear(8, 8), nn.Sequential(*odd), nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.odd(self.first(inputs)))


def plain(tensor: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor)


def nested(inputs: torch.Tensor, layout: torch.layout) -> torch.Tensor:
    return torch.nested.as_nested_tensor([inputs[:2], inputs[2:]], layout=layout)


def unnested(inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat(inputs.unbind())


class Unused(Hidden):
    """A network with parameters that no step uses."""

    def __init__(self, unused: nn.Module) -> None:
        super().__init__(nn.ReLU())
        self.unused = unused


class Embedded(nn.Module):
    """A network whose embeddings have sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(20, 8, sparse=True), nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.embedding(inputs[:, 0].abs().long() % 20).relu())


class SparseWeight(nn.Module):
    """A layer with a sparse weight, whose activations are sparse, too."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
        self.layout = layout

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        sparse = hidden.detach().to_sparse() if self.layout == "coo" else hidden.detach().to_sparse_csr()
        return self.last(hidden + self.act(sparse).to_dense())


class ComplexNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(8, 8, dtype=torch.complex64), nn.Tanh(), nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.act(self.first(inputs.to(torch.complex64))).real)


class Quantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        quantized = torch.quantize_per_tensor(hidden.detach(), 0.1, 0, torch.qint8)
        return self.last(hidden + self.act(quantized).dequantize())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "stateful subclass": lambda: Hidden(
        Then(Labelled.label), nn.ReLU(), nn.Linear(8, 8), Then(torch.tanh), Then(plain)
    ),
    "subclass that supports few functions": lambda: Hidden(
        Then(lambda hidden: hidden.as_subclass(Strict)), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), Then(plain)
    ),
    "wrapper subclass": lambda: Hidden(
        Then(lambda hidden: hidden + Unwrap.apply(nn.ReLU()(Wrapped(hidden.detach())))), nn.ReLU()
    ),
    "wrapper subclass in modules": lambda: Hidden(
        Then(lambda hidden: Wrapped(hidden.detach())), nn.ReLU(), Then(lambda hidden: hidden.data_)
    ),
    "nested": lambda: Hidden(
        Then(lambda hidden: nested(hidden, torch.strided)), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), Then(unnested)
    ),
    "jagged": lambda: Hidden(
        Then(lambda hidden: nested(hidden, torch.jagged)), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), Then(unnested)
    ),
    "sparse activations": lambda: SparseWeight("coo"),
    "compressed sparse activations": lambda: SparseWeight("csr"),
    "quantized activations": Quantized,
    "complex activations": ComplexNetwork,
    "integer activations": lambda: Hidden(
        nn.ReLU(), Then(lambda hidden: (hidden, nn.ReLU()((hidden * 9).long()))), Then(lambda pair: pair[0] + pair[1])
    ),
    "bool activations": lambda: Hidden(Then(lambda hidden: hidden > 0), Then(lambda mask: mask.float()), nn.ReLU()),
    "empty activations": lambda: Hidden(
        Then(lambda hidden: (hidden, nn.ReLU()(hidden[:0]))), Then(lambda pair: pair[0] + pair[1].sum()), nn.ReLU()
    ),
    "half of the units": lambda: Hidden(nn.ReLU(), Then(lambda hidden: hidden[:, ::2]), nn.Linear(4, 8), nn.Tanh()),
    "module that returns None": lambda: Hidden(
        Then(lambda hidden: None), Then(lambda none: torch.zeros(4, 8)), nn.ReLU()
    ),
    "module that returns a string": lambda: Hidden(
        Then(lambda hidden: ("a", hidden)), Then(lambda pair: pair[1]), nn.ReLU()
    ),
    "module that returns a dataclass": lambda: Hidden(Then(Output), Then(lambda output: output.hidden), nn.ReLU()),
    "module that returns a named tuple": lambda: Hidden(
        Then(NamedOutput), Then(lambda output: output.hidden), nn.ReLU()
    ),
    "module that returns a mapping": lambda: Hidden(Then(Encoding), Then(lambda output: output["hidden"]), nn.ReLU()),
    "module that returns a mock": lambda: Hidden(
        Then(lambda hidden: MagicMock(spec=torch.Tensor, hidden=hidden)), Then(lambda output: output.hidden), nn.ReLU()
    ),
    "module that answers every attribute": lambda: Hidden(Answering(), nn.ReLU()),
    "lazy parameters": lambda: Unused(nn.LazyLinear(8)),
    "lazy parameters that are used": lambda: Hidden(nn.LazyLinear(8), nn.ReLU()),
    "integer parameters": lambda: Unused(nn.ParameterList([nn.Parameter(torch.ones(3).long(), requires_grad=False)])),
    "empty parameters": lambda: Unused(nn.ParameterList([nn.Parameter(torch.ones(0))])),
    "sparse gradients": Embedded,
    "parameter without a norm": lambda: OddParameter(Unmeasured),
    "only sparse gradients": lambda: nn.Sequential(
        Then(lambda inputs: inputs[:, 0].abs().long() % 20), nn.Embedding(20, 3, sparse=True)
    ),
    "sparse parameters": lambda: Unused(
        nn.ParameterList([nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False)])
    ),
}  # fmt: skip
