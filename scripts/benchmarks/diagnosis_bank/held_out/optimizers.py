"""Parameters in wrong optimizers, and gradients cleared at wrong times."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.held_out.datasets import digit_images, digits, make_loader, seeded, signals, surface
from diagnosis_bank.held_out.measures import accuracy, explained_variance, is_unchanged, ran_to_end
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional

from stormproof.finding import Problem


class _ManualClassifier(pl.LightningModule):
    """An LSTM over signals with a training loop taken from plain torch."""

    def __init__(self, return_dict: bool, clears: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.lstm = nn.LSTM(4, 32, batch_first=True)
        self.head = nn.Linear(32, 10)
        self.return_dict = return_dict
        self.clears = clears

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(self.lstm(signal.view(len(signal), 10, 4))[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        signal, kind = batch
        optimizer: Any = self.optimizers()
        scores = self(signal)
        loss = functional.cross_entropy(scores, kind)
        if self.clears:
            optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return {"loss": loss, "preds": scores, "target": kind} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


@seeded
def _never_cleared(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    signal, kind = signals()
    return TrainingSetup(
        _ManualClassifier(return_dict, clears=is_fixed), make_loader(signal, kind, 32, seed), trainer={"max_epochs": 5}
    )


class _OftenStepped(pl.LightningModule):
    """A convolutional network that should accumulate gradients of several batches."""

    def __init__(self, return_dict: bool, gathers: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(8 * 16, 10)
        self.return_dict = return_dict
        self.gathers = gathers

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, digit = batch
        optimizer: Any = self.optimizers()
        scores = self(image)
        loss = functional.cross_entropy(scores, digit)
        self.manual_backward(loss)
        optimizer.step()
        if (batch_idx + 1) % self.gathers == 0:
            optimizer.zero_grad()
        return {"loss": loss, "preds": scores, "target": digit} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@seeded
def _stepped_while_gathering(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    image, digit = digit_images()
    return TrainingSetup(_OftenStepped(return_dict, gathers=1 if is_fixed else 28), make_loader(image, digit, 32, seed))


class _ManualRegression(pl.LightningModule):
    """A small network with manual optimization."""

    def __init__(self, return_dict: bool, clears_last: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layers = nn.Sequential(nn.Linear(6, 24), nn.SiLU(), nn.Linear(24, 24), nn.SiLU(), nn.Linear(24, 1))
        self.criterion = nn.MSELoss()
        self.return_dict = return_dict
        self.clears_last = clears_last

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        optimizer: Any = self.optimizers()
        preds = self(inputs)
        loss = self.criterion(preds, target)
        if not self.clears_last:
            optimizer.zero_grad()
        self.manual_backward(loss)
        if self.clears_last:
            optimizer.zero_grad()
        optimizer.step()
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=3e-3)


@seeded
def _cleared_before_the_step(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, target = surface(seed, 2000)
    return TrainingSetup(
        _ManualRegression(return_dict, clears_last=not is_fixed), make_loader(inputs, target, 40, seed)
    )


class _CodeAndClass(pl.LightningModule):
    """An autoencoder and a classifier of its code, with one optimizer each."""

    def __init__(self, return_dict: bool, encoder_twice: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 12), nn.ReLU())
        self.decoder = nn.Linear(12, 64)
        self.classifier = nn.Linear(12, 10)
        self.return_dict = return_dict
        self.encoder_twice = encoder_twice

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.encoder(pixels))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pixels, digit = batch
        optimizers: Any = self.optimizers()
        coding, sorting = optimizers
        code = self.encoder(pixels)
        scores = self.classifier(code)
        loss = functional.mse_loss(self.decoder(code), pixels) + functional.cross_entropy(scores, digit)
        coding.zero_grad()
        sorting.zero_grad()
        self.manual_backward(loss)
        coding.step()
        sorting.step()
        return {"loss": loss, "preds": scores, "target": digit} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        encoder = list(self.encoder.parameters())
        return [
            torch.optim.Adam([*encoder, *self.decoder.parameters()], lr=2e-3),
            torch.optim.Adam(
                [*self.classifier.parameters(), *(encoder if self.encoder_twice else [])], lr=2e-3, weight_decay=1e-4
            ),
        ]


@seeded
def _encoder_in_both(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    pixels, digit = digits()
    return TrainingSetup(_CodeAndClass(return_dict, encoder_twice=not is_fixed), make_loader(pixels, digit, 32, seed))


class _FineTuned(Supervised):
    """Creates its optimizer in the constructor, before the head is replaced."""

    def __init__(self, network: nn.Sequential, return_dict: bool) -> None:
        super().__init__(network, nn.CrossEntropyLoss(), return_dict, torch.optim.AdamW)
        self.built_optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4)

    def configure_optimizers(self) -> Any:
        return self.built_optimizer


@seeded
def _head_replaced_later(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    image, digit = digit_images()
    network = nn.Sequential(
        nn.Conv2d(1, 10, 3),
        nn.GroupNorm(2, 10),
        nn.GELU(),
        nn.Conv2d(10, 10, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(160, 1000),
    )
    if is_fixed:
        network[-1] = nn.Linear(160, 10)
    module = _FineTuned(network, return_dict)
    if not is_fixed:
        network[-1] = nn.Linear(160, 10)
    return TrainingSetup(module, make_loader(image, digit, 32, seed))


class _Blocks(nn.Module):
    """Residual blocks in a list."""

    def __init__(self, registers: bool, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(40, width)
        blocks = [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU()) for _ in range(depth)]
        self.blocks: Any = nn.ModuleList(blocks) if registers else blocks
        self.last = nn.Linear(width, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        inner = self.first(inputs)
        for block in self.blocks:
            inner = inner + block(inner)
        return self.last(inner)


@seeded
def _list_of_layers(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    signal, kind = signals()
    return TrainingSetup(
        Supervised(
            _Blocks(registers=is_fixed),
            functional.cross_entropy,
            return_dict,
            lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
        ),
        make_loader(signal, kind, 32, seed),
    )


PROGRAMS: list[Program] = [
    Program(
        "manual_loop_never_clears_the_gradients_of_an_lstm",
        "sequence",
        _never_cleared,
        frozenset({Problem.GRADIENTS_NOT_CLEARED}),
        lambda outcome: not accuracy(outcome) > 0.3,  # cleared, it is above 0.4
        "https://github.com/LoreGoetschalckx/GANalyze/issues/7",
    ),
    Program(
        "optimizer_steps_each_batch_and_clears_every_twenty_eighth",
        "convolutional",
        _stepped_while_gathering,
        frozenset({Problem.GRADIENTS_NOT_CLEARED}),
        lambda outcome: not outcome.mean_loss() < 1.0,  # cleared each batch, it ends at 0.2
        "https://github.com/Lightning-AI/pytorch-lightning/issues/14527",
    ),
    Program(
        "gradients_are_cleared_between_backward_and_step",
        "regression",
        _cleared_before_the_step,
        frozenset({Problem.WEIGHTS_UNCHANGED, Problem.NO_GRADIENT}),
        lambda outcome: (
            is_unchanged(outcome, "layers") and explained_variance(outcome) < 0.3
        ),  # cleared first: above 0.8
        "http://xiaobeizi.cn/x/6iuujguWdu",
    ),
    Program(
        "encoder_is_in_both_optimizers",
        "dense",
        _encoder_in_both,
        frozenset({Problem.IN_TWO_OPTIMIZERS}),
        ran_to_end,  # both step it in all of the training
        "https://github.com/pytorch/pytorch/issues/40967",
    ),
    Program(
        "optimizer_was_made_before_the_head_was_replaced",
        "convolutional",
        _head_replaced_later,
        frozenset({Problem.NOT_IN_OPTIMIZER}),
        lambda outcome: is_unchanged(outcome, "network.6"),
        "https://github.com/ifzhang/FairMOT/issues/99",
    ),
    Program(
        "residual_blocks_are_kept_in_a_plain_list",
        "dense",
        _list_of_layers,
        frozenset({Problem.NOT_IN_OPTIMIZER}),
        ran_to_end,  # the blocks are in no optimizer
        "https://www.engineermaxxing.com/micro/lessons/pytorch-internals.html",
    ),
]
