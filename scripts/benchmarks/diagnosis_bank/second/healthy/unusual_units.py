"""Layers, gates and activations that are mostly off, flat, shared, generated or rounded."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.second.healthy.datasets import blobs, curve, make_generator, make_loader, split, stripes
from diagnosis_bank.second.healthy.measures import (
    all_of,
    explains_variance,
    is_accurate,
    loss_fell,
    ran_to_end,
    step_output,
)
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


class _Experts(nn.Module):
    def __init__(self, count: int = 8) -> None:
        super().__init__()
        self.gate = nn.Linear(8, count)
        with torch.no_grad():
            self.gate.bias[count // 2 :] = -6.0
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 1)) for _ in range(count))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight, chosen = self.gate(inputs).softmax(1).max(1)
        out = inputs.new_zeros(len(inputs), 1)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().squeeze(1)
            if len(rows):
                out = out.index_add(0, rows, weight[rows].unsqueeze(1) * expert(inputs[rows]))
        return out


def _mixture(seed: int, return_dict: bool) -> TrainingSetup:
    """A mixture of eight experts in which the best one answers. Half of them receive no gradient here."""
    train, validation = split(1600, *curve(seed, 2000))
    module = Supervised(_Experts(), nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=5e-3))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 4})


class _TopK(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.encoder = nn.Linear(24, 96)
        self.decoder = nn.Linear(96, 24)
        with torch.no_grad():
            self.decoder.weight.copy_(self.encoder.weight.T)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        code = F.relu(self.encoder(inputs - self.decoder.bias))
        value, position = code.topk(6, dim=1)
        return self.decoder(torch.zeros_like(code).scatter(1, position, value))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        preds = self(batch[0])
        return step_output(self.return_dict, F.mse_loss(preds, batch[0]), preds, batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def _sparse_autoencoder(seed: int, return_dict: bool) -> TrainingSetup:
    """A sparse autoencoder: six of ninety-six units are active per sample, and all of them sometimes."""
    random = make_generator(seed)
    atoms = F.normalize(torch.randn(40, 24, generator=random), dim=1)
    use = (torch.rand(1920, 40, generator=random) < 0.08) * torch.rand(1920, 40, generator=random)
    return TrainingSetup(_TopK(return_dict), make_loader(3 * use @ atoms), trainer={"max_epochs": 4})


class _Squeeze(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, 4, 1),
            nn.Hardswish(),
            nn.Conv2d(4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.gate(images)


def _mobile(seed: int, return_dict: bool) -> TrainingSetup:
    """As in MobileNetV3: relu6, hardswish, hardsigmoid gates, depthwise convolutions."""
    train, validation = split(960, *stripes(seed, 1200))
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12), nn.Hardswish(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6(), _Squeeze(12),
        nn.Conv2d(12, 24, 1, bias=False), nn.BatchNorm2d(24), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=1e-2))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 4})


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.relu(images + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images))))))


def _zero_residual(seed: int, return_dict: bool) -> TrainingSetup:
    """torchvision's zero_init_residual: in the first step, the gradients of the branches are zero."""
    images, target = stripes(seed, 800)
    train, validation = split(640, images, target)
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2), *(_Residual(12) for _ in range(3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 4),
    )  # fmt: skip
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=1e-2))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 4})


class _Rounded(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        scale = self.weight.abs().max().detach() / 7
        rounded = (self.weight / scale).round() * scale
        return F.linear(input, self.weight + (rounded - self.weight).detach(), self.bias)


def _quantized(seed: int, return_dict: bool) -> TrainingSetup:
    """Weights quantized to four bits in the forward pass, with a straight-through gradient."""
    train, validation = split(960, *blobs(seed, 1280))
    network = nn.Sequential(_Rounded(16, 48), nn.Hardtanh(-2, 2), _Rounded(48, 48), nn.Hardtanh(-2, 2), _Rounded(48, 4))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-3))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64))


class _Hyper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maker = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 4 * 16 + 16))
        self.last = nn.Linear(16, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        generated_weights = self.maker(inputs[:, :4])
        weight, bias = generated_weights[:, :64].view(-1, 16, 4), generated_weights[:, 64:]
        return self.last(torch.tanh((weight @ inputs[:, 4:].unsqueeze(2)).squeeze(2) + bias))


def _hypernetwork(seed: int, return_dict: bool) -> TrainingSetup:
    """One half of the input generates the weights for the other half."""
    random = make_generator(seed)
    inputs = torch.randn(2000, 8, generator=random)
    target = (inputs[:, :4] * inputs[:, 4:]).sum(1, keepdim=True) / 2
    train, validation = split(1600, inputs, target + 0.1 * torch.randn(2000, 1, generator=random))
    module = Supervised(_Hyper(), nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=4e-3))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 5})


class _Looped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = parametrizations.weight_norm(nn.Linear(8, 32))
        self.block = nn.Sequential(nn.LayerNorm(32), parametrizations.weight_norm(nn.Linear(32, 32)), nn.GELU())
        self.head = nn.Linear(32, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        stream = self.stem(inputs)
        for _ in range(4):
            stream = stream + checkpoint(self.block, stream, use_reentrant=False)
        return self.head(stream)


def _looped(seed: int, return_dict: bool) -> TrainingSetup:
    """One block used four times with activation checkpointing and normalized weights."""
    train, validation = split(1280, *curve(seed, 1600))
    module = Supervised(_Looped(), nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-3))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64))


def _heavy_dropout(seed: int, return_dict: bool) -> TrainingSetup:
    """Dropout of 0.8: the training loss is far above the validation loss."""
    train, validation = split(1280, *blobs(seed, 1600, features=32, apart=0.6))
    network = nn.Sequential(
        nn.Linear(32, 128), nn.ReLU(), nn.Dropout(0.8), nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.8), nn.Linear(64, 4)
    )
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-3))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 4})


class _Highway(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, -3.0)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        open_by = torch.sigmoid(self.gate(states))
        return open_by * torch.relu(self.change(states)) + (1 - open_by) * states


def _highway(seed: int, return_dict: bool) -> TrainingSetup:
    """A highway network of eight layers whose gates start almost closed, as its authors recommend."""
    train, validation = split(2560, *blobs(seed, 3200, apart=0.8))
    network = nn.Sequential(nn.Linear(16, 32), *(_Highway(32) for _ in range(8)), nn.Linear(32, 4))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=2e-3))
    return TrainingSetup(module, make_loader(*train, size=64), make_loader(*validation, size=64))


def _four_at_a_time(seed: int, return_dict: bool) -> TrainingSetup:
    """Batches of four with group norm: losses are noisy, and a batch may contain a single class."""
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.Conv2d(8, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.SGD(weights, lr=0.03, momentum=0.9)
    )
    return TrainingSetup(module, make_loader(*stripes(seed, 800), size=4))


def _bang_bang(seed: int, return_dict: bool) -> TrainingSetup:
    """Targets of plus and minus one with a tanh that is saturated at the end, correctly."""
    random = make_generator(seed)
    inputs = torch.randn(2400, 6, generator=random)
    thrust = torch.sign(inputs @ torch.randn(6, 2, generator=random))
    train, validation = split(1920, inputs, thrust)
    network = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 2), nn.Tanh())
    module = Supervised(network, nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=4e-3))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 5})


class _Supervised3(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inward, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2))
            for inward in (1, 12, 12)
        )
        self.exits = nn.ModuleList(nn.Linear(12, 4) for _ in range(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._all(images)[-1]

    def _all(self, images: torch.Tensor) -> list[torch.Tensor]:
        logits = []
        for stage, leave in zip(self.stages, self.exits, strict=True):
            images = stage(images)
            logits.append(leave(images.mean((2, 3))))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self._all(batch[0])
        loss = sum(weight * F.cross_entropy(out, batch[1]) for weight, out in zip((0.2, 0.3, 1.0), logits, strict=True))
        return {"loss": loss, "preds": logits[-1], "target": batch[1]} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _deeply_supervised(seed: int, return_dict: bool) -> TrainingSetup:
    """An exit with a loss after each stage. The first exit has a low accuracy."""
    return TrainingSetup(_Supervised3(return_dict), make_loader(*stripes(seed, 800)))


def _idle_experts(outcome: Outcome) -> bool:
    state = outcome.after.state_dict()
    still = [torch.equal(outcome.before[key], state[key]) for key in state if key.endswith("2.weight")]
    return ran_to_end(outcome) and 2 <= sum(still) <= 6


_IDLE = "https://github.com/thu-ml/ReMoE/issues/4"

PROGRAMS = [
    Program(
        "mixture_with_idle_experts",
        "regression",
        _mixture,
        frozenset(),
        all_of(explains_variance(0.5), _idle_experts),
        _IDLE,
    ),
    Program(
        "sparse_autoencoder_top_six",
        "dense",
        _sparse_autoencoder,
        frozenset(),
        loss_fell(0.4),
        "https://arxiv.org/abs/2406.04093",
    ),
    Program(
        "mobilenet_activations",
        "convolutional",
        _mobile,
        frozenset(),
        is_accurate(0.8),
        "https://arxiv.org/abs/1905.02244",
    ),
    Program(
        "zero_init_residual",
        "convolutional",
        _zero_residual,
        frozenset(),
        is_accurate(0.8),
        "https://arxiv.org/abs/1706.02677",
    ),
    Program(
        "four_bit_straight_through",
        "dense",
        _quantized,
        frozenset(),
        is_accurate(0.8),
        "https://github.com/CompVis/taming-transformers/issues/35",
    ),
    Program(
        "hypernetwork",
        "regression",
        _hypernetwork,
        frozenset(),
        explains_variance(0.7),
        "https://arxiv.org/abs/1609.09106",
    ),
    Program(
        "one_block_four_times_checkpointed",
        "regression",
        _looped,
        frozenset(),
        explains_variance(0.6),
        "https://github.com/2U1/Llama3.2-Vision-Finetune/issues/27",
    ),
    Program(
        "dropout_of_four_fifths",
        "dense",
        _heavy_dropout,
        frozenset(),
        is_accurate(0.8),
        "https://github.com/Bjarten/early-stopping-pytorch/issues/18",
    ),
    Program(
        "highway_gates_shut", "dense", _highway, frozenset(), is_accurate(0.75), "https://arxiv.org/abs/1505.00387"
    ),
    Program(
        "batches_of_four_group_norm",
        "convolutional",
        _four_at_a_time,
        frozenset(),
        is_accurate(0.85),
        "https://arxiv.org/abs/1803.08494",
    ),
    Program(
        "bang_bang_thrust",
        "regression",
        _bang_bang,
        frozenset(),
        explains_variance(0.7),
        "https://arxiv.org/abs/2111.02552",
    ),
    Program(
        "exits_after_each_stage",
        "convolutional",
        _deeply_supervised,
        frozenset(),
        is_accurate(0.85),
        "https://arxiv.org/abs/1409.5185",
    ),
]
