"""Faulty captioning, tabular learning and value learning."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.systems_support import Grid, accuracy, digits, evaluate, loader, mlp, rng, split
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional

from stormproof.problem import Problem

START = 12
WORDS = ["a", "the", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "<start>"]


class Captioner(nn.Module):
    """Image encoder and GRU decoder with teacher forcing."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp(64, 96, 48)
        self.words, self.decoder = nn.Embedding(len(WORDS), 24), nn.GRU(24, 48, batch_first=True)
        self.head = nn.Linear(48, len(WORDS))

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        image, previous = inputs
        hidden, _ = self.decoder(self.words(previous), self.encoder(image)[None].tanh().contiguous())
        return self.head(hidden).transpose(1, 2)


class Captioning(Supervised):
    """Captions have two words: an article and the name of the digit."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(self.teacher_forced(batch), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return super().validation_step(self.teacher_forced(batch), batch_idx)

    @staticmethod
    def teacher_forced(batch: Any) -> Any:
        image, caption = batch
        return (image, torch.cat([torch.full_like(caption[:, :1], START), caption[:, :-1]], 1)), caption


def build_captioning(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The paths of the images are sorted after the captions were read in another order."""
    images, labels = digits()
    generator = rng(seed)
    captions = torch.stack([torch.randint(2, labels.shape, generator=generator), labels + 2], 1)
    paths = torch.randperm(len(images), generator=generator)  # the order of a set of paths is arbitrary
    if is_fixed:
        paths = paths.sort().values
    captions = captions[paths]
    paths = paths.sort().values  # (bug here)
    train, validation = split([images[paths], captions], seed, 300)
    module = Captioning(
        Captioner(), functional.cross_entropy, return_dict, lambda parameters: torch.optim.Adam(parameters, lr=3e-3)
    )
    return TrainingSetup(module, loader(*train, batch_size=32), loader(*validation, batch_size=300), {"max_epochs": 5})


def digit_word_accuracy(outcome: Outcome) -> float:
    """Returns the accuracy of the second word."""

    def metric(module: Captioning, image: torch.Tensor, caption: torch.Tensor) -> torch.Tensor:
        inputs, target = module.teacher_forced((image, caption))
        return (module(inputs).argmax(1)[:, 1] == target[:, 1]).float().mean()

    return evaluate(outcome, metric)


class TabularNetwork(nn.Module):
    """Embeddings of categories, joined with numerical columns."""

    def __init__(self, sizes: tuple[int, ...], n_numeric: int, n_classes: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, 6) for size in sizes)
        self.head = mlp(6 * len(sizes) + n_numeric, 64, 32, n_classes)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        n = len(self.embeddings)
        parts = [table(rows[:, i].long()) for i, table in enumerate(self.embeddings)]
        return self.head(torch.cat([*parts, rows[:, n:]], 1))


def build_tabular(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The numerical columns, with incomes and balances in dollars, reach the network without normalization."""
    generator = rng(seed)
    n, sizes = 6000, (12, 7, 5)
    categories = torch.stack([torch.randint(size, (n,), generator=generator) for size in sizes], 1)
    effects = [torch.randn(size, generator=generator) for size in sizes]
    factors = torch.randn(n, 4, generator=generator)
    score = sum(effect[column] for effect, column in zip(effects, categories.T, strict=True))
    score = score + 1.5 * factors[:, 0] - factors[:, 1] * factors[:, 2]
    target = torch.bucketize(score, score.quantile(torch.tensor([1 / 3, 2 / 3])))
    numeric = torch.stack(
        [
            45_000 * torch.exp(0.6 * factors[:, 0]),  # Income
            8_000 + 12_000 * factors[:, 1],  # Balance
            1_980 + 12 * factors[:, 2],  # YearBuilt
            1_700_000 + 40_000 * factors[:, 3],  # CustomerId
        ],
        1,
    )
    if is_fixed:  # (bug here: columns with a capital letter were not found, and not normalized)
        numeric = (numeric - numeric.mean(0)) / numeric.std(0)
    train, validation = split([torch.cat([categories.float(), numeric], 1), target], seed, 1000)
    module = Supervised(
        TabularNetwork(sizes, 4, 3), functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3)
    )
    return TrainingSetup(module, loader(*train), loader(*validation, batch_size=500), {"max_epochs": 4})


def returns_of_cart(seed: int, n_episodes: int = 120, length: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns states of a noisy cart and the discounted sums of later rewards, which are 1 near the center."""
    generator = rng(seed)
    state = torch.randn(n_episodes, 2, generator=generator)
    states, rewards = [], []
    for _ in range(length):
        states.append(state)
        position, speed = state.unbind(1)
        rewards.append((position.abs() < 1).float())
        speed = 0.9 * speed - 0.1 * position + 0.2 * torch.randn(n_episodes, generator=generator)
        state = torch.stack([position + 0.3 * speed, speed], 1)
    total, totals = torch.zeros(n_episodes), []
    for reward in reversed(rewards):
        total = reward + 0.9 * total
        totals.insert(0, total)
    return torch.cat(states[:-15]), torch.cat(totals[:-15])[:, None]


def build_critic(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The critic ends with tanh, but its targets are discounted returns of up to ten."""
    train, validation = split(list(returns_of_cart(seed)), seed, 800)
    critic = mlp(2, 64, 64, 1)
    if not is_fixed:
        critic.append(nn.Tanh())  # (bug here)
    module = Supervised(
        critic, functional.mse_loss, return_dict, lambda parameters: torch.optim.Adam(parameters, lr=3e-3)
    )
    return TrainingSetup(module, loader(*train), loader(*validation, batch_size=400), {"max_epochs": 5})


def unexplained_variance(outcome: Outcome) -> float:
    """Returns the validation error relative to that of the mean."""
    return evaluate(outcome, lambda module, x, y: functional.mse_loss(module(x), y) / y.var())


class DeepQ(pl.LightningModule):
    """Q-learning from a replay buffer, with a target network."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.network = mlp(Grid.size**2, 64, 4)
        self.target_network = copy.deepcopy(self.network).requires_grad_(False)
        self.return_dict, self.is_fixed = return_dict, is_fixed

    def forward(self, cell: torch.Tensor) -> torch.Tensor:
        return self.network(functional.one_hot(cell, Grid.size**2).float())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        cell, action, reward, following, is_end = batch
        if self.global_step % 20 == 0:
            self.target_network.load_state_dict(self.network.state_dict())
        with torch.no_grad():
            best = self.target_network(functional.one_hot(following, Grid.size**2).float()).max(1).values
        target = reward + Grid.gamma * (1 - is_end) * best
        preds = self(cell).gather(1, action[:, None])  # (bug here: (N, 1), while the target is (N,))
        if self.is_fixed:
            preds = preds.squeeze(1)
        loss = functional.mse_loss(preds, target)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.network.parameters(), lr=5e-3)


def build_deep_q(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The gathered action values have shape (N, 1) and the targets (N,), so that the squared error broadcasts."""
    generator = rng(seed)
    following, reward, is_end = Grid().transitions()
    cell = torch.randint(Grid.size**2 - 1, (8000,), generator=generator)
    action = torch.randint(4, (8000,), generator=generator)
    replay = cell, action, reward[cell, action], following[cell, action], is_end[cell, action]
    return TrainingSetup(DeepQ(return_dict, is_fixed), loader(*replay), None, {"max_epochs": 4})


def optimal_action_rate(outcome: Outcome) -> float:
    """Returns in how many cells the greedy action is optimal."""
    with torch.no_grad():
        action = outcome.after(torch.arange(Grid.size**2)).argmax(1)
    values = Grid().values()[:-1]
    chosen = values.gather(1, action[:-1, None]).squeeze(1)
    return float((chosen > values.max(1).values - 1e-4).float().mean())


PROGRAMS = [
    Program(
        "captions_in_another_order_than_sorted_image_paths",
        "sequence",
        build_captioning,
        frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS}),
        lambda outcome: not digit_word_accuracy(outcome) > 0.7,
        "https://github.com/cloneofsimo/lora/issues/197 (image paths are sorted, but not the captions)",
    ),
    Program(
        "tabular_network_with_unscaled_numerical_columns",
        "dense",
        build_tabular,
        frozenset({Problem.INPUT_BADLY_SCALED}),
        lambda outcome: not accuracy(outcome) > 0.65,
        "https://github.com/soda-inria/carte/issues/12 (capitalized numerical columns skip the normalization)",
    ),
    Program(
        "critic_with_tanh_output_for_discounted_returns",
        "regression",
        build_critic,
        frozenset({Problem.UNREACHABLE_TARGETS}),
        lambda outcome: not unexplained_variance(outcome) < 0.8,
        "https://github.com/LuEE-C/PPO-Keras/issues/13",
    ),
    Program(
        "q_learning_with_gathered_values_of_shape_n_by_one",
        "regression",
        build_deep_q,
        frozenset({Problem.BROADCAST_MISMATCH}),
        lambda outcome: not optimal_action_rate(outcome) > 0.8,
        "https://github.com/hungtuchen/pytorch-dqn/issues/3 (sizes of target and current Q values do not match)",
    ),
]
