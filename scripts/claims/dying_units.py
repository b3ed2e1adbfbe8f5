"""Dead units, and units that start where the slope is small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from claims.batched_training import TrainedNetworks, hidden_activations, load_digits, make_mlps, train
from claims.claim import Claim, Effort, Figure, Panel, Result, Row, below, check_at_least, curve
from claims.interval import geometric_mean_interval, mean_interval, mean_share_interval

WIDTH, DEPTH, STEPS, RATE = 32, 5, 300, 0.02
REACHED, WINDOW, LITTLE = 0.3, 20, 0.1
BIASES, BIAS_STEPS, LOSS_OF_ACCURACY = (0.0, 1.0, 2.0, 4.0, 8.0), 300, 0.02
CALM_RATE = 1e-3


def _trained(make: Callable[[], nn.Module], rate: float, effort: Effort) -> TrainedNetworks:
    networks = make_mlps(effort.seeds, make, (1, 8, 8), 10, WIDTH, DEPTH)
    return train(networks, load_digits(effort.seeds)[0], effort.steps(STEPS), rate)


def _silent(trained: TrainedNetworks, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns two shares of hidden units, ``(seeds,)`` each: with a constant output, and with no output above 0."""
    still, negative = [], []
    for network, inputs in zip(trained.each(), images, strict=True):
        units = hidden_activations(network, inputs)
        still.append((units.amax(0) == units.amin(0)).double().mean())
        negative.append((units.amax(0) <= 0).double().mean())
    return torch.stack(still), torch.stack(negative)


def mitigates_dying(effort: Effort) -> Result:
    images, test = load_digits(effort.seeds)[0][0], load_digits(effort.seeds)[1]
    relu, leaky = (_trained(make, RATE, effort) for make in (nn.ReLU, nn.LeakyReLU))
    (dead, off), (leaky_dead, leaky_off) = _silent(relu, images), _silent(leaky, images)
    return Result(
        [
            Row("dead units, leaky ReLU minus ReLU", mean_interval(leaky_dead - dead), below(0.0), "points"),
            Row("units never above 0, leaky ReLU minus ReLU", mean_interval(leaky_off - off), below(0.0), "points"),
            Row("dead units of ReLU", mean_share_interval(dead), None, ".1%"),
            Row("units of leaky ReLU never above 0", mean_share_interval(leaky_off), None, ".1%"),
            Row(
                "test accuracy, leaky ReLU minus ReLU",
                mean_interval(leaky.accuracy(test) - relu.accuracy(test)),
                None,
                "points",
            ),
        ]
    )


MITIGATES_DYING = Claim(
    title="The slope of leaky ReLU mitigates dying units",
    sections="3.1.3",
    says="Leaky ReLU has a small slope for negative values, which mitigates dying units.",
    experiment=f"Digits, {DEPTH} layers of {WIDTH} units, {STEPS} steps of Adam with a learning rate of {RATE:g}, "
    "which is too large for ReLU. A unit is dead if its output is the same for all training images. Units that are "
    "never above 0 are counted separately, because a leaky ReLU is linear there.",
    measure=mitigates_dying,
    depends_on="the definition of a dead unit",
    why="Fewer dead units do not imply a better network: the last row compares the accuracies.",
)


def converges_faster(effort: Effort) -> Result:
    rows, effort = [], effort.times(3)
    for rate_description, rate in (
        ("learning rate suitable for ReLU", CALM_RATE),
        ("learning rate that kills units", RATE),
    ):
        relu, leaky = (_steps_until(_trained(make, rate, effort)) for make in (nn.ReLU, nn.LeakyReLU))
        rows += [
            Row(
                f"steps relative to ReLU, {rate_description}",
                geometric_mean_interval(leaky / relu),
                below(1.0, LITTLE),
            ),
            Row(f"steps of ReLU, {rate_description}", mean_interval(relu), None, ".0f"),
        ]
    return Result(rows)


def _steps_until(trained: TrainedNetworks) -> torch.Tensor:
    """Returns the steps until the mean loss of the last 20 steps is low, ``(seeds,)``; all steps if it never is."""
    means = trained.losses.unfold(1, min(WINDOW, trained.losses.shape[1]), 1).mean(2)
    reached = means < REACHED
    steps = torch.where(reached.any(1), reached.double().argmax(1), torch.tensor(means.shape[1]))
    return (steps + trained.losses.shape[1] - means.shape[1] + 1).double()


CONVERGES_FASTER = Claim(
    title="Leaky ReLU converges faster",
    sections="3.1.3",
    says="The slope lets a network reach the point of saturation faster when it converges.",
    experiment=f"Digits, {DEPTH} layers of {WIDTH} units, Adam with learning rates of {CALM_RATE:g} and {RATE:g}. The "
    f"rows contain the steps until the mean training loss of {WINDOW} steps is below {REACHED:g} (at most {STEPS}). "
    f"Differences below {LITTLE:.0%} do not count.",
    measure=converges_faster,
    depends_on="whether units die",
    why="Leaky ReLU does not saturate. The experiment therefore uses the point where the loss is low.",
)


def negative_inputs(effort: Effort) -> Result:
    makes = {"ELU": nn.ELU, "leaky ReLU": nn.LeakyReLU, "ReLU": nn.ReLU}
    training, test = load_digits(effort.seeds)
    accuracy = {name: [] for name in makes}
    for name, make in makes.items():
        for bias in BIASES:
            networks = make_mlps(effort.seeds, make, (1, 8, 8), 10, WIDTH, 3)
            for network in networks:
                for layer in list(network.children())[:-1]:
                    if isinstance(layer, nn.Linear):
                        nn.init.constant_(layer.bias, -bias)
            accuracy[name].append(train(networks, training, effort.steps(BIAS_STEPS), CALM_RATE).accuracy(test))
    elu = accuracy["ELU"]
    rows = [
        Row(
            f"biases of {-bias:g}",
            mean_interval(accuracies - elu[0]),
            check_at_least(-LOSS_OF_ACCURACY),
            "points",
            "test accuracy minus accuracy at 0",
        )
        for bias, accuracies in zip(BIASES[1:], elu[1:], strict=True)
    ]
    rows.append(Row("ELU's test accuracy with biases of 0", mean_share_interval(elu[0]), None, ".1%"))
    for bias, elu_values, relu in zip(BIASES[1:], elu[1:], accuracy["ReLU"][1:], strict=True):
        rows.append(
            Row(
                f"biases of {-bias:g}",
                mean_interval(elu_values - relu),
                None,
                "points",
                "test accuracy minus accuracy of ReLU",
            )
        )
    lines = {}
    for name, values in accuracy.items():
        lines[name] = curve([-bias for bias in BIASES], [mean_interval(accuracies) for accuracies in values])
    panel = Panel("", "first bias of all hidden units", "test accuracy", lines)
    return Result(rows, Figure("negative_inputs", "Accuracy on digits of networks whose units start below 0", [panel]))


NEGATIVE_INPUTS = Claim(
    title="ELU handles negative inputs easily",
    sections="3.2.4",
    says="ELU handles negative inputs easily.",
    experiment=f"Digits, 3 layers of {WIDTH} units, {BIAS_STEPS} steps of Adam. The initial biases are negative, so "
    "that most inputs of the activations are negative. The claim requires that the accuracy is at most "
    f"{100 * LOSS_OF_ACCURACY:g} points lower than with biases of 0.",
    measure=negative_inputs,
    depends_on="how negative they are",
    why="The slope of ELU at x < 0 is α eˣ. A unit slightly below 0 learns almost as well as one above 0, a unit far "
    "below 0 hardly learns.",
)
