"""Accuracy of trained networks on perturbed inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn
from torch.func import vmap

from claims.batched_training import Data, TrainedNetworks, load_digits, make_mlps, run_networks, train
from claims.claim import Claim, Effort, Result, Row, above
from claims.interval import mean_interval, mean_share_interval

WIDTH, DEPTH, STEPS, RATE, LITTLE = 64, 3, 400, 1e-3, 0.01
NOISES, ATTACK = (0.5, 1.0), 0.2


def _trained(make: Callable[[], nn.Module], rate: float, effort: Effort) -> TrainedNetworks:
    seeds = effort.seeds
    return train(make_mlps(seeds, make, (1, 8, 8), 10, WIDTH, DEPTH), load_digits(seeds)[0], effort.steps(STEPS), rate)


def _attacked(trained: TrainedNetworks, data: Data) -> Data:
    """Adds one step of the sign of the gradient to the inputs (Goodfellow et al. 2015, section 4)."""
    inputs = data[0].clone().requires_grad_()
    outputs = run_networks(trained.networks[0], trained.parameters, inputs)
    (gradient,) = torch.autograd.grad(vmap(F.cross_entropy)(outputs, data[1]).sum(), inputs)
    return data[0] + ATTACK * gradient.sign(), data[1]


def robustness(effort: Effort) -> Result:
    effort = effort.times(4)
    images, labels = load_digits(effort.seeds)[1]
    leaky, relu = (_trained(make, RATE, effort) for make in (nn.LeakyReLU, nn.ReLU))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    disturbed = {f"noise of {size:g}": [(images + size * noise, labels)] * 2 for size in NOISES}
    disturbed[f"adversarial steps of {ATTACK:g}"] = [_attacked(trained, (images, labels)) for trained in (leaky, relu)]
    rows = [
        Row(
            name,
            mean_interval(leaky.accuracy(leaky_accuracy) - relu.accuracy(relu_accuracy)),
            above(0.0, LITTLE),
            "points",
            "test accuracy minus accuracy of ReLU",
        )
        for name, (leaky_accuracy, relu_accuracy) in disturbed.items()
    ]
    rows += [
        Row(name, mean_share_interval(relu.accuracy(data[1])), None, ".1%", "test accuracy of ReLU")
        for name, data in disturbed.items()
    ]
    return Result(rows)


ROBUSTNESS = Claim(
    title="Leaky ReLU is more robust than ReLU",
    sections="3.2.3",
    says="Compared with ReLU, leaky ReLU makes a network somewhat more robust.",
    experiment=f"Digits, {DEPTH} layers of {WIDTH} units, {STEPS} steps of Adam. The test images get normal noise, in "
    "standard deviations of the pixels, or one adversarial step against each network. More robust means more accurate "
    f"on these images by more than {100 * LITTLE:g} point.",
    measure=robustness,
    depends_on="the perturbation",
    left_open="The article does not name the perturbation. For learning rates that are too large, see the claims about "
    "dying units and instability.",
)
