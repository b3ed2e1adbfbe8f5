"""Healthy recommenders, learning to rank and click models."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.systems_support import (
    affinities,
    evaluate,
    loader,
    mlp,
    ranking_auc,
    rng,
    split,
)
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional


class SampledSoftmax(pl.LightningModule):
    """Two towers with negatives from the batch, a learned temperature and a correction of the items' popularity."""

    log_popularity: torch.Tensor

    def __init__(self, return_dict: bool, n_items: int, log_popularity: torch.Tensor) -> None:
        super().__init__()
        self.user, self.items = mlp(24, 64, 16), nn.Embedding(n_items, 16)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("log_popularity", log_popularity)
        self.return_dict = return_dict

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        similarity = functional.normalize(self.user(users), dim=1) @ functional.normalize(self.items(items), dim=1).T
        return similarity * self.log_scale.exp().clamp(max=50)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        users, items = batch
        preds = self(users, items) - self.log_popularity[items]
        is_same = (items[:, None] == items[None]) & ~torch.eye(len(items), dtype=torch.bool)
        preds, target = preds.masked_fill(is_same, -1e9), torch.arange(len(items))
        loss = functional.cross_entropy(preds, target)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        preds = self(batch[0], torch.arange(self.items.num_embeddings))
        self.log("val_loss", functional.cross_entropy(preds, batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), lr=0.05)


def build_sampled_softmax(seed: int, return_dict: bool) -> TrainingSetup:
    """The loss stays near the logarithm of the batch size, because popular negatives are corrected."""
    generator = rng(seed)
    features, taste = torch.randn(6000, 24, generator=generator), torch.randn(24, 80, generator=generator)
    popularity = torch.linspace(2, -2, 80)
    noise: Any = torch.distributions.Gumbel(0.0, 1.0).sample((6000, 80))
    items = noise.add(0.6 * features @ taste + popularity).argmax(1)
    log_popularity = torch.log((torch.bincount(items, minlength=80) + 1) / 6080)
    train, validation = split([features, items], seed, 1000)
    module = SampledSoftmax(return_dict, 80, log_popularity)
    return TrainingSetup(module, loader(*train, batch_size=128), loader(*validation, batch_size=500), {"max_epochs": 5})


def hit_rate(outcome: Outcome) -> float:
    """Returns how often the item is among the ten items with the highest scores."""

    def metric(module: SampledSoftmax, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        top = module(users, torch.arange(module.items.num_embeddings)).topk(10, dim=1).indices
        return (top == items[:, None]).any(1).float().mean()

    return evaluate(outcome, metric)


class PairwiseRanking(pl.LightningModule):
    """Bayesian personalized ranking. Sparse embeddings and dense biases have an optimizer each."""

    def __init__(self, return_dict: bool, affinity: torch.Tensor) -> None:
        super().__init__()
        self.automatic_optimization = False
        n_users, n_items = affinity.shape
        self.users, self.items = nn.Embedding(n_users, 8, sparse=True), nn.Embedding(n_items, 8, sparse=True)
        nn.init.normal_(self.users.weight, std=0.05)
        nn.init.normal_(self.items.weight, std=0.05)
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.return_dict, self.affinity = return_dict, affinity

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return (self.users(users) * self.items(items)).sum(1) + self.bias[items]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        users, items = batch
        negatives = torch.randint(len(self.bias), items.shape)
        preds = self(users, items) - self(users, negatives)
        target = torch.ones_like(preds)
        loss = functional.binary_cross_entropy_with_logits(preds, target)
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        sparse = torch.optim.SparseAdam([self.users.weight, self.items.weight], lr=1e-2)
        return [sparse, torch.optim.SGD([self.bias], lr=0.5)]


def build_pairwise_ranking(seed: int, return_dict: bool) -> TrainingSetup:
    """All targets of the pairwise loss are 1, and the embeddings have sparse gradients."""
    affinity = affinities(200, 120, seed)
    users, items = (affinity > 1.0).nonzero().unbind(1)
    return TrainingSetup(PairwiseRanking(return_dict, affinity), loader(users, items), None, {"max_epochs": 6})


def affinity_auc(outcome: Outcome) -> float:
    """Returns the AUC of the trained scores for the items that a user likes."""
    module: Any = outcome.after
    affinity = module.affinity
    pairs = torch.cartesian_prod(*map(torch.arange, affinity.shape))
    with torch.no_grad():
        scores = module(*pairs.unbind(1)).reshape(affinity.shape)
    return ranking_auc(scores, affinity > 1.0)


def listwise_loss(scores: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """ListNet: cross-entropy of the top-one probabilities. Documents with relevance -1 are padding."""
    is_padding = relevance < 0
    target = relevance.masked_fill(is_padding, -1e9).softmax(1)
    return -(target * scores.masked_fill(is_padding, -1e9).log_softmax(1)).sum(1).mean()


class Scorer(nn.Module):
    """Scores each document of a list by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.network = mlp(16, 48, 24, 1, activation=nn.SiLU)

    def forward(self, documents: torch.Tensor) -> torch.Tensor:
        return self.network(documents).squeeze(2)


def build_listwise(seed: int, return_dict: bool) -> TrainingSetup:
    """Half of each list is padding with zeros, and the loss has a high lower bound."""
    generator = rng(seed)
    documents = torch.randn(2500, 20, 16, generator=generator)
    utility = documents[..., 0] * documents[..., 1] + documents[..., 2:6].sum(2) / 2
    utility = utility + 0.5 * torch.randn(utility.shape, generator=generator)
    relevance = torch.bucketize(utility, torch.tensor([0.0, 1.0, 2.0, 3.0])).float()
    is_padding = torch.arange(20)[None] >= torch.randint(5, 16, (2500, 1), generator=generator)
    documents = documents.masked_fill(is_padding[..., None], 0.0)
    relevance = relevance.masked_fill(is_padding, -1.0)
    train, validation = split([documents, relevance], seed, 500)
    module = Supervised(Scorer(), listwise_loss, return_dict, lambda p: torch.optim.RMSprop(p, lr=2e-3))
    return TrainingSetup(module, loader(*train, batch_size=32), loader(*validation, batch_size=250), {"max_epochs": 5})


def top_relevance(outcome: Outcome) -> float:
    """Returns the mean relevance of the first document."""

    def metric(module: Supervised, documents: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
        first = module(documents).masked_fill(relevance < 0, -1e9).argmax(1)
        return relevance.gather(1, first[:, None]).mean()

    return evaluate(outcome, metric)


class ClickModel(nn.Module):
    """Position-based model: the probability of a click is that of examination times that of attraction."""

    def __init__(self) -> None:
        super().__init__()
        self.examination = nn.Parameter(torch.zeros(10))
        self.attraction = mlp(12, 32, 1, activation=nn.Tanh)

    def forward(self, results: torch.Tensor) -> torch.Tensor:
        return functional.logsigmoid(self.examination) + functional.logsigmoid(self.attraction(results)).squeeze(2)


def click_loss(log_probability: torch.Tensor, clicks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of a logarithmic probability."""
    no_click = torch.log1p(-log_probability.exp().clamp(max=1 - 1e-6))
    return -torch.where(clicks > 0, log_probability, no_click).mean()


def build_click_model(seed: int, return_dict: bool) -> TrainingSetup:
    """Clicks are rare, and the loss takes logarithms of products of two probabilities."""
    generator = rng(seed)
    results = torch.randn(6000, 10, 12, generator=generator)
    attraction = torch.sigmoid(2.5 * results[..., 0] - 2 * results[..., 1] * results[..., 2] - 2.0)
    examination = 1 / (1 + torch.arange(10.0)) ** 0.8
    clicks = torch.bernoulli(attraction * examination, generator=generator)
    train, validation = split([results, clicks], seed, 1000)
    module = Supervised(ClickModel(), click_loss, return_dict, lambda p: torch.optim.Adam(p, lr=1e-2))
    return TrainingSetup(module, loader(*train), loader(*validation, batch_size=500), {"max_epochs": 5})


def click_gain(outcome: Outcome) -> float:
    """Returns the loss of the model relative to that of the click rate of each position."""
    batches: Any = outcome.fit.validation
    clicks = torch.cat([batch[1] for batch in batches])
    rate = clicks.mean(0).clamp(min=1e-3)
    constant = -(rate * rate.log() + (1 - rate) * torch.log1p(-rate)).mean()
    return outcome.validation[-1] / float(constant)


PROGRAMS = [
    Program(
        "two_tower_sampled_softmax_with_popularity_correction",
        "dense",
        build_sampled_softmax,
        frozenset(),
        lambda outcome: hit_rate(outcome) > 0.5,
        "Yi et al. (2019), sampling-bias-corrected neural modeling (cited from memory)",
    ),
    Program(
        "pairwise_ranking_with_sparse_embeddings_and_two_optimizers",
        "dense",
        build_pairwise_ranking,
        frozenset(),
        lambda outcome: affinity_auc(outcome) > 0.8,
        "Rendle et al. (2009), BPR (cited from memory)",
    ),
    Program(
        "listwise_ranking_of_padded_lists",
        "dense",
        build_listwise,
        frozenset(),
        lambda outcome: top_relevance(outcome) > 2.2,
        "Cao et al. (2007), ListNet (cited from memory)",
    ),
    Program(
        "position_based_click_model_in_log_space",
        "dense",
        build_click_model,
        frozenset(),
        lambda outcome: click_gain(outcome) < 0.9,
        "Richardson et al. (2007), position-based click model (cited from memory)",
    ),
]
