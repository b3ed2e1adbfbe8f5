"""A network without its least units."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from stormproof_train.compression.structure.channels import Weighted
from stormproof_train.compression.structure.coupling import UnitGroup, remove_units, unit_groups
from stormproof_train.compression.structure.cuts import BLOCK, Cut, cuts_of
from stormproof_train.compression.structure.grouped_activations import gatherings_of
from stormproof_train.compression.structure.macs import macs
from stormproof_train.compression.structure.prunability import is_separate, refusal_of, without_mixing
from stormproof_train.compression.structure.split_layers import InPieces, join_pieces, put_in_pieces
from stormproof_train.errors import UserError, first_line

_FAILURES = (
    RuntimeError, LookupError, ArithmeticError, ValueError, TypeError, AttributeError, AssertionError, UserWarning,
)  # fmt: skip


class Pruning:
    r"""The units of a network in the order in which they are pruned.

    A unit is all channels that have to go together: a feature with what makes and what reads it, over residual sums and
    norms, all pieces of a Maxout unit, both halves of a gated one. The unit with the smallest mean square norm of its
    weights goes first, over the mean of those of its layer, so that units of all layers compare. As many go at once as
    leave a number of channels that a processor computes with well: one with 10 of 16 channels is no faster.

    Args:
        network: maps (N, \*input_shape) to (N, outputs); stays as it is. Nothing is drawn.
        inputs: (N, \*input_shape), N at least 2.
        block: a layer is left with whole blocks of so many channels, or with a part that divides one.

    Attributes:
        unpruned: by the name of a layer, why none of its channels can be pruned.
        macs: of the network, for one sample.
        fewest_macs: as few as pruning can make them.

    Raises:
        ValueError: if there are fewer than two samples.
        UserError: if the network's layers cannot be followed.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruning = Pruning(network, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
        >>> pruning.unpruned, pruning.macs, pruning.fewest_macs
        ({'2': 'they are outputs'}, 48, 12)
        >>> pruning.to(24)[0]
        Linear(in_features=4, out_features=4, bias=True)

    References:
        Fang, Ma, Song, Mi & Wang, DepGraph: towards any structural pruning, 2023, section 3.3, for units across layers.
        Li, Kadav, Durdanovic, Samet & Graf, Pruning filters for efficient ConvNets, 2017, for the norm of weights.
    """

    def __init__(self, network: nn.Module, inputs: torch.Tensor, block: int = BLOCK) -> None:
        if len(inputs) < 2:
            raise ValueError(f"inputs has {len(inputs)} samples; pruning needs 2 to tell them from channels")
        self._original, self._inputs = network, inputs[:2]
        self._split = copy.deepcopy(network).eval()
        for parameter in self._split.parameters():
            parameter.requires_grad_()
        self.macs = macs(network, inputs)
        try:
            self.unpruned = _put_in_pieces(self._split, self._inputs)
            with torch.enable_grad():
                groups = unit_groups(self._split, self._inputs)
        except _FAILURES as error:
            raise UserError(
                f"{type(network).__name__} cannot be pruned, as its layers cannot be followed: {first_line(error)}"
            ) from error
        self._cuts = self._in_order(groups, block)
        self.fewest_macs = macs(self._without(len(self._cuts)), inputs)

    def to(self, most: int) -> nn.Module:
        """A copy of the network with as many units as its multiply-accumulates allow.

        Args:
            most: multiply-accumulates of one sample.

        Raises:
            UserError: if it cannot be made so small.
        """
        if self.fewest_macs > most:
            raise UserError(
                f"{type(self._original).__name__} cannot be pruned to {most} multiply-accumulates a sample: the fewest "
                f"are {self.fewest_macs} of {self.macs}{_because(self.unpruned)}"
            )
        enough, too_few = len(self._cuts), -1
        while enough - too_few > 1:
            middle = (enough + too_few) // 2
            if macs(self._without(middle), self._inputs) <= most:
                enough = middle
            else:
                too_few = middle
        return self._finished(self._without(enough))

    def _in_order(self, groups: list[UnitGroup], block: int) -> list[Cut]:
        unmixed = without_mixing(self._split, self._inputs)
        cuts: list[tuple[float, int, int, Cut]] = []
        for number, group in enumerate(groups):
            refusal = next((self.unpruned[name] for name in group.makers if name in self.unpruned), group.refusal)
            if not refusal:
                refusal = refusal_of(self._split, group.units[0], self._inputs)
            if not refusal and not is_separate(unmixed, group.units[0], self._inputs):
                refusal = "how they reach the layers behind cannot be followed"
            if refusal:
                self.unpruned |= {_outer_name(self._split, name): refusal for name in group.makers}
                continue
            cuts += [(cut.magnitude, number, place, cut) for place, cut in enumerate(cuts_of(group.units, block))]
        return [cut for *_, cut in sorted(cuts, key=lambda each: each[:3])]

    def _without(self, count: int) -> nn.Module:
        network = copy.deepcopy(self._split)
        remove_units(network, [unit for cut in self._cuts[:count] for unit in cut.units])
        return network

    def _finished(self, network: nn.Module) -> nn.Module:
        try:
            join_pieces(network)
        except ValueError as error:
            raise UserError(f"{type(self._original).__name__} cannot be pruned: {first_line(error)}") from error
        trained = {name: parameter.requires_grad for name, parameter in self._original.named_parameters()}
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(trained[name])
        with torch.no_grad():
            outputs, before = network(self._inputs), copy.deepcopy(self._original).eval()(self._inputs)
        if outputs.shape != before.shape or not outputs.isfinite().all():
            raise UserError(f"{type(self._original).__name__} gives outputs that are not finite once it is pruned")
        for name, module in self._original.named_modules():
            network.get_submodule(name).training = module.training
        return network


def _put_in_pieces(network: nn.Module, inputs: torch.Tensor) -> dict[str, str]:
    """Makes each unit of one feature, in place; by the name of a layer why that is not possible."""
    left: dict[str, str] = {}
    names = {module: name for name, module in network.named_modules()}
    for gathering in gatherings_of(network, inputs):
        try:
            put_in_pieces(network, gathering, inputs)
        except ValueError as error:
            activation = gathering.activations[0]
            reason = f"{names[activation]} ({type(activation).__name__}): {first_line(error)}"
            left |= {names[layer]: reason for layer in gathering.layers if isinstance(layer, Weighted)}
    return left


def _outer_name(network: nn.Module, name: str) -> str:
    """A layer's name in the network as it was given."""
    owner = name.rpartition(".pieces.")[0]
    return owner if owner and isinstance(network.get_submodule(owner), InPieces) else name


def _because(unpruned: Mapping[str, str]) -> str:
    layers_of: dict[str, list[str]] = {}
    for name, reason in unpruned.items():
        layers_of.setdefault(reason, []).append(name)
    told = [f"{', '.join(names)}: {reason}" for reason, names in layers_of.items()]
    return f" (unpruned are {'; '.join(told)})" if told else ""
