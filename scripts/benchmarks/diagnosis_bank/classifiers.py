"""Healthy runs of torchvision classifiers on small images, at least one per family, with typical settings.

MNASNet is left out. Its batch norms have a momentum of 0.0003, so that the validation loss of a short run is far above
the training loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

CLASSES = 4
SGD: Callable[[Any], Any] = partial(torch.optim.SGD, lr=0.003, momentum=0.9, weight_decay=1e-4)
ADAM: Callable[[Any], Any] = partial(torch.optim.Adam, lr=1e-4)
ADAMW: Callable[[Any], Any] = partial(torch.optim.AdamW, lr=3e-4, weight_decay=0.05)

NAMES_BY_OPTIMIZER = [
    (
        SGD,
        "densenet121 mobilenet_v2 regnet_x_400mf regnet_y_400mf resnet18 resnet34 resnet50 resnext50_32x4d vgg11_bn",
    ),
    (ADAM, "alexnet efficientnet_b0 mobilenet_v3_large mobilenet_v3_small squeezenet1_0 squeezenet1_1 vgg11"),
    (SGD, "shufflenet_v2_x0_5 shufflenet_v2_x1_0 wide_resnet50_2"),
    (ADAMW, "convnext_tiny efficientnet_v2_s swin_t swin_v2_t"),
]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any]]] = {
    **{
        name: (partial(models.get_model, name, num_classes=CLASSES), optimizer)
        for optimizer, names in NAMES_BY_OPTIMIZER
        for name in names.split()
    },
    "googlenet": (partial(models.googlenet, num_classes=CLASSES, aux_logits=False, init_weights=False), SGD),
    "inception_v3": (partial(models.inception_v3, num_classes=CLASSES, aux_logits=False, init_weights=False), SGD),
    "maxvit": (
        partial(models.MaxVit, (64, 64), 32, 4, [32, 64], [1, 1], 16, 0.1, num_classes=CLASSES),
        partial(torch.optim.AdamW, lr=1e-3),
    ),
    "vision_transformer": (partial(models.VisionTransformer, 64, 16, 4, 4, 128, 256, num_classes=CLASSES), ADAMW),
}
"""Network and optimizer by name."""


def _build(
    create: Callable[[], nn.Module], optimizer: Callable[[Any], Any], size: int, seed: int, return_dict: bool
) -> TrainingSetup:
    torch.manual_seed(seed)
    bunch: Any = load_digits(n_class=CLASSES)
    pixels = torch.from_numpy(bunch.images).float()[:, None].expand(-1, 3, -1, -1) / 8 - 1
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels))
    inputs = functional.interpolate(pixels[order], size=size, mode="bilinear")
    train, held_out = slice(0, 480), slice(480, 640)
    return TrainingSetup(
        Supervised(create(), nn.CrossEntropyLoss(label_smoothing=0.1), return_dict, optimizer),
        DataLoader(TensorDataset(inputs[train], labels[order][train]), batch_size=16, shuffle=True),
        DataLoader(TensorDataset(inputs[held_out], labels[order][held_out]), batch_size=80),
    )


def _has_learned(outcome: Outcome) -> bool:
    """Returns whether both losses ended far below the loss of a constant prediction, 1.39.

    With a momentum of 0.01, as in MobileNetV3, the running statistics lag in so short a run.
    """
    return outcome.error is None and outcome.mean_loss(20) < 0.9 and outcome.validation[-1] < 0.9


PROGRAMS: list[Program] = [
    Program(
        name,
        "convolutional",
        partial(_build, create, optimizer, 80 if name == "inception_v3" else 64),
        frozenset(),
        _has_learned,
        "https://docs.pytorch.org/vision/stable/models.html",
    )
    for name, (create, optimizer) in NETWORKS.items()
]
