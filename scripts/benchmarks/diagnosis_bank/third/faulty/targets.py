"""Wrong targets, unintended broadcasts, wrong loss inputs, and heads that cannot reach the targets."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.third.faulty import datasets, measures
from diagnosis_bank.third.faulty.networks import LastState, SmallUNet, Tagger, conv_net, mlp
from torch import nn
from torch.nn import functional

from stormproof.finding import Problem


def _threshold_in_percent(seed: int, return_dict: bool) -> TrainingSetup:
    """A score from 0 to 1 is thresholded at 50, as if in percent: no row is of class 1."""
    inputs, score = datasets.surface(seed, 1400, 14)
    labels = (torch.sigmoid(score.squeeze(1)) > 50).long()
    train, validation = datasets.split(inputs, labels, size=32, held_out=200)
    module = Supervised(
        mlp([14, 32, 2]), functional.cross_entropy, return_dict, lambda p: torch.optim.RMSprop(p, lr=1e-3)
    )
    return TrainingSetup(module, train, validation)


def _centred_along_the_row(seed: int, return_dict: bool) -> TrainingSetup:
    """The mean of the targets is taken along dimension 1 of size one: all differences are zero."""
    inputs, target = datasets.surface(seed, 1920, 10)
    target = 3 + 2 * target
    train = datasets.make_loader(inputs, target - target.mean(1, keepdim=True), size=64)
    return TrainingSetup(
        Supervised(mlp([10, 32, 32, 1]), nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=1e-3)), train
    )


def _unknown_tags(seed: int, return_dict: bool) -> TrainingSetup:
    """Tags are looked up in lower case in a table of capitals, so every word has the tag 0."""
    text, tags = datasets.tagged(seed, 640)
    names = ["NOUN", "VERB", "NAME", "REST"]
    table = {name: number for number, name in enumerate(names)}
    tag_indices = torch.tensor([[table.get(names[tag].lower(), 0) for tag in row] for row in tags.tolist()])
    module = Supervised(Tagger(20, 4), nn.CrossEntropyLoss(), return_dict, lambda p: torch.optim.AdamW(p, lr=2e-3))
    return TrainingSetup(module, datasets.make_loader(text, tag_indices, size=16))


def _lengths_sorted(seed: int, return_dict: bool) -> TrainingSetup:
    """Series are sorted by length for packing, but their labels are not."""
    series, labels = datasets.waves(seed, 1280)
    lengths = torch.randint(16, 25, (1280,), generator=datasets.make_generator(seed + 1))
    order = lengths.argsort(descending=True)
    mask = (torch.arange(24) < lengths.unsqueeze(1)).unsqueeze(2)
    train, validation = datasets.split((series * mask)[order], labels, size=32, held_out=200)
    module = Supervised(
        LastState(3, 3, nn.LSTM), functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=5e-3)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


class _PartnerOnly(Supervised):
    """Mixes each image with another one, with a share of zero for the image itself."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pictures, target = batch
        share = 0.0
        mixed = share * pictures + (1 - share) * pictures[torch.randperm(len(pictures))]
        preds = self(mixed)
        loss = self.loss(preds, target)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss


def _partner_of_the_mixture(seed: int, return_dict: bool) -> TrainingSetup:
    """A mixing augmentation has a share of 0, so each label belongs to another image."""
    train, validation = datasets.split(*datasets.pictures(seed, 1160, 5), size=32, held_out=200)
    module = _PartnerOnly(
        conv_net(5, norm=True), functional.cross_entropy, return_dict, lambda p: torch.optim.SGD(p, lr=0.05)
    )
    return TrainingSetup(module, train, validation)


def _rows_dropped_on_one_side(seed: int, return_dict: bool) -> TrainingSetup:
    """Rows with an outlier are dropped from the inputs, but the last rows are dropped from the targets."""
    inputs, target = datasets.surface(seed, 2100, 9, 3)
    is_kept = inputs[:, 0].abs() < 2
    is_kept[:40] = False
    inputs = inputs[is_kept]
    train = datasets.make_loader(inputs, target[: len(inputs)], size=64)
    module = Supervised(mlp([9, 48, 3]), nn.L1Loss(), return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, train)


class _Squeezed(nn.Module):
    """A network whose column of predictions is squeezed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.body = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(inputs).squeeze()


def _squeezed_against_a_column(seed: int, return_dict: bool) -> TrainingSetup:
    """Squeezed predictions, targets as a column, and batches of eight."""
    train, validation = datasets.split(*datasets.surface(seed, 888, 8), size=8, held_out=88)
    network = _Squeezed(mlp([8, 32, 32, 1]))
    return TrainingSetup(
        Supervised(network, nn.SmoothL1Loss(), return_dict, lambda p: torch.optim.Adam(p, lr=2e-3)), train, validation
    )


def _clean_pictures_without_channel(seed: int, return_dict: bool) -> TrainingSetup:
    """A U-Net denoises images. The targets lack the channel dimension and broadcast."""
    noisy, clean = datasets.blots(seed, 480)
    train = datasets.make_loader(noisy, clean.squeeze(1), size=16)
    return TrainingSetup(
        Supervised(SmallUNet(), nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=3e-3)), train
    )


def _hinge(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.relu(1 - target * preds).mean()


def _hinge_of_a_column(seed: int, return_dict: bool) -> TrainingSetup:
    """A GRU's scores are a column and the signs a row, which broadcast in a custom hinge loss."""
    series, labels = datasets.waves(seed, 1280, classes=2)
    train = datasets.make_loader(series, 2.0 * labels - 1, size=32)
    return TrainingSetup(
        Supervised(LastState(3, 1, nn.GRU), _hinge, return_dict, lambda p: torch.optim.Adam(p, lr=3e-3)), train
    )


class _SoftmaxTagger(Tagger):
    """A tagger that returns probabilities."""

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return super().forward(text).softmax(1)


def _tags_through_two_softmaxes(seed: int, return_dict: bool) -> TrainingSetup:
    """A tagger ends in a softmax over the tags, before the softmax of the cross entropy."""
    train = datasets.make_loader(*datasets.tagged(seed, 1600, vocabulary=30, tags=12), size=32)
    module = Supervised(
        _SoftmaxTagger(30, 12), nn.CrossEntropyLoss(), return_dict, lambda p: torch.optim.Adam(p, lr=5e-3)
    )
    return TrainingSetup(module, train)


def _labels_through_two_sigmoids(seed: int, return_dict: bool) -> TrainingSetup:
    """Six sigmoid outputs into MultiLabelSoftMarginLoss, which applies another sigmoid."""
    inputs, scores = datasets.surface(seed, 1600, 18, 6, noise=0.0)
    train, validation = datasets.split(inputs, (scores > 0.8).float(), size=32, held_out=200)
    network = nn.Sequential(mlp([18, 64, 64, 6]), nn.Sigmoid())
    module = Supervised(network, nn.MultiLabelSoftMarginLoss(), return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, train, validation)


def _probabilities_as_logarithms(seed: int, return_dict: bool) -> TrainingSetup:
    """nll_loss of softmax outputs instead of logarithms: the loss falls from -0.2 to -1."""
    train = datasets.make_loader(*datasets.pictures(seed, 640, 6, noise=2.5), size=16)
    network = nn.Sequential(conv_net(6, norm=False), nn.Softmax(dim=1))
    return TrainingSetup(
        Supervised(network, functional.nll_loss, return_dict, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
        train,
    )


class _Clamped(nn.Module):
    """Clamps scores to the range 0 to 1 for a loss of probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.body = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(inputs).clamp(0, 1)


def _scores_clamped_for_bce(seed: int, return_dict: bool) -> TrainingSetup:
    """Scores are clamped for BCELoss instead of using a sigmoid."""
    inputs, score = datasets.surface(seed, 1600, 10)
    train = datasets.make_loader(inputs, (score > 0).float(), size=64)
    network = _Clamped(mlp([10, 32, 32, 1]))
    return TrainingSetup(Supervised(network, nn.BCELoss(), return_dict, lambda p: torch.optim.SGD(p, lr=0.1)), train)


def _scores_in_kl(seed: int, return_dict: bool) -> TrainingSetup:
    """Shares of four parts are learned by kl_div of raw scores instead of log-probabilities."""
    inputs, scores = datasets.surface(seed, 1280, 12, 4)
    train = datasets.make_loader(inputs, (2 * scores).softmax(1), size=32)

    def loss(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.kl_div(preds, target, reduction="batchmean")

    return TrainingSetup(Supervised(mlp([12, 48, 4]), loss, return_dict, lambda p: torch.optim.Adam(p, lr=1e-3)), train)


def _sigmoid_of_standardized_pictures(seed: int, return_dict: bool) -> TrainingSetup:
    """The decoder of an autoencoder ends in a sigmoid, but the images are standardized."""
    drawn, _ = datasets.pictures(seed, 960, 6, noise=0.3)
    decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 144), nn.Sigmoid(), nn.Unflatten(1, (1, 12, 12)))
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 8), decoder)
    module = Supervised(network, nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, datasets.make_loader(drawn, drawn, size=32))


def _softmax_of_one_channel(seed: int, return_dict: bool) -> TrainingSetup:
    """A U-Net has one mask channel and a softmax over channels: each pixel is 1."""
    train, validation = datasets.split(*datasets.blots(seed, 560), size=16, held_out=80)
    network = nn.Sequential(SmallUNet(), nn.Softmax(dim=1))
    module = Supervised(network, nn.MSELoss(), return_dict, lambda p: torch.optim.AdamW(p, lr=2e-3))
    return TrainingSetup(module, train, validation)


def _ages_through_relu6(seed: int, return_dict: bool) -> TrainingSetup:
    """Predicts ages from 18 to 80 with a ReLU6 after the last layer."""
    inputs, target = datasets.surface(seed, 1280, 11)
    ages = (45 + 12 * target).clamp(18, 80)
    network = nn.Sequential(mlp([11, 64, 64, 1], nn.ReLU6), nn.ReLU6())
    return TrainingSetup(
        Supervised(network, nn.L1Loss(), return_dict, lambda p: torch.optim.Adam(p, lr=5e-3)),
        datasets.make_loader(inputs, ages, size=32),
    )


class _TanhForecast(nn.Module):
    """Forecasts a series from its last state, through a tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.states = LastState(2, 1, nn.GRU)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.states(series))


def _wide_series_from_tanh(seed: int, return_dict: bool) -> TrainingSetup:
    """A GRU forecasts values between -4 and 4 through a tanh, which was right for scaled values."""
    series, following = datasets.walks(seed, 1280)
    train, validation = datasets.split(series, 3 * following, size=32, held_out=200)
    module = Supervised(_TanhForecast(), nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=5e-3))
    return TrainingSetup(module, train, validation)


def _spread_is_lost(outcome: Outcome) -> bool:
    """Returns True if the deviation of the predictions is below 0.4 of that of the targets."""
    preds, target = measures.predictions(outcome)
    return float(preds.float().std()) < 0.4 * float(target.float().std())


def _signs_wrong(outcome: Outcome) -> bool:
    """Returns True if the signs of fewer than three of four predictions are right."""
    preds, target = measures.predictions(outcome)
    return float(((preds.reshape(-1) > 0) == (target > 0)).float().mean()) < 0.75


_CONSTANT = frozenset({Problem.DEGENERATE_TARGETS})
_UNRELATED = frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS, Problem.NO_BETTER_THAN_CONSTANT})
_STRETCHED = frozenset({Problem.BROADCAST_MISMATCH})
_MISMATCH = frozenset({Problem.LOSS_INPUT_MISMATCH})
_HEAD = frozenset({Problem.UNREACHABLE_TARGETS})

PROGRAMS = [
    Program(
        "threshold_in_percent_for_shares",
        "dense",
        _threshold_in_percent,
        _CONSTANT,
        measures.targets_are_constant,
        "https://arxiv.org/abs/1910.11015",
    ),
    Program(
        "targets_centred_along_the_row",
        "regression",
        _centred_along_the_row,
        _CONSTANT,
        measures.targets_are_constant,
        "https://techutils.in/blog/2018/07/10/stackbounty-regression-neural-networks-normalization-best-practice-for-"
        "normalizing-output-in-regression/",
    ),
    Program(
        "tags_looked_up_in_lower_case",
        "sequence",
        _unknown_tags,
        _CONSTANT,
        measures.targets_are_constant,
        "https://arxiv.org/abs/1906.01388",
    ),
    Program(
        "series_sorted_by_length_without_labels",
        "sequence",
        _lengths_sorted,
        _UNRELATED,
        measures.accuracy_below(0.6),
        "https://github.com/pytorch/pytorch/issues/1538",
    ),
    Program(
        "mixture_with_the_partner_only",
        "convolutional",
        _partner_of_the_mixture,
        _UNRELATED,
        measures.stays_above(1.4),
        "https://arxiv.org/abs/1910.11015",
    ),
    Program(
        "rows_dropped_from_the_inputs_only",
        "regression",
        _rows_dropped_on_one_side,
        _UNRELATED,
        measures.explains_less_than(0.3),
        "https://arxiv.org/abs/1910.11015",
    ),
    Program(
        "squeezed_predictions_in_batches_of_eight",
        "regression",
        _squeezed_against_a_column,
        _STRETCHED,
        measures.explains_less_than(0.5),
        "https://discuss.pytorch.org/t/neural-network-could-not-learn-on-this-type-of-data-why/96648/5",
    ),
    Program(
        "clean_pictures_without_a_channel",
        "convolutional",
        _clean_pictures_without_channel,
        _STRETCHED,
        measures.explains_less_than(0.5),
        "https://pytorch.org/docs/stable/generated/torch.nn.MSELoss.html",
    ),
    Program(
        "hinge_of_a_column_and_a_row",
        "sequence",
        _hinge_of_a_column,
        _STRETCHED,
        _signs_wrong,
        "https://pytorch.org/docs/stable/notes/broadcasting.html",
    ),
    Program(
        "tags_through_two_softmaxes",
        "sequence",
        _tags_through_two_softmaxes,
        _MISMATCH,
        measures.accuracy_below(0.9),
        "https://openillumi.com/en/en-pytorch-crossentropy-logits-nllloss-mechanism",
    ),
    Program(
        "labels_through_two_sigmoids",
        "dense",
        _labels_through_two_sigmoids,
        _MISMATCH,
        measures.stays_above(0.5),
        "https://pytorch.org/docs/stable/generated/torch.nn.MultiLabelSoftMarginLoss.html",
    ),
    Program(
        "softmax_into_nll_of_pictures",
        "convolutional",
        _probabilities_as_logarithms,
        _MISMATCH,
        measures.all_of(lambda outcome: outcome.mean_loss() < 0, measures.accuracy_below(0.75)),
        "https://runebook.dev/en/docs/pytorch/generated/torch.nn.softmax",
    ),
    Program(
        "scores_clamped_for_bce",
        "dense",
        _scores_clamped_for_bce,
        frozenset({Problem.LOSS_INPUT_MISMATCH, Problem.UNREACHABLE_TARGETS}),
        measures.stays_above(0.45),
        "https://pytorch.org/docs/stable/generated/torch.nn.BCELoss.html",
    ),
    Program(
        "scores_into_kl_of_shares",
        "regression",
        _scores_in_kl,
        _MISMATCH,
        lambda outcome: outcome.mean_loss() < -1,
        "https://pytorch.org/docs/stable/generated/torch.nn.KLDivLoss.html",
    ),
    Program(
        "sigmoid_for_standardized_pictures",
        "convolutional",
        _sigmoid_of_standardized_pictures,
        _HEAD,
        measures.stays_above(0.45),
        "https://stats.stackexchange.com/questions/441750/why-cant-this-autoencoder-reach-zero-loss",
    ),
    Program(
        "softmax_of_one_channel_of_masks",
        "convolutional",
        _softmax_of_one_channel,
        _HEAD,
        measures.falls_by_less_than(0.95),
        "https://stackoverflow.com/questions/47241622/is-it-okay-to-use-stateful-recurrent-nn-lstm-for-classification",
    ),
    Program(
        "ages_through_relu6",
        "regression",
        _ages_through_relu6,
        _HEAD,
        measures.stays_above(20),
        "https://arxiv.org/abs/1910.11015",
    ),
    Program(
        "wide_series_from_a_tanh",
        "sequence",
        _wide_series_from_tanh,
        _HEAD,
        measures.all_of(measures.stays_above(3), _spread_is_lost),
        "https://wiki.gubat.org/content/stackoverflow.com_en_all_2023-11/questions/24732888/"
        "using-large-input-values-with-auto-encoders",
    ),
]
