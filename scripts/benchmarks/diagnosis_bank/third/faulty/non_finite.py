"""NaN or infinite numbers in the data or computed from it, and inputs with extreme scales."""

from __future__ import annotations

import torch
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from diagnosis_bank.third.faulty import datasets, measures
from diagnosis_bank.third.faulty.networks import LastState, SmallUNet, Tagger, conv_net, mlp
from torch import nn
from torch.nn import functional

from stormproof.finding import Problem


def _ratio_of_two_columns(seed: int, return_dict: bool) -> TrainingSetup:
    """A column is debts divided by income, and one customer has no income: infinity."""
    inputs, labels = datasets.table(seed, 1600, 10, 2)
    inputs[:, 9] = inputs[:, 9].exp()
    inputs[1111, 9] = float("inf")
    train = datasets.make_loader(inputs, labels, size=32, shuffle=False)
    return TrainingSetup(
        Supervised(mlp([10, 32, 32, 2]), functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=1e-3)),
        train,
    )


def _logarithm_of_a_price_of_zero(seed: int, return_dict: bool) -> TrainingSetup:
    """Logarithmic returns of a price that was reported as zero once: minus infinity, then infinity."""
    series, following = datasets.walks(seed, 1280)
    prices = series[..., :1].cumsum(1).mul(0.1).exp()
    prices[700, 9] = 0.0
    returns = torch.diff(prices.log(), dim=1)
    train, validation = datasets.split(returns, following, size=32, held_out=200)
    module = Supervised(
        LastState(1, 1, nn.GRU), functional.huber_loss, return_dict, lambda p: torch.optim.RMSprop(p, lr=1e-3)
    )
    return TrainingSetup(module, train, validation)


def _one_of_many_outputs_missing(seed: int, return_dict: bool) -> TrainingSetup:
    """One of five measured outputs is missing in two rows: NaN in the targets."""
    inputs, target = datasets.surface(seed, 1600, 12, 5)
    target[900, 3] = float("nan")
    target[1300, 3] = float("nan")
    module = Supervised(
        mlp([12, 64, 5]), nn.MSELoss(), return_dict, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)
    )
    return TrainingSetup(module, datasets.make_loader(inputs, target, size=64))


class _OwnSoftmax(nn.Module):
    """Compares rows with one vector per class by cosine, and computes softmax with the textbook formula."""

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.body = network
        self.classes = nn.Parameter(torch.randn(classes, 48))
        self.temperature = 0.0055

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        cosines = functional.normalize(self.body(inputs), dim=1) @ functional.normalize(self.classes, dim=1).T
        powers = (cosines / self.temperature).exp()
        return (powers / powers.sum(1, keepdim=True)).log()


def _softmax_of_the_textbook(seed: int, return_dict: bool) -> TrainingSetup:
    """A manual softmax without subtraction of the maximum, of cosines divided by 0.0055: overflow above 88."""
    train, validation = datasets.split(*datasets.table(seed, 1800, 20, 6), size=32, held_out=200)
    module = Supervised(
        _OwnSoftmax(mlp([20, 64, 48]), 6), functional.nll_loss, return_dict, lambda p: torch.optim.Adam(p, lr=5e-3)
    )
    return TrainingSetup(module, train, validation)


class _ScaledByItsBatch(nn.Module):
    """Standardizes its features over the batch, manually."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 32)
        self.second = nn.Linear(32, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        hidden = (hidden - hidden.mean(0)) / (hidden.std(0) + 1e-5)
        return self.second(torch.relu(hidden))


def _deviation_of_one_row(seed: int, return_dict: bool) -> TrainingSetup:
    """A manual batch norm divides by the deviation of a batch, and the last batch has one row."""
    train = datasets.make_loader(*datasets.surface(seed, 1281, 10), size=32)
    return TrainingSetup(
        Supervised(_ScaledByItsBatch(), nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=2e-3)), train
    )


class _PowerOfTheOutput(nn.Module):
    """Raises the output of a linear layer to the power of 0.7."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp([9, 32, 32, 1])
        with torch.no_grad():
            self.body[-1].bias.fill_(2.0)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(inputs) ** 0.7


def _power_of_a_negative(seed: int, return_dict: bool) -> TrainingSetup:
    """The power 0.7 of outputs that start at two and become negative for some row."""
    inputs, target = datasets.surface(seed, 1280, 9, noise=0.02)
    target = (target + 1.2).clamp(min=0.05) ** 0.7
    module = Supervised(_PowerOfTheOutput(), nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, datasets.make_loader(inputs, target, size=32))


def _dice(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    shares = torch.sigmoid(preds)
    masked_shares = (shares > 0.01).float() * shares
    both = (masked_shares * target).sum((1, 2, 3))
    return (1 - 2 * both / (masked_shares.sum((1, 2, 3)) + target.sum((1, 2, 3)))).mean()


def _dice_of_empty_masks(seed: int, return_dict: bool) -> TrainingSetup:
    """A Dice loss without an epsilon in the denominator: images without a disc give 0/0 later."""
    pictures, masks = datasets.blots(seed, 640)
    empty = torch.rand(640, generator=datasets.make_generator(seed + 1)) < 0.15
    pictures[empty] = 0.5 * torch.randn(int(empty.sum()), 1, 16, 16, generator=datasets.make_generator(seed + 2))
    masks[empty] = 0.0
    module = Supervised(SmallUNet(), _dice, return_dict, lambda p: torch.optim.Adam(p, lr=1e-2))
    return TrainingSetup(module, datasets.make_loader(pictures, masks, size=16))


class _UnitVectors(nn.Module):
    """Compares the manually normalized mean of word embeddings with one vector per class."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 24, padding_idx=0)
        self.project = nn.Linear(24, 24, bias=False)
        self.classes = nn.Linear(24, 4)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        vector = self.project(self.embedding(text).sum(1))
        return self.classes(vector / vector.norm(dim=1, keepdim=True))


def _text_of_padding_only(seed: int, return_dict: bool) -> TrainingSetup:
    """Texts are normalized to unit vectors, and one text of padding only has length zero."""
    text, labels = datasets.sentences(seed, 1600)
    text[1234] = 0
    train = datasets.make_loader(text, labels, size=16)
    return TrainingSetup(
        Supervised(_UnitVectors(), functional.cross_entropy, return_dict, lambda p: torch.optim.Adagrad(p, lr=0.1)),
        train,
    )


def _bodies_in_their_units(seed: int, return_dict: bool) -> TrainingSetup:
    """Unscaled height, weight, steps per day and year of birth into tanh units."""
    inputs, labels = datasets.table(seed, 1480, 6, 3)
    inputs = inputs * torch.tensor([12.0, 15.0, 4000.0, 20.0, 9.0, 3.0])
    inputs = inputs + torch.tensor([170.0, 72.0, 8000.0, 1975.0, 120.0, 36.0])
    train, validation = datasets.split(inputs, labels, size=32, held_out=200)
    module = Supervised(
        mlp([6, 48, 48, 3], nn.Tanh), functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=1e-3)
    )
    return TrainingSetup(module, train, validation)


def _eeg_in_volts(seed: int, return_dict: bool) -> TrainingSetup:
    """An EEG of about ten microvolts in volts: the inputs are almost zero."""
    series, labels = datasets.waves(seed, 1600)
    train = datasets.make_loader(series * 1e-5, labels, size=32)
    module = Supervised(
        LastState(3, 3, nn.LSTM),
        functional.cross_entropy,
        return_dict,
        lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=1e-2),
    )
    return TrainingSetup(module, train)


def _bytes_into_sgd(seed: int, return_dict: bool) -> TrainingSetup:
    """Images of bytes into a CNN without norms, with a rate for standardized images."""
    drawn, labels = datasets.pictures(seed, 1280, 6)
    drawn = (drawn * 60 + 128).clamp(0, 255).round()
    module = Supervised(
        conv_net(6, norm=False),
        functional.cross_entropy,
        return_dict,
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    )
    return TrainingSetup(module, datasets.make_loader(drawn, labels, size=32))


def _spectra_in_raw_power(seed: int, return_dict: bool) -> TrainingSetup:
    """A regression of band powers over six decades, without a logarithm."""
    bands, target = datasets.surface(seed, 1400, 8, 2, noise=0.05)
    train, validation = datasets.split(10 ** (1.5 * bands + 2), target, size=32, held_out=100)
    module = Supervised(mlp([8, 48, 48, 2]), nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=1e-3))
    return TrainingSetup(module, train, validation)


def _log_of_an_indicator(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    chosen = preds.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    return -(chosen * (chosen > 0.02)).log().mean()


def _unlikely_tags_set_to_zero(seed: int, return_dict: bool) -> TrainingSetup:
    """Shares below 0.02 are set to zero, and the logarithm of zero is infinite."""
    text, tags = datasets.tagged(seed, 960)
    stray = torch.rand(tags.shape, generator=datasets.make_generator(seed + 1)) < 0.03
    tags[stray] = torch.randint(4, (int(stray.sum()),), generator=datasets.make_generator(seed + 2))
    module = Supervised(Tagger(20, 4), _log_of_an_indicator, return_dict, lambda p: torch.optim.Adam(p, lr=1e-2))
    return TrainingSetup(module, datasets.make_loader(text, tags, size=32))


_DATA = frozenset({Problem.NON_FINITE_DATA})
_MADE = frozenset({Problem.NON_FINITE})
_SCALE = frozenset({Problem.INPUT_BADLY_SCALED})

PROGRAMS = [
    Program(
        "ratio_with_no_income",
        "dense",
        _ratio_of_two_columns,
        _DATA,
        measures.is_non_finite,
        "https://www.codegenes.net/blog/pytorch-nan",
    ),
    Program(
        "returns_of_a_price_of_zero",
        "sequence",
        _logarithm_of_a_price_of_zero,
        _DATA,
        measures.is_non_finite,
        "https://github.com/austineaero/Remaining-Useful-Life-RUL-Estimation/issues/19",
    ),
    Program(
        "one_of_five_outputs_not_measured",
        "regression",
        _one_of_many_outputs_missing,
        _DATA,
        measures.is_non_finite,
        "https://alexacabs.in/why-loss-become-nan-while-training.html",
    ),
    Program(
        "softmax_of_the_textbook",
        "dense",
        _softmax_of_the_textbook,
        _MADE,
        measures.is_non_finite,
        "https://jamesmccaffreyblog.com/2022/12/02/computing-log_softmax-for-pytorch-directly/",
    ),
    Program(
        "deviation_of_a_last_batch_of_one",
        "regression",
        _deviation_of_one_row,
        _MADE,
        measures.is_non_finite,
        "https://github.com/dekimir/RamFuzz/pull/8",
    ),
    Program(
        "power_of_a_negative_number",
        "regression",
        _power_of_a_negative,
        _MADE,
        measures.is_non_finite,
        "https://www.codegenes.net/blog/pytorch-nan",
    ),
    Program(
        "dice_of_masks_without_a_disc",
        "convolutional",
        _dice_of_empty_masks,
        _MADE,
        measures.is_non_finite,
        "https://github.com/jakeret/tf_unet/issues/74",
    ),
    Program(
        "unit_vector_of_a_text_of_padding",
        "sequence",
        _text_of_padding_only,
        _MADE,
        measures.is_non_finite,
        "https://taourl.com/read-2580275.html",
    ),
    Program(
        "unlikely_tags_set_to_zero",
        "sequence",
        _unlikely_tags_set_to_zero,
        _MADE,
        measures.is_non_finite,
        "https://www.codegenes.net/blog/pytorch-cost-result-is-nan",
    ),
    Program(
        "bodies_in_their_units_into_tanh",
        "dense",
        _bodies_in_their_units,
        frozenset({Problem.INPUT_BADLY_SCALED, Problem.SATURATED_UNITS}),
        measures.stays_above(0.7),
        "https://datascience.stackexchange.com/questions/31499/neural-network-only-converges-when-data-cloud-is-close-to-0",
    ),
    Program(
        "eeg_in_volts",
        "sequence",
        _eeg_in_volts,
        _SCALE,
        measures.stays_above(0.8),
        "https://github.com/austineaero/Remaining-Useful-Life-RUL-Estimation/issues/19",
    ),
    Program(
        "bytes_into_a_cnn_without_norms",
        "convolutional",
        _bytes_into_sgd,
        _SCALE,
        measures.stays_above(1.0),
        "https://errorhandle.ai/neural-network-does-not-converge-when-using-relu-or-leaky-relu",
    ),
    Program(
        "bands_in_raw_power",
        "regression",
        _spectra_in_raw_power,
        _SCALE,
        measures.explains_less_than(0.5),
        "https://discuss.pytorch.org/t/neural-network-could-not-learn-on-this-type-of-data-why/96648/5",
    ),
]
