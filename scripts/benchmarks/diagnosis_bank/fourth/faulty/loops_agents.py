"""Faulty agents and meta-learning."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.loops_support import (
    all_of,
    ends_above,
    make_generator,
    make_loader,
    mlp,
    step_output,
    unchanged,
)
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from stormproof.finding import Problem


def _moved(place: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Returns the cells of a field of six by six, (N, 2), after a move in one of four directions."""
    moves = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])
    return (place + moves[action]).clamp(0, 5)


class _Replay(Dataset[Any]):
    """Recorded random moves in a field of six by six. Reaching the corner (5, 5) gives a reward of one."""

    def __init__(self, seed: int, count: int = 3200) -> None:
        source = make_generator(seed)
        self.place = torch.randint(6, (count, 2), generator=source)
        self.action = torch.randint(4, (count,), generator=source)
        self.after = _moved(self.place, self.action)
        self.is_over = (self.after == 5).all(1)

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {
            "place": self.place[row] / 5,
            "action": self.action[row],
            "after": self.after[row] / 5,
            "reward": self.is_over[row].float(),
            "is_over": self.is_over[row].float(),
        }


class _Values(pl.LightningModule):
    """Deep Q-learning from a replay buffer with a target network."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.network = mlp(2, 64, 64, 4)
        self.slow = copy.deepcopy(self.network).requires_grad_(False)

    def forward(self, place: torch.Tensor) -> torch.Tensor:
        return self.network(place)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step % 50 == 0:
            self.slow.load_state_dict(self.network.state_dict())
        preds = self(batch["place"]).gather(1, batch["action"].unsqueeze(1))
        with torch.no_grad():
            target = batch["reward"] + 0.9 * (1 - batch["is_over"]) * self.slow(batch["after"]).amax(1)
        if self.is_fixed:
            target = target.unsqueeze(1)
        return step_output(self.return_dict, functional.smooth_l1_loss(preds, target), preds, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.network.parameters(), lr=2e-3)


def _values_broadcast(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: chosen values have shape (N, 1) and their targets (N,)."""
    train: Any = DataLoader(_Replay(seed), batch_size=64, shuffle=True)
    return TrainingSetup(_Values(return_dict, is_fixed), train, None, {"max_epochs": 16})


def _share_that_arrives(outcome: Outcome) -> float:
    """Returns the share of cells from which the greedy policy reaches the corner within ten moves."""
    place = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    arrived = torch.zeros(36, dtype=torch.bool)
    with torch.no_grad():
        for _ in range(10):
            place = torch.where(arrived.unsqueeze(1), place, _moved(place, outcome.after(place / 5).argmax(1)))
            arrived |= (place == 5).all(1)
    return float(arrived.float().mean())


class _Hover(pl.LightningModule):
    """REINFORCE with a baseline: a drone chooses to sink, stay or climb, to hover at ten meters."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.policy = mlp(1, 32, 32, 3, between=nn.Tanh)

    def forward(self, height: torch.Tensor) -> torch.Tensor:
        return self.policy((height - 10000) / 300 if self.is_fixed else height)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (height,) = batch
        likelihoods, rewards = [], []
        for _ in range(8):
            choice = torch.distributions.Categorical(logits=self(height))
            action = choice.sample()
            likelihoods.append(choice.log_prob(action))
            height = height + 100.0 * (action.unsqueeze(1) - 1)
            rewards.append(-(height - 10000).abs().squeeze(1) / 500)
        gains = torch.stack(rewards).flip(0).cumsum(0).flip(0)
        gains = (gains - gains.mean(1, keepdim=True)) / (gains.std(1, keepdim=True) + 1e-6)
        self.log("reward", torch.stack(rewards).mean())
        return step_output(self.return_dict, -(torch.stack(likelihoods) * gains).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _raw_height(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: the policy reads the height in millimeters, about ten thousand."""
    heights = 10000 + 500 * (2 * torch.rand(64 * 60, 1, generator=make_generator(seed)) - 1)
    return TrainingSetup(_Hover(return_dict, is_fixed), make_loader(64, heights), None, {"max_epochs": 4})


def _final_distance(outcome: Outcome) -> float:
    """Returns the mean distance from ten meters after eight greedy moves, in meters."""
    height = torch.linspace(9500, 10500, 101).unsqueeze(1)
    with torch.no_grad():
        for _ in range(8):
            height = height + 100.0 * (outcome.after(height).argmax(1, keepdim=True) - 1)
    return float((height - 10000).abs().mean() / 1000)


class _MetaLearner(pl.LightningModule):
    """First-order MAML on sine waves with different amplitude and phase."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.network = mlp(1, 40, 40, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        losses = []
        for inputs, target in zip(*batch, strict=True):
            learner = copy.deepcopy(self.network)
            inner = torch.optim.SGD(learner.parameters(), lr=0.02)
            for _ in range(3):
                inner.zero_grad()
                functional.mse_loss(learner(inputs[:10]), target[:10]).backward()
                inner.step()
            inner.zero_grad()
            loss = functional.mse_loss(learner(inputs[10:]), target[10:])
            loss.backward()
            losses.append(loss.detach())
            if self.is_fixed:
                for parameter, adapted in zip(self.network.parameters(), learner.parameters(), strict=True):
                    gradient = adapted.grad / len(inputs)
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        optimizer.step()
        return step_output(self.return_dict, torch.stack(losses).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.network.parameters(), lr=5e-3)


def _gradients_stay_in_copies(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: the gradients of the adapted copies are not transferred to the network."""
    source = make_generator(seed)
    inputs = 6 * torch.rand(600, 20, 1, generator=source) - 3
    height = 0.5 + 2 * torch.rand(600, 1, 1, generator=source)
    phase = 1.0 * torch.rand(600, 1, 1, generator=source)
    train = make_loader(4, inputs, height * torch.sin(inputs + phase))
    return TrainingSetup(_MetaLearner(return_dict, is_fixed), train, None, {"max_epochs": 2})


PROGRAMS: list[Program] = [
    Program(
        "chosen_values_of_a_replay_against_a_row_of_targets",
        "regression",
        _values_broadcast,
        frozenset({Problem.BROADCAST_MISMATCH}),
        lambda outcome: _share_that_arrives(outcome) < 0.7,
        "https://github.com/hungtuchen/pytorch-dqn/issues/3",
    ),
    Program(
        "drone_reads_its_height_in_millimeters",
        "dense",
        _raw_height,
        frozenset({Problem.INPUT_BADLY_SCALED, Problem.SATURATED_UNITS, Problem.OUTPUT_IGNORES_INPUT}),
        lambda outcome: _final_distance(outcome) > 0.18,
        "https://ai.stackexchange.com/questions/31583/should-i-apply-normalization-to-the-observations-in-deep-reinforcement-learning/31982",
    ),
    Program(
        "gradients_of_adapted_copies_are_not_transferred",
        "regression",
        _gradients_stay_in_copies,
        frozenset({Problem.NO_GRADIENT, Problem.WEIGHTS_UNCHANGED}),
        all_of(unchanged("network"), ends_above(0.5)),
        "https://discuss.pytorch.org/t/another-way-to-implement-maml-model-agnostic-meta-learning/164439",
    ),
]
