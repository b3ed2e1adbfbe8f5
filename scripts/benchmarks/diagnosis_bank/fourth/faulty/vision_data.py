"""Images, masks, boxes and labels that are prepared in a wrong way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.vision_support import (
    SmallUNet,
    accuracy,
    became_non_finite,
    convs,
    digit_images,
    explained,
    loader,
    overlap,
    pooled,
    ran_to_end,
    scenes,
    textures,
)
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from stormproof.finding import Problem


class _Rolled(Dataset[Any]):
    """Pairs of image and mask that are turned and shifted at random."""

    def __init__(self, images: Tensor, masks: Tensor, jointly: bool) -> None:
        self.images = images
        self.masks = masks
        self.jointly = jointly

    def __len__(self) -> int:
        return len(self.images)

    @staticmethod
    def _draw() -> tuple[int, list[int]]:
        return int(torch.randint(4, ())), torch.randint(16, (2,)).tolist()

    @staticmethod
    def _move(image: Tensor, quarters: int, shifts: list[int]) -> Tensor:
        return torch.rot90(image, quarters, (-2, -1)).roll(shifts, (-2, -1))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        move = self._draw()
        image = self._move(self.images[index], *move)
        return image, self._move(self.masks[index], *(move if self.jointly else self._draw()))


def _cross_entropy_and_dice(scores: Tensor, masks: Tensor) -> Tensor:
    """Returns the sum of the binary cross entropy and the Dice loss."""
    shares = torch.sigmoid(scores)
    dice = (2 * (shares * masks).sum() + 1) / (shares.sum() + masks.sum() + 1)
    return functional.binary_cross_entropy_with_logits(scores, masks) + 1 - dice


def _masks_by_another_draw(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Each transform draws its own rotation and shift: one for the image and one for the mask (bug here)."""
    data = scenes(seed, 2120)
    images, masks = (data.images - 0.3) / 0.25, data.masks[:, None]
    train = loader(seed, 32, _Rolled(images[:-200], masks[:-200], is_fixed))
    validation = loader(seed, 100, images[-200:], masks[-200:], shuffle=False)
    module = Supervised(
        SmallUNet(), _cross_entropy_and_dice, return_dict, lambda weights: torch.optim.AdamW(weights, lr=4e-3)
    )
    return TrainingSetup(module, train, validation)


class _Patches(Dataset[Any]):
    """Random patches of 8 x 8 of the reduced image, and of 16 x 16 of the original."""

    def __init__(self, images: Tensor, times: int) -> None:
        self.images = images
        self.times = times
        self.reduced = functional.avg_pool2d(images, 2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        left, top = torch.randint(9, (2,)).tolist()
        low = self.reduced[index, :, top : top + 8, left : left + 8]
        left, top = self.times * left, self.times * top
        return low, self.images[index, :, top : top + 16, left : left + 16]


def _patch_at_the_same_place(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The patch of the large image begins at the coordinates of the reduced one, not at twice them (bug here)."""
    images = textures(seed, 2120, size=32)
    train = loader(seed, 16, _Patches(images[:1920], 2 if is_fixed else 1))
    small = functional.avg_pool2d(images[1920:], 2)
    validation = loader(seed, 50, small[:, :, 4:12, 4:12], images[1920:, :, 8:24, 8:24], shuffle=False)
    network = nn.Sequential(
        nn.Conv2d(1, 24, 5, padding=2),
        nn.Tanh(),
        nn.Conv2d(24, 16, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(16, 4, 3, padding=1),
        nn.PixelShuffle(2),
    )
    module = Supervised(network, nn.L1Loss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-3))
    return TrainingSetup(module, train, validation)


class _Gamma(Dataset[Any]):
    """Images with a random gamma and a standardization."""

    def __init__(self, images: Tensor, labels: Tensor, gamma_first: bool) -> None:
        self.images = images
        self.labels = labels
        self.gamma_first = gamma_first

    def __len__(self) -> int:
        return len(self.images)

    @staticmethod
    def _gamma(image: Tensor) -> Tensor:
        return image ** (0.7 + 0.7 * float(torch.rand(()))) if torch.rand(()) < 0.1 else image

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if self.gamma_first:
            return (self._gamma(image) - 0.3) / 0.25, self.labels[index]
        return self._gamma((image - 0.3) / 0.25), self.labels[index]


def _gamma_after_the_standardization(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """A random gamma is applied to standardized pixels, of which many are negative (bug here)."""
    data = scenes(seed, 2120, noise=0.05)
    train = loader(seed, 16, _Gamma(data.images[:1920], data.labels[:1920], is_fixed))
    validation = loader(seed, 100, (data.images[1920:] - 0.3) / 0.25, data.labels[1920:], shuffle=False)
    network = nn.Sequential(*convs(1, 16, 24, 32, norm=lambda width: nn.GroupNorm(4, width)), *pooled(32, 6))
    module = Supervised(network, functional.cross_entropy, return_dict, lambda p: torch.optim.RMSprop(p, lr=3e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


class _TwiceDivided(Dataset[Any]):
    """Images of bytes: one transform divides them by 255, as does the data set."""

    def __init__(self, images: Tensor, labels: Tensor, divisor: float) -> None:
        self.images = (255 * images).to(torch.uint8)
        self.labels = labels
        self.divisor = divisor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index].float() / 255 / self.divisor, self.labels[index]


def _divided_twice(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Pixels are divided by 255 twice, so that none exceeds 0.004 (bug here)."""
    images, labels = digit_images()
    divisor = 1.0 if is_fixed else 255.0
    train = loader(seed, 32, _TwiceDivided(images[:1500], labels[:1500], divisor))
    validation = loader(seed, 99, _TwiceDivided(images[1500:], labels[1500:], divisor), shuffle=False)
    network = nn.Sequential(*convs(1, 12, 24, stride=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(384, 10))
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


class _Detector(pl.LightningModule):
    """One anchor of 6 x 6 pixels in each cell of 4 x 4 pixels: a score, and a box for those with an object."""

    def __init__(self, return_dict: bool, scale: float) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.scale = scale
        self.body = nn.Sequential(*convs(1, 16, 24, 32), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
        self.scores = nn.Conv2d(32, 1, 1)
        self.offsets = nn.Conv2d(32, 4, 1)
        middle = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy"), -1).reshape(16, 2) * 4 + 2
        self.register_buffer("anchors", torch.cat([middle - 3, middle + 3], 1).float())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(images)
        return self.scores(hidden).flatten(1), self.offsets(hidden).flatten(2).transpose(1, 2)

    def match(self, boxes: Tensor) -> Tensor:
        """Returns 1 for each anchor that overlaps the box by at least 0.25."""
        anchors = self.get_buffer("anchors")[None]
        low, high = torch.maximum(anchors[..., :2], boxes[..., :2]), torch.minimum(anchors[..., 2:], boxes[..., 2:])
        common = (high - low).clamp_min(0).prod(-1)
        area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
        return (common / (36 + area - common) > 0.25).float()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        scores, offsets = self(batch["image"])
        boxes = batch["boxes"] * self.scale
        objects = self.match(boxes)
        distances = (boxes - self.get_buffer("anchors")[None]) / 6
        errors = functional.smooth_l1_loss(offsets, distances, reduction="none").mean(-1)
        loss = functional.binary_cross_entropy_with_logits(scores, objects)
        loss = loss + (errors * objects).sum() / objects.sum().clamp_min(1)
        return {"loss": loss, "preds": scores, "target": objects} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def _join(samples: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    images, boxes = zip(*samples, strict=True)
    return {"image": torch.stack(images), "boxes": torch.stack(boxes)[:, None]}


def _boxes_between_zero_and_one(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Boxes are divided by the size of the image and anchors are in pixels, so none matches (bug here)."""
    data = scenes(seed, 1920)
    train = loader(seed, 32, data.images, data.boxes, collate=_join)
    return TrainingSetup(_Detector(return_dict, 16.0 if is_fixed else 1.0), train, None, {"max_epochs": 4})


@torch.no_grad()
def _finds_no_object(outcome: Outcome) -> bool:
    """Returns True if less than a tenth of the images have an anchor with a positive score."""
    batch = next(iter(outcome.fit.train))
    scores, _ = outcome.after.eval()(batch["image"])
    return ran_to_end(outcome) and float((scores > 0).any(1).float().mean()) < 0.1


_UNRELATED = frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS, Problem.NO_BETTER_THAN_CONSTANT})

PROGRAMS: list[Program] = [
    Program(
        "masks_moved_by_a_draw_of_their_own",
        "convolutional",
        _masks_by_another_draw,
        _UNRELATED,
        lambda outcome: overlap(outcome) < 0.4,
        "https://github.com/Project-MONAI/MONAI/issues/1102",
    ),
    Program(
        "large_patch_cut_at_the_place_of_the_small_one",
        "convolutional",
        _patch_at_the_same_place,
        _UNRELATED,
        lambda outcome: explained(outcome) < 0.6,
        "https://github.com/XPixelGroup/BasicSR/blob/master/basicsr/data/transforms.py",
    ),
    Program(
        "random_gamma_of_standardized_pixels",
        "convolutional",
        _gamma_after_the_standardization,
        frozenset({Problem.NON_FINITE_DATA}),
        became_non_finite,
        "https://github.com/TorchIO-project/torchio/issues/368",
    ),
    Program(
        "pixels_divided_by_255_twice",
        "convolutional",
        _divided_twice,
        frozenset({Problem.INPUT_BADLY_SCALED}),
        lambda outcome: ran_to_end(outcome) and accuracy(outcome) < 0.5,
        "https://discuss.pytorch.org/t/does-pytorch-automatically-normalizes-image-to-0-1/40022",
    ),
    Program(
        "boxes_between_zero_and_one_and_anchors_in_pixels",
        "convolutional",
        _boxes_between_zero_and_one,
        frozenset({Problem.DEGENERATE_TARGETS}),
        _finds_no_object,
        "https://github.com/kuangliu/torchcv/issues/30",
    ),
]
