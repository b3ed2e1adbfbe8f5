"""Dense layers as products of two thinner ones."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from stormproof_train.compression.structure.macs import macs as count_macs
from stormproof_train.compression.structure.replacement import replace_module
from stormproof_train.errors import UserError
from stormproof_train.models.dry_run import dry_run

BATCH = 32
"""Samples that go through a network together."""


@dataclass
class _Use:
    """How a network uses a linear layer: how often for one sample, and the second moment of what it gets."""

    calls: int
    moment: torch.Tensor


def ranks_for(network: nn.Module, inputs: torch.Tensor, macs: int) -> dict[str, int]:
    r"""The ranks at which a network whose linear layers are factored has at most so many multiply-accumulates.

    All layers keep the same share of the energy of their outputs, :math:`\sum_{i \le r} \sigma_i^2 / \sum_i \sigma_i^2`
    with the singular values of their outputs on these samples. The share is the largest that fits. Layers that would
    not get smaller stay as they are.

    Args:
        network: stays as it is.
        inputs: (N, \*input_shape), samples of the data, of which there should be more than any layer has features.
        macs: multiply-accumulates of one sample.

    Returns:
        The rank of each layer that is to be factored, by its name; none where the network is small enough.

    Raises:
        UserError: if factoring cannot make it so small.

    Example:
        >>> network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> inputs = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
        >>> ranks = ranks_for(network, inputs, macs=2048 + 128)
        >>> network[0].out_features * ranks["0"] * 2 <= 2048
        True
    """
    layers = dict(_factorable(network))
    uses = _uses(network, layers, inputs)
    kept = {name: _kept_energy(layers[name], use.moment) for name, use in uses.items()}
    before = count_macs(network, inputs)

    def ranks_at(share: float) -> dict[str, int]:
        ranks = {name: bisect.bisect_left(shares, share) + 1 for name, shares in kept.items()}
        return {name: rank for name, rank in ranks.items() if _saved(layers[name], rank) > 0}

    def macs_at(share: float) -> int:
        return before - sum(uses[name].calls * _saved(layers[name], rank) for name, rank in ranks_at(share).items())

    if before <= macs:
        return {}
    shares = sorted({share for each in kept.values() for share in each})
    enough = bisect.bisect_right(shares, macs, key=macs_at) - 1  # the larger the share, the more are left
    if enough < 0:
        fewest = macs_at(shares[0]) if shares else before
        raise UserError(
            f"{type(network).__name__} cannot be factored to {macs} multiply-accumulates a sample: the fewest are "
            f"{fewest} of {before}, as only its linear layers are factored"
        )
    return ranks_at(shares[enough])


def factor(network: nn.Module, ranks: Mapping[str, int], inputs: torch.Tensor | None = None) -> None:
    r"""Replaces linear layers, in place, by two of which the first has ``rank`` outputs and no bias.

    With samples the outputs on them are kept as well as any product of that rank can,

    .. math:: W \approx U_r U_r^T W, \quad W C W^T = U \Sigma^2 U^T

    with C the second moment of what the layer gets, :math:`E[x x^T]`. Without them it is the weight itself that is kept
    best, as with :math:`C = I`. Both factors get a root of the length of each row of :math:`U_r^T W`, which there is a
    singular value. Nothing is drawn.

    Args:
        network: its layers get as names that of the old one, followed by 0 and 1.
        ranks: by the name of a layer, from 1 to the smaller of its two widths.
        inputs: (N, \*input_shape), samples of the data.

    Raises:
        ValueError: if a name is no linear layer with a weight of its own, or its rank out of range.

    Example:
        >>> network = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
        >>> factor(network, {"0": 2})
        >>> network[0]
        Sequential(
          (0): Linear(in_features=8, out_features=2, bias=False)
          (1): Linear(in_features=2, out_features=6, bias=True)
        )

    References:
        Eckart & Young, The approximation of one matrix by another of lower rank, 1936.
    """
    layers = dict(_factorable(network))
    for name, rank in ranks.items():
        if name not in layers:
            raise ValueError(f"{name} is no linear layer with a weight of its own, and cannot be factored")
        if not 1 <= rank <= min(layers[name].weight.shape):
            raise ValueError(f"{name} has a weight of {tuple(layers[name].weight.shape)}; {rank} is no rank of it")
    chosen = {name: layers[name] for name in ranks}
    uses = {} if inputs is None else _uses(network, chosen, inputs)
    for name, layer in chosen.items():
        moment = uses[name].moment if name in uses else None
        replace_module(network, layer, _factors(layer, ranks[name], moment))


def _factorable(network: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Linear layers, of no class of their own that would use the weight otherwise, with their parameters."""
    owners: dict[int, int] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        (name, module)
        for name, module in network.named_modules()
        if type(module) is nn.Linear and owners[id(module.weight)] == 1
    ]


def _uses(network: nn.Module, layers: Mapping[str, nn.Linear], inputs: torch.Tensor) -> dict[str, _Use]:
    uses: dict[str, _Use] = {}
    names: dict[nn.Module, str] = {layer: name for name, layer in layers.items()}

    def before(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        rows = args[0].detach().flatten(0, -2).double()
        use = uses.setdefault(names[layer], _Use(0, torch.zeros(rows.shape[1], rows.shape[1]).to(rows)))
        use.calls += len(rows)
        use.moment += rows.T @ rows

    with ExitStack() as hooks, dry_run(network), torch.no_grad():
        for layer in layers.values():
            hooks.enter_context(layer.register_forward_pre_hook(before))
        for batch in inputs.split(BATCH):
            network(batch)
    return {name: _Use(use.calls // len(inputs), use.moment) for name, use in uses.items()}


def _saved(layer: nn.Linear, rank: int) -> int:
    return layer.in_features * layer.out_features - rank * (layer.in_features + layer.out_features)


def _directions(layer: nn.Linear, moment: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The energy of a layer's outputs along each of their principal directions, the largest first, and these."""
    weight = layer.weight.detach().double()
    squares = weight @ weight.T if moment is None else weight @ moment @ weight.T
    energy, directions = torch.linalg.eigh(squares)
    return energy.clamp_min(0).flip(0), directions.flip(1)


def _kept_energy(layer: nn.Linear, moment: torch.Tensor) -> list[float]:
    """The share that each rank keeps, from 1 on."""
    energy, _ = _directions(layer, moment)
    total = energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
    return (energy.cumsum(0) / total)[: min(layer.weight.shape)].tolist()


def _factors(layer: nn.Linear, rank: int, moment: torch.Tensor | None) -> nn.Sequential:
    _, directions = _directions(layer, moment)
    last = directions[:, :rank]
    first = last.T @ layer.weight.detach().double()
    roots = first.norm(dim=1, keepdim=True).sqrt()
    factors = nn.Sequential(
        nn.Linear(layer.in_features, rank, bias=False, device="meta"),  # draws nothing there
        nn.Linear(rank, layer.out_features, bias=False, device="meta"),
    )
    scaled = (first / roots.clamp_min(torch.finfo(roots.dtype).tiny), last * roots.T)
    for factor, weight in zip(factors, scaled, strict=True):
        factor.weight = nn.Parameter(weight.to(layer.weight), layer.weight.requires_grad)
    factors[1].bias = layer.bias
    return factors.train(layer.training)
