"""NaN and infinity from finite data."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.program import Program, TrainingSetup
from diagnosis_bank.second.faulty.datasets import clusters, make_generator, make_loader, sentences, stripes, surface
from diagnosis_bank.second.faulty.measures import StepOutputModule, became_non_finite
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam

from stormproof.finding import Problem


class _Pairs(StepOutputModule):
    """Learns the distance of pairs."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.embed = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        first, second = self.embed(pair[:, 0]), self.embed(pair[:, 1])
        return torch.sqrt(((first - second) ** 2).sum(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pair, alike = batch
        distance = self(pair)
        loss = (alike * distance**2 + (1 - alike) * functional.relu(1 - distance) ** 2).mean()
        return self.step_output(loss, distance, alike)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=2e-3)


def _pairs(seed: int, return_dict: bool) -> TrainingSetup:
    """A contrastive distance with sqrt, whose derivative is infinite for pairs of identical samples."""
    x, label = clusters(seed, 960)
    second_index = torch.randint(960, (960,), generator=make_generator(seed))
    second_index[500] = 500
    alike = (label == label[second_index]).float()
    return TrainingSetup(
        _Pairs(return_dict), make_loader(torch.stack([x, x[second_index]], 1), alike, batch=16, seed=seed)
    )


class _Texts(StepOutputModule):
    """Attention over words except the padding."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.embedding = nn.Embedding(40, 24, padding_idx=0)
        self.score = nn.Linear(24, 1)
        self.classify = nn.Linear(24, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(tokens)
        weight = self.score(embedded).squeeze(-1).masked_fill(tokens == 0, float("-inf")).softmax(1)
        return self.classify((weight.unsqueeze(-1) * embedded).sum(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, label = batch
        logits = self(tokens)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=5e-3)


def _texts(seed: int, return_dict: bool) -> TrainingSetup:
    """One text is empty and fully masked. Softmax over -inf only is NaN."""
    tokens, label = sentences(seed, 640)
    tokens[int(torch.randint(640, (1,), generator=make_generator(seed)))] = 0
    return TrainingSetup(_Texts(return_dict), make_loader(tokens, label, batch=16, seed=seed))


class _Speech(StepOutputModule):
    """Transcribes frames with CTC."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.conv = nn.Conv1d(6, 24, 3, stride=2, padding=1)
        self.gru = nn.GRU(24, 24, batch_first=True)
        self.out = nn.Linear(24, 6)
        self.ctc = nn.CTCLoss()

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.conv(frames.transpose(1, 2))).transpose(1, 2)
        return self.out(self.gru(hidden)[0]).log_softmax(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        frames, letters, lengths = batch
        scores = self(frames)
        steps = torch.full((len(frames),), scores.shape[1])
        return self.step_output(self.ctc(scores.transpose(0, 1), letters, steps, lengths), scores, letters)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=3e-3)


def _speech(seed: int, return_dict: bool) -> TrainingSetup:
    """CTC with a transcript longer than the frames after the strided convolution: an infinite loss."""
    rng = make_generator(seed)
    letters = torch.randint(1, 6, (480, 7), generator=rng)
    lengths = torch.randint(1, 4, (480,), generator=rng)
    lengths[torch.randint(480, (2,), generator=rng)] = 7
    frames = functional.one_hot(letters.repeat_interleave(2, 1)[:, :12], 6).float()
    frames[torch.arange(12) >= 4 * lengths.unsqueeze(1)] = 0
    frames = frames + 0.1 * torch.randn(480, 12, 6, generator=rng)
    return TrainingSetup(_Speech(return_dict), make_loader(frames, letters, lengths, batch=16, seed=seed))


class _Beliefs(StepOutputModule):
    """Predicts a normal distribution of the next value, including its deviation."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.body = nn.Sequential(nn.Linear(6, 32), nn.ReLU())
        self.mean = nn.Linear(32, 1)
        self.deviation = nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.body(x)
        return torch.cat([self.mean(hidden), torch.relu(self.deviation(hidden))], 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        preds = self(x)
        mean, deviation = preds[:, 0], preds[:, 1]
        loss = (torch.log(deviation) + 0.5 * ((y - mean) / deviation) ** 2).mean()
        return self.step_output(loss, preds, y)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=1e-3)


def _beliefs(seed: int, return_dict: bool) -> TrainingSetup:
    """A deviation from a ReLU: where it is zero, the likelihood is infinite."""
    return TrainingSetup(_Beliefs(return_dict), make_loader(*surface(seed, 640), batch=16, seed=seed))


class _Angular(StepOutputModule):
    """Classifies images by the angle between features and classes, with a margin."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.conv = nn.Conv2d(1, 8, 5, stride=2)
        self.features = nn.Linear(128, 3)
        self.classes = nn.Parameter(torch.randn(4, 3))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.features(functional.relu(self.conv(image)).flatten(1))
        return functional.normalize(features) @ functional.normalize(self.classes).T

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, label = batch
        angle = torch.acos(self(image))
        margin = 0.2 * functional.one_hot(label, 4)
        logits = 10 * torch.cos(angle + margin)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1, momentum=0.9)


def _angular(seed: int, return_dict: bool) -> TrainingSetup:
    """An angular margin with acos, whose derivative is infinite at a cosine of 1."""
    return TrainingSetup(
        _Angular(return_dict), make_loader(*stripes(seed, 960), batch=16, seed=seed), trainer={"max_epochs": 5}
    )


_BAD = frozenset({Problem.NON_FINITE})

PROGRAMS = [
    Program(
        "distance_of_a_sample_to_itself",
        "dense",
        _pairs,
        _BAD,
        became_non_finite,
        "https://github.com/adambielski/siamese-triplet/issues/18",
    ),
    Program(
        "one_text_empty", "sequence", _texts, _BAD, became_non_finite, "https://github.com/pytorch/pytorch/issues/24816"
    ),
    Program(
        "transcript_longer_than_frames",
        "sequence",
        _speech,
        _BAD,
        became_non_finite,
        "https://github.com/ypwhs/captcha_break/issues/29",
    ),
    Program(
        "deviation_from_a_relu",
        "regression",
        _beliefs,
        _BAD,
        became_non_finite,
        "https://github.com/ethanhe42/KL-Loss/issues/4",
    ),
    Program(
        "angle_of_a_cosine_of_one",
        "convolutional",
        _angular,
        _BAD,
        became_non_finite,
        "https://github.com/ronghuaiyang/arcface-pytorch/issues/68",
    ),
]
