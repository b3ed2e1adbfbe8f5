"""Healthy runs that resemble faults: losses, schedules, architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diagnosis_bank.development.datasets import (
    cancer,
    digit_images,
    digit_rows,
    digits,
    make_generator,
    make_loader,
    split,
    standardize,
)
from diagnosis_bank.program import Domain, Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812 (conventional name)


def mlp(inputs: int, outputs: int, act: Callable[[], nn.Module] = nn.ReLU, width: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), act(), nn.Linear(width, width), act(), nn.Linear(width, outputs))


def digits_mlp() -> nn.Module:
    return mlp(64, 10)


def falls(share: float) -> Callable[[Outcome], bool]:
    """Returns a check that the last losses are below a share of the first losses."""
    return lambda outcome: outcome.error is None and outcome.mean_loss(10) < share * outcome.first_loss(5)


def adam(rate: float = 1e-3) -> Callable[[Any], Any]:
    return lambda parameters: torch.optim.Adam(parameters, lr=rate)


def sgd(rate: float, momentum: float = 0.9) -> Callable[[Any], Any]:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=momentum)


def plain(
    loss: Any, optimizer: Callable[[Any], Any], network: Callable[[], nn.Module], size: int = 32, **trainer: Any
) -> Callable[[int, bool], TrainingSetup]:
    def build(seed: int, return_dict: bool) -> TrainingSetup:
        torch.manual_seed(seed)
        return TrainingSetup(
            Supervised(network(), loss, return_dict, optimizer), *split(digit_rows(), size, seed), trainer=trainer
        )

    return build


class Scheduled(Supervised):
    """Uses a schedule that advances per step."""

    schedule: Callable[[Any], Any]

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"}}


def scheduled(schedule: Callable[[Any], Any], rate: float, **trainer: Any) -> Callable[[int, bool], TrainingSetup]:
    def build(seed: int, return_dict: bool) -> TrainingSetup:
        torch.manual_seed(seed)
        module = Scheduled(mlp(64, 10), nn.CrossEntropyLoss(), return_dict, adam(rate))
        module.schedule = schedule
        return TrainingSetup(module, *split(digit_rows(), 32, seed), trainer=trainer)

    return build


def regression(
    loss: Any,
    target: Callable[[torch.Tensor], torch.Tensor],
    head: Callable[[], nn.Module] = nn.Identity,
    rate: float = 3e-3,
    outputs: int = 1,
) -> Callable[[int, bool], TrainingSetup]:
    def build(seed: int, return_dict: bool) -> TrainingSetup:
        torch.manual_seed(seed)
        inputs = torch.randn(1200, 8, generator=make_generator(seed))
        signal = torch.sin(inputs[:, :1]) + 0.5 * inputs[:, 1:2] * inputs[:, 2:3] + 0.3 * inputs[:, 3:4]
        network = nn.Sequential(mlp(8, outputs), head())
        pair = inputs, target(signal + 0.1 * torch.randn(signal.shape, generator=make_generator(seed + 1)))
        return TrainingSetup(Supervised(network, loss, return_dict, adam(rate)), *split(pair, 32, seed))

    return build


def full_batch(rate: float, steps: int) -> Callable[[int, bool], TrainingSetup]:
    """Full-batch gradient descent: one batch per epoch."""

    def build(seed: int, return_dict: bool) -> TrainingSetup:
        torch.manual_seed(seed)
        inputs, label = digit_rows()
        module = Supervised(mlp(64, 10, nn.Tanh), nn.CrossEntropyLoss(), return_dict, sgd(rate, 0.0))
        return TrainingSetup(
            module, make_loader(inputs[:512], label[:512], size=512, seed=seed), trainer={"max_epochs": steps}
        )

    return build


def many_labels(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    inputs = torch.randn(1280, 16, generator=make_generator(seed))
    target = (inputs @ torch.randn(16, 6, generator=make_generator(7)) > 5).float()  # a tenth of them are 1
    module = Supervised(mlp(16, 6), nn.BCEWithLogitsLoss(), return_dict, adam(5e-3))
    return TrainingSetup(module, *split((inputs, target), 32, seed))


def segmented(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    images, _ = digit_images()
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 2, 1),
    )  # fmt: skip
    target = (F.avg_pool2d(images, 3, stride=1, padding=1)[:, 0] > 0).long()
    return TrainingSetup(
        Supervised(network, nn.CrossEntropyLoss(), return_dict, adam(3e-3)), *split((images, target), 32, seed)
    )


class Language(nn.Module):
    """Predicts the next of 20 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 24)
        self.recurrent = nn.GRU(24, 32, batch_first=True)
        self.head = nn.Linear(32, 20)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(self.embedding(tokens))[0]).transpose(1, 2)


def language(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    steps = torch.randint(1, 4, (1200, 13), generator=make_generator(seed)).cumsum(1) % 20
    module = Supervised(Language(), nn.CrossEntropyLoss(), return_dict, adam(5e-3))
    return TrainingSetup(module, *split((steps[:, :-1], steps[:, 1:]), 32, seed))


def raw_pixels(seed: int, return_dict: bool) -> TrainingSetup:
    """Raw pixels up to 255 into a network that can handle them."""
    torch.manual_seed(seed)
    pixels, label = digits()
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)
    )
    images = (pixels * 255 / 16).view(-1, 1, 8, 8)
    return TrainingSetup(
        Supervised(network, F.cross_entropy, return_dict, adam(2e-3)), *split((images, label), 32, seed)
    )


def noisy(seed: int, return_dict: bool) -> TrainingSetup:
    """Targets of which only a tenth of the variance can be explained."""
    torch.manual_seed(seed)
    inputs = torch.randn(1600, 6, generator=make_generator(seed))
    target = inputs[:, :1] / 3 + torch.randn(1600, 1, generator=make_generator(seed + 1))
    return TrainingSetup(
        Supervised(nn.Linear(6, 1), F.mse_loss, return_dict, sgd(0.01, 0.0)), *split((inputs, target), 32, seed)
    )


def bottleneck(seed: int, return_dict: bool) -> TrainingSetup:
    """An autoencoder whose target is its input."""
    torch.manual_seed(seed)
    rows, _ = digit_rows()
    network = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 64))
    return TrainingSetup(
        Supervised(network, F.mse_loss, return_dict, adam(3e-3)), *split((rows, rows.clone()), 32, seed)
    )


def gaussian(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Predicts a mean and the logarithm of a variance."""
    return F.gaussian_nll_loss(preds[:, :1], target, preds[:, 1:].exp())


def healthy(
    name: str, domain: Domain, build: Callable[[int, bool], TrainingSetup], took_effect: Callable[[Outcome], bool]
) -> Program:
    return Program(name, domain, build, frozenset(), took_effect, "constructed: a healthy training run")


def _cancer(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    inputs, label = cancer()
    pair = inputs, label[:, None].float()
    return TrainingSetup(Supervised(mlp(30, 1), nn.BCEWithLogitsLoss(), return_dict, sgd(0.02)), *split(pair, 16, seed))


def _weighted(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    inputs = standardize(torch.randn(1600, 10, generator=make_generator(seed)))
    label = (inputs[:, 0] + inputs[:, 1] > 2.1).long()  # 7% of them
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 10.0]))
    return TrainingSetup(Supervised(mlp(10, 2), loss, return_dict, adam(3e-3)), *split((inputs, label), 32, seed))


_WARM = lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 80, 1.0))  # noqa: E731
_CYCLE = lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=132)  # noqa: E731
_RESTART = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 20)  # noqa: E731
_COSINE = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 132)  # noqa: E731

PROGRAMS: list[Program] = [
    healthy("rate_warms_up_over_half_of_the_training", "dense", scheduled(_WARM, 3e-3), falls(0.5)),
    healthy("rate_goes_up_and_down_in_one_cycle", "dense", scheduled(_CYCLE, 1e-4), falls(0.5)),
    healthy("rate_restarts_every_twenty_steps", "dense", scheduled(_RESTART, 3e-3), falls(0.5)),
    healthy("rate_falls_along_a_cosine_to_zero", "dense", scheduled(_COSINE, 3e-3), falls(0.5)),
    healthy("descent_on_all_samples_at_once", "dense", full_batch(0.5, 100), falls(0.5)),
    healthy("descent_on_all_samples_at_once_with_a_large_rate", "dense", full_batch(2.0, 150), falls(0.3)),
    healthy("adam_with_a_large_rate_learns", "dense", plain(F.cross_entropy, adam(1e-2), digits_mlp), falls(0.3)),
    healthy("fine_tuning_rate_is_small", "dense", plain(F.cross_entropy, adam(3e-4), digits_mlp), falls(0.7)),
    healthy(
        "dropout_of_seven_tenths_in_two_layers", "dense",
        plain(F.cross_entropy, adam(5e-3), lambda: nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.7), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.7),
            nn.Linear(128, 10))),
        falls(0.75),
    ),
    healthy(
        "summed_loss_with_a_small_rate", "dense",
        plain(nn.CrossEntropyLoss(reduction="sum"), sgd(3e-4), digits_mlp), falls(0.5),
    ),
    healthy(
        "labels_are_smoothed", "dense",
        plain(nn.CrossEntropyLoss(label_smoothing=0.2), adam(3e-3), lambda: mlp(64, 10, nn.GELU)), falls(0.7),
    ),
    healthy(
        "margin_loss_comes_to_zero", "dense", plain(nn.MultiMarginLoss(), adam(5e-3), digits_mlp), falls(0.2),
    ),
    healthy(
        "ten_tanh_layers_with_residuals_and_norms", "dense",
        plain(F.cross_entropy, adam(2e-3), lambda: nn.Sequential(nn.Linear(64, 32), *[
            _Residual(32) for _ in range(8)], nn.Linear(32, 10))),
        falls(0.5),
    ),
    healthy(
        "weights_are_normalized", "dense",
        plain(F.cross_entropy, adam(5e-3), lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)), nn.ReLU(),
            nn.utils.parametrizations.spectral_norm(nn.Linear(64, 10)))),
        falls(0.6),
    ),
    healthy(
        "batches_of_two", "dense",
        plain(F.cross_entropy, sgd(0.005), digits_mlp, size=2, limit_train_batches=200), falls(0.5),
    ),
    healthy(
        "eight_batches_make_a_step", "dense",
        plain(F.cross_entropy, adam(1e-2), digits_mlp, size=8, accumulate_grad_batches=8), falls(0.5),
    ),
    healthy("rare_class_weighs_ten", "dense", _weighted, falls(0.6)),
    healthy("one_logit_for_two_classes", "dense", _cancer, falls(0.5)),
    healthy("six_rare_labels_at_once", "dense", many_labels, falls(0.6)),
    healthy("every_pixel_has_a_class", "convolutional", segmented, falls(0.5)),
    healthy("raw_pixels_into_a_convolution_with_a_norm", "convolutional", raw_pixels, falls(0.3)),
    healthy("bottleneck_restores_its_input", "dense", bottleneck, falls(0.85)),
    healthy("next_token_is_guessed", "sequence", language, falls(0.75)),
    healthy("a_tenth_of_the_variance_is_explained", "regression", noisy, lambda outcome: outcome.mean_loss(40) < 1.1),
    healthy("absolute_error", "regression", regression(F.l1_loss, lambda y: y), falls(0.6)),
    healthy(
        "targets_around_200_in_their_own_unit", "regression",
        regression(F.smooth_l1_loss, lambda y: 200 + 5 * y, rate=2e-2), falls(0.1),
    ),
    healthy(
        "relu_head_for_positive_targets", "regression", regression(F.mse_loss, lambda y: y.exp(), nn.ReLU), falls(0.8),
    ),
    healthy(
        "sigmoid_head_for_shares", "regression", regression(F.mse_loss, lambda y: y.sigmoid(), nn.Sigmoid), falls(0.5),
    ),
    healthy(
        "counts_by_a_log_rate", "regression",
        regression(nn.PoissonNLLLoss(), lambda y: y.exp().round()), lambda outcome: outcome.mean_loss(20) < 0.6,
    ),
    healthy(
        "mean_and_variance_at_once", "regression", regression(gaussian, lambda y: y, outputs=2),
        lambda outcome: outcome.mean_loss(20) < 0,
    ),
]  # fmt: skip


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.branch = nn.Linear(width, width)
        nn.init.zeros_(self.branch.weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + torch.tanh(self.branch(self.norm(inputs)))
