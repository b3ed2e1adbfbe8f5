"""Problems in runs that started well: overfitting and loss spikes."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from diagnosis_bank.second.faulty.datasets import make_generator, make_loader, stripes, surface, waves
from diagnosis_bank.second.faulty.measures import StepOutputModule, has_loss_spike, is_overfitted
from torch import nn
from torch.nn import functional
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import MultiStepLR

from stormproof.finding import Problem


def _genes(seed: int, return_dict: bool) -> TrainingSetup:
    """Eighty patients with two hundred features, ten of them relevant, with a wide network for thirty epochs."""
    rng = make_generator(seed)
    x = torch.randn(380, 200, generator=rng)
    label = (x[:, :10].sum(1) + 1.5 * torch.randn(380, generator=rng) > 0).long()
    network = nn.Sequential(nn.Linear(200, 128), nn.ReLU(), nn.Linear(128, 2))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda ps: Adam(ps, lr=1e-3))
    return TrainingSetup(
        module,
        make_loader(x[:80], label[:80], batch=4, seed=seed),
        make_loader(x[80:], label[80:], batch=50, shuffle=False),
        {"max_epochs": 20},
    )


class _Memory(StepOutputModule):
    """Classifies reviews."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.embedding = nn.Embedding(200, 48)
        self.gru = nn.GRU(48, 32, batch_first=True)
        self.classify = nn.Linear(32, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.classify(self.gru(self.embedding(tokens))[0].mean(1))

    def step(self, batch: Any, batch_idx: int) -> Any:
        tokens, label = batch
        logits = self(tokens)
        return functional.cross_entropy(logits, label), logits, label

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.step_output(*self.step(batch, batch_idx))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.step(batch, batch_idx)[0])

    def configure_optimizers(self) -> Any:
        return AdamW(self.parameters(), lr=4e-3)


def _reviews(seed: int, return_dict: bool) -> TrainingSetup:
    """A few reviews with many rare words, which are memorized."""
    rng = make_generator(seed)
    tokens = torch.randint(200, (480, 8), generator=rng)
    label = ((tokens < 100).sum(1) + 0.7 * torch.randn(480, generator=rng) > 4).long()
    return TrainingSetup(
        _Memory(return_dict),
        make_loader(tokens[:160], label[:160], batch=8, seed=seed),
        make_loader(tokens[160:], label[160:], batch=64, shuffle=False),
        {"max_epochs": 12},
    )


class _Photographs(StepOutputModule):
    """Images, a third of them with wrong labels."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.features = nn.Sequential(nn.Conv2d(1, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten())
        self.classify = nn.Sequential(nn.Linear(800, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(image))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, label = batch
        logits = self(image)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        image, label = batch
        self.log("val_loss", functional.cross_entropy(self(image), label))

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=2e-3)


def _photographs(seed: int, return_dict: bool) -> TrainingSetup:
    """A convolutional network for twenty epochs on few images, a third of them with wrong labels."""
    image, label = stripes(seed, 420, noise=1.0)
    rng = make_generator(seed + 1)
    wrong = torch.rand(420, generator=rng) < 0.35
    label = torch.where(wrong, torch.randint(4, (420,), generator=rng), label)
    return TrainingSetup(
        _Photographs(return_dict),
        make_loader(image[:160], label[:160], batch=8, seed=seed),
        make_loader(image[160:], label[160:], batch=65, shuffle=False),
        {"max_epochs": 15},
    )


def _readings(seed: int, return_dict: bool) -> TrainingSetup:
    """Sixty noisy measurements of a smooth surface, which the network interpolates."""
    x, y = surface(seed, 360, noise=0.9)
    network = nn.Sequential(nn.Linear(6, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 1))
    module = Supervised(network, nn.MSELoss(), return_dict, lambda ps: Adam(ps, lr=3e-3))
    return TrainingSetup(
        module,
        make_loader(x[:60], y[:60, None], batch=3, seed=seed),
        make_loader(x[60:], y[60:, None], batch=60, shuffle=False),
        {"max_epochs": 40},
    )


def _units(seed: int, return_dict: bool) -> TrainingSetup:
    """A block of the table has other units, so one batch has targets in the thousands."""
    x, y = surface(seed, 1600)
    y[1000:1020] *= 1000
    network = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
    module = Supervised(network, nn.L1Loss(), return_dict, lambda ps: Adam(ps, lr=3e-3))
    return TrainingSetup(module, make_loader(x, y.unsqueeze(1), batch=20, shuffle=False), trainer={"max_epochs": 1})


class _Scheduled(StepOutputModule):
    """A forecaster whose rate changes at a milestone."""

    def __init__(self, return_dict: bool, gamma: float) -> None:
        super().__init__(return_dict)
        self.gamma = gamma
        self.lstm = nn.LSTM(1, 24, batch_first=True)
        self.head = nn.Sequential(nn.Linear(24, 24), nn.LeakyReLU(), nn.Linear(24, 1))

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(wave)[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        wave, after = batch
        preds = self(wave)
        return self.step_output(functional.mse_loss(preds, after), preds, after)

    def configure_optimizers(self) -> Any:
        optimizer = Adam(self.parameters(), lr=5e-3)
        return [optimizer], [MultiStepLR(optimizer, milestones=[2], gamma=self.gamma)]


def _milestone(seed: int, return_dict: bool) -> TrainingSetup:
    """MultiStepLR multiplies the rate by a hundred after two epochs instead of dividing it."""
    return TrainingSetup(_Scheduled(return_dict, 100.0), make_loader(*waves(seed, 640), batch=16, seed=seed))


class _Switched(StepOutputModule):
    """Reads images from a second source later."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(image)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, label = batch
        logits = self(image)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=2e-3)


def _switched(seed: int, return_dict: bool) -> TrainingSetup:
    """A batch of images from 0 to 255, read by another library, in a run that is otherwise healthy."""
    image, label = stripes(seed, 2400, noise=0.2)
    image[1600:1616] *= 255
    return TrainingSetup(
        _Switched(return_dict), make_loader(image, label, batch=16, shuffle=False), trainer={"max_epochs": 1}
    )


_OVER = frozenset({Problem.OVERFITTING})

PROGRAMS = [
    Program(
        "more_features_than_patients",
        "dense",
        _genes,
        _OVER,
        is_overfitted,
        "https://github.com/codetiger/ThiruvalluvarGPT/issues/4",
    ),
    Program(
        "reviews_learnt_by_heart",
        "sequence",
        _reviews,
        _OVER,
        is_overfitted,
        "https://github.com/moein-shariatnia/OpenAI-CLIP/issues/9",
    ),
    Program(
        "few_pictures_labelled_wrong",
        "convolutional",
        _photographs,
        _OVER,
        is_overfitted,
        "https://github.com/matterport/Mask_RCNN/issues/766",
    ),
    Program(
        "noisy_measurements_interpolated",
        "regression",
        _readings,
        _OVER,
        is_overfitted,
        "https://github.com/MIC-DKFZ/nnUNet/issues/757",
    ),
    Program(
        "a_batch_in_other_units",
        "regression",
        _units,
        frozenset({Problem.LOSS_SPIKE}),
        has_loss_spike,
        "https://github.com/stanford-crfm/mistral/issues/115",
    ),
    Program(
        "rate_multiplied_at_the_milestone",
        "sequence",
        _milestone,
        frozenset({Problem.LOSS_SPIKE, Problem.LEARNING_RATE_TOO_HIGH}),
        has_loss_spike,
        "https://github.com/InternRobotics/StreamVLN/issues/35",
    ),
    Program(
        "a_batch_of_unscaled_pictures",
        "convolutional",
        _switched,
        frozenset({Problem.LOSS_SPIKE, Problem.INPUT_BADLY_SCALED}),
        has_loss_spike,
        "https://github.com/stas00/ml-engineering/issues/32",
    ),
]
