"""Effect of an activation in the last layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from claims.batched_training import Data, Loss, TrainedNetworks, load_digits, make_mlps, train
from claims.claim import Claim, Effort, Figure, Line, Panel, Result, Row, above, at_most, check_at_least
from claims.interval import mean_interval, mean_share_interval

WIDTH, DEPTH, STEPS, RATE, LITTLE = 32, 2, 500, 3e-3, 0.01
SAMPLES, DISTANCE, CLEAR, BINARY_WIDTH = 2000, 1.0, 0.01, 16


def _cut(networks: list[nn.Module]) -> list[nn.Module]:
    return [nn.Sequential(network, nn.ReLU()) for network in networks]


def _numbers(seeds: int, seed: int) -> Data:
    """Returns samples of a smooth function whose values are negative half of the time."""
    x = torch.randn(seeds, SAMPLES, 4, generator=torch.Generator().manual_seed(seed))
    y = torch.sin(x[..., :1]) + 0.5 * x[..., 1:2] * x[..., 2:3]
    return x, y / y.std((1, 2), keepdim=True)


def _explained(trained: TrainedNetworks, data: Data) -> torch.Tensor:
    return (1 - (trained.predict(data[0]) - data[1]).square().mean((1, 2)) / data[1].var((1, 2))).double()


def relu_everywhere(effort: Effort) -> Result:
    seeds, steps = effort.seeds, effort.steps(STEPS)
    training, test = load_digits(seeds)

    def both(shape: tuple[int, ...], outputs: int, data: Data, loss: Loss) -> tuple[TrainedNetworks, TrainedNetworks]:
        networks = (make_mlps(seeds, nn.ReLU, shape, outputs, WIDTH, DEPTH) for _ in range(2))
        return train(next(networks), data, steps, RATE, loss=loss), train(
            _cut(next(networks)), data, steps, RATE, loss=loss
        )

    plain, cut = both((1, 8, 8), 10, training, F.cross_entropy)
    linear = train(make_mlps(seeds, nn.Identity, (1, 8, 8), 10, WIDTH, DEPTH), training, steps, RATE)
    number, number_cut = both((4,), 1, _numbers(seeds, 1), F.mse_loss)
    numbers = _numbers(seeds, 2)
    dead = (cut.predict(training[0]).amax(1) <= 0).double().mean(1)
    none_known = (cut.predict(test[0]).amax(2) <= 0).double().mean(1)
    in_hidden = plain.accuracy(test) - linear.accuracy(test)
    in_last = cut.accuracy(test) - plain.accuracy(test)
    lost = _explained(number_cut, numbers) - _explained(number, numbers)
    return Result(
        [
            Row(
                "hidden layers", mean_interval(in_hidden), above(0.0), "points", "test accuracy minus accuracy without"
            ),
            Row(
                "class outputs",
                mean_interval(in_last),
                check_at_least(-LITTLE),
                "points",
                "test accuracy minus accuracy without",
            ),
            Row(
                "dead class outputs",
                mean_share_interval(dead),
                at_most(0.0),
                ".1%",
                "0 for all training images",
            ),
            Row(
                "outputs of a regression",
                mean_interval(lost),
                check_at_least(-LITTLE),
                "points",
                "explained variance minus variance without",
            ),
            Row("test accuracy without a last ReLU", mean_share_interval(plain.accuracy(test)), None, ".1%"),
            Row("test images for which all class outputs are 0", mean_share_interval(none_known), None, ".1%"),
            Row("explained variance without a last ReLU", mean_interval(_explained(number, numbers)), None, ".1%"),
        ]
    )


RELU_EVERYWHERE = Claim(
    title="ReLU can be used at the outputs of all layers",
    sections="3.2.2",
    says="ReLU can be used at the output of every layer, which makes it easy to build and train deep models.",
    experiment=f"Digits and a smooth function with negative values, {DEPTH} layers of {WIDTH} units, {STEPS} steps of "
    "Adam, with and without a ReLU after the last layer. The claim requires a gain in hidden layers. At the outputs, "
    f"it requires a decrease by at most {100 * LITTLE:g} point and no dead output.",
    measure=relu_everywhere,
    of_all=True,
    why="A last ReLU cannot produce negative values, and an output that is 0 for all images no longer learns.",
)


def _clouds(seeds: int, seed: int) -> tuple[Data, torch.Tensor]:
    """Returns samples of two normal distributions and the true probability of the second: sigmoid(2 d x₁)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (seeds, SAMPLES), generator=generator)
    x = torch.randn(seeds, SAMPLES, 2, generator=generator)
    x[..., 0] += DISTANCE * (2 * labels - 1)
    return (x, labels[..., None].float()), torch.sigmoid(2 * DISTANCE * x[..., 0])


def _probabilities(
    make: Callable[[], nn.Module], effort: Effort, cut: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns predicted and true probabilities of the second class on new samples, ``(seeds, samples)`` each."""
    (data, _), (test, true) = _clouds(effort.seeds, 1), _clouds(effort.seeds, 2)
    networks = make_mlps(effort.seeds, make, (2,), 1, BINARY_WIDTH, 1)
    trained = train(
        _cut(networks) if cut else networks, data, effort.steps(STEPS), loss=F.binary_cross_entropy_with_logits
    )
    return trained.predict(test[0])[..., 0].sigmoid(), true


def binary(effort: Effort) -> Result:
    rows, lines = [], {}
    for name, make in (("tanh", nn.Tanh), ("no activation", nn.Identity), ("ReLU", nn.ReLU)):
        p, true = _probabilities(make, effort)
        different = torch.tensor([len(outputs.unique()) for outputs in p]).double()
        between = ((p > CLEAR) & (p < 1 - CLEAR)).double().mean(1)
        error = (p - true).abs().double().mean(1)
        needed = name != "ReLU"
        rows += [
            Row(f"{name}: different outputs", mean_interval(different), at_most(2) if needed else None, ".0f"),
            Row(
                f"{name}: outputs between {CLEAR:g} and {1 - CLEAR:g}",
                mean_share_interval(between),
                at_most(0.0) if needed else None,
                ".1%",
            ),
            Row(f"{name}: mean distance from the true probability", mean_interval(error)),
        ]
        order = true[0].argsort()[:: SAMPLES // 100]
        lines[name] = Line(true[0][order], p[0][order])
    p, true = _probabilities(nn.ReLU, effort, cut=True)
    rows += [
        Row(
            "ReLU also before the sigmoid: outputs below one half",
            mean_share_interval((p < 0.5).double().mean(1)),
            None,
            ".1%",
        ),
        Row(
            "ReLU also before the sigmoid: mean distance from the true probability",
            mean_interval((p - true).abs().mean(1)),
        ),
    ]
    order = true[0].argsort()[:: SAMPLES // 100]
    lines["ReLU before the sigmoid too"] = Line(true[0][order], p[0][order])
    lines["the truth"] = Line(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    panel = Panel("", "true probability", "output of the network", lines)
    return Result(rows, Figure("probability", "Predicted and true probability, one network per activation", [panel]))


BINARY = Claim(
    title="In binary classification an output without ReLU can only be 1 or 0",
    sections="3.2.2",
    says="In binary classification without ReLU, the output node can only be 1 or 0, which does not reflect the real "
    "information about the classes.",
    experiment="Two overlapping normal distributions in two dimensions, whose true probability is known. "
    f"{BINARY_WIDTH} hidden units with tanh or without activation, one output with a sigmoid, {STEPS} steps of Adam. "
    f"The claim requires at most two different outputs on {SAMPLES:,} new samples, and none between 0 and 1.",
    measure=binary,
    why="An output is 1 or 0 only after a threshold. The probability before the threshold exists with and without "
    "ReLU. A ReLU before the sigmoid removes all probabilities below one half.",
)
