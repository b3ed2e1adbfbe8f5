"""Factors dense layers into products of two low-rank layers."""

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
"""Batch size of forward passes."""


@dataclass
class _LayerUsage:
    """Number of calls of a linear layer per sample, and the second moment of its inputs."""

    num_calls: int
    second_moment: torch.Tensor


def choose_ranks(network: nn.Module, inputs: torch.Tensor, max_macs: int) -> dict[str, int]:
    r"""Chooses ranks so that the network with factored linear layers has at most ``max_macs`` multiply-accumulates.

    All layers keep the same share of the energy of their outputs, :math:`\sum_{i \le r} \sigma_i^2 / \sum_i
    \sigma_i^2`, where :math:`\sigma_i` are the singular values of their outputs on these samples. The share is the
    largest that satisfies the limit. Layers that would not get smaller are not factored.

    Args:
        network: Network. It is not changed.
        inputs: Samples of the data (samples, \*input_shape). There should be more samples than features of any layer.
        max_macs: Maximum multiply-accumulates per sample.

    Returns:
        The rank of each layer to factor by name. Empty if the network is small enough.

    Raises:
        UserError: If factoring cannot reach the limit.

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
    index = bisect.bisect_right(shares, max_macs, key=macs_at) - 1  # a larger share keeps more MACs
    if index < 0:
        min_macs = macs_at(shares[0]) if shares else original_macs
        raise UserError(
            f"{type(network).__name__} cannot be factored to {max_macs} multiply-accumulates per sample: the minimum "
            f"is {min_macs} of {original_macs}, because only linear layers are factored"
        )
    return ranks_at(shares[index])


def factorize(network: nn.Module, ranks: Mapping[str, int], inputs: torch.Tensor | None = None) -> None:
    r"""Replaces linear layers in place by two layers, the first of which has ``rank`` outputs and no bias.

    With samples, the factors are the best approximation of the outputs on them,

    .. math:: W \approx U_r U_r^T W, \quad W C W^T = U \Sigma^2 U^T

    where :math:`C = E[x x^T]` is the second moment of the inputs. Without samples, :math:`C = I`, and they are the best
    approximation of the weight. Both factors are scaled by the square root of the norm of each row of :math:`U_r^T W`,
    which is a singular value for :math:`C = I`. No random numbers are used.

    Args:
        network: Network. A replaced layer's name gets the suffixes 0 and 1.
        ranks: Ranks by name of the layer, from 1 to the smaller dimension of its weight.
        inputs: Samples of the data (samples, \*input_shape). None approximates the weights.

    Raises:
        ValueError: If a name is not a linear layer with an unshared weight, or a rank is out of range.

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
            raise ValueError(f"{name} cannot be factored: it is not a linear layer with an unshared weight")
        if not 1 <= rank <= min(layers[name].weight.shape):
            raise ValueError(f"the rank of {name} must be from 1 to {min(layers[name].weight.shape)}, got {rank}")
    selected_layers = {name: layers[name] for name in ranks}
    usages = {} if inputs is None else _measure_usage(network, selected_layers, inputs)
    for name, layer in selected_layers.items():
        second_moment = usages[name].second_moment if name in usages else None
        replace_module(network, layer, _build_factors(layer, ranks[name], second_moment))


def _find_factorable_layers(network: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Returns the linear layers with unshared weights. Excludes subclasses, which may use the weight differently."""
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
    """Returns the energy of a layer's outputs along their principal directions (descending), and these directions."""
    weight = layer.weight.detach().double()
    output_covariance = weight @ weight.T if second_moment is None else weight @ second_moment @ weight.T
    energy, directions = torch.linalg.eigh(output_covariance)
    return energy.clamp_min(0).flip(0), directions.flip(1)


def _cumulative_energy(layer: nn.Linear, second_moment: torch.Tensor) -> list[float]:
    """Returns the share of the energy that each rank keeps, from rank 1 on."""
    energy, _ = _principal_directions(layer, second_moment)
    total = energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
    return (energy.cumsum(0) / total)[: min(layer.weight.shape)].tolist()


def _build_factors(layer: nn.Linear, rank: int, second_moment: torch.Tensor | None) -> nn.Sequential:
    _, directions = _principal_directions(layer, second_moment)
    second_weight = directions[:, :rank]
    first_weight = second_weight.T @ layer.weight.detach().double()
    scales = first_weight.norm(dim=1, keepdim=True).sqrt()
    factors = nn.Sequential(
        nn.Linear(layer.in_features, rank, bias=False, device="meta"),  # draws no random numbers there
        nn.Linear(rank, layer.out_features, bias=False, device="meta"),
    )
    factor_weights = (first_weight / scales.clamp_min(torch.finfo(scales.dtype).tiny), second_weight * scales.T)
    for factor, weight in zip(factors, factor_weights, strict=True):
        factor.weight = nn.Parameter(weight.to(layer.weight), layer.weight.requires_grad)
    factors[1].bias = layer.bias
    return factors.train(layer.training)
