"""Graphs that are cut, and layers without gradients."""

from __future__ import annotations

import torch
from diagnosis_bank.held_out.datasets import clouds, counts, digit_images, make_loader, orders, seeded, surface
from diagnosis_bank.held_out.measures import accuracy, explained_variance, is_unchanged, output_spread
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional

from stormproof.finding import Problem


class _Summary(nn.Module):
    """A GRU over words whose states pass through numpy."""

    def __init__(self, keeps_graph: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.gru = nn.GRU(16, 24, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 2))
        self.keeps_graph = keeps_graph

    def forward(self, sentences: Tensor) -> Tensor:
        states = self.gru(self.embedding(sentences))[0]
        if self.keeps_graph:
            return self.head(states.amax(dim=1))
        return self.head(torch.from_numpy(states.detach().cpu().numpy().max(axis=1)))


@seeded
def _through_numpy(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    sentences, first = orders(seed, 1600)
    return TrainingSetup(
        Supervised(
            _Summary(keeps_graph=is_fixed),
            nn.CrossEntropyLoss(),
            return_dict,
            lambda parameters: torch.optim.Adam(parameters, lr=5e-3),
        ),
        make_loader(sentences, first, 32, seed),
    )


class _Binarized(nn.Module):
    """A binary code between encoder and decoder."""

    def __init__(self, straight_through: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 6))
        self.decoder = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 6))
        self.straight_through = straight_through

    def forward(self, inputs: Tensor) -> Tensor:
        code = self.encoder(inputs)
        signs = torch.sign(code)
        return self.decoder(code.tanh() + (signs - code.tanh()).detach() if self.straight_through else signs)


@seeded
def _sign_in_the_middle(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, kind = clouds(seed, 1600, features=10, classes=6)
    return TrainingSetup(
        Supervised(
            _Binarized(straight_through=is_fixed),
            functional.cross_entropy,
            return_dict,
            lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        ),
        make_loader(inputs, kind, 32, seed),
    )


class _Transferred(nn.Module):
    """A convolutional body that was once frozen, with a head."""

    def __init__(self, trains_body: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(8, 10)
        self.trains_body = trains_body

    def forward(self, images: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.trains_body and torch.is_grad_enabled()):
            features = self.body(images)
        return self.head(features)


@seeded
def _body_without_gradient(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    images, digit = digit_images()
    return TrainingSetup(
        Supervised(
            _Transferred(trains_body=is_fixed),
            nn.CrossEntropyLoss(),
            return_dict,
            lambda parameters: torch.optim.AdamW(parameters, lr=5e-3),
        ),
        make_loader(images, digit, 32, seed),
    )


@seeded
def _norm_of_one_feature(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs = 2 * torch.randn(1920, 1, generator=torch.Generator().manual_seed(seed))
    target = torch.sin(inputs) + 0.3 * inputs
    first = nn.Identity() if is_fixed else nn.LayerNorm(1)
    network = nn.Sequential(first, nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    return TrainingSetup(
        Supervised(
            network, functional.smooth_l1_loss, return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-2)
        ),
        make_loader(inputs, target, 48, seed),
    )


class _OrderBlind(nn.Module):
    """Attention over words, averaged over all positions, so word order is lost."""

    def __init__(self, sees_places: bool, vocabulary: int = 20, length: int = 12, width: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width) if sees_places else None
        self.attention = nn.MultiheadAttention(width, num_heads=2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, 2))

    def forward(self, sentences: Tensor) -> Tensor:
        inner = self.embedding(sentences)
        if self.places is not None:
            inner = inner + self.places(torch.arange(sentences.shape[1]))
        inner = self.norm(inner + self.attention(inner, inner, inner, need_weights=False)[0])
        return self.head(inner.mean(dim=1))


@seeded
def _no_positions(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    sentences, first = orders(seed, 3200)
    return TrainingSetup(
        Supervised(
            _OrderBlind(sees_places=is_fixed),
            nn.CrossEntropyLoss(),
            return_dict,
            lambda parameters: torch.optim.Adam(parameters, lr=5e-3),
        ),
        make_loader(sentences, first, 64, seed),
    )


@seeded
def _column_against_row(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, target = surface(seed, 1920)
    network = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
    return TrainingSetup(
        Supervised(network, nn.MSELoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-2)),
        make_loader(inputs, target if is_fixed else target.squeeze(1), 32, seed),
    )


def _asymmetric(preds: Tensor, target: Tensor) -> Tensor:
    """Manual implementation of the pinball loss of the median."""
    error = target - preds
    return torch.maximum(0.5 * error, -0.5 * error).mean()


class _LastState(nn.Module):
    """An LSTM over embedded words that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 12)
        self.lstm = nn.LSTM(12, 20, batch_first=True)
        self.head = nn.Linear(20, 1)

    def forward(self, sentences: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(sentences))[0][:, -1])


@seeded
def _handwritten_loss_broadcasts(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    sentences, _ = counts(seed, 2400)
    share = (sentences < 10).float().mean(1)
    return TrainingSetup(
        Supervised(_LastState(), _asymmetric, return_dict, lambda parameters: torch.optim.RMSprop(parameters, lr=5e-3)),
        make_loader(sentences, share.unsqueeze(1) if is_fixed else share, 48, seed),
    )


PROGRAMS: list[Program] = [
    Program(
        "states_of_a_gru_go_through_numpy",
        "sequence",
        _through_numpy,
        frozenset({Problem.NO_GRADIENT}),
        lambda outcome: is_unchanged(outcome, "network.gru") and accuracy(outcome) < 0.75,  # with its graph: 1.0
        "https://imaddabbura.github.io/til/pytorch/detach-tensor-from-computation-graph.html",
    ),
    Program(
        "code_of_signs_has_no_slope",
        "dense",
        _sign_in_the_middle,
        frozenset({Problem.NO_GRADIENT, Problem.VANISHING_GRADIENTS, Problem.WEIGHTS_UNCHANGED}),
        lambda outcome: accuracy(outcome) < 0.85,  # with the gradient passed straight through it is above 0.95
        "https://arxiv.org/abs/1308.3432",
    ),
    Program(
        "body_runs_under_no_grad_left_over_from_a_frozen_one",
        "convolutional",
        _body_without_gradient,
        frozenset({Problem.NO_GRADIENT}),
        lambda outcome: is_unchanged(outcome, "network.body") and accuracy(outcome) < 0.7,  # trained: 0.9
        "https://taourl.com/read-3032205.html",
    ),
    Program(
        "layer_norm_of_a_single_feature_erases_it",
        "regression",
        _norm_of_one_feature,
        frozenset({Problem.OUTPUT_IGNORES_INPUT}),
        lambda outcome: output_spread(outcome) < 1e-4,  # without the norm: 1.0
        "https://github.com/pytorch/pytorch/issues/108956",
    ),
    Program(
        "attention_without_positions_is_asked_for_the_order",
        "sequence",
        _no_positions,
        frozenset({Problem.NO_BETTER_THAN_CONSTANT}),
        lambda outcome: accuracy(outcome) < 0.6 and outcome.mean_loss() > 0.66,  # with positions: above 0.9
        "https://github.com/DaoyuanLi2816/Molecule-Generator/pull/23",
    ),
    Program(
        "column_of_predictions_against_a_row_of_targets",
        "regression",
        _column_against_row,
        frozenset({Problem.BROADCAST_MISMATCH}),
        lambda outcome: explained_variance(outcome) < 0.3,  # against a column it is above 0.8
        "https://discuss.pytorch.org/t/output-of-the-model-depends-on-the-shape-of-the-weights-tensor/148155",
    ),
    Program(
        "handwritten_loss_stretches_the_targets_of_an_lstm",
        "sequence",
        _handwritten_loss_broadcasts,
        frozenset({Problem.BROADCAST_MISMATCH}),
        lambda outcome: explained_variance(outcome) < 0.3,  # against a column it is above 0.9
        "https://github.com/deepset-ai/FARM/issues/229",
    ),
]
