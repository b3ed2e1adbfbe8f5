"""Heads that cannot represent the targets, and useless targets."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.second.faulty.datasets import (
    clusters,
    discs,
    make_generator,
    make_loader,
    sentences,
    stripes,
    surface,
)
from diagnosis_bank.second.faulty.measures import (
    StepOutputModule,
    entropy,
    is_no_better_than_constant,
    outputs,
    squared_error,
    training_tensors,
    variance,
)
from torch import nn
from torch.nn import functional
from torch.optim import Adam, RMSprop
from torch.utils.data import DataLoader, Dataset

from stormproof.finding import Problem


def _rectified(seed: int, return_dict: bool) -> TrainingSetup:
    """A ReLU after the last layer, created in a loop, with standardized targets."""
    widths = [6, 32, 32, 1]
    layers: list[nn.Module] = []
    for inward, outward in pairwise(widths):
        layers += [nn.Linear(inward, outward), nn.ReLU()]
    x, y = surface(seed, 800)
    target = ((y - y.mean()) / y.std()).unsqueeze(1)
    module = Supervised(nn.Sequential(*layers), nn.MSELoss(), return_dict, lambda ps: Adam(ps, lr=3e-3))
    return TrainingSetup(module, make_loader(x, target, batch=20, seed=seed))


class _Duration(StepOutputModule):
    """Predicts a time from a sentence, with a GRU and a sigmoid."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.embedding = nn.Embedding(40, 12, padding_idx=0)
        self.gru = nn.GRU(12, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(self.embedding(tokens))
        return torch.sigmoid(self.head(states.mean(1))).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, seconds = batch
        preds = self(tokens)
        return self.step_output(functional.l1_loss(preds, seconds), preds, seconds)

    def configure_optimizers(self) -> Any:
        return RMSprop(self.parameters(), lr=3e-3)


def _duration(seed: int, return_dict: bool) -> TrainingSetup:
    """Predicts the reading time of a sentence in seconds, with a sigmoid head from another task."""
    tokens, _ = sentences(seed, 480)
    seconds = 0.6 * (tokens > 0).sum(1).float() + 0.05 * tokens.float().mean(1)
    return TrainingSetup(_Duration(return_dict), make_loader(tokens, seconds, batch=16, seed=seed))


class _OneUnit(StepOutputModule):
    """A binary classifier with one output and a softmax."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.fc1 = nn.Linear(10, 32)
        self.fc2 = nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.softmax(self.fc2(functional.relu(self.fc1(x))), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, label = batch
        probability = self(x)
        return self.step_output(functional.binary_cross_entropy(probability, label), probability, label)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=1e-3)


def _one(seed: int, return_dict: bool) -> TrainingSetup:
    """Softmax over a single output, which is always 1."""
    x, label = clusters(seed, 640, classes=2)
    return TrainingSetup(_OneUnit(return_dict), make_loader(x, label.float().unsqueeze(1), batch=16, seed=seed))


class _Denoiser(StepOutputModule):
    """Denoises images."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 1, 3, padding=1), nn.Tanh()
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        noisy, clean = batch
        preds = self(noisy)
        return self.step_output(functional.mse_loss(preds, clean), preds, clean)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=3e-3)


def _denoiser(seed: int, return_dict: bool) -> TrainingSetup:
    """A denoiser that ends in tanh, with scaled inputs and targets from 0 to 255."""
    noisy, mask = discs(seed, 384)
    return TrainingSetup(_Denoiser(return_dict), make_loader(noisy, 60 + 180 * mask, batch=16, seed=seed))


class _Masks(StepOutputModule):
    """Two classes of pixels with cross entropy."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.inward = nn.Conv2d(1, 8, 3, padding=1)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.outward = nn.Conv2d(8, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.inward(image))
        return self.outward(hidden + functional.relu(self.block(hidden)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, mask = batch
        logits = self(image)
        return self.step_output(functional.cross_entropy(logits, mask), logits, mask)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=2e-3)


class _ToTensor(Dataset[Any]):
    """Images and masks from files, with mask values 0 and 1."""

    def __init__(self, image: torch.Tensor, mask: torch.Tensor) -> None:
        self.image, self.mask = image, mask.to(torch.uint8)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> Any:
        scaled = self.mask[index].float() / 255  # as torchvision's ToTensor does
        return self.image[index], scaled.squeeze(0).long()


def _masks(seed: int, return_dict: bool) -> TrainingSetup:
    """ToTensor divides masks of 0 and 1 by 255, and the conversion to integers makes all background."""
    batches: DataLoader[Any] = DataLoader(
        _ToTensor(*discs(seed, 384)), batch_size=16, shuffle=True, generator=make_generator(seed)
    )
    return TrainingSetup(_Masks(return_dict), batches)


def _truncated(seed: int, return_dict: bool) -> TrainingSetup:
    """Prices as shares of the highest one, with integer division: all targets are 0."""
    x, y = surface(seed, 640)
    cents = (1000 + 200 * y).long().clamp(0, 2400)
    share = torch.div(cents, 2500, rounding_mode="floor").float().unsqueeze(1)
    network = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 24), nn.SiLU(), nn.Linear(24, 1))
    module = Supervised(network, nn.L1Loss(), return_dict, lambda ps: Adam(ps, lr=3e-3))
    return TrainingSetup(module, make_loader(x, share, batch=16, seed=seed))


class _NextWord(StepOutputModule):
    """A language model whose targets are the next words."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.embedding = nn.Embedding(12, 16)
        self.gru = nn.GRU(16, 32, batch_first=True)
        self.out = nn.Linear(32, 12)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.gru(self.embedding(tokens))[0])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, label = batch
        logits = self(tokens)
        loss = functional.cross_entropy(logits.transpose(1, 2), label)
        return self.step_output(loss, logits.transpose(1, 2), label)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=5e-3)


def _counting(seed: int) -> torch.Tensor:
    rng = make_generator(seed)
    start = torch.randint(11, (480, 1), generator=rng)
    step = torch.randint(1, 4, (480, 1), generator=rng)
    return 1 + (start + step * torch.arange(14)) % 11


def _padded(seed: int, return_dict: bool) -> TrainingSetup:
    """The labels are masked by the inverted prompt mask: only padding remains."""
    tokens = _counting(seed)
    label = tokens.roll(-1, 1).masked_fill(tokens != 0, 0)
    return TrainingSetup(_NextWord(return_dict), make_loader(tokens, label, batch=16, seed=seed))


def _shuffled(seed: int, return_dict: bool) -> TrainingSetup:
    """Features and labels are shuffled independently."""
    x, label = clusters(seed, 960, features=12, classes=4)
    label = label[torch.randperm(len(label), generator=make_generator(seed + 1))]
    network = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda ps: Adam(ps, lr=3e-3))
    return TrainingSetup(module, make_loader(x, label, batch=32, seed=seed))


class _Sorted(Dataset[Any]):
    """Images and labels from two lists of file names in different orders."""

    def __init__(self, image: torch.Tensor, label: torch.Tensor) -> None:
        self.image, self.label = image, label
        self.names = sorted(range(len(image)), key=str)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> Any:
        return self.image[self.names[index]], self.label[index]


class _Regressor(StepOutputModule):
    """Predicts the angle of stripes as a number."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 1)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(image)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, angle = batch
        preds = self(image)
        return self.step_output(functional.smooth_l1_loss(preds, angle), preds, angle)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=3e-3)


def _sorted(seed: int, return_dict: bool) -> TrainingSetup:
    """File names sorted as strings (10 before 2), with a table in numeric order."""
    image, label = stripes(seed, 640)
    batches: DataLoader[Any] = DataLoader(
        _Sorted(image, label.float() - 1.5), batch_size=16, shuffle=True, generator=make_generator(seed)
    )
    return TrainingSetup(_Regressor(return_dict), batches)


def _saturated_head(outcome: Outcome) -> bool:
    target = training_tensors(outcome)[1]
    return squared_error(outcome) > 2 * variance(target)


_HEAD = frozenset({Problem.UNREACHABLE_TARGETS})
_ONE = frozenset({Problem.DEGENERATE_TARGETS})
_OTHERS = frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS, Problem.NO_BETTER_THAN_CONSTANT})

PROGRAMS = [
    Program(
        "relu_after_the_last_layer",
        "regression",
        _rectified,
        _HEAD,
        lambda outcome: (
            float(outputs(outcome, training_tensors(outcome)[0]).min()) == 0 and outcome.mean_loss(30) > 0.25
        ),
        "https://github.com/ProteomicsML/ProteomicsML/pull/203",
    ),
    Program(
        "seconds_from_a_sigmoid",
        "sequence",
        _duration,
        _HEAD,
        _saturated_head,
        "https://github.com/keras-team/keras/issues/1727",
    ),
    Program(
        "softmax_of_one_unit",
        "dense",
        _one,
        frozenset({Problem.UNREACHABLE_TARGETS, Problem.OUTPUT_IGNORES_INPUT}),
        lambda outcome: float(outputs(outcome, training_tensors(outcome)[0]).min()) == 1,
        "https://geek-tips.imtqy.com/articles/557592/index.html",
    ),
    Program(
        "pictures_of_255_from_tanh",
        "convolutional",
        _denoiser,
        _HEAD,
        _saturated_head,
        "https://github.com/tsinghua-rll/VoxelNet-tensorflow/issues/10",
    ),
    Program(
        "masks_divided_by_255",
        "convolutional",
        _masks,
        _ONE,
        lambda outcome: outcome.mean_loss() < 0.2 and all(mask.max() == 0 for _, mask in outcome.fit.train),
        "https://github.com/albumentations-team/albumentations/issues/148",
    ),
    Program(
        "shares_divided_as_integers",
        "regression",
        _truncated,
        _ONE,
        lambda outcome: variance(training_tensors(outcome)[1]) == 0,
        "https://taourl.com/read-2035529.html",
    ),
    Program(
        "words_masked_the_wrong_way_round",
        "sequence",
        _padded,
        _ONE,
        lambda outcome: entropy(training_tensors(outcome)[1]) == 0 and outcome.mean_loss() < 0.1,
        "https://github.com/JoakimEdin/medical-coding-reproducibility/issues/13",
    ),
    Program(
        "labels_shuffled_by_themselves",
        "dense",
        _shuffled,
        _OTHERS,
        lambda outcome: is_no_better_than_constant(outcome, entropy(training_tensors(outcome)[1])),
        "https://github.com/Borda/kaggle_image-classify/pull/12",
    ),
    Program(
        "files_sorted_as_strings",
        "convolutional",
        _sorted,
        _OTHERS,
        lambda outcome: outcome.mean_loss(30) > 0.4,
        "https://github.com/tensorflow/tensorflow/issues/21033",
    ),
]
