"""Parameters in no optimizer or in two."""

from __future__ import annotations

from typing import Any, cast

import torch
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from diagnosis_bank.second.faulty.datasets import (
    clusters,
    make_generator,
    make_loader,
    sentences,
    stripes,
    surface,
    waves,
)
from diagnosis_bank.second.faulty.measures import (
    StepOutputModule,
    entropy,
    has_changed,
    is_in_no_optimizer,
    training_tensors,
    variance,
)
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, RMSprop

from stormproof.finding import Problem


class _Plain(StepOutputModule):
    """Its middle blocks are in a plain Python list."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)]
        self.head = nn.Linear(8 * 36, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = functional.max_pool2d(functional.relu(self.stem(image)), 2)
        for block in self.blocks:
            hidden = functional.relu(block(hidden))
        return self.head(hidden.flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, label = batch
        logits = self(image)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=2e-3)


def _list(seed: int, return_dict: bool) -> TrainingSetup:
    """Convolutions in a list instead of an nn.ModuleList: self.parameters() does not include them."""
    return TrainingSetup(_Plain(return_dict), make_loader(*stripes(seed, 480), batch=16, seed=seed))


def _list_took_effect(outcome: Outcome) -> bool:
    blocks = cast("Any", outcome.after).blocks
    return is_in_no_optimizer(outcome, [parameter for block in blocks for parameter in block.parameters()])


class _Echo(StepOutputModule):
    """A GRU encoder and a GRU decoder of sequences."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.encoder = nn.GRU(1, 24, batch_first=True)
        self.decoder = nn.GRU(1, 24, batch_first=True)
        self.readout = nn.Linear(24, 1)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        _, state = self.encoder(wave)
        shifted = torch.cat([torch.zeros_like(wave[:, :1]), wave[:, :-1]], 1)
        return self.readout(self.decoder(shifted, state)[0])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (wave, _) = batch
        preds = self(wave)
        return self.step_output(functional.smooth_l1_loss(preds, wave), preds, wave)

    def configure_optimizers(self) -> Any:
        return Adam([*self.encoder.parameters(), *self.readout.parameters()], lr=5e-3)


def _decoder(seed: int, return_dict: bool) -> TrainingSetup:
    """A sequence autoencoder with a manual list of parameters without the decoder."""
    return TrainingSetup(_Echo(return_dict), make_loader(*waves(seed, 480), batch=16, seed=seed))


class _Resized(StepOutputModule):
    """Infers the number of classes when training starts and then creates its head."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.body = nn.Sequential(nn.Linear(12, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 1000)

    def on_train_start(self) -> None:
        self.head = nn.Linear(32, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, label = batch
        logits = self(x)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.05, momentum=0.9)


def _head(seed: int, return_dict: bool) -> TrainingSetup:
    """The head of a pretrained model is replaced after the optimizer was created, so it never learns."""
    x, label = clusters(seed, 640, features=12, classes=6, noise=1.2)
    return TrainingSetup(_Resized(return_dict), make_loader(x, label, batch=20, seed=seed))


class _TwoTasks(StepOutputModule):
    """Weighs two losses by their learned uncertainty (Kendall et al. 2018)."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
        self.log_variance = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        preds = self(x)
        errors = (preds - y).pow(2).mean(0)
        loss = (torch.exp(-self.log_variance) * errors + self.log_variance).sum()
        return self.step_output(loss, preds, y)

    def configure_optimizers(self) -> Any:
        return AdamW(self.net.parameters(), lr=5e-3)


def _uncertainty(seed: int, return_dict: bool) -> TrainingSetup:
    """The learned weights of two losses belong to the module, but the optimizer has only self.net."""
    x, y = surface(seed, 800)
    return TrainingSetup(
        _TwoTasks(return_dict), make_loader(x, torch.stack([y, 3 * x[:, 4] - x[:, 5]], 1), batch=20, seed=seed)
    )


class _Towers(StepOutputModule):
    """Matches users with items, with manual optimization of one tower each."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.automatic_optimization = False
        self.users = nn.Embedding(60, 16)
        self.items = nn.Embedding(40, 16)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        return (self.users(pair[:, 0]) * self.items(pair[:, 1])).sum(1) + self.bias

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pair, liked = batch
        first, second = cast("Any", self.optimizers())
        first.zero_grad()
        second.zero_grad()
        logits = self(pair)
        loss = functional.binary_cross_entropy_with_logits(logits, liked)
        self.manual_backward(loss)
        first.step()
        second.step()
        return self.step_output(loss, logits, liked)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=0.02), Adam([*self.items.parameters(), self.bias], lr=0.02)


def _towers(seed: int, return_dict: bool) -> TrainingSetup:
    """The optimizer of the users has self.parameters(), so both optimizers update the items."""
    rng = make_generator(seed)
    taste, kind = torch.randn(60, 4, generator=rng), torch.randn(40, 4, generator=rng)
    pair = torch.stack([torch.randint(60, (1200,), generator=rng), torch.randint(40, (1200,), generator=rng)], 1)
    liked = ((taste[pair[:, 0]] * kind[pair[:, 1]]).sum(1) > 0).float()
    return TrainingSetup(_Towers(return_dict), make_loader(pair, liked, batch=40, seed=seed))


class _Tuned(StepOutputModule):
    """A text classifier with a low rate for the body and a high rate for the head."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.automatic_optimization = False
        self.embedding = nn.EmbeddingBag(40, 24, padding_idx=0, mode="mean")
        self.body = nn.Sequential(nn.Linear(24, 32), nn.Tanh())
        self.head = nn.Linear(32, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embedding(tokens)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, label = batch
        logits = self(tokens)
        loss = functional.cross_entropy(logits, label)
        for optimizer in cast("Any", self.optimizers()):
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in cast("Any", self.optimizers()):
            optimizer.step()
        return self.step_output(loss, logits, label)

    def configure_optimizers(self) -> Any:
        body = [parameter for name, parameter in self.named_parameters() if "classifier" not in name]
        return AdamW(body, lr=2e-3), RMSprop(self.head.parameters(), lr=5e-3)


def _tuned(seed: int, return_dict: bool) -> TrainingSetup:
    """The first optimizer excludes the head by a wrong name."""
    return TrainingSetup(_Tuned(return_dict), make_loader(*sentences(seed, 640), batch=16, seed=seed))


class _Adversaries(StepOutputModule):
    """A GAN of points in a ring."""

    def __init__(self, return_dict: bool, everything: bool) -> None:
        super().__init__(return_dict)
        self.automatic_optimization = False
        self.everything = everything
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.generator(noise)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (real,) = batch
        first, second = cast("Any", self.optimizers())
        fake = self(torch.randn(len(real), 4))
        first.zero_grad()
        self.manual_backward(functional.softplus(-self.discriminator(fake)).mean())
        first.step()
        second.zero_grad()
        scores = torch.cat([self.discriminator(real), self.discriminator(fake.detach())])
        truth = torch.cat([torch.ones(len(real), 1), torch.zeros(len(real), 1)])
        loss = functional.binary_cross_entropy_with_logits(scores, truth)
        self.manual_backward(loss)
        second.step()
        return self.step_output(loss, scores, truth)

    def configure_optimizers(self) -> Any:
        first = self.parameters() if self.everything else self.generator.parameters()
        return Adam(first, lr=2e-3, betas=(0.5, 0.9)), Adam(self.discriminator.parameters(), lr=2e-3, betas=(0.5, 0.9))


def _adversaries(seed: int, return_dict: bool, everything: bool = True) -> TrainingSetup:
    """The generator's optimizer has self.parameters(): it trains the discriminator to fail."""
    angle = 6.2832 * torch.rand(960, generator=make_generator(seed))
    ring = 4 * torch.stack([angle.cos(), angle.sin()], 1)
    return TrainingSetup(_Adversaries(return_dict, everything), make_loader(ring, batch=32, seed=seed))


def _shared(outcome: Outcome, count: int) -> bool:
    shared_parameters = [
        {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for optimizer in outcome.after.trainer.optimizers
    ]
    return (
        outcome.error is None
        and len(shared_parameters[0] & shared_parameters[1]) == count
        and has_changed(outcome) > 0.01
    )


_OMITTED = frozenset({Problem.NOT_IN_OPTIMIZER})
_TWICE = frozenset({Problem.IN_TWO_OPTIMIZERS})

PROGRAMS = [
    Program(
        "convolutions_in_a_plain_list",
        "convolutional",
        _list,
        _OMITTED,
        _list_took_effect,
        "https://www.engineermaxxing.com/micro/lessons/pytorch-internals.html",
    ),
    Program(
        "decoder_left_out_by_hand",
        "sequence",
        _decoder,
        _OMITTED,
        lambda outcome: (
            is_in_no_optimizer(outcome, cast("Any", outcome.after).decoder.parameters())
            and outcome.mean_loss() < 0.5 * variance(training_tensors(outcome)[0])
        ),
        "https://github.com/zdebruine/MMVAE/issues/39",
    ),
    Program(
        "head_replaced_as_training_starts",
        "dense",
        _head,
        _OMITTED,
        lambda outcome: (
            is_in_no_optimizer(outcome, cast("Any", outcome.after).head.parameters())
            and outcome.mean_loss() < entropy(training_tensors(outcome)[1])
        ),
        "https://github.com/microsoft/nni/issues/4521",
    ),
    Program(
        "uncertainty_of_losses_left_out",
        "regression",
        _uncertainty,
        _OMITTED,
        lambda outcome: (
            is_in_no_optimizer(outcome, [cast("Any", outcome.after).log_variance])
            and has_changed(outcome, "net") > 0.01
        ),
        "https://github.com/facebookresearch/mmf/pull/620",
    ),
    Program(
        "items_stepped_by_the_optimizer_of_users",
        "dense",
        _towers,
        _TWICE,
        lambda outcome: _shared(outcome, 2),
        "https://github.com/Lightning-AI/pytorch-lightning/pull/5775",
    ),
    Program(
        "head_in_the_optimizer_of_the_body_too",
        "sequence",
        _tuned,
        _TWICE,
        lambda outcome: _shared(outcome, 2),
        "https://github.com/pytorch/pytorch/pull/18497",
    ),
    Program(
        "generator_steps_its_judge",
        "dense",
        _adversaries,
        _TWICE,
        lambda outcome: _shared(outcome, 4) and outcome.mean_loss(30) > 0.55,
        "https://github.com/line/open-universe/issues/5",
    ),
]
