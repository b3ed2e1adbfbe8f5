# pyright: reportMissingImports=false
"""Trains self-supervised methods of lightly as its examples do, on digits of 32 x 32 pixels in batches of 32."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
import torch
from lightly import loss, transforms
from lightly.data import LightlyDataset
from lightly.loss.tico_loss import TiCoLoss
from lightly.models import modules
from lightly.models.modules import heads
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.transforms.vicreg_transform import VICRegTransform
from lightly.utils.scheduler import cosine_schedule
from projects import TRAINER
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_pil_image
from training_data import digits


def backbone() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 128, 3, 2, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class Method(pl.LightningModule):
    """Compares the projections of two views."""

    def __init__(self, encoder: nn.Module, projection: nn.Module, criterion: nn.Module, lr: float = 0.06) -> None:
        super().__init__()
        self.backbone, self.projection, self.criterion, self.lr = encoder, projection, criterion, lr

    def compare(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.criterion(self.projection(self.backbone(first)), self.projection(self.backbone(second)))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.compare(*batch[0][:2])

    def configure_optimizers(self) -> Any:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=5e-4)


class Predicting(Method):
    """Compares the prediction from a view with the projection of the other view: SimSiam, NNCLR."""

    def __init__(self, *parts: Any, prediction: nn.Module, bank: nn.Module | None = None) -> None:
        super().__init__(*parts)
        self.prediction, self.bank = prediction, bank

    def compare(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        z0, z1 = (self.projection(self.backbone(view)) for view in (first, second))
        p0, p1 = self.prediction(z0), self.prediction(z1)
        z0, z1 = z0.detach(), z1.detach()
        if self.bank is not None:
            z0, z1 = self.bank(z0, update=False), self.bank(z1, update=True)
        return 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))


class Averaging(Method):
    """Compares the projection of a view with that of an averaged network for the other view: MoCo, TiCo."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.backbone_m, self.projection_m = copy.deepcopy(self.backbone), copy.deepcopy(self.projection)
        deactivate_requires_grad(self.backbone_m)
        deactivate_requires_grad(self.projection_m)

    def target(self, view: torch.Tensor) -> torch.Tensor:
        return self.projection_m(self.backbone_m(view)).detach()

    def compare(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.criterion(self.projection(self.backbone(first)), self.target(second))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        momentum = cosine_schedule(self.global_step, 120, 0.996, 1)
        update_momentum(self.backbone, self.backbone_m, m=momentum)
        update_momentum(self.projection, self.projection_m, m=momentum)
        return super().training_step(batch, batch_idx)


class BYOL(Averaging):
    def __init__(self) -> None:
        super().__init__(backbone(), modules.BYOLProjectionHead(128, 256, 64), loss.NegativeCosineSimilarity())
        self.prediction = modules.BYOLPredictionHead(64, 256, 64)

    def compare(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        p0, p1 = (self.prediction(self.projection(self.backbone(view))) for view in (first, second))
        z0, z1 = self.target(first), self.target(second)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


class Pictures(Dataset[Any]):
    """Digits as PIL images. LightlyDataset sets the transform."""

    transform: Any = None

    def __init__(self, seed: int) -> None:
        images, labels = digits(32, seed)
        self.images, self.labels = [to_pil_image(image.expand(3, -1, -1)) for image in images], labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), self.labels[index]


def train(method: Method, transform: Any, seed: int, callbacks: list[Any]) -> None:
    dataset = LightlyDataset.from_torch_dataset(Pictures(seed), transform=transform)
    loader = DataLoader(dataset, batch_size=32, shuffle=True, drop_last=True)
    pl.Trainer(**TRAINER, max_steps=120, max_epochs=-1, callbacks=callbacks).fit(method, loader)


def byol_transform() -> Any:
    return BYOLTransform(BYOLView1Transform(input_size=32), BYOLView2Transform(input_size=32))


def train_two_views(
    head: nn.Module, criterion: nn.Module, transform: Any, seed: int, callbacks: list[Any], lr: float = 0.06
) -> None:
    train(Method(backbone(), head, criterion, lr), transform, seed, callbacks)


def train_simclr(seed: int, callbacks: list[Any], **options: Any) -> None:
    transform = transforms.SimCLRTransform(input_size=32, **options)
    train_two_views(modules.SimCLRProjectionHead(128, 128, 64), loss.NTXentLoss(), transform, seed, callbacks)


def lightly_simsiam(seed: int, callbacks: list[Any]) -> None:
    method = Predicting(
        backbone(), modules.SimSiamProjectionHead(128, 128, 128), loss.NegativeCosineSimilarity(),
        prediction=modules.SimSiamPredictionHead(128, 64, 128),
    )  # fmt: skip
    train(method, transforms.SimSiamTransform(input_size=32), seed, callbacks)


def lightly_byol(seed: int, callbacks: list[Any]) -> None:
    train(BYOL(), byol_transform(), seed, callbacks)


def lightly_moco(seed: int, callbacks: list[Any]) -> None:
    head = modules.MoCoProjectionHead
    method = Averaging(backbone(), head(128, 128, 64), loss.NTXentLoss(memory_bank_size=(512, 64)))
    train(method, transforms.MoCoV2Transform(input_size=32), seed, callbacks)


def lightly_simclr(seed: int, callbacks: list[Any]) -> None:
    train_simclr(seed, callbacks)


def lightly_simclr_mild(seed: int, callbacks: list[Any]) -> None:
    """Crops at least half of the digit and keeps colors."""
    train_simclr(seed, callbacks, min_scale=0.5, cj_prob=0, random_gray_scale=0, gaussian_blur=0, hf_prob=0)


def lightly_simclr_medium(seed: int, callbacks: list[Any]) -> None:
    """Crops at least 30% of the digit."""
    train_simclr(seed, callbacks, min_scale=0.3)


def lightly_dcl(seed: int, callbacks: list[Any]) -> None:
    transform = transforms.SimCLRTransform(input_size=32)
    train_two_views(modules.SimCLRProjectionHead(128, 128, 64), loss.DCLLoss(), transform, seed, callbacks)


def lightly_vicreg(seed: int, callbacks: list[Any]) -> None:
    head = heads.VICRegProjectionHead(128, 256, 256, num_layers=2)
    train_two_views(head, loss.VICRegLoss(), VICRegTransform(input_size=32), seed, callbacks, lr=0.02)


def lightly_barlow(seed: int, callbacks: list[Any]) -> None:
    head = modules.BarlowTwinsProjectionHead(128, 256, 128)
    train_two_views(head, loss.BarlowTwinsLoss(), byol_transform(), seed, callbacks, lr=0.002)


def lightly_nnclr(seed: int, callbacks: list[Any]) -> None:
    method = Predicting(
        backbone(), modules.NNCLRProjectionHead(128, 128, 64), loss.NTXentLoss(),
        prediction=modules.NNCLRPredictionHead(64, 128, 64), bank=modules.NNMemoryBankModule(size=(512, 64)),
    )  # fmt: skip
    train(method, transforms.SimCLRTransform(input_size=32), seed, callbacks)


def lightly_tico(seed: int, callbacks: list[Any]) -> None:
    method = Averaging(backbone(), heads.TiCoProjectionHead(128, 256, 64), TiCoLoss())
    train(method, transforms.SimCLRTransform(input_size=32), seed, callbacks)
