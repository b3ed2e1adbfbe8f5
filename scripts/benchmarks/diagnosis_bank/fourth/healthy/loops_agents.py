"""Healthy agents and curricula: losses without a floor, targets that move, and steps that skip a network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.loops_support import all_of, make_generator, make_loader, mlp, ran_to_end, step_output
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset


class _Starts(IterableDataset[Any]):
    """Places in a corridor of twelve cells where episodes start."""

    def __init__(self, seed: int, count: int) -> None:
        self.source = make_generator(seed)
        self.count = count

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(self.count):
            yield torch.randint(2, 9, (), generator=self.source)


class _Corridor(pl.LightningModule):
    """REINFORCE with a bonus for entropy. The right end pays one, the left end a fifth, and each step costs."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.policy = nn.Sequential(nn.Embedding(12, 16), nn.Tanh(), nn.Linear(16, 2))
        self.gains: list[float] = []

    def forward(self, place: torch.Tensor) -> torch.Tensor:
        return self.policy(place)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        place = batch
        alive = torch.ones(len(place))
        likelihood, entropy, total = torch.zeros(len(place)), torch.zeros(()), torch.zeros(len(place))
        for _ in range(25):
            choice = torch.distributions.Categorical(logits=self(place))
            action = choice.sample()
            likelihood = likelihood + alive * choice.log_prob(action)
            entropy = entropy + (alive * choice.entropy()).mean() / 25
            place = (place + 2 * action - 1).clamp(0, 11)
            total = total + alive * ((place == 11).float() + 0.2 * (place == 0).float() - 0.02)
            alive = alive * ((place > 0) & (place < 11)).float()
        self.gains.append(float(total.mean()))
        advantage = (total - total.mean()) / (total.std() + 1e-3)
        return step_output(self.return_dict, -(likelihood * advantage).mean() - 0.05 * entropy)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def _corridor(seed: int, return_dict: bool) -> TrainingSetup:
    """The loss rises from below to zero while the rewards grow, and the stream has no length."""
    train: Any = DataLoader(_Starts(seed, 32 * 40), batch_size=32)
    return TrainingSetup(_Corridor(return_dict), train, None, {"max_epochs": 5})


def _walks_to_the_right(outcome: Outcome) -> bool:
    module: Any = outcome.after
    with torch.no_grad():
        steps = module(torch.arange(1, 11)).argmax(1)
    return bool((steps == 1).float().mean() > 0.85) and sum(module.gains[-20:]) / 20 > 0.7


def _pushed(state: torch.Tensor, force: torch.Tensor) -> torch.Tensor:
    """Returns place and speed of a cart after a push."""
    speed = 0.9 * state[:, 1:] + 0.3 * force
    return torch.cat([state[:, :1] + 0.3 * speed, speed], 1).clamp(-2, 2)


class _Cart(pl.LightningModule):
    """TD3 from recorded pushes: two critics, slow targets, and an actor that steps in every second batch."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.actor = nn.Sequential(*mlp(2, 48, 48, 1), nn.Tanh())
        self.critics = nn.ModuleList([mlp(3, 64, 64, 1), mlp(3, 64, 64, 1)])
        self.slow_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.slow_critics = copy.deepcopy(self.critics).requires_grad_(False)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.actor(state)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        state, force, reward, after = batch
        of_actor, of_critics = self.optimizers()  # pyright: ignore[reportGeneralTypeIssues]
        with torch.no_grad():
            noise = (0.1 * torch.randn_like(force)).clamp(-0.3, 0.3)
            following = torch.cat([after, (self.slow_actor(after) + noise).clamp(-1, 1)], 1)
            lower = torch.minimum(*[critic(following) for critic in self.slow_critics])
            target = reward + 0.95 * lower
        pair = torch.cat([state, force], 1)
        values = torch.cat([critic(pair) for critic in self.critics], 1)
        loss = functional.mse_loss(values, target.expand_as(values))
        of_critics.zero_grad()
        self.manual_backward(loss)
        of_critics.step()
        if batch_idx % 2:
            of_actor.zero_grad()
            self.manual_backward(-self.critics[0](torch.cat([state, self(state)], 1)).mean())
            of_actor.step()
            with torch.no_grad():
                for slow, fast in ((self.slow_actor, self.actor), (self.slow_critics, self.critics)):
                    for average, parameter in zip(slow.parameters(), fast.parameters(), strict=True):
                        average.lerp_(parameter, 0.02)
        return step_output(self.return_dict, loss.detach(), values, target.expand_as(values))

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.actor.parameters(), lr=1e-3),
            torch.optim.Adam(self.critics.parameters(), lr=2e-3),
        ]


def _cart(seed: int, return_dict: bool) -> TrainingSetup:
    """The loss of the critics rises for most of the training, because their targets move."""
    source = make_generator(seed)
    state = 4 * torch.rand(4800, 2, generator=source) - 2
    force = 2 * torch.rand(4800, 1, generator=source) - 1
    after = _pushed(state, force)
    reward = -(after[:, :1] ** 2) - 0.05 * force**2
    return TrainingSetup(_Cart(return_dict), make_loader(64, state, force, reward, after), None, {"max_epochs": 10})


def _cart_stops(outcome: Outcome) -> bool:
    state = torch.stack([torch.linspace(-1.5, 1.5, 31), torch.zeros(31)], 1)
    with torch.no_grad():
        for _ in range(60):
            state = _pushed(state, outcome.after(state))
    return float(state[:, 0].abs().mean()) < 0.3


class _Phrases(IterableDataset[Any]):
    """Sequences of five symbols with a question for their first symbol. They are longer in later epochs."""

    def __init__(self, seed: int, count: int) -> None:
        self.source = make_generator(seed)
        self.count = count
        self.length = 2

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(self.count):
            symbols = torch.randint(5, (self.length,), generator=self.source)
            yield {"symbols": symbols, "answer": symbols[0]}


class _Longer(pl.LightningModule):
    """Remembers the first symbol of longer and longer sequences."""

    def __init__(self, return_dict: bool, phrases: _Phrases) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.phrases = phrases
        self.embedding = nn.Embedding(5, 12)
        self.lstm = nn.LSTM(12, 32, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embedding(symbols))[0][:, -1])

    def on_train_epoch_end(self) -> None:
        self.phrases.length += 8

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch["symbols"])
        loss = functional.cross_entropy(logits, batch["answer"])
        return step_output(self.return_dict, loss, logits, batch["answer"])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _longer(seed: int, return_dict: bool) -> TrainingSetup:
    """The loss can jump at the start of an epoch, because the sequences are eight symbols longer."""
    phrases = _Phrases(seed, 32 * 60)
    train: Any = DataLoader(phrases, batch_size=32)
    return TrainingSetup(_Longer(return_dict, phrases), train, None, {"max_epochs": 6, "gradient_clip_val": 1.0})


def _remembers(outcome: Outcome) -> bool:
    symbols = torch.randint(5, (500, 42), generator=make_generator(99))
    with torch.no_grad():
        return float((outcome.after(symbols).argmax(1) == symbols[:, 0]).float().mean()) > 0.9


PROGRAMS: list[Program] = [
    Program(
        "corridor_is_walked_while_the_loss_rises_to_zero",
        "dense",
        _corridor,
        frozenset(),
        all_of(ran_to_end, _walks_to_the_right),
        "https://github.com/pytorch/examples/blob/main/reinforcement_learning/reinforce.py",
    ),
    Program(
        "cart_is_stopped_by_an_actor_that_steps_every_second_batch",
        "regression",
        _cart,
        frozenset(),
        all_of(ran_to_end, _cart_stops),
        "https://arxiv.org/abs/1802.09477",
    ),
    Program(
        "sequences_grow_from_epoch_to_epoch",
        "sequence",
        _longer,
        frozenset(),
        all_of(ran_to_end, _remembers),
        "https://arxiv.org/abs/1410.4615",
    ),
]
