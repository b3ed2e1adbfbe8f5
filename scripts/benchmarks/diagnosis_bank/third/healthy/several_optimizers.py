"""Manual optimization, two optimizers and custom scalers: unusual loops that are correct."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from diagnosis_bank.third.healthy.datasets import bars, clusters, make_generator, make_loader, make_loaders, perceptron
from diagnosis_bank.third.healthy.measures import all_of, explains_variance, fell_by, is_accurate, ran_to_end
from torch import nn
from torch.nn import functional as fn
from torch.utils.data import DataLoader


class _HingeGan(pl.LightningModule):
    """A generator and a critic with hinge loss and two rates. The losses do not show quality."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.generator = perceptron(4, 32, 32, 2)
        self.critic = perceptron(2, 48, 48, 1, between=nn.LeakyReLU)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.generator(noise)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (real,) = batch
        for_generator, for_critic = self.optimizers()  # pyright: ignore[reportGeneralTypeIssues]
        noise = torch.randn(len(real), 4, device=self.device)
        self.toggle_optimizer(for_critic)
        scores, fakes = self.critic(real), self.critic(self(noise).detach())
        critic_loss = fn.relu(1 - scores).mean() + fn.relu(1 + fakes).mean()
        for_critic.zero_grad()
        self.manual_backward(critic_loss)
        for_critic.step()
        self.untoggle_optimizer(for_critic)
        self.toggle_optimizer(for_generator)
        generator_loss = -self.critic(self(noise)).mean()
        for_generator.zero_grad()
        self.manual_backward(generator_loss)
        for_generator.step()
        self.untoggle_optimizer(for_generator)
        self.log_dict({"critic": critic_loss, "generator": generator_loss})
        return {"loss": generator_loss.detach()} if self.return_dict else generator_loss.detach()

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.generator.parameters(), lr=1e-3, betas=(0.0, 0.9)),
            torch.optim.Adam(self.critic.parameters(), lr=4e-3, betas=(0.0, 0.9)),
        )


def _hinge_gan_on_two_time_scales(seed: int, return_dict: bool) -> TrainingSetup:
    """The critic learns four times as fast as the generator, and the samples move to the data."""
    points = torch.tensor([2.0, -1.0]) + 0.5 * torch.randn(60 * 64, 2, generator=make_generator(seed))
    return TrainingSetup(_HingeGan(return_dict), make_loader(64, points), None, {"max_epochs": 4})


def _samples_are_where_the_data_are(outcome: Outcome) -> bool:
    if not ran_to_end(outcome):
        return False
    with torch.no_grad():
        samples = outcome.after(torch.randn(500, 4))
    return bool((samples.mean(0) - torch.tensor([2.0, -1.0])).norm() < 1.0) and bool(samples.std(0).max() < 2)


class _Factors(pl.LightningModule):
    """Alternates between factors of users and of films, with SparseAdam for rarely used rows."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.users = nn.Embedding(400, 4, sparse=True)
        self.films = nn.Embedding(300, 4, sparse=True)
        nn.init.normal_(self.users.weight, std=0.3)
        nn.init.normal_(self.films.weight, std=0.3)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        return (self.users(pairs[:, 0]) * self.films(pairs[:, 1])).sum(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pairs, ratings = batch
        optimizer = self.optimizers()[batch_idx % 2]  # pyright: ignore[reportIndexIssue]
        preds = self(pairs)
        loss = fn.mse_loss(preds, ratings)
        for factor_optimizer in self.optimizers():  # pyright: ignore[reportGeneralTypeIssues]
            factor_optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return {"loss": loss, "preds": preds.detach(), "target": ratings} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", fn.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SparseAdam(list(table.parameters()), lr=0.03)  # one for each side
            for table in (self.users, self.films)
        ]


def _factors_take_turns_by_the_batch(seed: int, return_dict: bool) -> TrainingSetup:
    """Users and films are updated alternately by SparseAdam, and four of five rows never occur."""
    source = make_generator(seed)
    users, films = torch.randn(80, 2, generator=source), torch.randn(60, 2, generator=source)
    pairs = torch.stack([torch.randint(80, (3300,), generator=source), torch.randint(60, (3300,), generator=source)], 1)
    ratings = (users[pairs[:, 0]] * films[pairs[:, 1]]).sum(1) + 0.2 * torch.randn(3300, generator=source)
    train, validation = make_loaders(300, 30, pairs, ratings)
    return TrainingSetup(_Factors(return_dict), train, validation, {"max_epochs": 4})


class _Peers(pl.LightningModule):
    """Two networks learn from each other, with different optimizers."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.older = perceptron(10, 32, 5)
        self.younger = perceptron(10, 16, 5, between=nn.Tanh)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (self.older(inputs) + self.younger(inputs)) / 2

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, labels = batch
        losses, logits = [], None
        for network, peer, optimizer in zip(
            (self.older, self.younger),
            (self.younger, self.older),
            self.optimizers(),  # pyright: ignore[reportArgumentType]
            strict=True,
        ):
            with torch.no_grad():
                opinion = peer(inputs).softmax(1)
            logits = network(inputs)
            loss = fn.cross_entropy(logits, labels)
            loss = loss + 0.5 * fn.kl_div(logits.log_softmax(1), opinion, reduction="batchmean")
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            losses.append(loss.detach())
        loss = torch.stack(losses).mean()
        return {"loss": loss, "preds": logits, "target": labels} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.older.parameters(), lr=3e-3), torch.optim.SGD(self.younger.parameters(), lr=0.1)


def _peers_teach_each_other(seed: int, return_dict: bool) -> TrainingSetup:
    """Deep mutual learning: each network learns from the other's detached output."""
    inputs, labels = clusters(seed, 60 * 32, 10, 5, 0.9)
    return TrainingSetup(_Peers(return_dict), make_loader(32, inputs, labels))


class _OwnScaler(pl.LightningModule):
    """Half precision with autocast and a manual scaler, which reduces its first scale."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.classes = nn.Linear(128, 3)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=50)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.classes(self.features(pictures))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pictures, labels = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()  # pyright: ignore[reportAttributeAccessIssue]
        with torch.autocast("cpu", dtype=torch.float16):
            logits = self(pictures)
            loss = fn.cross_entropy(logits.float(), labels)
        self.manual_backward(self.scaler.scale(loss))
        self.scaler.step(optimizer.optimizer)  # pyright: ignore[reportAttributeAccessIssue]
        self.scaler.update()
        return {"loss": loss, "preds": logits.detach().float(), "target": labels} if self.return_dict else loss.detach()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def _own_scaler_backs_off_from_its_first_scale(seed: int, return_dict: bool) -> TrainingSetup:
    """The first backward passes of half precision overflow and are skipped by the scaler."""
    pictures, labels = bars(seed, 40 * 32, noise=0.7)
    return TrainingSetup(_OwnScaler(return_dict), make_loader(32, pictures, labels))


def _scale_came_down(outcome: Outcome) -> bool:
    return float(outcome.after.scaler.get_scale()) < 2.0**24  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


class _MetaLearner(pl.LightningModule):
    """MAML: the weights minimize the loss of a copy after one step."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.net = perceptron(1, 32, 32, 1, between=nn.Tanh)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        places, heights = batch
        losses, preds = [], []
        for support, target in zip(places, heights, strict=True):
            weights = dict(self.net.named_parameters())
            first = fn.mse_loss(self.net(support[:10]), target[:10])
            slopes = torch.autograd.grad(first, list(weights.values()), create_graph=True)
            ahead = {name: value - 0.1 * slope for (name, value), slope in zip(weights.items(), slopes, strict=True)}
            preds.append(torch.func.functional_call(self.net, ahead, (support[10:],)))
            losses.append(fn.mse_loss(preds[-1], target[10:]))
        loss = torch.stack(losses).mean()
        return {"loss": loss, "preds": torch.stack(preds), "target": heights[:, 10:]} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _sines_of_a_meta_learner(seed: int, return_dict: bool) -> TrainingSetup:
    """Each task is a different sine. One step on ten points must fit it."""
    source = make_generator(seed)
    places = 4 * torch.rand(40 * 4, 20, 1, generator=source) - 2
    strength = 0.5 + torch.rand(160, 1, 1, generator=source)
    phase = 3.14 * torch.rand(160, 1, 1, generator=source)
    train: DataLoader[Any] = make_loader(4, places, strength * torch.sin(places + phase))
    return TrainingSetup(_MetaLearner(return_dict), train, None, {"max_epochs": 4})


PROGRAMS = [
    Program(
        "hinge_gan_on_two_time_scales",
        "dense",
        _hinge_gan_on_two_time_scales,
        frozenset(),
        _samples_are_where_the_data_are,
        "https://github.com/Lightning-AI/pytorch-lightning/pull/5771",
    ),
    Program(
        "factors_take_turns_by_the_batch",
        "regression",
        _factors_take_turns_by_the_batch,
        frozenset(),
        explains_variance(0.5),
        "https://github.com/Lightning-AI/pytorch-lightning/issues/1770",
    ),
    Program(
        "peers_teach_each_other",
        "dense",
        _peers_teach_each_other,
        frozenset(),
        is_accurate(0.8),
        "https://arxiv.org/abs/1706.00384",
    ),
    Program(
        "own_scaler_backs_off_from_its_first_scale",
        "convolutional",
        _own_scaler_backs_off_from_its_first_scale,
        frozenset(),
        all_of(is_accurate(0.8), _scale_came_down),
        "https://docs.pytorch.org/docs/stable/notes/amp_examples.html",
    ),
    Program(
        "sines_of_a_meta_learner",
        "regression",
        _sines_of_a_meta_learner,
        frozenset(),
        fell_by(0.5),
        "https://arxiv.org/abs/1703.03400",
    ),
]
