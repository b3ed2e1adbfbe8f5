"""Healthy everyday programs: unusual inputs, targets and losses."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.fifth.everyday_support import (
    DigitNet,
    SmallUNet,
    accuracy,
    completed,
    digit_images,
    explained_variance,
    generator,
    healthy_program,
    loaders,
    on_validation,
    shape_images,
)
from diagnosis_bank.program import Outcome, Supervised, TrainingSetup
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def rare_positives(seed: int, return_dict: bool) -> TrainingSetup:
    """Fraud detection with 3 % positives, which the loss weights by 30."""
    rng = generator(seed)
    inputs = torch.randn(4000, 16, generator=rng)
    score = inputs[:, 0] + inputs[:, 1] * inputs[:, 2] + 0.3 * torch.randn(4000, generator=rng)
    target = (score > score.quantile(0.97)).float()[:, None]
    network = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(30.0))
    module = Supervised(network, loss, return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-3))
    return TrainingSetup(module, *loaders(seed, inputs, target, batch_size=64))


def ranks_positives_first(outcome: Outcome) -> bool:
    """True if a positive has a higher score than a negative in more than 85 % of the pairs."""
    module = outcome.after.eval()
    with torch.no_grad():
        outputs, targets = zip(*((module(x), y) for x, y in outcome.fit.validation or ()), strict=True)
    scores, target = torch.cat(outputs).flatten(), torch.cat(targets).flatten() > 0
    return completed(outcome) and float((scores[target][:, None] > scores[~target]).float().mean()) > 0.85


def dice_and_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Dice loss per image plus the cross-entropy, both of logits."""
    probabilities = logits.sigmoid()
    overlap = (probabilities * target).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (probabilities.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)
    return dice.mean() + nn.functional.binary_cross_entropy_with_logits(logits, target)


def small_lesions(seed: int, return_dict: bool) -> TrainingSetup:
    """Segmentation of small squares, which are missing in a third of the images, with two added losses."""
    images, masks = shape_images(seed)
    target = (masks == 2).float()[:, None]
    is_empty = torch.rand(len(images), generator=generator(seed)) < 1 / 3
    images = torch.where(is_empty[:, None, None, None] & (target > 0), torch.full_like(images, 0.2), images)
    target[is_empty] = 0
    module = Supervised(
        SmallUNet(1), dice_and_cross_entropy, return_dict, lambda weights: torch.optim.Adam(weights, lr=5e-3)
    )
    return TrainingSetup(module, *loaders(seed, images, target, batch_size=16))


def segments_well(outcome: Outcome) -> bool:
    """True if the intersection over union is above a half."""
    overlap = on_validation(
        outcome, lambda logits, target: ((logits > 0) * target).sum() / ((logits > 0) | (target > 0)).sum()
    )
    return completed(outcome) and overlap > 0.5


def gaussian_likelihood(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of a normal distribution with predicted mean and logarithm of the variance."""
    mean, log_variance = preds[:, :1], preds[:, 1:].clamp(-10, 10)
    return nn.functional.gaussian_nll_loss(mean, target, log_variance.exp())


def uncertain_regression(seed: int, return_dict: bool) -> TrainingSetup:
    """Regression with a predicted variance. Its loss falls below zero, because the noise is small."""
    rng = generator(seed)
    inputs = 2 * torch.rand(2400, 2, generator=rng) - 1
    noise = 0.02 + 0.1 * inputs[:, 1:].abs()
    target = torch.sin(3 * inputs[:, :1]) + noise * torch.randn(2400, 1, generator=rng)
    network = nn.Sequential(nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 2))
    module = Supervised(network, gaussian_likelihood, return_dict, lambda weights: torch.optim.AdamW(weights, lr=5e-3))
    return TrainingSetup(module, *loaders(seed, inputs, target), {"max_epochs": 5, "gradient_clip_val": 5.0})


def has_a_likelihood_above_one(outcome: Outcome) -> bool:
    """True if the loss fell clearly below zero."""
    return completed(outcome) and outcome.validation[-1] < -0.5


class PriceNet(nn.Module):
    """Network whose output is converted to dollars."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return 300_000 + 120_000 * self.layers(features)


def prices_in_dollars(seed: int, return_dict: bool) -> TrainingSetup:
    """House prices in dollars with a squared error, which is about 10 billion at the start."""
    rng = generator(seed)
    features = torch.randn(1600, 8, generator=rng)
    value = features[:, :1] + 0.5 * features[:, 1:2].abs() + 0.5 * features[:, 2:3] * features[:, 3:4]
    price = (300_000 + 100_000 * value + 20_000 * torch.randn(1600, 1, generator=rng)).clamp_min(30_000)
    module = Supervised(PriceNet(), nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=5e-3))
    return TrainingSetup(module, *loaders(seed, features, price), {"max_epochs": 5})


def explains_most(outcome: Outcome) -> bool:
    """True if the validation R² is above 0.7."""
    return completed(outcome) and explained_variance(outcome) > 0.7


def sparse_counts(seed: int, return_dict: bool) -> TrainingSetup:
    """Insurance claims: Poisson regression of counts that are mostly zero, with an initial bias of the log rate."""
    rng = generator(seed)
    inputs = torch.randn(4000, 10, generator=rng)
    rate = torch.exp(-2.2 + 0.9 * inputs[:, 0] - 0.6 * inputs[:, 1] + 0.4 * inputs[:, 2] * inputs[:, 3])
    counts = torch.poisson(rate, generator=rng)[:, None]
    network = nn.Sequential(nn.Linear(10, 32), nn.SiLU(), nn.Linear(32, 1))
    last: Any = network[2]
    nn.init.constant_(last.bias, float(counts.mean().log()))
    module = Supervised(
        network, nn.PoissonNLLLoss(log_input=True), return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-3)
    )
    return TrainingSetup(module, *loaders(seed, inputs, counts, batch_size=64), {"max_epochs": 4})


def predicts_rates(outcome: Outcome) -> bool:
    """True if the loss is clearly below that of the best constant rate."""
    constant = on_validation(
        outcome,
        lambda logs, counts: nn.functional.poisson_nll_loss(torch.full_like(logs, float(counts.mean().log())), counts),
    )
    return completed(outcome) and on_validation(outcome, nn.functional.poisson_nll_loss) < constant - 0.02


class Mixup(Supervised):
    """Classifier of images that are mixed in pairs, with mixed and smoothed labels."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        share = float(torch.distributions.Beta(0.8, 0.8).sample())
        order = torch.randperm(len(images))
        classes = nn.functional.one_hot(labels, 10).float()
        target = share * classes + (1 - share) * classes[order]
        preds = self(share * images + (1 - share) * images[order])
        loss = self.loss(preds, target)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss


def mixup_and_smoothing(seed: int, return_dict: bool) -> TrainingSetup:
    """Digits with mixup and label smoothing, so that the training loss stays high and above the validation loss."""
    images, labels = digit_images()
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    module = Mixup(DigitNet(10), loss, return_dict, lambda weights: torch.optim.Adam(weights, lr=4e-3))
    return TrainingSetup(module, *loaders(seed, images, labels))


def is_accurate(outcome: Outcome) -> bool:
    """True if more than 80 % of the validation samples are right."""
    return completed(outcome) and accuracy(outcome) > 0.8


def noisy_targets(seed: int, return_dict: bool) -> TrainingSetup:
    """Denoising without clean images: input and target are the same digit with different noise."""
    clean, _ = digit_images()
    rng = generator(seed)
    noisy, target = (clean + 0.4 * torch.randn(clean.shape, generator=rng) for _ in range(2))
    network = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 5, padding=2), nn.ReLU(), nn.Conv2d(24, 1, 1)
    )
    module = Supervised(network, nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-3))
    return TrainingSetup(module, *loaders(seed, noisy, target))


def removes_noise(outcome: Outcome) -> bool:
    """True if the error in clean images is less than a third of the noise."""
    clean, _ = digit_images()
    with torch.no_grad():
        denoised = outcome.after.eval()(clean + 0.4 * torch.randn(clean.shape, generator=generator(5)))
    return completed(outcome) and float(nn.functional.mse_loss(denoised, clean)) < 0.16 / 3


def margin_loss(seed: int, return_dict: bool) -> TrainingSetup:
    """Five separable clusters are classified with a margin loss, which becomes exactly zero for most batches."""
    rng = generator(seed)
    centers = 1.5 * torch.randn(5, 24, generator=rng)
    labels = torch.randint(5, (1600,), generator=rng)
    inputs = centers[labels] + 0.6 * torch.randn(1600, 24, generator=rng)
    network = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 5))
    module = Supervised(network, nn.MultiMarginLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=1e-2))
    return TrainingSetup(module, *loaders(seed, inputs, labels))


class Tagger(nn.Module):
    """LSTM over packed sentences of different lengths, with logits (N, C, T) and padding index 0."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 16, padding_idx=0)
        self.lstm = nn.LSTM(16, 24, batch_first=True, bidirectional=True)
        self.out = nn.Linear(48, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        lengths = (tokens > 0).sum(1).cpu()
        packed = pack_padded_sequence(self.embed(tokens), lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=tokens.shape[1])
        return self.out(states).transpose(1, 2)


def padded_tagging(seed: int, return_dict: bool) -> TrainingSetup:
    """Tagging of short sentences in long padded batches: two thirds of the tokens are padding with the target -100."""
    rng = generator(seed)
    tokens = torch.randint(1, 60, (1000, 18), generator=rng)
    previous = nn.functional.pad(tokens, (1, 0), value=1)[:, :-1]
    tags = torch.where(tokens % 4 == 0, 2, (previous > 30).long())
    lengths = torch.randint(2, 11, (1000, 1), generator=rng)
    is_padding = torch.arange(18) >= lengths
    tokens, tags = tokens.masked_fill(is_padding, 0), tags.masked_fill(is_padding, -100)
    module = Supervised(
        Tagger(),
        nn.CrossEntropyLoss(ignore_index=-100),
        return_dict,
        lambda weights: torch.optim.Adam(weights, lr=1e-2),
    )
    return TrainingSetup(module, *loaders(seed, tokens, tags))


def tags_well(outcome: Outcome) -> bool:
    """True if more than 80 % of the tokens that are no padding have the right tag."""
    share = on_validation(outcome, lambda logits, tags: (logits.argmax(1) == tags)[tags >= 0].float().mean())
    return completed(outcome) and share > 0.8


PROGRAMS = [
    healthy_program(
        "rare_positives_with_a_large_positive_weight",
        "dense",
        rare_positives,
        ranks_positives_first,
        "torch.nn.BCEWithLogitsLoss: pos_weight for imbalanced classes",
    ),
    healthy_program(
        "small_lesions_with_dice_and_cross_entropy_loss",
        "convolutional",
        small_lesions,
        segments_well,
        "Milletari et al. 2016, V-Net (https://arxiv.org/abs/1606.04797); Isensee et al. 2021, nnU-Net",
    ),
    healthy_program(
        "gaussian_likelihood_below_zero",
        "regression",
        uncertain_regression,
        has_a_likelihood_above_one,
        "torch.nn.GaussianNLLLoss",
    ),
    healthy_program(
        "house_prices_in_dollars_with_squared_error",
        "regression",
        prices_in_dollars,
        explains_most,
        "Common variant of house price tutorials that rescales the output instead of the target (from memory)",
    ),
    healthy_program(
        "poisson_regression_of_mostly_zero_counts",
        "regression",
        sparse_counts,
        predicts_rates,
        "torch.nn.PoissonNLLLoss; https://karpathy.github.io/2019/04/25/recipe/ (init the final bias well)",
    ),
    healthy_program(
        "mixup_with_label_smoothing_of_digits",
        "convolutional",
        mixup_and_smoothing,
        is_accurate,
        "Zhang et al. 2018, mixup (https://arxiv.org/abs/1710.09412)",
    ),
    healthy_program(
        "denoising_with_noisy_targets",
        "convolutional",
        noisy_targets,
        removes_noise,
        "Lehtinen et al. 2018, Noise2Noise (https://arxiv.org/abs/1803.04189)",
    ),
    healthy_program(
        "margin_loss_that_becomes_zero",
        "dense",
        margin_loss,
        is_accurate,
        "torch.nn.MultiMarginLoss",
    ),
    healthy_program(
        "tagging_of_packed_sentences_with_mostly_ignored_targets",
        "sequence",
        padded_tagging,
        tags_well,
        "torch.nn.utils.rnn.pack_padded_sequence and ignore_index of torch.nn.CrossEntropyLoss",
    ),
]
