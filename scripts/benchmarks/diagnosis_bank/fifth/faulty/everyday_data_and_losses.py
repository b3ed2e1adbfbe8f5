"""Faulty everyday programs: targets, inputs, output layers and losses."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.fifth.everyday_support import (
    SmallUNet,
    accuracy,
    completed,
    digit_images,
    explained_variance,
    faulty_program,
    loaders,
    on_validation,
    shape_images,
    sine_windows,
)
from diagnosis_bank.program import Outcome, Supervised, TrainingSetup
from sklearn import datasets
from torch import nn

from stormproof.problem import Problem


def scaled_class_masks(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Masks of class indices pass through ToTensor, which divides by 255, so that all become class 0."""
    images, masks = shape_images(seed)
    stored = masks.to(torch.uint8)
    target = stored.long() if is_fixed else (stored.float() / 255).long()  # (bug here) ToTensor of a uint8 image
    module = Supervised(
        SmallUNet(3), nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=8e-3)
    )
    return TrainingSetup(module, *loaders(seed, images, target, batch_size=16), {"max_epochs": 4})


def finds_no_shapes(outcome: Outcome) -> bool:
    """True if the true shapes are predicted as background."""
    images, masks = shape_images(77, count=100)
    with torch.no_grad():
        predicted = outcome.after.eval()(images).argmax(1)
    return completed(outcome) and float((predicted == masks)[masks > 0].float().mean()) < 0.15


def softmax_over_one_output(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The binary classifier has one output and a softmax over it, which is always 1."""
    features, labels = datasets.load_breast_cancer(return_X_y=True)
    inputs = torch.tensor(features, dtype=torch.float32)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    target = torch.tensor(labels, dtype=torch.float32)[:, None]
    last = nn.Sigmoid() if is_fixed else nn.Softmax(dim=1)  # (bug here)
    network = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1), last)
    module = Supervised(network, nn.BCELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-3))
    return TrainingSetup(module, *loaders(seed, inputs, target, batch_size=16), {"max_epochs": 4})


def has_high_cross_entropy(outcome: Outcome) -> bool:
    """True if the validation loss is that of a wrong constant."""
    return completed(outcome) and outcome.validation[-1] > 1


class VariationalAutoencoder(Supervised):
    """Autoencoder of flat images with a Gaussian code."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__(
            nn.Identity(), nn.functional.mse_loss, return_dict, lambda weights: torch.optim.Adam(weights, lr=2e-3)
        )
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())
        self.is_fixed = is_fixed

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return self.decoder(mean + torch.randn_like(mean) * (0.5 * log_variance).exp())

    def _step(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        decoded = self.decoder(mean + torch.randn_like(mean) * (0.5 * log_variance).exp())
        divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        if self.is_fixed:  # both terms are per image, with pixels of variance 0.02
            return decoded, (nn.functional.mse_loss(decoded, images, reduction="sum") / 0.04 + divergence) / len(images)
        return decoded, nn.functional.mse_loss(
            decoded, images
        ) + divergence  # (bug here) mean over pixels plus sum over batch

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, target = batch
        decoded, loss = self._step(images)
        return {"loss": loss, "preds": decoded, "target": target} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._step(batch[0])[1])


def summed_divergence(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The KL divergence is summed and the reconstruction loss is averaged, so that the decoder ignores the code."""
    images = digit_images()[0].flatten(1)
    module = VariationalAutoencoder(return_dict, is_fixed)
    return TrainingSetup(module, *loaders(seed, images, images), {"max_epochs": 5})


def reconstructs_only_the_mean(outcome: Outcome) -> bool:
    """True if the reconstructions explain almost none of the variance between images."""
    error = on_validation(outcome, nn.functional.mse_loss)
    variance = on_validation(outcome, lambda _, target: target.var(0).mean())
    return completed(outcome) and error > 0.9 * variance


class Forecaster(nn.Module):
    """LSTM that predicts the next value from its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.linear = nn.Linear(32, 1)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(series)
        return self.linear(states[:, -1])


def column_forecast_with_flat_target(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Forecasts have the shape (N, 1) and targets the shape (N,), so that the loss compares all pairs."""
    series, following = sine_windows(seed)
    target = following[:, None] if is_fixed else following  # (bug here)
    module = Supervised(Forecaster(), nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=5e-3))
    return TrainingSetup(module, *loaders(seed, series, target))


def explains_little(outcome: Outcome) -> bool:
    """True if the validation R² is below a half."""
    return completed(outcome) and explained_variance(outcome) < 0.5


def reconstructs_badly(outcome: Outcome) -> bool:
    """True if a quarter of the variance is not reconstructed."""
    return completed(outcome) and explained_variance(outcome) < 0.75


def soft_dice(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Dice loss of a batch, as commonly copied from tutorials."""
    intersection = (probabilities * target).sum()
    return 1 - (2 * intersection + 1) / (probabilities.sum() + target.sum() + 1)


def dice_on_logits(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The Dice loss receives the U-Net's logits instead of probabilities."""
    images, masks = shape_images(seed)
    target = (masks > 0).float()[:, None]
    network = nn.Sequential(SmallUNet(1), nn.Sigmoid()) if is_fixed else SmallUNet(1)  # (bug here) no sigmoid
    module = Supervised(network, soft_dice, return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-3))
    return TrainingSetup(module, *loaders(seed, images, target, batch_size=16))


def has_a_low_overlap(outcome: Outcome) -> bool:
    """True if the thresholded probabilities overlap little with the masks."""

    def overlap(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        is_sigmoid = isinstance(outcome.after.network, nn.Sequential)
        chosen = outputs > (0.5 if is_sigmoid else 0)
        return (chosen & (target > 0)).sum() / (chosen | (target > 0)).sum()

    return completed(outcome) and on_validation(outcome, overlap) < 0.6


def standardized_constant_pixels(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Each pixel is divided by its standard deviation, which is 0 for pixels in the corners."""
    images, labels = digit_images()
    flat = images.flatten(1)
    deviation = flat.std(0)
    if is_fixed:
        deviation = deviation.clamp_min(1e-2)
    flat = (flat - flat.mean(0)) / deviation  # (bug here) 0 / 0
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=2e-3))
    return TrainingSetup(module, *loaders(seed, flat, labels))


def is_not_a_number(outcome: Outcome) -> bool:
    """True if the last losses are not finite."""
    return outcome.mean_loss() != outcome.mean_loss()


class SequenceClassifier(nn.Module):
    """LSTM over the rows of an image, which expects time first."""

    def __init__(self, is_fixed: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 48)
        self.linear = nn.Linear(48, 10)
        self.is_fixed = is_fixed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.squeeze(1)
        # (bug here) view reads the memory in another order: it mixes the rows of different images
        series = rows.permute(1, 0, 2) if self.is_fixed else rows.view(rows.shape[1], rows.shape[0], rows.shape[2])
        states, _ = self.lstm(series)
        return self.linear(states[-1])


def view_instead_of_permute(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Batch and time are swapped with view instead of permute, so that rows of different images are mixed."""
    images, labels = digit_images()
    module = Supervised(
        SequenceClassifier(is_fixed),
        nn.CrossEntropyLoss(),
        return_dict,
        lambda weights: torch.optim.Adam(weights, lr=5e-3),
    )
    return TrainingSetup(module, *loaders(seed, images, labels), {"max_epochs": 4})


def is_inaccurate(outcome: Outcome) -> bool:
    """True if less than half of the validation samples are right."""
    return completed(outcome) and accuracy(outcome) < 0.5


def sigmoid_for_normalized_images(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The autoencoder ends with a sigmoid, but the images it reconstructs have mean 0 and deviation 1."""
    images, _ = digit_images()
    images = (images - images.mean()) / images.std()
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(24, 16, 2, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 2, stride=2),
        nn.Identity() if is_fixed else nn.Sigmoid(),  # (bug here)
    )
    module = Supervised(network, nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=5e-3))
    return TrainingSetup(module, *loaders(seed, images, images), {"max_epochs": 4})


PROGRAMS = [
    faulty_program(
        "class_masks_divided_by_255_before_conversion_to_integers",
        "convolutional",
        scaled_class_masks,
        {Problem.DEGENERATE_TARGETS},
        finds_no_shapes,
        "https://github.com/pytorch/vision/issues/2497 and https://github.com/albumentations-team/albumentations/issues/148",
    ),
    faulty_program(
        "softmax_over_the_single_output_of_a_binary_classifier",
        "dense",
        softmax_over_one_output,
        {Problem.OUTPUT_IGNORES_INPUT},
        has_high_cross_entropy,
        "https://github.com/vllm-project/vllm/pull/18313 (softmax of a single label is always 1)",
    ),
    faulty_program(
        "kl_divergence_summed_and_reconstruction_loss_averaged_in_a_vae",
        "dense",
        summed_divergence,
        {Problem.OUTPUT_IGNORES_INPUT, Problem.NO_BETTER_THAN_CONSTANT},
        reconstructs_only_the_mean,
        "https://github.com/zdebruine/MMVAE/pull/19 and https://github.com/pytorch/examples/issues/234",
    ),
    faulty_program(
        "lstm_forecast_in_a_column_with_a_flat_target",
        "sequence",
        column_forecast_with_flat_target,
        {Problem.BROADCAST_MISMATCH},
        explains_little,
        "https://discuss.pytorch.org/t/output-of-the-model-depends-on-the-shape-of-the-weights-tensor/148155",
    ),
    faulty_program(
        "dice_loss_on_logits_of_a_unet",
        "convolutional",
        dice_on_logits,
        {Problem.LOSS_INPUT_MISMATCH},
        has_a_low_overlap,
        "https://github.com/milesial/Pytorch-UNet/issues/271 and https://github.com/jakeret/tf_unet/issues/15",
    ),
    faulty_program(
        "pixels_standardized_although_some_are_constant",
        "dense",
        standardized_constant_pixels,
        {Problem.NON_FINITE_DATA},
        is_not_a_number,
        "Question 'Normalizing Data and Avoiding Dividing by Zero' on Stack Exchange: constant features become NaN",
    ),
    faulty_program(
        "view_instead_of_permute_before_an_lstm",
        "sequence",
        view_instead_of_permute,
        {Problem.TARGETS_UNRELATED_TO_INPUTS, Problem.NO_BETTER_THAN_CONSTANT},
        is_inaccurate,
        "https://github.com/zamanzadeh/CARLA/issues/16 and https://github.com/zhouhaoyi/Informer2020/issues/59",
    ),
    faulty_program(
        "sigmoid_output_of_an_autoencoder_of_normalized_images",
        "convolutional",
        sigmoid_for_normalized_images,
        {Problem.UNREACHABLE_TARGETS},
        reconstructs_badly,
        "https://github.com/mikesj-public/convolutional_autoencoder/pull/9 (cannot reconstruct negative values)",
    ),
]
