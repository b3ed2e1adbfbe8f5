"""Dense layers as products of two thinner ones."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from stormproof_train.compression.structure.macs import count_macs
from stormproof_train.compression.structure.replacement import replace_module
from stormproof_train.errors import UserError
from stormproof_train.models.dry_run import dry_run

BATCH_SIZE = 32
"""Samples that go through a network together."""


@dataclass
class _LayerUsage:
    """How a network uses a linear layer: how often for one sample, and the second moment of what it gets."""

    num_calls: int
    second_moment: torch.Tensor


def choose_ranks(network: nn.Module, inputs: torch.Tensor, max_macs: int) -> dict[str, int]:
    r"""The ranks at which a network whose linear layers are factored has at most so many multiply-accumulates.

    All layers keep the same share of the energy of their outputs, :math:`\sum_{i \le r} \sigma_i^2 / \sum_i \sigma_i^2`
    with the singular values of their outputs on these samples. The share is the largest that fits. Layers that would
    not get smaller stay as they are.

    Args:
        network: stays as it is.
        inputs: (N, \*input_shape), samples of the data, of which there should be more than any layer has features.
        max_macs: multiply-accumulates of one sample.

    Returns:
        The rank of each layer that is to be factored, by its name; none where the network is small enough.

    Raises:
        UserError: if factoring cannot make it so small.

    Example:
        >>> network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> inputs = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
        >>> ranks = choose_ranks(network, inputs, max_macs=2048 + 128)
        >>> network[0].out_features * ranks["0"] * 2 <= 2048
        True
    """
    layers = dict(_find_factorable_layers(network))
    usages = _measure_usage(network, layers, inputs)
    energy_shares = {name: _cumulative_energy(layers[name], usage.second_moment) for name, usage in usages.items()}
    original_macs = count_macs(network, inputs)

    def ranks_at(share: float) -> dict[str, int]:
        ranks = {name: bisect.bisect_left(shares, share) + 1 for name, shares in energy_shares.items()}
        return {name: rank for name, rank in ranks.items() if _saved_macs(layers[name], rank) > 0}

    def macs_at(share: float) -> int:
        return original_macs - sum(
            usages[name].num_calls * _saved_macs(layers[name], rank) for name, rank in ranks_at(share).items()
        )

    if original_macs <= max_macs:
        return {}
    shares = sorted({share for layer_shares in energy_shares.values() for share in layer_shares})
    index = bisect.bisect_right(shares, max_macs, key=macs_at) - 1  # the larger the share, the more are left
    if index < 0:
        min_macs = macs_at(shares[0]) if shares else original_macs
        raise UserError(
            f"{type(network).__name__} cannot be factored to {max_macs} multiply-accumulates a sample: the fewest are "
            f"{min_macs} of {original_macs}, as only its linear layers are factored"
        )
    return ranks_at(shares[index])


def factorize(network: nn.Module, ranks: Mapping[str, int], inputs: torch.Tensor | None = None) -> None:
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
        >>> factorize(network, {"0": 2})
        >>> network[0]
        Sequential(
          (0): Linear(in_features=8, out_features=2, bias=False)
          (1): Linear(in_features=2, out_features=6, bias=True)
        )

    References:
        Eckart & Young, The approximation of one matrix by another of lower rank, 1936.
    """
    layers = dict(_find_factorable_layers(network))
    for name, rank in ranks.items():
        if name not in layers:
            raise ValueError(f"{name} is no linear layer with a weight of its own, and cannot be factored")
        if not 1 <= rank <= min(layers[name].weight.shape):
            raise ValueError(f"{name} has a weight of {tuple(layers[name].weight.shape)}; {rank} is no rank of it")
    selected_layers = {name: layers[name] for name in ranks}
    usages = {} if inputs is None else _measure_usage(network, selected_layers, inputs)
    for name, layer in selected_layers.items():
        second_moment = usages[name].second_moment if name in usages else None
        replace_module(network, layer, _build_factors(layer, ranks[name], second_moment))


def _find_factorable_layers(network: nn.Module) -> list[tuple[str, nn.Linear]]:
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


def _measure_usage(network: nn.Module, layers: Mapping[str, nn.Linear], inputs: torch.Tensor) -> dict[str, _LayerUsage]:
    usages: dict[str, _LayerUsage] = {}
    names: dict[nn.Module, str] = {layer: name for name, layer in layers.items()}

    def record_usage(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        rows = args[0].detach().flatten(0, -2).double()
        usage = usages.setdefault(names[layer], _LayerUsage(0, torch.zeros(rows.shape[1], rows.shape[1]).to(rows)))
        usage.num_calls += len(rows)
        usage.second_moment += rows.T @ rows

    with ExitStack() as hooks, dry_run(network), torch.no_grad():
        for layer in layers.values():
            hooks.enter_context(layer.register_forward_pre_hook(record_usage))
        for batch in inputs.split(BATCH_SIZE):
            network(batch)
    return {name: _LayerUsage(usage.num_calls // len(inputs), usage.second_moment) for name, usage in usages.items()}


def _saved_macs(layer: nn.Linear, rank: int) -> int:
    return layer.in_features * layer.out_features - rank * (layer.in_features + layer.out_features)


def _principal_directions(layer: nn.Linear, second_moment: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The energy of a layer's outputs along each of their principal directions, the largest first, and these."""
    weight = layer.weight.detach().double()
    output_covariance = weight @ weight.T if second_moment is None else weight @ second_moment @ weight.T
    energy, directions = torch.linalg.eigh(output_covariance)
    return energy.clamp_min(0).flip(0), directions.flip(1)


def _cumulative_energy(layer: nn.Linear, second_moment: torch.Tensor) -> list[float]:
    """The share that each rank keeps, from 1 on."""
    energy, _ = _principal_directions(layer, second_moment)
    total = energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
    return (energy.cumsum(0) / total)[: min(layer.weight.shape)].tolist()


def _build_factors(layer: nn.Linear, rank: int, second_moment: torch.Tensor | None) -> nn.Sequential:
    _, directions = _principal_directions(layer, second_moment)
    second_weight = directions[:, :rank]
    first_weight = second_weight.T @ layer.weight.detach().double()
    scales = first_weight.norm(dim=1, keepdim=True).sqrt()
    factors = nn.Sequential(
        nn.Linear(layer.in_features, rank, bias=False, device="meta"),  # draws nothing there
        nn.Linear(rank, layer.out_features, bias=False, device="meta"),
    )
    factor_weights = (first_weight / scales.clamp_min(torch.finfo(scales.dtype).tiny), second_weight * scales.T)
    for factor, weight in zip(factors, factor_weights, strict=True):
        factor.weight = nn.Parameter(weight.to(layer.weight), layer.weight.requires_grad)
    factors[1].bias = layer.bias
    return factors.train(layer.training)
