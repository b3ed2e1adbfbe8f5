"""Networks drawn by chance, each of which tells by itself which of its units never leave one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stormproof import MaxoutPieces

Layout = Literal["flat", "tokens", "sequence", "image"]

MODULES: dict[str, Any] = {
    "relu": nn.ReLU,
    "leaky relu": nn.LeakyReLU,
    "relu6": nn.ReLU6,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardtanh": nn.Hardtanh,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "rrelu": nn.RReLU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "softshrink": nn.Softshrink,
    "hardshrink": nn.Hardshrink,
    "tanhshrink": nn.Tanhshrink,
    "softsign": nn.Softsign,
    "log sigmoid": nn.LogSigmoid,
    "prelu": nn.PReLU,
    "threshold": lambda: nn.Threshold(0.1, 0.1),
}
IN_PLACE = ("relu", "relu6", "elu", "selu", "silu", "mish", "hardtanh", "leaky relu", "hardswish", "hardsigmoid")
FUNCTIONS: dict[str, Any] = {
    "functional.relu": functional.relu,
    "in place": functional.relu_,
    "method": torch.Tensor.relu,
    "clamp": lambda x: x.clamp(min=0),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "elu": functional.elu,
    "selu": torch.selu,
    "hardtanh": functional.hardtanh,
    "relu6": functional.relu6,
    "leaky relu": functional.leaky_relu,
    "softplus": functional.softplus,
    "mish": functional.mish,
    "log sigmoid": functional.logsigmoid,
    "hardsigmoid": functional.hardsigmoid,
    "softshrink": functional.softshrink,
    "squared": lambda x: functional.relu(x).square(),
}
KILL_KINDS = ("nothing", "bias low", "bias high", "no weights", "all zero")
UNIT_MAKERS: dict[Layout, tuple[str, ...]] = {
    "flat": ("linear", "linear", "glu", "swiglu", "maxout"),
    "tokens": ("linear", "linear", "swiglu", "gru", "lstm"),
    "sequence": ("conv",),
    "image": ("conv",),
}
NORMS: dict[Layout, tuple[str, ...]] = {
    "flat": ("none", "batch", "layer"),
    "tokens": ("none", "layer"),
    "sequence": ("none", "batch"),
    "image": ("none", "batch"),
}
LAYOUT_CHANGES: dict[Layout, tuple[str, ...]] = {
    "flat": ("stay",),
    "tokens": ("stay", "transpose", "flatten", "mean"),
    "sequence": ("stay", "transpose", "flatten", "mean"),
    "image": ("stay", "tokens", "flatten", "last flatten", "mean"),
}
NEXT_LAYOUT: dict[tuple[Layout, str], Layout] = {
    ("tokens", "transpose"): "sequence",
    ("sequence", "transpose"): "tokens",
    ("image", "tokens"): "tokens",
}
INPUT_SHAPES: dict[Layout, tuple[int, ...]] = {"flat": (6,), "tokens": (5, 6), "sequence": (3, 8), "image": (2, 8, 8)}


@dataclass(frozen=True)
class Block:
    """What makes units, what is applied to them, and what comes then."""

    maker: str
    units: int
    norm: str
    activation_form: str  # a module, one in place, one that all blocks share, or a function
    activation: str
    dropout: bool
    pool: bool
    layout_change: str
    kill: str
    frozen: bool
    checkpointed: bool


@st.composite
def network_plans(draw: st.DrawFn) -> tuple[Layout, list[Block]]:
    """The layout of the inputs, and one to three blocks."""
    layout: Layout = draw(st.sampled_from(list(INPUT_SHAPES)))
    first, blocks = layout, []
    for _ in range(draw(st.integers(1, 3))):
        maker = draw(st.sampled_from(UNIT_MAKERS[layout]))
        activation_form = (
            draw(st.sampled_from(["module", "in place", "shared", "function"])) if maker in {"linear", "conv"} else ""
        )
        kinds = {"module": list(MODULES), "in place": IN_PLACE, "function": list(FUNCTIONS)}.get(
            activation_form, ("relu",)
        )
        layout_change = draw(st.sampled_from(LAYOUT_CHANGES[layout]))
        blocks.append(
            Block(
                maker,
                units=draw(st.integers(2, 5)),
                norm=draw(st.sampled_from(NORMS[layout])),
                activation_form=activation_form,
                activation=draw(st.sampled_from(kinds)),
                dropout=draw(st.booleans()),
                pool=layout in {"sequence", "image"} and draw(st.booleans()),
                layout_change=layout_change,
                kill=draw(st.sampled_from(KILL_KINDS)),
                frozen=draw(st.booleans()),
                checkpointed=draw(st.booleans()),
            )
        )
        layout = NEXT_LAYOUT.get((layout, layout_change), layout if layout_change == "stay" else "flat")
    return first, blocks


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pieces = MaxoutPieces()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pieces(x.unflatten(-1, (-1, 2))).amax(-1)


class NetworkBlock(nn.Module):
    """A block that says what its units put out, to whoever listens."""

    def __init__(self, block: Block, layout: Layout, shape: tuple[int, ...], shared: nn.Module) -> None:
        super().__init__()
        self.block, self.layout = block, layout
        width, units = shape[-1 if layout in {"flat", "tokens"} else 0], block.units
        self.shared = [shared]  # in a list: it is the network's own
        layer_width = {"glu": 2 * units, "maxout": 2 * units}.get(block.maker, units)
        if block.maker in {"gru", "lstm"}:
            self.layer: Any = getattr(nn, block.maker.upper())(width, units, batch_first=True)
        elif block.maker == "conv":
            self.layer = {"sequence": nn.Conv1d, "image": nn.Conv2d}[layout](width, units, 3, padding=1)
        else:
            self.layer = nn.Linear(width, layer_width)
        if block.maker == "swiglu":
            self.gate = nn.Linear(width, units)
            self.down = nn.Linear(units, units)
        norms = {"flat": nn.BatchNorm1d, "sequence": nn.BatchNorm1d, "image": nn.BatchNorm2d}
        self.norm = {"none": nn.Identity, "layer": nn.LayerNorm, "batch": norms.get(layout)}[block.norm](layer_width)
        if block.maker in {"glu", "maxout"}:
            self.act: Any = nn.GLU() if block.maker == "glu" else Maxout()
        elif block.activation_form in {"module", "in place"}:
            self.act = MODULES[block.activation](**({"inplace": True} if block.activation_form == "in place" else {}))
        self.dropout = nn.Dropout(0.5) if block.dropout else nn.Identity()
        largest = (
            block.activation_form != "function" or block.activation == "functional.relu"
        )  # of others it does not tell
        pools = {"sequence": nn.MaxPool1d(2) if largest else nn.AvgPool1d(2), "image": nn.AvgPool2d(2)}
        self.pool = pools[layout] if block.pool else nn.Identity()
        self._kill()
        self.requires_grad_(not block.frozen)

    @torch.no_grad()
    def _kill(self) -> None:
        for name, parameter in self.layer.named_parameters():
            if self.block.kill == "all zero":
                parameter.zero_()
            elif self.block.kill == "no weights" and name.startswith("weight"):
                parameter[0] = 0
            elif self.block.kill in {"bias low", "bias high"} and name.startswith("bias"):
                parameter[0] = 200 if self.block.kill == "bias high" else -200

    def forward(self, x: torch.Tensor, name: str, recorder: UnitRecorder) -> torch.Tensor:
        if self.block.checkpointed and torch.is_grad_enabled():
            return checkpoint(self._forward, x, name, recorder, use_reentrant=False)  # type: ignore[return-value]
        return self._forward(x, name, recorder)

    def _forward(self, x: torch.Tensor, name: str, recorder: UnitRecorder) -> torch.Tensor:
        axis = -1 if self.layout in {"flat", "tokens"} else 1
        if self.block.maker not in {"gru", "lstm"}:
            recorder.record_inputs(f"{name}.layer", x)
        if self.block.maker == "swiglu":
            x = functional.silu(self.norm(self.layer(x))) * self.gate(x)
            recorder.pending = (axis, None)
            recorder.record_inputs(f"{name}.down", x)
            x = self.down(x)
            recorder.pending = None
        elif self.block.maker in {"gru", "lstm"}:
            x = self.layer(x)[0]
            recorder.record_units(f"{name}.layer", x, axis)
            recorder.pending = None
        else:
            x = self._activate(self.norm(self.layer(x)), name, axis, recorder)
        return self._change_layout(self.pool(self.dropout(x)), recorder)

    def _activate(self, x: torch.Tensor, name: str, axis: int, recorder: UnitRecorder) -> torch.Tensor:
        recorder.pending = None
        if self.block.activation_form == "function":
            recorder.pending = (axis, None)
            return FUNCTIONS[self.block.activation](x)
        if self.block.activation_form == "shared":
            x = self.shared[0](x)
            recorder.record_units(f"net.shared@{name}.layer", x, axis)
            return x
        if self.block.maker == "maxout":
            candidates = x.unflatten(-1, (-1, 2))
            recorder.record_max_wins(f"{name}.act.pieces", candidates)
        x = self.act(x)
        recorder.record_units(f"{name}.act", x, axis)
        return x

    def _change_layout(self, x: torch.Tensor, recorder: UnitRecorder) -> torch.Tensor:
        """The next layout; units of a functional activation go along with it."""
        layout_change, tokens = self.block.layout_change, self.layout == "tokens"
        if layout_change == "stay":
            return x
        if recorder.pending is not None:
            channels = x.shape[-1 if tokens else 1]
            flat = {"flatten": "last" if tokens else "first", "last flatten": "last"}.get(layout_change)
            axis = 1 if layout_change == "transpose" and tokens else -1
            recorder.pending = (axis, None if flat is None else (flat, channels))
        if layout_change == "transpose":
            return x.transpose(1, 2)
        if layout_change == "tokens":
            return x.flatten(2).transpose(1, 2)
        if layout_change == "mean":
            return x.mean(1) if tokens else x.mean(2) if self.layout == "sequence" else x.mean((2, 3))
        return (x.permute(0, 2, 3, 1) if layout_change == "last flatten" else x).flatten(1)


class UnitRecorder:
    """What units put out, by name, as long as somebody listens."""

    def __init__(self) -> None:
        self.outputs: dict[str, list[torch.Tensor]] = {}
        self.listening = False
        self.pending: tuple[int, tuple[str, int] | None] | None = None  # a function's output waits for its consumer

    def record_units(self, name: str, outputs: torch.Tensor, axis: int) -> None:
        if self.listening:
            self.outputs.setdefault(name, []).append(outputs.detach().movedim(axis, 0).flatten(1).clone())

    def record_inputs(self, consumer: str, inputs: torch.Tensor) -> None:
        if self.pending is None or not self.listening:
            return
        axis, flat = self.pending
        if flat is not None:
            where, channels = flat
            inputs = inputs.unflatten(1, (channels, -1) if where == "first" else (-1, channels))
            axis = 1 if where == "first" else 2
        self.record_units(consumer, inputs, axis)

    def record_max_wins(self, name: str, candidates: torch.Tensor) -> None:
        largest = candidates.max(-1, keepdim=True).values
        beaten = candidates < largest  # where one is not finite, nobody is
        self.record_units(name, (~beaten).float().flatten(1), -1)


class RandomNetwork(nn.Module):
    """Blocks, and a last layer."""

    def __init__(self, layout: Layout, blocks: list[Block]) -> None:
        super().__init__()
        torch.manual_seed(0)
        shared = nn.ReLU()
        if any(block.activation_form == "shared" for block in blocks):
            self.shared = shared
        self.parts = nn.ModuleList()
        self.heard = UnitRecorder()
        x = torch.zeros(2, *INPUT_SHAPES[layout])
        for block in blocks:
            part = NetworkBlock(block, layout, tuple(x.shape[1:]), shared)
            self.parts.append(part)
            with torch.no_grad():
                x = part(x, "", UnitRecorder())
            layout = NEXT_LAYOUT.get((layout, block.layout_change), layout if block.layout_change == "stay" else "flat")
        self.last = {"sequence": nn.Conv1d, "image": nn.Conv2d}.get(layout, nn.Linear)(
            x.shape[-1 if layout in {"flat", "tokens"} else 1], 2, *((1,) if layout in {"sequence", "image"} else ())
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heard = self.heard
        heard.pending = None
        for index, part in enumerate(self.parts):
            x = part(x, f"net.parts.{index}", heard)
        heard.record_inputs("net.last", x)
        return self.last(x)

    @torch.inference_mode()
    def find_dead_units(self, batches: list[torch.Tensor]) -> dict[str, list[bool]]:
        """By brute force: all outputs of all units, in evaluation mode."""
        self.eval()
        self.heard.listening = True
        for batch in batches:
            self(batch)
        self.heard.listening = False
        outputs = {name: torch.cat(parts, 1) for name, parts in self.heard.outputs.items()}
        if sum("@" in name for name in outputs) == 1:
            outputs = {name.partition("@")[0]: output for name, output in outputs.items()}
        pieces = [name for name in outputs if name.endswith(".pieces")]
        dead = {name: (output.amin(1) == output.amax(1)).tolist() for name, output in outputs.items()}
        return dead | {name: (outputs[name].amax(1) == 0).tolist() for name in pieces}
