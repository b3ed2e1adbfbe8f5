"""Data and metrics shared by the programs on signals: speech, series, sensors, EEG and survival."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.program import Outcome
from torch.utils.data import DataLoader, TensorDataset


def loader(*tensors: torch.Tensor, batch_size: int, shuffle: bool = True) -> DataLoader[Any]:
    """Returns a loader of the tensors."""
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size, shuffle=shuffle)


def split(
    *tensors: torch.Tensor, held_out: int, batch_size: int, shuffle: bool = True
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Returns a training loader and a validation loader of the last ``held_out`` samples."""
    train = loader(*(tensor[:-held_out] for tensor in tensors), batch_size=batch_size, shuffle=shuffle)
    return train, loader(*(tensor[-held_out:] for tensor in tensors), batch_size=256, shuffle=False)


@torch.no_grad()
def predict(outcome: Outcome) -> tuple[Any, Any]:
    """Returns predictions of the trained module in evaluation mode and targets, for the first validation batch."""
    assert outcome.fit.validation is not None
    inputs, target = next(iter(outcome.fit.validation))
    module = outcome.after.eval()
    return module(inputs), target


def accuracy(outcome: Outcome) -> float:
    """Returns the validation accuracy of a classifier. It is zero if training raised an exception."""
    if outcome.error is not None:
        return 0.0
    preds, target = predict(outcome)
    return float((preds.nan_to_num().argmax(-1) == target).float().mean())


def explained(outcome: Outcome) -> float:
    """Returns the validation R² of a regression. It is minus infinity if the predictions are not finite."""
    preds, target = predict(outcome)
    preds = preds.reshape(target.shape)
    score = 1 - (preds - target).square().mean() / (target - target.mean(0)).square().mean()
    return float(score) if torch.isfinite(score) else -float("inf")


def seasonal_windows(seed: int, samples: int, length: int, horizon: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns standardized windows (N, length) of noisy seasonal series and their continuations (N, horizon)."""
    draw = torch.Generator().manual_seed(seed)
    steps = torch.arange(length + horizon).float()
    period = 8 + 8 * torch.rand(samples, 1, generator=draw)
    phase = 6.28 * torch.rand(samples, 1, generator=draw)
    size = 0.7 + 0.8 * torch.rand(samples, 1, generator=draw)
    level = 0.8 * torch.randn(samples, 1, generator=draw)
    series = level + size * torch.sin(6.28 * steps / period + phase)
    series = series + 0.1 * torch.randn(series.shape, generator=draw)
    return series[:, :length], series[:, length:]


def log_mel_words(seed: int, samples: int, words: int, noise: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns log-mel spectrograms (N, 1, 20, 24) of words with two formants each, and the words' indices."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(words, (samples,), generator=draw)
    patterns = torch.Generator().manual_seed(1234)
    start = torch.randint(2, 18, (words, 2), generator=patterns).float()
    slope = 0.8 * torch.randn(words, 2, generator=patterns)
    onset = torch.randint(0, 8, (samples, 1), generator=draw)
    time = torch.arange(24).float()[None] - onset
    bins = torch.arange(20).float()[None, :, None]
    picture = torch.zeros(samples, 20, 24)
    for formant in range(2):
        track = (start[label, formant, None] + slope[label, formant, None] * time).clamp(0, 19)[:, None]
        active = ((time >= 0) & (time < 14)).float()[:, None]
        picture += active * torch.exp(-0.5 * (bins - track).square())
    picture = 2 * picture + noise * torch.randn(picture.shape, generator=draw)
    return picture[:, None], label


def eeg_trials(seed: int, samples: int, rhythm: float = 20.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns EEG (N, 8, 128) in microvolts, with a 10 Hz rhythm at the left or right electrodes, and the side."""
    draw = torch.Generator().manual_seed(seed)
    side = torch.randint(2, (samples,), generator=draw)
    time = torch.arange(128).float() / 128
    phase = 6.28 * torch.rand(samples, 1, generator=draw)
    wave = rhythm * torch.sin(6.28 * 10 * time + phase)
    noise = 10 * torch.randn(samples, 8, 128, generator=draw)
    drift = 15 * torch.randn(samples, 8, 1, generator=draw) * torch.sin(3.1 * time + phase)[:, None]
    weight = torch.zeros(samples, 8, 1)
    weight[side == 0, :3] = 1.0
    weight[side == 1, 5:] = 1.0
    return noise + drift + weight * wave[:, None], side


def spoken_digits(seed: int, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns feature frames (N, 40, 12) of utterances of four digits, and their transcripts (N, 4) from 1 to 5."""
    draw = torch.Generator().manual_seed(seed)
    voice = 1.5 * torch.randn(6, 12, generator=torch.Generator().manual_seed(77))
    transcript = torch.randint(1, 6, (samples, 4), generator=draw)
    frames = 0.5 * torch.randn(samples, 40, 12, generator=draw)
    for row in range(samples):
        position = int(torch.randint(1, 4, (1,), generator=draw))
        for digit in transcript[row]:
            length = int(torch.randint(4, 7, (1,), generator=draw))
            frames[row, position : position + length] += voice[digit]
            position += length + int(torch.randint(1, 4, (1,), generator=draw))
    return frames, transcript


def greedy_error(preds: torch.Tensor, transcript: torch.Tensor) -> float:
    """Returns the share of utterances whose best path (blank is 0) is not the transcript."""
    wrong = 0
    for path, target in zip(preds.argmax(-1), transcript, strict=True):
        units = torch.unique_consecutive(path)
        wrong += units[units > 0].tolist() != target.tolist()
    return wrong / len(transcript)


def survival_table(
    seed: int, samples: int, censoring: float = 0.5, effect: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns covariates (N, 8) and targets (N, 2): the follow-up time, and 1 for an event or 0 if censored."""
    draw = torch.Generator().manual_seed(seed)
    covariates = torch.randn(samples, 8, generator=draw)
    risk = effect * (covariates[:, 0] - covariates[:, 1] + 0.7 * covariates[:, 2].square())
    event_time = -torch.log(torch.rand(samples, generator=draw)) / torch.exp(risk)
    limit = -torch.log(torch.rand(samples, generator=draw)) / censoring
    return covariates, torch.stack([torch.minimum(event_time, limit), (event_time <= limit).float()], dim=1)


def concordance(risk: torch.Tensor, target: torch.Tensor) -> float:
    """Returns the share of comparable pairs in which the earlier event has the higher risk."""
    time, event = target.T
    comparable = (time[:, None] < time[None]) & (event[:, None] > 0)
    return float((risk[:, None] > risk[None])[comparable].float().mean())


def noisy_speech(seed: int, samples: int, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns noisy and clean waveforms (N, 1, 256) of voiced sounds, zero-padded after 128 to 224 samples."""
    draw = torch.Generator().manual_seed(seed)
    time = torch.arange(256).float()
    pitch = 0.05 + 0.1 * torch.rand(samples, 1, generator=draw)
    phase = 6.28 * torch.rand(samples, 1, generator=draw)
    clean = torch.sin(6.28 * pitch * time + phase) + 0.5 * torch.sin(12.57 * pitch * time + 2 * phase)
    end = torch.randint(128, 224, (samples, 1), generator=draw)
    spoken = (time[None] < end).float()
    noisy = clean + noise * torch.randn(clean.shape, generator=draw)
    return (noisy * spoken)[:, None], (clean * spoken)[:, None]
