"""Healthy programs on audio and speech with unusual losses, inputs or loops."""

from __future__ import annotations

import copy
from itertools import permutations
from typing import Any, cast

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.signals_support import (
    accuracy,
    greedy_error,
    loader,
    log_mel_words,
    noisy_speech,
    predict,
    split,
    spoken_digits,
)
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional


def _si_snr(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    target = target - target.mean(-1, keepdim=True)
    preds = preds - preds.mean(-1, keepdim=True)
    scale = (preds * target).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + 1e-8)
    noise = preds - scale * target
    return 10 * torch.log10(((scale * target).square().sum(-1) + 1e-8) / (noise.square().sum(-1) + 1e-8))


def _pit_loss(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    scores = [_si_snr(preds[:, list(order)], target).mean(1) for order in permutations(range(2))]
    return -torch.stack(scores).max(dim=0).values.mean()


class _TasNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, 32, 16, stride=8, bias=False)
        self.separator = nn.Sequential(
            nn.GroupNorm(1, 32), nn.Conv1d(32, 48, 5, padding=2), nn.PReLU(), nn.Conv1d(48, 64, 5, padding=2)
        )
        self.decoder = nn.ConvTranspose1d(32, 1, 16, stride=8, bias=False)

    def forward(self, mixture: torch.Tensor) -> torch.Tensor:
        code = self.encoder(mixture).relu()
        masks = torch.sigmoid(self.separator(code)).chunk(2, dim=1)
        return torch.cat([self.decoder(mask * code) for mask in masks], dim=1)


def _permutation_invariant_separation(seed: int, return_dict: bool) -> TrainingSetup:
    """Separates two voices with a permutation-invariant SI-SNR loss in negative decibels."""
    draw = torch.Generator().manual_seed(seed)
    time = torch.arange(256).float()
    pitch = torch.tensor([[0.02], [0.12]]) * (0.8 + 0.4 * torch.rand(1400, 2, 1, generator=draw))
    voices = torch.sin(6.28 * (pitch * time + torch.rand(1400, 2, 1, generator=draw)))
    swap = torch.rand(1400, generator=draw) < 0.5
    voices[swap] = voices[swap].flip(1)  # the order of the speakers is arbitrary
    train, validation = split(voices.sum(1, keepdim=True), voices, held_out=200, batch_size=24)
    module = Supervised(_TasNet(), _pit_loss, return_dict, lambda p: torch.optim.Adam(p, lr=3e-3))
    return TrainingSetup(module, train, validation, {"gradient_clip_val": 5.0})


def _separated(outcome: Outcome) -> bool:
    return outcome.validation[-1] < -6


class _Vocoder(pl.LightningModule):
    """Hinge GAN with a waveform loss and two schedules, in manual optimization."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.generator = nn.Sequential(
            nn.Conv1d(8, 32, 3, padding=1), nn.LeakyReLU(0.2), nn.ConvTranspose1d(32, 16, 8, stride=4, padding=2)
        )
        self.generator.extend([nn.LeakyReLU(0.2), nn.ConvTranspose1d(16, 1, 8, stride=4, padding=2)])
        self.discriminator = nn.Sequential(
            nn.Conv1d(1, 16, 9, stride=2, padding=4), nn.LeakyReLU(0.2), nn.Conv1d(16, 1, 9, stride=2, padding=4)
        )

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        return self.generator(mel)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        mel, wave = batch
        opt_g, opt_d = self.optimizers()  # type: ignore[misc]
        fake = self(mel)
        opt_d.zero_grad()
        loss_d = (1 - self.discriminator(wave)).relu().mean() + (1 + self.discriminator(fake.detach())).relu().mean()
        self.manual_backward(loss_d)
        opt_d.step()
        self.toggle_optimizer(opt_g)
        opt_g.zero_grad()
        loss_g = 20 * functional.l1_loss(fake, wave) - 0.2 * self.discriminator(fake).mean()
        self.manual_backward(loss_g)
        opt_g.step()
        self.untoggle_optimizer(opt_g)
        return {"loss": loss_g, "preds": fake, "target": wave} if self.return_dict else loss_g

    def on_train_epoch_end(self) -> None:
        for schedule in self.lr_schedulers():  # type: ignore[union-attr]
            schedule.step()

    def configure_optimizers(self) -> Any:
        generator = torch.optim.AdamW(self.generator.parameters(), lr=3e-3, betas=(0.8, 0.99))
        discriminator = torch.optim.AdamW(self.discriminator.parameters(), lr=1e-3, betas=(0.8, 0.99))
        schedules = [torch.optim.lr_scheduler.ExponentialLR(part, 0.9) for part in (generator, discriminator)]
        return [generator, discriminator], schedules


def _adversarial_vocoder(seed: int, return_dict: bool) -> TrainingSetup:
    """Trains a vocoder with a discriminator, two optimizers and exponential schedules."""
    draw = torch.Generator().manual_seed(seed)
    mel = torch.randn(1200, 8, 4, generator=draw)
    mixing = torch.randn(8, 4, generator=torch.Generator().manual_seed(5)) / 3
    envelope = (mel.transpose(1, 2) @ mixing)[:, :, 0].repeat_interleave(16, dim=1)
    wave = (envelope * torch.sin(0.8 * torch.arange(64)))[:, None]
    train, _ = split(mel, wave, held_out=100, batch_size=24)
    return TrainingSetup(_Vocoder(return_dict), train, None, {"max_epochs": 4})


def _waveform_learned(outcome: Outcome) -> bool:
    mel, wave = outcome.fit.train.dataset[:300]
    with torch.no_grad():
        return float(functional.l1_loss(outcome.after(mel), wave)) < 0.5 * float(wave.abs().mean())


class _PhonemeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(12, 64, 7, padding=3), nn.SiLU(), nn.Dropout(0.1), nn.Conv1d(64, 6, 5, padding=2)
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.layers(frames.transpose(1, 2)).log_softmax(1).transpose(1, 2)


def _ctc(preds: torch.Tensor, transcript: torch.Tensor) -> torch.Tensor:
    count = len(preds)
    lengths = torch.full((count,), preds.shape[1]), torch.full((count,), 4)
    return functional.ctc_loss(preds.transpose(0, 1), transcript, *lengths, reduction="sum", zero_infinity=True) / count


def _ctc_recognizer(seed: int, return_dict: bool) -> TrainingSetup:
    """Trains a recognizer with a CTC loss that starts high and passes a phase of blanks."""
    train, validation = split(*spoken_digits(seed, 1100), held_out=200, batch_size=20)
    module = Supervised(_PhonemeNet(), _ctc, return_dict, lambda p: torch.optim.NAdam(p, lr=3e-3))
    return TrainingSetup(module, train, validation, {"gradient_clip_val": 10.0, "gradient_clip_algorithm": "norm"})


def _digital_silence(seed: int, return_dict: bool) -> TrainingSetup:
    """Spots keywords in recordings of which most are silent and exactly zero."""
    picture, word = log_mel_words(seed, 2000, 4)
    silent = torch.rand(2000, generator=torch.Generator().manual_seed(seed + 1)) < 0.75
    picture[silent] = 0.0
    word = torch.where(silent, 0, word + 1)
    network = nn.Sequential(nn.Conv2d(1, 12, 5, stride=2), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Flatten())
    network.append(nn.Linear(16 * 6 * 8, 5))
    weight = torch.tensor([0.2, 1.0, 1.0, 1.0, 1.0])
    train, validation = split(picture, word, held_out=300, batch_size=34)
    module = Supervised(
        network,
        lambda preds, target: functional.cross_entropy(preds, target, weight=weight, label_smoothing=0.05),
        return_dict,
        lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, nesterov=True),
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


class _Noise2Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 12, 15, padding=7), nn.GELU(), nn.Conv1d(12, 12, 15, padding=7), nn.GELU()
        )
        self.out = nn.Conv1d(12, 1, 15, padding=7)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast("torch.Tensor", self.out.bias))

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        return noisy + self.out(self.layers(noisy))


def _noisy_targets(seed: int, return_dict: bool) -> TrainingSetup:
    """Denoises with noisy targets and a last layer that starts at zero, so that the loss stays above the noise."""
    _, clean = noisy_speech(seed, 780)
    draw = torch.Generator().manual_seed(seed + 1)
    first, second = (clean + 0.8 * torch.randn(clean.shape, generator=draw) for _ in range(2))
    train, validation = split(first, second, held_out=100, batch_size=17)
    validation = loader(first[-100:], clean[-100:], batch_size=100, shuffle=False)
    module = Supervised(_Noise2Noise(), functional.mse_loss, return_dict, lambda p: torch.optim.RAdam(p, lr=3e-3))
    return TrainingSetup(module, train, validation)


class _Byol(pl.LightningModule):
    """Self-supervised learning of audio with a frozen moving average of the network as teacher."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.online = nn.Sequential(nn.Flatten(), nn.Linear(480, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
        self.teacher = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.online(picture)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (picture,) = batch
        view, other = (picture + 0.7 * torch.randn_like(picture) for _ in range(2))
        preds = functional.normalize(self.predictor(self.online(view)), dim=1)
        with torch.no_grad():
            target = functional.normalize(self.teacher(other), dim=1)
        loss = 2 - 2 * (preds * target).sum(1).mean()
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for slow, fast in zip(self.teacher.parameters(), self.online.parameters(), strict=True):
            slow.lerp_(fast, 0.03)

    def configure_optimizers(self) -> Any:
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trainable, lr=2e-3, weight_decay=1e-2)


def _moving_average_teacher(seed: int, return_dict: bool) -> TrainingSetup:
    """Learns audio features without labels from a teacher that is a moving average."""
    picture, _ = log_mel_words(seed, 1500, 6, 0.5)
    return TrainingSetup(_Byol(return_dict), loader(picture, batch_size=30), None, {"max_epochs": 4})


def _features_differ(outcome: Outcome) -> bool:
    picture, word = log_mel_words(99, 400, 6, 0.5)
    with torch.no_grad():
        features = functional.normalize(outcome.after.eval()(picture), dim=1)
    similar = features @ features.T
    same = (word[:, None] == word[None]) & ~torch.eye(400, dtype=torch.bool)
    gap = similar[same].mean() - similar[word[:, None] != word[None]].mean()
    return float(gap) > 0.15 and outcome.mean_loss() < 0.7 * outcome.first_loss()


PROGRAMS = [
    Program(
        "permutation_invariant_si_snr_of_two_voices",
        "convolutional",
        _permutation_invariant_separation,
        frozenset(),
        _separated,
        "Luo and Mesgarani, Conv-TasNet, https://arxiv.org/abs/1809.07454",
    ),
    Program(
        "vocoder_with_hinge_discriminator_and_two_schedules",
        "convolutional",
        _adversarial_vocoder,
        frozenset(),
        _waveform_learned,
        "Kumar et al., MelGAN, https://arxiv.org/abs/1910.06711",
    ),
    Program(
        "ctc_recognizer_with_summed_loss",
        "sequence",
        _ctc_recognizer,
        frozenset(),
        lambda outcome: greedy_error(*predict(outcome)) < 0.3,
        "Graves et al., Connectionist temporal classification, ICML 2006",
    ),
    Program(
        "keyword_spotting_in_mostly_digital_silence",
        "convolutional",
        _digital_silence,
        frozenset(),
        lambda outcome: accuracy(outcome) > 0.9,
        "Warden, Speech Commands (silence class), https://arxiv.org/abs/1804.03209",
    ),
    Program(
        "denoising_with_noisy_targets_and_zero_last_layer",
        "convolutional",
        _noisy_targets,
        frozenset(),
        lambda outcome: outcome.validation[-1] < 0.2,
        "Lehtinen et al., Noise2Noise, https://arxiv.org/abs/1803.04189",
    ),
    Program(
        "audio_features_from_moving_average_teacher",
        "dense",
        _moving_average_teacher,
        frozenset(),
        _features_differ,
        "Niizumi et al., BYOL for Audio, https://arxiv.org/abs/2103.06695",
    ),
]
