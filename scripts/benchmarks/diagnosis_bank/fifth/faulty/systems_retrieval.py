"""Faulty recommenders, retrieval models and contrastive learning."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.systems_support import (
    affinities,
    digits,
    evaluate,
    loader,
    mlp,
    rng,
    sessions,
    split,
)
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional

from stormproof.problem import Problem


class Factorization(nn.Module):
    """Matrix factorization with biases. The input has a column of users and one of items."""

    def __init__(self, n_users: int, n_items: int, dim: int, std: float = 0.1) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(n_users, dim), nn.Embedding(n_items, dim)
        self.user_bias, self.item_bias = nn.Embedding(n_users, 1), nn.Embedding(n_items, 1)
        for table in (self.users, self.items, self.user_bias, self.item_bias):
            nn.init.normal_(table.weight, std=std)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        users, items = pairs.unbind(1)
        bias = self.user_bias(users) + self.item_bias(items)
        return (self.users(users) * self.items(items)).sum(1) + bias.squeeze(1)


def rating_pairs(seed: int, n_users: int, n_items: int, n_ratings: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns random pairs of users and items and their noisy, standardized ratings."""
    generator = rng(seed + 50)
    users = torch.randint(n_users, (n_ratings,), generator=generator)
    items = torch.randint(n_items, (n_ratings,), generator=generator)
    ratings = affinities(n_users, n_items, seed)[users, items]
    return torch.stack([users, items], 1), ratings + 0.3 * torch.randn(n_ratings, generator=generator)


class ManualFactorization(Supervised):
    """Matrix factorization with a hand-written optimization step."""

    def __init__(self, clears: bool, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False
        self.clears = clears

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        output = super().training_step(batch, batch_idx)
        if self.clears:  # (bug here: the loop of the blog post has no zero_grad)
            optimizer.zero_grad()
        self.manual_backward(output["loss"] if self.return_dict else output)
        optimizer.step()
        return output


def build_factorization(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The manual loop of a matrix factorization never calls ``zero_grad``."""
    train, validation = split(list(rating_pairs(seed, 150, 80, 9000)), seed, 1000)
    module = ManualFactorization(
        is_fixed,
        Factorization(150, 80, 6, std=0.3),
        functional.mse_loss,
        return_dict,
        lambda parameters: torch.optim.SGD(parameters, lr=1.5),
    )
    return TrainingSetup(module, loader(*train, batch_size=128), loader(*validation, batch_size=500), {"max_epochs": 6})


def relative_error(outcome: Outcome) -> float:
    """Returns the validation error relative to that of the mean."""
    return evaluate(outcome, lambda module, x, y: functional.mse_loss(module(x), y) / y.var())


def supervised_contrastive(features: torch.Tensor, labels: torch.Tensor, temperature: float = 0.07) -> torch.Tensor:
    """Supervised contrastive loss as in the reference code."""
    logits = features @ features.T / temperature
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    others = 1 - torch.eye(len(features))
    positives = (labels[:, None] == labels[None]).float() * others
    log_probability = logits - torch.log((torch.exp(logits) * others).sum(1, keepdim=True))
    return -((positives * log_probability).sum(1) / positives.sum(1).clamp(min=1)).mean()


class Normalized(nn.Module):
    """Scales each row to length 1."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return functional.normalize(features, dim=1)


def build_supervised_contrastive(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The features are not normalized, so that the logarithm of an underflowed sum in the contrastive loss is -inf."""
    images, labels = digits()
    mean, std = images.mean(0), images.std(0).clamp(min=1e-2)
    train, validation = split([(images - mean) / std, labels], seed, 300)
    encoder = mlp(64, 128, 32)
    if is_fixed:  # (bug here: the normalization is missing)
        encoder.append(Normalized())
    module = Supervised(
        encoder, supervised_contrastive, return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-3)
    )
    return TrainingSetup(module, loader(*train), loader(*validation, batch_size=100), {"max_epochs": 4})


def is_broken(outcome: Outcome) -> bool:
    """Returns whether a loss or weight is not finite."""
    is_finite = torch.isfinite(torch.tensor(outcome.losses)).all()
    return not (is_finite and all(torch.isfinite(p).all() for p in outcome.after.parameters()))


class SimCLR(pl.LightningModule):
    """Contrastive pre-training with two noisy views of each image."""

    def __init__(self, return_dict: bool, lr: float) -> None:
        super().__init__()
        self.encoder, self.projector = mlp(64, 128, 128, 64), mlp(64, 64, 32)
        self.return_dict, self.lr = return_dict, lr

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images)

    def contrast(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n = len(images)
        views = [(images + 0.2 * torch.randn_like(images)) * (torch.rand_like(images) < 0.8) for _ in range(2)]
        projected = functional.normalize(self.projector(self.encoder(torch.cat(views)).relu()), dim=1)
        logits = (projected @ projected.T / 0.1).masked_fill(torch.eye(2 * n, dtype=torch.bool), -1e4)
        return logits, torch.cat([torch.arange(n, 2 * n), torch.arange(n)])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        preds, target = self.contrast(batch[0])
        loss = functional.cross_entropy(preds, target)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(*self.contrast(batch[0])))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def build_simclr(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The learning rate of Adam in the contrastive pre-training is 0.1."""
    train, validation = split(list(digits()), seed, 256)
    module = SimCLR(return_dict, 1e-3 if is_fixed else 0.1)  # (bug here)
    return TrainingSetup(module, loader(*train), loader(*validation, batch_size=64), {"max_epochs": 5})


class SessionModel(pl.LightningModule):
    """Next-item prediction with a GRU."""

    def __init__(self, return_dict: bool, n_items: int, ends_with_softmax: bool, warmup_interval: str | None) -> None:
        super().__init__()
        self.items, self.gru = nn.Embedding(n_items, 32), nn.GRU(32, 48, batch_first=True)
        self.head = nn.Linear(48, n_items)
        self.return_dict = return_dict
        self.ends_with_softmax, self.warmup_interval = ends_with_softmax, warmup_interval

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.gru(self.items(items))[0]).transpose(1, 2)
        return logits.softmax(1) if self.ends_with_softmax else logits

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (items,) = batch
        preds, target = self(items[:, :-1]), items[:, 1:]
        loss = functional.cross_entropy(preds, target)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0][:, :-1]), batch[0][:, 1:]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=5e-3)
        if self.warmup_interval is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 200))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.warmup_interval}}


def session_setup(module: SessionModel, seed: int, n_items: int) -> TrainingSetup:
    """Returns the setup of a session model."""
    items = sessions(4500, 9, n_items, seed)
    return TrainingSetup(
        module, loader(items[:4000]), loader(items[4000:], batch_size=250, shuffle=False), {"max_epochs": 4}
    )


def build_session_warmup(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The warmup of 200 steps advances once an epoch, because the interval of the scheduler is not set to steps."""
    interval = "step" if is_fixed else "epoch"  # (bug here: "epoch" is the default)
    return session_setup(SessionModel(return_dict, 60, False, interval), seed, 60)


def build_session_softmax(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The session model ends with softmax, and the cross-entropy applies softmax again."""
    return session_setup(SessionModel(return_dict, 100, not is_fixed, None), seed, 100)  # (bug here)


def hit_rate(outcome: Outcome) -> float:
    """Returns how often the next item is among the two with the highest scores."""

    def metric(module: pl.LightningModule, items: torch.Tensor) -> torch.Tensor:
        top = module(items[:, :-1]).topk(2, dim=1).indices
        return (top == items[:, None, 1:]).any(1).float().mean()

    return evaluate(outcome, metric)


class NegativeSampler(Supervised):
    """Recommender for implicit feedback that adds random items as negatives to each batch of clicks."""

    affinity: torch.Tensor
    n_negatives = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pairs, target = batch
        negatives = pairs.repeat(self.n_negatives, 1)
        negatives[:, 1] = torch.randint(self.affinity.shape[1], (len(negatives),))
        extended = torch.cat([pairs, negatives]), torch.cat([target, torch.zeros(len(negatives))])
        return super().training_step(extended, batch_idx)


def build_implicit(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The recommender trains on clicks only, without negative samples, so that each label is 1."""
    affinity = affinities(200, 100, seed)
    clicks = (affinity > 1.0).nonzero()
    (train,), (validation,) = split([clicks], seed, 400)
    module = NegativeSampler(
        Factorization(200, 100, 8),
        functional.binary_cross_entropy_with_logits,
        return_dict,
        lambda parameters: torch.optim.Adam(parameters, lr=2e-2),
    )
    module.affinity = affinity
    module.n_negatives = 3 if is_fixed else 0  # (bug here)
    return TrainingSetup(
        module,
        loader(train, torch.ones(len(train))),
        loader(validation, torch.ones(len(validation)), batch_size=200, shuffle=False),
        {"max_epochs": 5},
    )


def balanced_accuracy(outcome: Outcome) -> float:
    """Returns the balanced accuracy of the model for the items that users like and do not like."""
    module: Any = outcome.after
    affinity = module.affinity
    pairs = torch.cartesian_prod(*map(torch.arange, affinity.shape))
    with torch.no_grad():
        is_recommended = (module(pairs) > 0).reshape(affinity.shape).float()
    is_liked = affinity > 1.0
    return float((is_recommended[is_liked].mean() + 1 - is_recommended[~is_liked].mean()) / 2)


class NeuralFiltering(nn.Module):
    """Neural collaborative filtering: a multilayer perceptron of user and item embeddings."""

    def __init__(self, n_users: int, n_items: int, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(n_users, dim), nn.Embedding(n_items, dim)
        self.dropout, self.head = nn.Dropout(dropout), mlp(2 * dim, width, width, 1)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        users, items = pairs.unbind(1)
        return self.head(self.dropout(torch.cat([self.users(users), self.items(items)], 1))).squeeze(1)


def build_overfitting(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """A neural recommender with large embeddings and no regularization learns few clicks by heart."""
    pairs, ratings = rating_pairs(seed, 120, 90, 3300)
    popularity = torch.randn(90, generator=rng(seed + 8))[pairs[:, 1]]
    train, validation = split([pairs, (ratings + popularity > 0.3).float()], seed, 900)
    dim, width, dropout, decay = (4, 16, 0.1, 1e-3) if is_fixed else (128, 256, 0.0, 0.0)  # (bug here)
    module = Supervised(
        NeuralFiltering(120, 90, dim, width, dropout),
        functional.binary_cross_entropy_with_logits,
        return_dict,
        lambda parameters: torch.optim.Adam(parameters, lr=3e-3, weight_decay=decay),
    )
    return TrainingSetup(module, loader(*train), loader(*validation, batch_size=450, shuffle=False), {"max_epochs": 6})


PROGRAMS = [
    Program(
        "matrix_factorization_in_a_manual_loop_without_zero_grad",
        "regression",
        build_factorization,
        frozenset({Problem.GRADIENTS_NOT_CLEARED}),
        lambda outcome: not relative_error(outcome) < 0.6,
        "https://www.ethanrosenthal.com/2017/06/20/matrix-factorization-in-pytorch/ (update of 8/4/2020: added missing "
        "optimizer.zero_grad() call)",
    ),
    Program(
        "session_model_with_softmax_layer_before_cross_entropy",
        "sequence",
        build_session_softmax,
        frozenset({Problem.LOSS_INPUT_MISMATCH}),
        lambda outcome: not hit_rate(outcome) > 0.7,
        "https://github.com/illiterate/BertClassifier/issues/2 (softmax layer before CrossEntropyLoss: the loss falls "
        "very slowly); in retrieval: https://github.com/nishnik/Deep-Semantic-Similarity-Model-PyTorch/issues/2",
    ),
    Program(
        "supervised_contrastive_loss_on_features_without_normalization",
        "dense",
        build_supervised_contrastive,
        frozenset({Problem.NON_FINITE}),
        is_broken,
        "https://github.com/HobbitLong/SupContrast/issues/50 and https://github.com/HobbitLong/SupContrast/issues/104",
    ),
    Program(
        "contrastive_pretraining_with_adam_at_learning_rate_a_tenth",
        "dense",
        build_simclr,
        frozenset({Problem.LEARNING_RATE_TOO_HIGH}),
        lambda outcome: not outcome.mean_loss() < 2.7,
        "https://github.com/google-research/simclr/issues/141 (learning_rate = 1e-1, the loss stays around 5)",
    ),
    Program(
        "session_model_with_step_warmup_that_advances_per_epoch",
        "sequence",
        build_session_warmup,
        frozenset({Problem.LEARNING_RATE_ZERO, Problem.LEARNING_RATE_TOO_LOW}),
        lambda outcome: not outcome.validation[-1] < 3.0,
        "https://github.com/ace-step/ACE-Step/pull/198",
    ),
    Program(
        "implicit_feedback_recommender_without_negative_samples",
        "dense",
        build_implicit,
        frozenset({Problem.DEGENERATE_TARGETS}),
        lambda outcome: not balanced_accuracy(outcome) > 0.7,
        "https://github.com/PreferredAI/cornac/issues/254 (only ratings of 1, the error is always 0)",
    ),
    Program(
        "neural_collaborative_filtering_memorizes_few_clicks",
        "dense",
        build_overfitting,
        frozenset({Problem.OVERFITTING}),
        lambda outcome: outcome.validation[-1] > 1.05 * min(outcome.validation),
        "https://github.com/tensorflow/recommenders/issues/252 (loss is decreasing but val_loss is increasing)",
    ),
]
