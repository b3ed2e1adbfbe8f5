"""Parts that are not trained, trained later, or trained only sometimes, by design."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.second.healthy.datasets import RecordDataset, blobs, curve, make_loader, split, stripes, tones
from diagnosis_bank.second.healthy.measures import (
    all_of,
    explains_variance,
    has_changed,
    is_accurate,
    ran_to_end,
    step_output,
)
from pytorch_lightning.callbacks import BackboneFinetuning
from torch import nn


def _pretrain(network: nn.Module, inputs: torch.Tensor, target: torch.Tensor, steps: int = 80) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for step in range(steps):
        rows = torch.arange(step * 64, step * 64 + 64) % len(inputs)
        optimizer.zero_grad()
        F.cross_entropy(network(inputs[rows]), target[rows]).backward()
        optimizer.step()


def _trunk() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class _FrozenBackbone(pl.LightningModule):
    def __init__(self, backbone: nn.Module, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.backbone = backbone
        for parameter in self.backbone.parameters():
            parameter.requires_grad = False
        self.classifier = nn.Linear(16, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.backbone.eval()
        with torch.no_grad():
            features = self.backbone(images)
        return self.classifier(features)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        return step_output(self.return_dict, F.cross_entropy(logits, batch[1]), logits, batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(filter(lambda parameter: parameter.requires_grad, self.parameters()), lr=1e-2)


def _frozen_backbone(seed: int, return_dict: bool) -> TrainingSetup:
    """A frozen trunk in evaluation mode, pretrained on four patterns, with a new head for two of them."""
    trunk = _trunk()
    images, target = stripes(seed, 512)
    _pretrain(nn.Sequential(trunk, nn.Linear(16, 4)), images, target, 40)
    images, target = stripes(seed + 100, 1280)
    train, validation = split(960, images, target // 2)
    return TrainingSetup(_FrozenBackbone(trunk, return_dict), make_loader(*train), make_loader(*validation, size=64))


class _UnfreezesLater(pl.LightningModule):
    def __init__(self, backbone: nn.Module, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.backbone = backbone
        self.head = nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        return step_output(self.return_dict, F.cross_entropy(logits, batch[1]), logits, batch[1])

    def configure_callbacks(self) -> Any:
        return [BackboneFinetuning(unfreeze_backbone_at_epoch=2, verbose=False)]

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, lr=1e-2)


def _unfreezes_later(seed: int, return_dict: bool) -> TrainingSetup:
    """Lightning's BackboneFinetuning: the trunk joins the optimizer in the third epoch."""
    trunk = _trunk()
    images, target = stripes(seed, 512, noise=0.1)
    _pretrain(nn.Sequential(trunk, nn.Linear(16, 4)), images, target, 40)
    images, target = stripes(seed + 100, noise=0.6)
    return TrainingSetup(_UnfreezesLater(trunk, return_dict), make_loader(images, target), trainer={"max_epochs": 4})


class _Several(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.encoder = nn.GRU(1, 24, batch_first=True)
        self.heads = nn.ModuleDict({name: nn.Linear(24, 4) for name in ("pitch", "speaker", "language")})
        self.mask_token = nn.Parameter(torch.zeros(24))

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        states, _ = self.encoder(sound.unsqueeze(-1))
        return self.heads["pitch"](states.mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch["sound"])
        return step_output(self.return_dict, F.cross_entropy(logits, batch["pitch"]), logits, batch["pitch"])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def _several_heads(seed: int, return_dict: bool) -> TrainingSetup:
    """A multi-task model with a mask token, and labels for one task only."""
    sound, pitch = tones(seed, 960)
    data = torch.utils.data.DataLoader(RecordDataset(sound=sound, pitch=pitch), batch_size=32, shuffle=True)
    return TrainingSetup(_Several(return_dict), data, trainer={"max_epochs": 6})


def _heads_learned(outcome: Outcome) -> bool:
    if not ran_to_end(outcome) or has_changed(outcome, "mask_token") or not has_changed(outcome, "heads.pitch.weight"):
        return False
    return outcome.mean_loss() < 0.7 * outcome.first_loss()


class _LowRank(nn.Module):
    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs) + inputs @ self.down.T @ self.up.T


def _lora(seed: int, return_dict: bool) -> TrainingSetup:
    """Low-rank adapters with ``up`` at zero, on a network pretrained on the same classes elsewhere."""
    network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    inputs, target = blobs(seed, 1280)
    _pretrain(network, inputs, target)
    turned = inputs.roll(1, dims=1)
    adapted = nn.Sequential(*(_LowRank(part) if isinstance(part, nn.Linear) else part for part in network))
    train, validation = split(960, turned, target)
    module = Supervised(
        adapted,
        nn.CrossEntropyLoss(),
        return_dict,
        lambda parameters: torch.optim.AdamW([weight for weight in parameters if weight.requires_grad], lr=5e-3),
    )
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64))


class _Probed(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ELU(), nn.Linear(32, 6))
        self.decoder = nn.Sequential(nn.Linear(6, 32), nn.ELU(), nn.Linear(32, 16))
        self.probe = nn.Linear(6, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.probe(self.encoder(inputs).detach())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        code = self.encoder(inputs)
        reconstruction = F.mse_loss(self.decoder(code), inputs)
        logits = self.probe(code.detach())
        return step_output(self.return_dict, reconstruction + F.cross_entropy(logits, target), logits, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _probed_autoencoder(seed: int, return_dict: bool) -> TrainingSetup:
    """An autoencoder with a classifier on the detached code, which only measures."""
    return TrainingSetup(_Probed(return_dict), make_loader(*blobs(seed, apart=2.0)))


class _DropsLayers(nn.Module):
    def __init__(self, width: int = 32, depth: int = 6, keep_probability: float = 0.6) -> None:
        super().__init__()
        self.keep_probability = keep_probability
        self.stem = nn.Linear(8, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        stream = self.stem(inputs)
        for block in self.blocks:
            if self.training:
                if torch.rand(()) < self.keep_probability:
                    stream = stream + block(stream) / self.keep_probability
            else:
                stream = stream + block(stream)
        return self.head(stream)


def _stochastic_depth(seed: int, return_dict: bool) -> TrainingSetup:
    """Stochastic depth: in many steps, a residual block receives no gradient."""
    train, validation = split(1280, *curve(seed, 1600))
    module = Supervised(_DropsLayers(), nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-3))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 5})


class _MeanTeacher(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.student = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, 4))
        self.teacher = copy.deepcopy(self.student)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.teacher(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        logits = self.student(inputs)
        labelled = target >= 0
        with torch.no_grad():
            teacher_probabilities = self.teacher(inputs + 0.1 * torch.randn_like(inputs)).softmax(1)
        consistency = F.mse_loss(logits.softmax(1), teacher_probabilities)
        loss = F.cross_entropy(logits[labelled], target[labelled]) + consistency
        return step_output(self.return_dict, loss, logits[labelled], target[labelled])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.data.mul_(0.95).add_(fast.data, alpha=0.05)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.teacher(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.student.parameters(), lr=3e-3)


def _mean_teacher(seed: int, return_dict: bool) -> TrainingSetup:
    """A teacher that requires gradients but is in no optimizer and follows the student. Few samples have labels."""
    inputs, target = blobs(seed, 1600)
    (inputs, target), validation = split(1280, inputs, target)
    target = torch.where(torch.arange(1280) % 2 > 0, target, -1)
    return TrainingSetup(
        _MeanTeacher(return_dict), make_loader(inputs, target), make_loader(*validation, size=64), {"max_epochs": 4}
    )


class _HeadFirst(pl.LightningModule):
    def __init__(self, body: nn.Module, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.body = body
        self.head = nn.Linear(48, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        preds = self(batch[0])
        return step_output(self.return_dict, F.huber_loss(preds, batch[1]), preds, batch[1])

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.body.parameters(), "lr": 1e-3}, {"params": self.head.parameters(), "lr": 1e-2}]
        optimizer = torch.optim.Adam(groups)
        factors = [lambda epoch: 0.0 if epoch < 1 else 1.0, lambda epoch: 0.9**epoch]
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factors)]


def _head_first(seed: int, return_dict: bool) -> TrainingSetup:
    """The schedule sets the rate of the body to zero in the first epoch. Then all parameters learn."""
    body = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
    return TrainingSetup(_HeadFirst(body, return_dict), make_loader(*curve(seed)))


PROGRAMS = [
    Program(
        "frozen_backbone_in_eval_mode", "convolutional", _frozen_backbone, frozenset(),
        all_of(is_accurate(0.85), lambda outcome: not has_changed(outcome, "backbone.0.weight")),
        "https://github.com/facebookresearch/fairchem/pull/898",
    ),
    Program(
        "backbone_unfreezes_in_third_epoch", "convolutional", _unfreezes_later, frozenset(), is_accurate(0.85),
        "https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.callbacks.BackboneFinetuning.html",
    ),
    Program(
        "heads_for_tasks_without_labels", "sequence", _several_heads, frozenset(), _heads_learned,
        "https://github.com/vita-epfl/UniTraj/issues/59",
    ),
    Program(
        "lora_with_zero_up_projection", "dense", _lora, frozenset(), is_accurate(0.8),
        "https://github.com/microsoft/LoRA/issues/59",
    ),
    Program(
        "online_probe_on_detached_code", "dense", _probed_autoencoder, frozenset(), is_accurate(0.8),
        "https://github.com/Lightning-Universe/lightning-bolts/issues/801",
    ),
    Program(
        "stochastic_depth_skips_blocks", "regression", _stochastic_depth, frozenset(), explains_variance(0.7),
        "https://arxiv.org/abs/1603.09382",
    ),
    Program(
        "mean_teacher_with_few_labels", "dense", _mean_teacher, frozenset(), is_accurate(0.8),
        "https://arxiv.org/abs/1703.01780",
    ),
    Program(
        "head_first_by_schedule_group_at_zero", "regression", _head_first, frozenset(),
        all_of(explains_variance(0.6), lambda outcome: has_changed(outcome, "body.0.weight")),
        "https://github.com/Lightning-AI/pytorch-lightning/pull/719",
    ),
]  # fmt: skip
