"""Faulty programs on audio and speech."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.fifth.signals_support import (
    accuracy,
    explained,
    greedy_error,
    log_mel_words,
    noisy_speech,
    predict,
    split,
    spoken_digits,
)
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional

from stormproof.problem import Problem


class _Recognizer(nn.Module):
    def __init__(self, is_fixed: bool) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(12, 64, 7, padding=3)
        self.head = nn.Conv1d(64, 6, 5, padding=2)
        self.is_fixed = is_fixed

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        units = self.head(self.encoder(frames.transpose(1, 2)).relu()).transpose(1, 2)
        # (bug here): the loss takes log-probabilities
        return units.log_softmax(-1) if self.is_fixed else units.softmax(-1)


def _ctc_loss(preds: torch.Tensor, transcript: torch.Tensor) -> torch.Tensor:
    lengths = torch.full((len(preds),), preds.shape[1])
    return functional.ctc_loss(preds.transpose(0, 1), transcript, lengths, torch.full((len(preds),), 4), blank=0)


def _ctc_on_probabilities(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Passes softmax probabilities, not log-probabilities, to the CTC loss."""
    train, validation = split(*spoken_digits(seed, 1400), held_out=200, batch_size=24)
    module = Supervised(_Recognizer(is_fixed), _ctc_loss, return_dict, lambda p: torch.optim.Adam(p, lr=5e-3))
    return TrainingSetup(module, train, validation, {"gradient_clip_val": 5.0})


def _ctc_failed(outcome: Outcome) -> bool:
    return greedy_error(*predict(outcome)) > 0.6


class _Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 12, 15, padding=7, bias=False),
            nn.PReLU(),
            nn.Conv1d(12, 12, 15, padding=7, bias=False),
            nn.PReLU(),
            nn.Conv1d(12, 1, 15, padding=7, bias=False),
        )

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        return self.layers(noisy)


def _spectral_loss(is_fixed: bool) -> Any:
    def magnitude(wave: torch.Tensor) -> torch.Tensor:
        frames = torch.stft(wave[:, 0], 64, 32, window=torch.hann_window(64), center=False, return_complex=True)
        power = frames.real**2 + frames.imag**2
        # (bug here): the gradient of the square root is infinite in digital silence
        return torch.sqrt(power.clamp(min=1e-7) if is_fixed else power)

    def loss(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.l1_loss(magnitude(preds), magnitude(target)) + functional.l1_loss(preds, target)

    return loss


def _stft_of_silence(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Takes the square root of zero power in the STFT loss of zero-padded utterances."""
    train, validation = split(*noisy_speech(seed, 700), held_out=100, batch_size=14)
    module = Supervised(_Denoiser(), _spectral_loss(is_fixed), return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, train, validation)


def _not_denoised(outcome: Outcome) -> bool:
    return outcome.error is not None or not explained(outcome) > 0.8


class _LazyClassifier(nn.Module):
    def __init__(self, is_fixed: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2, padding=1), nn.ReLU()
        )
        self.head: nn.Module | None = None
        if is_fixed:
            self.head = self._make_head(120)

    def _make_head(self, inputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        features = self.features(spectrogram).flatten(1)
        if self.head is None:  # (bug here): the optimizer exists already
            self.head = self._make_head(features.shape[1])
        return self.head(features)


def _head_created_in_forward(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Creates the head in the first forward pass, after the optimizer."""
    train, validation = split(*log_mel_words(seed, 1800, 8, 1.0), held_out=300, batch_size=25)
    module = Supervised(
        _LazyClassifier(is_fixed), functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


class _MaskingNetwork(nn.Module):
    def __init__(self, is_fixed: bool) -> None:
        super().__init__()
        self.mask = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1)
        )
        self.post = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.post.weight)
        nn.init.zeros_(self.post.bias)  # type: ignore[arg-type]
        self.is_fixed = is_fixed

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        mask = torch.sigmoid(self.mask(picture))
        if not self.is_fixed:
            mask = (mask > 0.5).float()  # (bug here): the comparison has no gradient
        return self.post(mask * picture)


def _hard_spectral_mask(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Thresholds the estimated spectral mask, so that the mask network gets no gradient."""
    clean, _ = log_mel_words(seed, 1000, 8, 0.0)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed + 1))
    train, validation = split(clean + 0.7 * noise, clean, held_out=100, batch_size=20)
    module = Supervised(
        _MaskingNetwork(is_fixed), functional.mse_loss, return_dict, lambda p: torch.optim.Adam(p, lr=8e-3)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _linear_schedule(optimizer: torch.optim.Optimizer, warmup: int, total: int) -> Any:
    def factor(step: int) -> float:
        return step / max(1, warmup) if step < warmup else max(0.0, (total - step) / max(1, total - warmup))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class _KeywordSpotter(Supervised):
    is_fixed = False

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        # (bug here): the number of epochs, but the scheduler is called after each step
        total = steps if self.is_fixed else self.trainer.max_epochs
        scheduler = _linear_schedule(optimizer, 1, int(total or 0))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _schedule_of_epochs(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Gives the number of epochs as length of a schedule that is stepped per batch."""
    network = nn.Sequential(
        nn.Flatten(1, 2), nn.Conv1d(20, 32, 5), nn.BatchNorm1d(32), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten()
    )
    network.append(nn.Linear(32, 6))
    train, validation = split(*log_mel_words(seed, 1400, 6), held_out=200, batch_size=24)
    module = _KeywordSpotter(network, functional.cross_entropy, return_dict, lambda p: None)
    module.is_fixed = is_fixed
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


PROGRAMS = [
    Program(
        "ctc_loss_on_probabilities_of_the_recognizer",
        "sequence",
        _ctc_on_probabilities,
        frozenset({Problem.LOSS_INPUT_MISMATCH}),
        _ctc_failed,
        "https://discuss.pytorch.org/t/ctc-loss-is-negative/200771",
    ),
    Program(
        "square_root_of_zero_power_in_stft_loss",
        "convolutional",
        _stft_of_silence,
        frozenset({Problem.NON_FINITE}),
        _not_denoised,
        "https://github.com/speechbrain/speechbrain/issues/181; https://github.com/KinWaiCheuk/nnAudio/issues/138",
    ),
    Program(
        "spectrogram_classifier_head_created_in_forward",
        "convolutional",
        _head_created_in_forward,
        frozenset({Problem.NOT_IN_OPTIMIZER}),
        lambda outcome: accuracy(outcome) < 0.85,
        "https://thecodeforge.io/ml-ai/pytorch-neural-network/ (layers in forward); first pass only: from memory",
    ),
    Program(
        "thresholded_spectral_mask_of_denoiser",
        "convolutional",
        _hard_spectral_mask,
        frozenset({Problem.NO_GRADIENT}),
        lambda outcome: not explained(outcome) > 0.4,
        "https://discuss.pytorch.org/t/optimize-masking-parameter/204381",
    ),
    Program(
        "keyword_spotting_schedule_length_in_epochs_stepped_per_batch",
        "convolutional",
        _schedule_of_epochs,
        frozenset({Problem.LEARNING_RATE_ZERO}),
        lambda outcome: accuracy(outcome) < 0.7,
        "https://github.com/Lightning-AI/pytorch-lightning/issues/18570",
    ),
]
