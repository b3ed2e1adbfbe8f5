"""Healthy reward models, preference and policy-gradient fine-tuning, and actor-critic learning."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.systems_support import Grid, evaluate, loader, mlp, rng, sessions, split
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from torch import nn
from torch.nn import functional


class RewardModel(pl.LightningModule):
    """Bradley-Terry model of which one of two answers a person prefers."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.words, self.gru = nn.Embedding(40, 24, padding_idx=0), nn.GRU(24, 32, batch_first=True)
        self.head = nn.Linear(32, 1, bias=False)
        nn.init.zeros_(self.head.weight)
        self.return_dict = return_dict

    def forward(self, answer: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.gru(self.words(answer))
        return self.head(hidden.mean(1)).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        chosen, rejected = self(torch.cat(batch)).chunk(2)
        preds = chosen - rejected
        target = torch.ones_like(preds)
        loss = functional.binary_cross_entropy_with_logits(preds, target)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", -functional.logsigmoid(self(batch[0]) - self(batch[1])).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def build_reward_model(seed: int, return_dict: bool) -> TrainingSetup:
    """People disagree, so that the loss stays near ln 2, and the head starts at zero."""
    generator = rng(seed)
    answers = torch.randint(1, 40, (2, 3200, 10), generator=generator)
    lengths = torch.randint(4, 11, (2, 3200, 1), generator=generator)
    answers = answers.masked_fill(torch.arange(10) >= lengths, 0)
    quality = torch.randn(40, generator=generator).index_fill(0, torch.tensor(0), 0.0)[answers].sum(2)
    prefers_first = torch.bernoulli(torch.sigmoid(0.7 * (quality[0] - quality[1])), generator=generator).bool()
    chosen = torch.where(prefers_first[:, None], answers[0], answers[1])
    rejected = torch.where(prefers_first[:, None], answers[1], answers[0])
    train, validation = split([chosen, rejected], seed, 500)
    return TrainingSetup(
        RewardModel(return_dict), loader(*train), loader(*validation, batch_size=500), {"max_epochs": 4}
    )


def preference_accuracy(outcome: Outcome) -> float:
    """Returns how often the chosen answer has the higher reward."""
    return evaluate(outcome, lambda module, *pair: (module(pair[0]) > module(pair[1])).float().mean())


class SmallModel(nn.Module):
    """Small autoregressive model that returns the logarithmic probability of each sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.gru, self.head = nn.Embedding(30, 24), nn.GRU(24, 48, batch_first=True), nn.Linear(48, 30)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        log_probability = self.head(self.gru(self.items(sequence[:, :-1]))[0]).log_softmax(2)
        return log_probability.gather(2, sequence[:, 1:, None]).squeeze(2).sum(1)


class PreferenceOptimization(pl.LightningModule):
    """DPO: the policy starts as a copy of the frozen reference."""

    def __init__(self, reference: SmallModel, return_dict: bool) -> None:
        super().__init__()
        self.policy, self.reference = copy.deepcopy(reference), reference.requires_grad_(False)
        self.return_dict = return_dict

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        return 0.1 * (self.policy(sequence) - self.reference(sequence))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        chosen, rejected = self(torch.cat(batch)).chunk(2)
        preds = chosen - rejected
        loss = -functional.logsigmoid(preds).mean()
        return {"loss": loss, "preds": preds, "target": torch.ones_like(preds)} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", -functional.logsigmoid(self(batch[0]) - self(batch[1])).mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.RMSprop(self.policy.parameters(), lr=5e-4)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}


def build_preference_optimization(seed: int, return_dict: bool) -> TrainingSetup:
    """The loss starts at exactly ln 2 and changes slowly, because a small factor scales the margin."""
    items = sessions(2600, 8, 30, seed)
    reference = SmallModel()
    optimizer = torch.optim.Adam(reference.parameters(), lr=2e-2)
    for _ in range(40):
        optimizer.zero_grad()
        reference(items[:512]).mean().neg().backward()
        optimizer.step()
    taste = torch.randn(30, generator=rng(seed + 1))[items].sum(1)
    first, second = items.chunk(2)
    is_first = (taste[:1300] > taste[1300:])[:, None]
    pairs = [torch.where(is_first, first, second), torch.where(is_first, second, first)]
    train, validation = split(pairs, seed, 300)
    module = PreferenceOptimization(reference, return_dict)
    return TrainingSetup(module, loader(*train, batch_size=32), loader(*validation, batch_size=300), {"max_epochs": 4})


class GroupPolicyGradient(pl.LightningModule):
    """Policy gradient of sampled sequences, with the reward relative to other samples for the same prompt."""

    n_words, length, group = 6, 4, 12

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.words, self.cell = nn.Embedding(self.n_words, 24), nn.GRUCell(24, 32)
        self.head = nn.Linear(32, self.n_words)
        self.return_dict = return_dict

    def forward(self, prompt: torch.Tensor, is_greedy: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        state, word = torch.zeros(len(prompt), 32), prompt
        logits, words = [], []
        for _ in range(self.length):
            state = self.cell(self.words(word), state)
            logits.append(self.head(state))
            word = logits[-1].argmax(1) if is_greedy else torch.distributions.Categorical(logits=logits[-1]).sample()
            words.append(word)
        return torch.stack(logits, 2), torch.stack(words, 1)

    def reward(self, prompt: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Returns the share of words that count on from the prompt."""
        return (words == (prompt[:, None] + 1 + torch.arange(self.length)) % self.n_words).float().mean(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        prompt = batch[0].repeat_interleave(self.group)
        preds, target = self(prompt, is_greedy=False)
        reward = self.reward(prompt, target).reshape(-1, self.group)
        advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
        surprise = functional.cross_entropy(preds, target, reduction="none").mean(1)
        entropy = torch.distributions.Categorical(logits=preds.transpose(1, 2)).entropy().mean()
        loss = (advantage.flatten() * surprise).mean() - 0.01 * entropy
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def build_group_policy_gradient(seed: int, return_dict: bool) -> TrainingSetup:
    """The loss stays near zero, because its mean says nothing about the reward."""
    prompts = torch.randint(GroupPolicyGradient.n_words, (480,), generator=rng(seed))
    return TrainingSetup(GroupPolicyGradient(return_dict), loader(prompts, batch_size=12), None, {"max_epochs": 5})


def greedy_reward(outcome: Outcome) -> float:
    """Returns the mean reward of the greedy policy."""
    prompts = torch.arange(GroupPolicyGradient.n_words)
    module: Any = outcome.after
    with torch.no_grad():
        return float(module.reward(prompts, module(prompts)[1]).mean())


class ActorCritic(pl.LightningModule):
    """Actor and critic with an optimizer each. The critic learns from its own slowly updated copy."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        n_cells = Grid.size**2
        self.actor, self.critic = mlp(n_cells, 64, 4), nn.Embedding(n_cells, 1)
        nn.init.zeros_(self.critic.weight)
        self.tables = Grid().transitions()
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_dict = return_dict

    def forward(self, cell: torch.Tensor) -> torch.Tensor:
        return self.actor(functional.one_hot(cell, Grid.size**2).float())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (cell,) = batch
        policy = torch.distributions.Categorical(logits=self(cell))
        action = policy.sample()
        following, reward, is_end = (table[cell, action] for table in self.tables)
        target = reward[:, None] + Grid.gamma * (1 - is_end[:, None]) * self.target_critic(following)
        preds = self.critic(cell)
        critic_loss = functional.smooth_l1_loss(preds, target)
        advantage = (target - preds).detach().squeeze(1)
        advantage = advantage / (advantage.std() + 1e-6)
        actor_loss = -(policy.log_prob(action) * advantage).mean() - 0.01 * policy.entropy().mean()
        optimizers: Any = self.optimizers()
        for optimizer, loss in zip(optimizers, (actor_loss, critic_loss), strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        with torch.no_grad():
            self.target_critic.weight.lerp_(self.critic.weight, 0.1)
        loss = (actor_loss + critic_loss).detach()
        return {"loss": loss, "preds": preds.detach(), "target": target} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.actor.parameters(), lr=1e-2), torch.optim.Adam(self.critic.parameters(), lr=2e-2)]


def build_actor_critic(seed: int, return_dict: bool) -> TrainingSetup:
    """Most rewards are zero, and the targets move with the copy of the critic."""
    cells = torch.randint(Grid.size**2 - 1, (7040,), generator=rng(seed))
    return TrainingSetup(ActorCritic(return_dict), loader(cells, batch_size=64), None, {"max_epochs": 3})


def optimal_action_rate(outcome: Outcome) -> float:
    """Returns in how many cells the greedy action is optimal."""
    with torch.no_grad():
        action = outcome.after(torch.arange(Grid.size**2)).argmax(1)
    values = Grid().values()[:-1]
    chosen = values.gather(1, action[:-1, None]).squeeze(1)
    return float((chosen > values.max(1).values - 1e-4).float().mean())


PROGRAMS = [
    Program(
        "reward_model_of_noisy_preferences_with_head_at_zero",
        "sequence",
        build_reward_model,
        frozenset(),
        lambda outcome: preference_accuracy(outcome) > 0.68,
        "Ouyang et al. (2022), InstructGPT (cited from memory)",
    ),
    Program(
        "direct_preference_optimization_from_frozen_reference",
        "sequence",
        build_preference_optimization,
        frozenset(),
        lambda outcome: preference_accuracy(outcome) > 0.68,
        "https://github.com/eric-mitchell/direct-preference-optimization/issues/46 (the loss starts at ln 2)",
    ),
    Program(
        "group_relative_policy_gradient_with_loss_near_zero",
        "sequence",
        build_group_policy_gradient,
        frozenset(),
        lambda outcome: greedy_reward(outcome) > 0.7,
        "Shao et al. (2024), DeepSeekMath (cited from memory)",
    ),
    Program(
        "actor_critic_with_sparse_rewards_and_target_critic",
        "regression",
        build_actor_critic,
        frozenset(),
        lambda outcome: optimal_action_rate(outcome) > 0.7,
        "Mnih et al. (2016), Asynchronous methods for deep reinforcement learning (cited from memory)",
    ),
]
