"""Targets that are hard to predict, few samples, rare classes: the loss remains high."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.third.healthy.datasets import (
    autoregressive,
    bars,
    clusters,
    make_generator,
    make_loaders,
    perceptron,
    teacher_scores,
)
from diagnosis_bank.third.healthy.measures import (
    all_of,
    below_chance_by,
    explains_variance,
    held_out,
    is_accurate,
    ran_to_end,
    validation_is_stable,
)
from pytorch_lightning.callbacks import EarlyStopping
from torch import nn
from torch.nn import functional as fn
from torch.utils.data import DataLoader, TensorDataset


def _customers_who_leave_hardly_predicted(seed: int, return_dict: bool) -> TrainingSetup:
    """Cancellations are mostly random: the cross entropy ends a tenth below that of the frequencies."""
    source = make_generator(seed)
    inputs = torch.randn(80 * 64 + 1024, 12, generator=source)
    leaves = torch.sigmoid(1.3 * teacher_scores(seed, inputs)[:, 0] - 0.8)
    labels = (torch.rand(len(inputs), generator=source) < leaves).long()
    train, validation = make_loaders(1024, 64, inputs, labels)
    module = Supervised(perceptron(12, 24, 2), fn.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=3e-3))
    return TrainingSetup(module, train, validation)


def _click_of_a_visitor_one_in_seven(seed: int, return_dict: bool) -> TrainingSetup:
    """Clicks by embedded user, place and hour: the log loss falls by a few hundredths only."""
    source = make_generator(seed)
    fields = torch.stack([torch.randint(size, (6000,), generator=source) for size in (40, 12, 24)], 1)
    leaning = [0.7 * torch.randn(size, generator=source) for size in (40, 12, 24)]
    logits = sum((table[fields[:, index]] for index, table in enumerate(leaning)), torch.tensor(-2.2))
    clicks = (torch.rand(6000, generator=source) < torch.sigmoid(logits)).long()

    class _Additive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList([nn.Embedding(size, 4) for size in (40, 12, 24)])
            self.score = nn.Linear(12, 2)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.score(torch.cat([table(rows[:, index]) for index, table in enumerate(self.tables)], 1))

    train, validation = make_loaders(1500, 64, fields, clicks)
    module = Supervised(
        _Additive(), fn.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=5e-3, weight_decay=1e-4)
    )
    return TrainingSetup(module, train, validation)


def _crowd_labels_two_of_five_wrong(seed: int, return_dict: bool) -> TrainingSetup:
    """Forty percent of the training labels are random. The network still learns the bars."""
    pictures, labels = bars(seed, 60 * 32 + 300)
    source = make_generator(seed + 1)
    anew = torch.rand(len(labels), generator=source) < 0.4
    noisy_labels = torch.where(anew, torch.randint(3, (len(labels),), generator=source), labels)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 3),
    )
    train, validation = make_loaders(300, 32, pictures, noisy_labels)
    module = Supervised(network, fn.cross_entropy, return_dict, lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9))
    return TrainingSetup(module, train, validation)


def _vibration_one_bearing_in_fifty(seed: int, return_dict: bool) -> TrainingSetup:
    """One of fifty bearings is faulty: many batches contain none, and the loss is small from the start."""
    source = make_generator(seed)
    labels = (torch.rand(100 * 64 + 2000, generator=source) < 0.02).float().unsqueeze(1)
    signals = torch.randn(len(labels), 1, 24, generator=source)
    rattle = 3.0 * torch.sin(torch.arange(24) * 1.6)
    signals = signals + labels.unsqueeze(2) * rattle
    network = nn.Sequential(
        nn.Conv1d(1, 8, 7, padding=3), nn.LeakyReLU(), nn.AdaptiveMaxPool1d(4), nn.Flatten(), nn.Linear(32, 1)
    )
    train, validation = make_loaders(2000, 64, signals, labels)
    module = Supervised(
        network, fn.binary_cross_entropy_with_logits, return_dict, lambda params: torch.optim.Adam(params, lr=1e-2)
    )
    return TrainingSetup(module, train, validation)


def _finds_the_rare(outcome: Outcome) -> bool:
    if not ran_to_end(outcome):
        return False
    scores, target = held_out(outcome)
    rare = scores[target > 0.5]
    return float((rare.view(-1, 1) > scores[target < 0.5].view(1, -1)).double().mean()) > 0.9


def _next_hour_of_a_noisy_meter(seed: int, return_dict: bool) -> TrainingSetup:
    """A GRU predicts a tenth of the next hour's variance, which is the maximum."""
    series = autoregressive(seed, 60 * 48 + 1500, 12, 1.0)
    source = make_generator(seed + 5)
    following = series[:, -1:] / series.std() + 2.2 * torch.randn(len(series), 1, generator=source)

    class _Meter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.past = nn.GRU(1, 8, batch_first=True)
            self.head = nn.Linear(8, 1)

        def forward(self, hours: torch.Tensor) -> torch.Tensor:
            return self.head(self.past(hours.unsqueeze(2))[1][0])

    train, validation = make_loaders(1500, 48, series[:, :-1], following)
    module = Supervised(_Meter(), fn.mse_loss, return_dict, lambda params: torch.optim.Adam(params, lr=1e-2))
    return TrainingSetup(module, train, validation)


class _Clinic(pl.LightningModule):
    """Full-batch classification with an odds model and a hidden layer."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.hidden = nn.Linear(6, 8)
        self.odds = nn.Linear(8, 1)

    def forward(self, patients: torch.Tensor) -> torch.Tensor:
        return self.odds(torch.tanh(self.hidden(patients)))

    def _step(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self(batch[0])
        return fn.binary_cross_entropy_with_logits(logits, batch[1]), logits

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, logits = self._step(batch)
        return {"loss": loss, "preds": logits, "target": batch[1]} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._step(batch)[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.8, weight_decay=1e-2)


def _hundred_and_sixty_patients(seed: int, return_dict: bool) -> TrainingSetup:
    """160 patients in batches of 8, and 40 for validation: a noisy validation loss that does not rise."""
    source = make_generator(seed)
    inputs = torch.randn(200, 6, generator=source)
    ill = (inputs[:, :2].sum(1) + 0.9 * torch.randn(200, generator=source) > 0).float().unsqueeze(1)
    train, validation = make_loaders(40, 8, inputs, ill)
    return TrainingSetup(_Clinic(return_dict), train, validation, {"max_epochs": 6})


class _Stopping(Supervised):
    """Stops if the validation loss does not improve."""

    def configure_callbacks(self) -> Any:
        return EarlyStopping("val_loss", patience=3, min_delta=1e-3)


def _stopped_after_validation_went_flat(seed: int, return_dict: bool) -> TrainingSetup:
    """Of twenty epochs, the validation loss is flat after a few, and early stopping ends the run."""
    source = make_generator(seed)
    inputs = torch.randn(30 * 32 + 500, 5, generator=source)
    target = teacher_scores(seed, inputs, width=4) + 0.6 * torch.randn(len(inputs), 1, generator=source)
    train, validation = make_loaders(500, 32, inputs, target)
    module = _Stopping(
        perceptron(5, 12, 1, between=nn.Tanh),
        fn.mse_loss,
        return_dict,
        lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-3),
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 20})


def _shares_of_five_raters_as_targets(seed: int, return_dict: bool) -> TrainingSetup:
    """The targets are votes of five raters, with KL divergence of log-probabilities."""
    inputs, labels = clusters(seed, 50 * 32 + 320, 8, 4, 0.8)
    source = make_generator(seed + 9)
    wrong = torch.rand(len(labels), 5, generator=source) < 0.3
    votes = torch.where(wrong, torch.randint(4, wrong.shape, generator=source), labels.unsqueeze(1))
    shares = fn.one_hot(votes, 4).float().mean(1)
    network = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4), nn.LogSoftmax(dim=1))
    validation = DataLoader(TensorDataset(inputs[:320], shares[:320]), batch_size=320)
    train = DataLoader(TensorDataset(inputs[320:], shares[320:]), batch_size=32, shuffle=True)
    module = Supervised(
        network, nn.KLDivLoss(reduction="batchmean"), return_dict, lambda params: torch.optim.Adagrad(params, lr=0.05)
    )
    return TrainingSetup(module, train, validation)


def _follows_most_votes(outcome: Outcome) -> bool:
    if not ran_to_end(outcome):
        return False
    scores, shares = held_out(outcome)
    return float((scores.argmax(1) == shares.argmax(1)).double().mean()) > 0.7


def _label_of_the_neighbouring_word(seed: int, return_dict: bool) -> TrainingSetup:
    """Thirty percent of the word tags are wrong. The tagger learns the others."""
    source = make_generator(seed)
    tokens = torch.randint(60, (40 * 16 + 200, 10), generator=source)
    tags = (tokens % 5 + torch.roll(tokens, 1, 1) % 2) % 5
    tags = torch.where(
        torch.rand(tags.shape, generator=source) < 0.3, torch.randint(5, tags.shape, generator=source), tags
    )

    class _Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(60, 16)
            self.windows = nn.Conv1d(16, 32, 3, padding=1)
            self.tags = nn.Conv1d(32, 5, 1)

        def forward(self, texts: torch.Tensor) -> torch.Tensor:
            around = fn.pad(self.words(texts).transpose(1, 2), (1, 1), mode="circular")
            return self.tags(fn.gelu(self.windows(around))[:, :, 1:-1])

    train, validation = make_loaders(200, 16, tokens, tags)
    module = Supervised(_Tagger(), fn.cross_entropy, return_dict, lambda params: torch.optim.NAdam(params, lr=1e-2))
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


PROGRAMS = [
    Program(
        "customers_who_leave_hardly_predicted",
        "dense",
        _customers_who_leave_hardly_predicted,
        frozenset(),
        all_of(below_chance_by(0.05, 0.2), validation_is_stable()),
        "https://discuss.pytorch.org/t/predictions-stuck-at-zero-when-positive-label-1-is-only-16-of-data/145203/2",
    ),
    Program(
        "click_of_a_visitor_one_in_seven",
        "dense",
        _click_of_a_visitor_one_in_seven,
        frozenset(),
        all_of(below_chance_by(0.03, 0.2), validation_is_stable()),
        "https://discuss.pytorch.org/t/cross-entropy-loss-for-imbalanced-set-binary-classification/106554",
    ),
    Program(
        "crowd_labels_two_of_five_wrong",
        "convolutional",
        _crowd_labels_two_of_five_wrong,
        frozenset(),
        all_of(is_accurate(0.62), validation_is_stable()),
        "https://arxiv.org/abs/1705.10694",
    ),
    Program(
        "vibration_one_bearing_in_fifty",
        "sequence",
        _vibration_one_bearing_in_fifty,
        frozenset(),
        all_of(_finds_the_rare, validation_is_stable()),
        "https://learn-pytorch.oneoffcoder.com/class-imbalance.html",
    ),
    Program(
        "next_hour_of_a_noisy_meter",
        "sequence",
        _next_hour_of_a_noisy_meter,
        frozenset(),
        all_of(explains_variance(0.05, 0.25), validation_is_stable()),
        "https://example-a.com/answer/52593325",
    ),
    Program(
        "hundred_and_sixty_patients",
        "dense",
        _hundred_and_sixty_patients,
        frozenset(),
        all_of(is_accurate(0.65), validation_is_stable(0.08)),
        "https://datascience.stackexchange.com/questions/31113/validation-showing-huge-fluctuations-what-could-be-the-cause",
    ),
    Program(
        "stopped_after_validation_went_flat",
        "regression",
        _stopped_after_validation_went_flat,
        frozenset(),
        all_of(explains_variance(0.5), validation_is_stable(0.05), lambda outcome: len(outcome.validation) < 20),
        "https://example-a.com/answer/52593325",
    ),
    Program(
        "shares_of_five_raters_as_targets",
        "dense",
        _shares_of_five_raters_as_targets,
        frozenset(),
        all_of(_follows_most_votes, validation_is_stable()),
        "https://arxiv.org/abs/1908.07086",
    ),
    Program(
        "label_of_the_neighbouring_word",
        "sequence",
        _label_of_the_neighbouring_word,
        frozenset(),
        all_of(is_accurate(0.6), validation_is_stable()),
        "https://arxiv.org/abs/1705.10694",
    ),
]
