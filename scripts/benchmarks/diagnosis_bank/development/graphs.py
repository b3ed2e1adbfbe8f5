"""Graphs cut by numpy, no_grad or argmax, and parameters frozen by mistake."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.development.datasets import (
    digit_images,
    digit_rows,
    first_token,
    make_loader,
    signals,
    split,
    waves,
)
from diagnosis_bank.development.measures import ends_above, is_unchanged, ran_to_end, step_output
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812 (conventional name)

from stormproof.finding import Problem


class _ThroughNumpy(nn.Module):
    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.encoder = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 6), nn.Tanh())
        self.classifier = nn.Linear(6, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        code = self.encoder(pixels)
        if self.cut:
            code = torch.from_numpy(code.detach().cpu().numpy().clip(-0.99, 0.99))
        return self.classifier(code)


def through_numpy(seed: int, return_dict: bool, cut: bool = True) -> TrainingSetup:
    torch.manual_seed(seed)
    module = Supervised(
        _ThroughNumpy(cut), nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=5e-3)
    )
    return TrainingSetup(module, make_loader(*digit_rows(), size=32, seed=seed))


class _UnderNoGrad(pl.LightningModule):
    def __init__(self, return_dict: bool, cut: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.cut = cut
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.cut):
            features = self.backbone(images)
        return self.head(features)

    def _step(self, batch: Any, name: str) -> Any:
        images, label = batch
        logits = self(images)
        loss = F.cross_entropy(logits, label)
        self.log(name, loss)
        return step_output(self.return_dict, loss, logits, label)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self._step(batch, "train_loss")

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self._step(batch, "val_loss")

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def under_no_grad(seed: int, return_dict: bool, cut: bool = True) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(_UnderNoGrad(return_dict, cut), *split(digit_images(), 32, seed))


class _HardAttention(nn.Module):
    """Selects the token that it answers with."""

    def __init__(self, soft: bool) -> None:
        super().__init__()
        self.soft = soft
        self.embedding = nn.Embedding(8, 12)
        self.position = nn.Parameter(0.1 * torch.randn(12, 12))
        self.score = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 1))
        self.head = nn.Linear(12, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(tokens)
        score = self.score(embedded + self.position).squeeze(2)
        if self.soft:
            return self.head((score.softmax(1).unsqueeze(2) * embedded).sum(1))
        chosen = score.argmax(1)
        return self.head(embedded[torch.arange(len(tokens)), chosen])


def hard_attention(seed: int, return_dict: bool, soft: bool = False) -> TrainingSetup:
    torch.manual_seed(seed)
    module = Supervised(
        _HardAttention(soft), F.cross_entropy, return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-2)
    )
    return TrainingSetup(module, make_loader(*first_token(seed), size=32, seed=seed))


class _DataOfTheState(pl.LightningModule):
    def __init__(self, return_dict: bool, cut: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.cut = cut
        self.lstm = nn.LSTM(1, 8, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        out, _ = self.lstm(wave)
        last = out[:, -1].data if self.cut else out[:, -1]
        return self.head(last)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        wave, following = batch
        preds = self(wave)
        return step_output(self.return_dict, F.l1_loss(preds, following), preds, following)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def data_of_the_state(seed: int, return_dict: bool, cut: bool = True) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(_DataOfTheState(return_dict, cut), make_loader(*waves(seed), size=32, seed=seed))


def all_but_the_bias(seed: int, return_dict: bool, last: int = 1) -> TrainingSetup:
    torch.manual_seed(seed)
    inputs, label = signals()
    network = nn.Sequential(
        nn.Unflatten(1, (1, 40)),
        nn.Conv1d(1, 12, 5, stride=2),
        nn.ReLU(),
        nn.Conv1d(12, 12, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(84, 10),
    )
    for parameter in list(network.parameters())[:-last]:
        parameter.requires_grad = False
    module = Supervised(
        network,
        nn.CrossEntropyLoss(),
        return_dict,
        lambda parameters: torch.optim.Adam(
            [trained_parameter for trained_parameter in parameters if trained_parameter.requires_grad], lr=1e-2
        ),
    )
    return TrainingSetup(module, *split((inputs, label), 32, seed))


def _encoder_is_unchanged(outcome: Outcome) -> bool:
    return ran_to_end(outcome) and is_unchanged(outcome, "network.encoder.") and ends_above(outcome, 1.0)  # whole: 0.5


PROGRAMS: list[Program] = [
    Program(
        name="code_takes_a_way_through_numpy",
        domain="dense",
        build=through_numpy,
        problems=frozenset({Problem.NO_GRADIENT}),
        took_effect=_encoder_is_unchanged,
        source="https://prodopsy.com/how-can-the-backward-function-in-tensor-influence-the-matrix-in-model",
    ),
    Program(
        name="backbone_to_be_tuned_runs_under_no_grad",
        domain="convolutional",
        build=under_no_grad,
        problems=frozenset({Problem.NO_GRADIENT}),
        took_effect=lambda outcome: ends_above(outcome, 1.0),  # tuned: 0.2 to 0.3
        source="https://github.com/rll-research/cic/issues/5",
    ),
    Program(
        name="attention_picks_its_token_by_argmax",
        domain="sequence",
        build=hard_attention,
        problems=frozenset({Problem.NO_GRADIENT}),
        took_effect=lambda outcome: is_unchanged(outcome, "network.score.") and ends_above(outcome, 0.1),  # soft: 0.003
        source="https://www.codegenes.net/blog/pytorch-argmax-gradient",
    ),
    Program(
        name="head_reads_the_data_of_the_last_state",
        domain="sequence",
        build=data_of_the_state,
        problems=frozenset({Problem.NO_GRADIENT}),
        took_effect=lambda outcome: ends_above(outcome, 0.1),  # whole: 0.1
        source="https://github.com/Lightning-AI/pytorch-lightning/issues/2331",
    ),
    Program(
        name="all_is_frozen_but_the_bias_of_the_head",
        domain="sequence",
        build=all_but_the_bias,
        problems=frozenset({Problem.NO_GRADIENT, Problem.NO_BETTER_THAN_CONSTANT}),
        took_effect=lambda outcome: ends_above(outcome, 2.0),  # free: 1.45
        source="https://github.com/wannabeOG/MAS-PyTorch/issues/1",
    ),
]
