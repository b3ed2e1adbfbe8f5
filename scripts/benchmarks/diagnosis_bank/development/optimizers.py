"""Parameters in no optimizer or in two, missing steps, and gradients that are not cleared."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.development.datasets import (
    cancer,
    commonest_token,
    curve,
    digit_images,
    digit_rows,
    make_loader,
    split,
    waves,
)
from diagnosis_bank.development.measures import ends_above, is_unchanged, ran_to_end, step_output
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812 (conventional name)

from stormproof.finding import Problem


class _StackedTagger(pl.LightningModule):
    def __init__(self, return_dict: bool, in_a_list: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.embedding = nn.Embedding(12, 16)
        layers = [nn.GRU(16, 16, batch_first=True) for _ in range(2)]
        self.layers = layers if in_a_list else nn.ModuleList(layers)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden, _ = layer(hidden)
        return self.head(hidden[:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, label = batch
        logits = self(tokens)
        return step_output(self.return_dict, F.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def stacked_tagger(seed: int, return_dict: bool, in_a_list: bool = True) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(
        _StackedTagger(return_dict, in_a_list), make_loader(*commonest_token(seed), size=32, seed=seed)
    )


class _Transfer(pl.LightningModule):
    def __init__(self, return_dict: bool, late: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.late = late
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(64, 100)
        if not late:
            self.head = nn.Linear(64, 10)

    def on_train_start(self) -> None:
        if self.late:
            self.head = nn.Linear(self.head.in_features, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, label = batch
        logits = self(images)
        return step_output(self.return_dict, F.cross_entropy(logits, label), logits, label)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, label = batch
        self.log("val_loss", F.cross_entropy(self(images), label))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def transfer(seed: int, return_dict: bool, late: bool = True) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(_Transfer(return_dict, late), *split(digit_images(), 32, seed))


class _TwoHeads(pl.LightningModule):
    def __init__(self, return_dict: bool, shared: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.shared = shared
        self.trunk = nn.Sequential(nn.Linear(64, 48), nn.ReLU())
        self.digit = nn.Linear(48, 10)
        self.parity = nn.Linear(48, 2)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.trunk(pixels)
        return self.digit(hidden), self.parity(hidden)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pixels, label = batch
        digit, parity = self(pixels)
        loss = F.cross_entropy(digit, label) + F.cross_entropy(parity, label % 2)
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        return step_output(self.return_dict, loss, digit, label)

    def configure_optimizers(self) -> Any:
        trunk = list(self.trunk.parameters())
        return [
            torch.optim.Adam([*trunk, *self.digit.parameters()], lr=2e-3),
            torch.optim.Adam([*(trunk if self.shared else []), *self.parity.parameters()], lr=2e-3),
        ]


def two_heads(seed: int, return_dict: bool, shared: bool = True) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(_TwoHeads(return_dict, shared), make_loader(*digit_rows(), size=32, seed=seed))


def head_twice(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    module = Supervised(
        network,
        nn.MSELoss(),
        return_dict,
        lambda parameters: torch.optim.SGD([*parameters, *network[-1].parameters()], lr=0.05, momentum=0.9),
    )
    return TrainingSetup(module, make_loader(*curve(seed), size=32, seed=seed))


class _ByHand(pl.LightningModule):
    def __init__(self, return_dict: bool, clears: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.clears = clears
        self.layers = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, table: torch.Tensor) -> torch.Tensor:
        return self.layers(table)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        table, label = batch
        optimizer = self.optimizers()
        if self.clears:
            optimizer.zero_grad()
        logits = self(table)
        loss = F.cross_entropy(logits, label)
        self.manual_backward(loss)
        optimizer.step()
        return step_output(self.return_dict, loss, logits, label)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def by_hand(seed: int, return_dict: bool, clears: bool = False) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(_ByHand(return_dict, clears), make_loader(*cancer(), size=16, seed=seed))


class _Forecaster(pl.LightningModule):
    def __init__(self, return_dict: bool, once: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.once = once
        self.recurrent = nn.GRU(1, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.recurrent(wave)
        return self.head(hidden[:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        wave, following = batch
        preds = self(wave)
        return step_output(self.return_dict, F.mse_loss(preds, following), preds, following)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if not self.once or batch_idx == 0:
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.2)


def forecaster(seed: int, return_dict: bool, once: bool = True) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(_Forecaster(return_dict, once), make_loader(*waves(seed), size=32, seed=seed))


class _Copier(pl.LightningModule):
    def __init__(self, return_dict: bool, steps_both: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.steps_both = steps_both
        self.encoder = nn.LSTM(1, 24, batch_first=True)
        self.decoder = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 20))

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        _, (hidden, _) = self.encoder(wave)
        return self.decoder(hidden[-1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        wave, _ = batch
        encoder, decoder = self.optimizers()
        encoder.zero_grad()
        decoder.zero_grad()
        preds, target = self(wave), wave.squeeze(2)
        loss = F.mse_loss(preds, target)
        self.manual_backward(loss)
        decoder.step()
        if self.steps_both:
            encoder.step()
        return step_output(self.return_dict, loss, preds, target)

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.encoder.parameters(), lr=5e-3),
            torch.optim.Adam(self.decoder.parameters(), lr=5e-3),
        )


def copier(seed: int, return_dict: bool, steps_both: bool = False) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(_Copier(return_dict, steps_both), make_loader(*waves(seed), size=32, seed=seed))


class _FineTuning(Supervised):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.pretrained is not None:
            self.network[0].load_state_dict(self.pretrained)


def fine_tuning(seed: int, return_dict: bool, rebuilds_optimizer: bool = True) -> TrainingSetup:
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
    )
    module = _FineTuning(
        nn.Sequential(body, nn.Flatten(), nn.Linear(32, 10)),
        nn.CrossEntropyLoss(),
        return_dict,
        lambda parameters: torch.optim.AdamW(parameters, lr=5e-3),
    )
    module.pretrained = copy.deepcopy(body.state_dict()) if rebuilds_optimizer else None
    return TrainingSetup(module, *split(digit_images(), 32, seed))


def _encoder_is_unchanged(outcome: Outcome) -> bool:
    return ran_to_end(outcome) and is_unchanged(outcome, "encoder.") and not is_unchanged(outcome, "decoder.")


PROGRAMS: list[Program] = [
    Program(
        name="recurrent_layers_in_a_python_list_are_in_no_optimizer",
        domain="sequence",
        build=stacked_tagger,
        problems=frozenset({Problem.NOT_IN_OPTIMIZER}),
        took_effect=ran_to_end,
        source="https://github.com/pytorch/pytorch/issues/715",
    ),
    Program(
        name="head_is_replaced_after_the_optimizer_was_built",
        domain="convolutional",
        build=transfer,
        problems=frozenset({Problem.NOT_IN_OPTIMIZER}),
        took_effect=ran_to_end,
        source="https://github.com/zjunlp/HVPNeT/issues/5",
    ),
    Program(
        name="trunk_is_held_by_the_optimizers_of_both_heads",
        domain="dense",
        build=two_heads,
        problems=frozenset({Problem.IN_TWO_OPTIMIZERS}),
        took_effect=ran_to_end,
        source="https://github.com/torch/nn/issues/613",
    ),
    Program(
        name="head_is_listed_twice_in_one_group",
        domain="regression",
        build=head_twice,
        problems=frozenset({Problem.IN_TWO_OPTIMIZERS}),
        took_effect=ran_to_end,
        source="https://github.com/pytorch/pytorch/issues/40967",
    ),
    Program(
        name="zero_grad_is_missing_under_manual_optimization",
        domain="dense",
        build=by_hand,
        problems=frozenset({Problem.GRADIENTS_NOT_CLEARED}),
        took_effect=lambda outcome: ends_above(outcome, 0.3),  # cleared: 0.05 to 0.07
        source="https://github.com/Hsintien-Ng/idinvert_pytorch-reproduced/issues/1",
    ),
    Program(
        name="zero_grad_is_overridden_to_run_once_an_epoch",
        domain="sequence",
        build=forecaster,
        problems=frozenset({Problem.GRADIENTS_NOT_CLEARED}),
        took_effect=lambda outcome: ends_above(outcome, 0.04),  # cleared: 0.02
        source="https://github.com/Lightning-AI/pytorch-lightning/issues/6910",
    ),
    Program(
        name="optimizer_of_the_encoder_is_never_stepped",
        domain="sequence",
        build=copier,
        problems=frozenset({Problem.WEIGHTS_UNCHANGED}),
        took_effect=_encoder_is_unchanged,
        source="https://github.com/clovaai/stargan-v2/issues/34",
    ),
    Program(
        name="pretrained_weights_are_loaded_again_before_every_batch",
        domain="convolutional",
        build=fine_tuning,
        problems=frozenset({Problem.WEIGHTS_UNCHANGED}),
        took_effect=ran_to_end,
        source="constructed: loading a checkpoint in a hook that runs for every batch instead of once",
    ),
]
