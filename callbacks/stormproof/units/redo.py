"""Dormant units, and how they are given another start (ReDo, Sokar et al. 2023)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from stormproof.distributed.collectives import everyone
from stormproof.errors import StormproofError
from stormproof.units.functional_trace import Place, Positions
from stormproof.units.hooks import Watches
from stormproof.units.unit_axis import Convolution, units_of

Slices = tuple[torch.Tensor, tuple[slice | torch.Tensor, ...]]
"""A parameter, and where in it lies what belongs to some units."""


def dormant(sizes: torch.Tensor, share: float) -> torch.Tensor:
    r"""Which units are dormant: :math:`s_i = E|h_i| / \frac1n \sum_j E|h_j| \le \tau`.

    Args:
        sizes: (units,), the mean absolute output of each unit of a layer.
        share: tau, at least 0.

    Returns:
        (units,) bool; all of a layer that is silent as a whole.

    Example:
        >>> dormant(torch.tensor([0.0, 0.01, 1.0]), 0.025)
        tensor([ True, False, False])
    """
    return sizes <= share * sizes.mean()


def incoming(layer: nn.Module, units: torch.Tensor) -> Iterator[Slices]:
    """The weights that make ``units`` (indices): rows of a Linear, filters of a convolution, and their biases."""
    weight, bias = _weight(layer), layer.bias
    units = units.to(weight.device)
    yield weight, (slice(None), units) if _is_transposed(layer) else (units,)
    if isinstance(bias, torch.Tensor):
        yield bias, (units,)


def outgoing(layer: nn.Module, units: torch.Tensor, positions: Positions) -> Iterator[Slices]:
    """The weights that take ``units`` (indices): columns of a Linear, input channels of a convolution.

    Args:
        layer: the consumer.
        units: indices.
        positions: (all units, positions), where in its input they lie; None if one after the other.
    """
    weight = _weight(layer)
    if positions is not None:
        units = positions.to(units.device)[units].flatten()
    units = units.to(weight.device)
    yield weight, (units,) if _is_transposed(layer) else (slice(None), units)


def forget_moments(optimizers: Iterable[Optimizer], slices: Slices) -> None:
    """Sets to 0 what optimizers keep of these entries: every state of the parameter's shape."""
    parameter, where = slices
    for optimizer in optimizers:
        for state in optimizer.state.get(parameter, {}).values():
            if isinstance(state, torch.Tensor) and state.shape == parameter.shape:
                state[where] = 0


class Redo:
    """Re-initializes dormant units every so many steps.

    Args:
        every_n_steps: at least 1.
        dormant_threshold: tau of :func:`dormant`.
    """

    def __init__(self, every_n_steps: int, dormant_threshold: float) -> None:
        self.every_n_steps = every_n_steps
        self.dormant_threshold = dormant_threshold
        self.revived: Counter[Place] = Counter()
        self._deviations: dict[str, float] = {}  # of each weight and bias before training
        self._owners: Counter[torch.Tensor] = Counter()  # a weight may be that of two layers
        self._told: set[Place] = set()

    def is_due(self, before: int, after: int) -> bool:
        """Whether it is time when the steps from ``before`` to ``after`` have been done."""
        return after // self.every_n_steps > before // self.every_n_steps

    def learn(self, watches: Watches) -> None:
        """Remembers how the weights were drawn, before training."""
        layers = [watch.module for watch in watches.inputs.values()]
        self._owners = Counter(parameter for layer in layers for parameter in layer.parameters(recurse=False))
        if self._deviations:
            return
        for name, watch in watches.inputs.items():
            for own, parameter in watch.module.named_parameters(recurse=False):
                if isinstance(parameter, DTensor):
                    raise StormproofError(f"revive needs whole weights, and {name}.{own} is sharded: leave revive out")
                self._deviations[f"{name}.{own}"] = float(parameter.detach().std(correction=0))

    @torch.no_grad()
    def revive(self, step: int, optimizers: Iterable[Optimizer], watches: Watches) -> None:
        """Gives the units that the last batch found dormant another start. All ranks call it together."""
        sizes = {
            (watch.name, before): seen.sizes.tolist()
            for watch in watches
            for before, seen in watch.seen.items()
            if seen.sizes is not None and not watch.has_pieces
        }
        said = everyone(sizes)
        generator = torch.Generator().manual_seed(step)
        for place in dict.fromkeys(place for rank in said for place in rank):
            of_ranks = torch.tensor([rank[place] for rank in said if place in rank], dtype=torch.float64)
            units = dormant(of_ranks.mean(0), self.dormant_threshold).nonzero().flatten()
            if len(units) and self._can(place, of_ranks.shape[1], watches):
                self._restart(place, units, generator, list(optimizers), watches)
                self.revived[place] += len(units)

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "deviations": dict(self._deviations),
            "revived": [[*place, count] for place, count in self.revived.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``."""
        self._deviations = dict(state["deviations"])
        self.revived = Counter({(module, before): count for module, before, count in state["revived"]})

    def _can(self, place: Place, units: int, watches: Watches) -> bool:
        """Whether it is known which weights make the units and which take them; if not, says so once."""
        name, before = place
        consumers = watches.chains.get(place)
        if consumers is not None and before is not None:
            layers = [watches.inputs[each].module for each in (before, *consumers)]
            norm = watches.named(name).norms.get(before)
            touched = [*layers, watches.norms[norm]] if norm is not None else layers
            made = units_of(layers[0])
            plain = all(map(_is_plain, layers)) and all(map(self._is_trained_alone, touched))
            if plain and made is not None and made[1] == units:
                return True
        if place not in self._told:
            self._told.add(place)
            rank_zero_warn(
                f"{name}: its dormant units are not revived, because its output does not go from one plain Linear or "
                "convolution to others that train, and nowhere else"
            )
        return False

    def _is_trained_alone(self, layer: nn.Module) -> bool:
        """Whether all of a layer's weights are trained, and no other layer's."""
        parameters = layer.parameters(recurse=False)
        return all(parameter.requires_grad and self._owners[parameter] <= 1 for parameter in parameters)

    def _restart(
        self,
        place: Place,
        units: torch.Tensor,
        generator: torch.Generator,
        optimizers: list[Optimizer],
        watches: Watches,
    ) -> None:
        consumers = watches.chains[place]
        assert place[1] is not None
        assert consumers is not None
        layer = watches.inputs[place[1]].module
        names: dict[torch.Tensor, str] = {parameter: name for name, parameter in layer.named_parameters(recurse=False)}
        for parameter, where in incoming(layer, units):
            deviation = self._deviations[f"{place[1]}.{names[parameter]}"]
            drawn = torch.randn(parameter[where].shape, generator=generator) * deviation
            parameter[where] = drawn.to(parameter)
            forget_moments(optimizers, (parameter, where))
        norm = watches.named(place[0]).norms.get(place[1])
        if norm is not None:
            _begin_anew(watches.norms[norm], units, optimizers)
        for name, positions in consumers.items():
            for parameter, where in outgoing(watches.inputs[name].module, units, positions):
                parameter[where] = 0
                forget_moments(optimizers, (parameter, where))


def _begin_anew(norm: nn.Module, units: torch.Tensor, optimizers: list[Optimizer]) -> None:
    """Sets some channels of a batch norm to what it began with."""
    for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        tensor = getattr(norm, name)
        if tensor is not None:
            tensor[units.to(tensor.device)] = value
            forget_moments(optimizers, (tensor, (units.to(tensor.device),)))


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer has one row of weights of its own for each unit: not so where they are computed from others."""
    known = isinstance(layer, nn.Linear | Convolution)
    return known and isinstance(layer.weight, nn.Parameter) and getattr(layer, "groups", 1) == 1


def _weight(layer: nn.Module) -> torch.Tensor:
    assert isinstance(layer.weight, torch.Tensor)
    return layer.weight


def _is_transposed(layer: nn.Module) -> bool:
    return bool(getattr(layer, "transposed", False))
