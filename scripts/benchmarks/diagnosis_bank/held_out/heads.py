"""Last layers that do not fit the loss."""

from __future__ import annotations

import torch
from diagnosis_bank.held_out.datasets import digit_images, load_table, make_loader, seeded, signals, surface, waves
from diagnosis_bank.held_out.measures import explained_variance, output_spread, predictions
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional

from stormproof.finding import Problem


class _Digits(nn.Module):
    """A convolutional classifier that returns probabilities."""

    def __init__(self, gives_probabilities: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, 3)
        self.conv2 = nn.Conv2d(10, 20, 3)
        self.fc = nn.Linear(20 * 4, 10)
        self.gives_probabilities = gives_probabilities

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv1(x))
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))
        x = self.fc(x.flatten(1))
        return functional.softmax(x, dim=1) if self.gives_probabilities else x


@seeded
def _softmax_first(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    images, digit = digit_images()
    return TrainingSetup(
        Supervised(
            _Digits(gives_probabilities=not is_fixed),
            nn.CrossEntropyLoss(),
            return_dict,
            lambda parameters: torch.optim.SGD(parameters, lr=0.03, momentum=0.9),
        ),
        make_loader(images, digit, 64, seed),
        trainer={"max_epochs": 4},
    )


@seeded
def _scores_into_nll(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    signal, kind = signals()
    network = nn.Sequential(
        nn.Unflatten(1, (1, 40)),
        nn.Conv1d(1, 16, 5, stride=2),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Conv1d(16, 24, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 8, 10),
        nn.LogSoftmax(dim=1) if is_fixed else nn.Identity(),
    )
    return TrainingSetup(
        Supervised(network, nn.NLLLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=3e-3)),
        make_loader(signal, kind, 32, seed),
    )


@seeded
def _two_sigmoids(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, benign = load_table("breast_cancer")
    network = nn.Sequential(
        nn.Linear(30, 16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(16, 1),
        nn.Identity() if is_fixed else nn.Sigmoid(),
        nn.Flatten(0),
    )
    return TrainingSetup(
        Supervised(
            network, nn.BCEWithLogitsLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=5e-3)
        ),
        make_loader(inputs, benign.float(), 16, seed),
    )


@seeded
def _softmax_of_one(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, benign = load_table("breast_cancer")
    network = nn.Sequential(
        nn.Linear(30, 24),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Linear(24, 1),
        nn.Sigmoid() if is_fixed else nn.Softmax(dim=1),
    )
    return TrainingSetup(
        Supervised(network, nn.BCELoss(), return_dict, lambda parameters: torch.optim.RMSprop(parameters, lr=2e-3)),
        make_loader(inputs, benign.float().unsqueeze(1), 16, seed),
    )


@seeded
def _relu_below_zero(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, height = surface(seed, 2048)
    depth = height - 3
    network = nn.Sequential(nn.Linear(6, 48), nn.LeakyReLU(), nn.Linear(48, 48), nn.LeakyReLU(), nn.Linear(48, 1))
    if not is_fixed:
        network.append(nn.ReLU())
    return TrainingSetup(
        Supervised(network, functional.mse_loss, return_dict, lambda parameters: torch.optim.Adam(parameters, lr=3e-3)),
        make_loader(inputs, depth, 64, seed),
        trainer={"max_epochs": 4},
    )


class _Passengers(nn.Module):
    """An LSTM that predicts a count through a tanh."""

    def __init__(self, squashes: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 24, batch_first=True)
        self.out = nn.Linear(24, 1)
        self.squashes = squashes

    def forward(self, window: Tensor) -> Tensor:
        value = self.out(self.lstm(window)[0][:, -1])
        return torch.tanh(value) if self.squashes else value


@seeded
def _tanh_for_hundreds(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    window, following = waves(seed, 1600)
    if not is_fixed:
        following = 300 + 120 * following
    return TrainingSetup(
        Supervised(
            _Passengers(squashes=not is_fixed),
            nn.MSELoss(),
            return_dict,
            lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        ),
        make_loader(window, following, 32, seed),
    )


def _unsure(outcome: Outcome) -> bool:
    """Returns True if the loss cannot decrease as it should. The corrected program reaches 0.08."""
    return outcome.mean_loss() > 0.35 and bool(predictions(outcome)[0].min() >= 0)


PROGRAMS: list[Program] = [
    Program(
        "softmax_before_cross_entropy",
        "convolutional",
        _softmax_first,
        frozenset({Problem.LOSS_INPUT_MISMATCH}),
        lambda outcome: outcome.mean_loss() > 1.4,  # its least is 1.46; on scores it ends at 0.1
        "https://github.com/bkitano/llama-from-scratch/issues/5",
    ),
    Program(
        "raw_scores_into_the_negative_log_likelihood",
        "sequence",
        _scores_into_nll,
        frozenset({Problem.LOSS_INPUT_MISMATCH}),
        lambda outcome: outcome.mean_loss() < -10,  # of logarithms of probabilities it is never below 0
        "https://github.com/yanx27/Pointnet_Pointnet2_pytorch/issues/30",
    ),
    Program(
        "sigmoid_before_bce_with_logits",
        "dense",
        _two_sigmoids,
        frozenset({Problem.LOSS_INPUT_MISMATCH}),
        _unsure,
        "https://github.com/yudi-mars/daisyRec/pull/15",
    ),
    Program(
        "softmax_over_a_single_output",
        "dense",
        _softmax_of_one,
        frozenset({Problem.OUTPUT_IGNORES_INPUT, Problem.UNREACHABLE_TARGETS}),
        lambda outcome: output_spread(outcome) == 0,
        "https://techqa.club/v/q/activation-functions-softmax-vs-sigmoid-65258468",
    ),
    Program(
        "relu_on_the_head_for_targets_below_zero",
        "regression",
        _relu_below_zero,
        frozenset({Problem.UNREACHABLE_TARGETS}),
        lambda outcome: outcome.error is None and explained_variance(outcome) < -1,  # without the ReLU it is above 0.6
        "https://ai.stackexchange.com/questions/18546/how-to-determine-the-target-value-when-using-relu-as-activation-function",
    ),
    Program(
        "tanh_on_the_head_for_targets_in_the_hundreds",
        "sequence",
        _tanh_for_hundreds,
        frozenset({Problem.UNREACHABLE_TARGETS}),
        lambda outcome: explained_variance(outcome) < -1,  # scaled and without the tanh it is above 0.95
        "https://stats.stackexchange.com/questions/233499/neural-networks-bounded-output",
    ),
]
