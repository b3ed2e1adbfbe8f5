"""Image programs with mixed, rare or padded targets, two stages, or rates by depth."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.vision_support import (
    accuracy,
    convs,
    digit_images,
    is_unchanged,
    loader,
    loaders,
    ran_to_end,
    scenes,
)
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional


class _CutMix(Supervised):
    """Pastes a rectangle of another image into each image of a training batch, and mixes the labels by area."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        images, labels = batch
        side = int(torch.randint(3, 8, ()))
        left, top = torch.randint(9 - side, (2,)).tolist()
        order = torch.randperm(len(images))
        images = images.clone()
        images[:, :, top : top + side, left : left + side] = images[order, :, top : top + side, left : left + side]
        share = side**2 / 64
        shares = functional.one_hot(labels, 10).float()
        target = (1 - share) * shares + share * shares[order]
        preds = self(images)
        loss = functional.cross_entropy(preds, target)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss


def _pasted_rectangles(seed: int, return_dict: bool) -> TrainingSetup:
    """All training images are mixed, so their loss stays high, and that of validation is much lower."""
    images, labels = digit_images()
    train, validation = loaders(seed, 32, 297, (images - 0.3) / 0.35, labels)
    network = nn.Sequential(*convs(1, 16, 32, norm=nn.BatchNorm2d), nn.Flatten(), nn.Linear(512, 10))
    module = _CutMix(
        network, nn.CrossEntropyLoss(), return_dict, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


def _learns_from_mixtures(outcome: Outcome) -> bool:
    """Returns True if the training loss stays above 0.7, and unmixed images are classified."""
    return ran_to_end(outcome) and outcome.mean_loss(40) > 0.7 and accuracy(outcome) > 0.85


class _Balanced(nn.Module):
    """Cross entropy of logits to which the logarithm of the class frequencies is added."""

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("prior", frequencies.log())

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(scores + self.get_buffer("prior"), labels)


def _long_tail(seed: int, return_dict: bool) -> TrainingSetup:
    """The frequencies of ten classes fall from 150 to 5, and the logits are adjusted. Validation is balanced."""
    images, labels = digit_images()
    images = (images - 0.3) / 0.35
    counts = (150 * (5 / 150) ** (torch.arange(10) / 9)).round().long()
    rows = torch.cat([(labels[:1500] == digit).nonzero()[:count, 0] for digit, count in enumerate(counts.tolist())])
    train = loader(seed, 16, images[rows], labels[rows])
    validation = loader(seed, 99, images[1500:], labels[1500:], shuffle=False)
    network = nn.Sequential(*convs(1, 16, 32, norm=lambda width: nn.GroupNorm(4, width)), nn.Flatten())
    network.append(nn.Linear(512, 10))
    loss = _Balanced(counts / counts.sum())
    module = Supervised(network, loss, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, train, validation)


class _Hints(pl.LightningModule):
    """FitNets: a student first predicts hidden features of its teacher, and is then trained with labels.

    Args:
        teacher: Body and head of a trained network, which is fixed.
        stage: Number of epochs with features as the target.
    """

    def __init__(self, teacher: nn.Sequential, return_dict: bool, stage: int = 2) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.stage = stage
        self.teacher = teacher.requires_grad_(False)
        self.body = nn.Sequential(*convs(1, 8, 8, 12))
        self.regressor = nn.Conv2d(12, 32, 1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        hidden = self.body(batch["image"])
        if self.current_epoch < self.stage:
            preds, target = self.regressor(hidden), self.teacher[0](batch["image"])
            loss = functional.mse_loss(preds, target)
        else:
            preds, target = self.head(hidden), batch["label"]
            loss = functional.cross_entropy(preds, target)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch["image"]), batch["label"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([weight for weight in self.parameters() if weight.requires_grad], lr=3e-3)


def _trained_network(seed: int, images: Tensor, labels: Tensor, outputs: int, steps: int = 150) -> nn.Sequential:
    """Returns body and head after some steps of Adam."""
    body = nn.Sequential(*convs(1, 16, 24, 32))
    network = nn.Sequential(body, nn.Sequential(nn.Flatten(), nn.Linear(32 * (images.shape[-1] // 4) ** 2, outputs)))
    source = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,), generator=source)
        optimizer.zero_grad()
        functional.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return network


def _join(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    images, labels = zip(*samples, strict=True)
    return {"image": torch.stack(images), "label": torch.stack(labels)}


def _features_then_labels(seed: int, return_dict: bool) -> TrainingSetup:
    """The head has no gradient in the first two epochs, and the loss changes its kind after them."""
    images, labels = digit_images()
    images = (images - 0.3) / 0.35
    teacher = _trained_network(seed, images[:1500], labels[:1500], 10)
    train = loader(seed, 32, images[:1500], labels[:1500], collate=_join)
    validation = loader(seed, 99, images[1500:], labels[1500:], shuffle=False, collate=_join)
    return TrainingSetup(_Hints(teacher, return_dict), train, validation, {"max_epochs": 5})


@torch.no_grad()
def _student_is_accurate(outcome: Outcome) -> bool:
    """Returns True if the student classifies more than 0.85 of the validation images."""
    batches = list(outcome.fit.validation or [])
    hits = torch.cat([outcome.after.eval()(batch["image"]).argmax(1) == batch["label"] for batch in batches])
    return ran_to_end(outcome) and is_unchanged(outcome, "teacher") and float(hits.float().mean()) > 0.85


def _rates_of_body_and_head(seed: int, return_dict: bool) -> TrainingSetup:
    """A body that was trained on five shapes gets a thousandth of the rate of the head for all six."""
    data = scenes(seed, 3120, noise=0.05)
    images = (data.images - 0.3) / 0.25
    known = data.labels < 5
    network = _trained_network(seed, images[:1500][known[:1500]], data.labels[:1500][known[:1500]], 5, steps=250)
    network[1] = nn.Sequential(nn.Flatten(), nn.Linear(512, 6))
    train, validation = loaders(seed, 20, 400, images[1500:], data.labels[1500:])
    groups = [{"params": network[0].parameters(), "lr": 2e-6}, {"params": network[1].parameters(), "lr": 2e-3}]
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda _: torch.optim.AdamW(groups))
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


_WORDS = ("pad", "start", "end", "a", "small", "large", "square", "disc", "diamond", "cross", "bar", "post", "on")
_WORDS = (*_WORDS, "the", "left", "right")


def _captions(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Returns images and captions of 5 to 9 words, padded to 12."""
    data = scenes(seed, count, noise=0.05)
    rows: list[list[int]] = []
    width = data.boxes[:, 2] - data.boxes[:, 0]
    for label, size, place in zip(data.labels.tolist(), width.tolist(), data.centers[:, 0].tolist(), strict=True):
        words = ["start", "a", *(["small"] if size < 0.4 else ["large"] if size > 0.47 else []), _WORDS[6 + label]]
        words += ["on", "the", "left"] if place < 0.42 else ["on", "the", "right"] if place > 0.58 else []
        rows.append([_WORDS.index(word) for word in [*words, "end"]])
    return (data.images - 0.3) / 0.25, torch.tensor([row + [0] * (12 - len(row)) for row in rows])


class _Captioner(nn.Module):
    """Causal convolutions over words, which attend to a map of image features."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.image = nn.Sequential(*convs(1, 16, 24, width, norm=lambda channels: nn.GroupNorm(4, channels)))
        self.places = nn.Parameter(0.1 * torch.randn(1, 16, width))
        self.words = nn.Embedding(len(_WORDS), width, padding_idx=0)
        self.convs = nn.ModuleList(nn.Conv1d(width, 2 * width, 3) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(width, len(_WORDS))

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        images, words = pair
        seen = self.image(images).flatten(2).transpose(1, 2) + self.places
        hidden = self.words(words)
        for conv in self.convs:
            padded = functional.pad(hidden.transpose(1, 2), (2, 0))
            hidden = hidden + functional.glu(conv(padded), 1).transpose(1, 2)
            hidden = hidden + self.attention(hidden, seen, seen, need_weights=False)[0]
        return self.head(hidden)


class _CaptionModule(Supervised):
    """Predicts each word from the image and the words before it."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        images, words = batch
        preds, target = self((images, words[:, :-1])).transpose(1, 2), words[:, 1:]
        loss = functional.cross_entropy(preds, target, ignore_index=0)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, words = batch
        preds = self((images, words[:, :-1])).transpose(1, 2)
        self.log("val_loss", functional.cross_entropy(preds, words[:, 1:], ignore_index=0))


def _padded_captions(seed: int, return_dict: bool) -> TrainingSetup:
    """Captions without recurrence. Half of the target words are padding, which the loss ignores."""
    train, validation = loaders(seed, 32, 200, *_captions(seed, 2120))
    module = _CaptionModule(
        _Captioner(), nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=4e-3)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


class _FewPatches(nn.Module):
    """A transformer of which each training batch sees half of the patches of 2 x 2 pixels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.places = nn.Parameter(0.1 * torch.randn(1, 16, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.patches(images).flatten(2).transpose(1, 2) + self.places
        if self.training:
            kept = torch.rand(hidden.shape[:2]).argsort(1)[:, :8]
            hidden = hidden.gather(1, kept[..., None].expand(-1, -1, hidden.shape[2]))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden.mean(1))


def _half_of_the_patches(seed: int, return_dict: bool) -> TrainingSetup:
    """The transformer is trained with half of the patches of each digit and validated with all."""
    images, labels = digit_images()
    train, validation = loaders(seed, 25, 297, (images - 0.3) / 0.35, labels)
    module = Supervised(_FewPatches(), nn.CrossEntropyLoss(), return_dict, lambda p: torch.optim.AdamW(p, lr=3e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


PROGRAMS: list[Program] = [
    Program(
        "rectangles_pasted_into_all_training_images",
        "convolutional",
        _pasted_rectangles,
        frozenset(),
        _learns_from_mixtures,
        "https://arxiv.org/abs/1905.04899",
    ),
    Program(
        "logits_adjusted_to_a_long_tail",
        "convolutional",
        _long_tail,
        frozenset(),
        lambda outcome: ran_to_end(outcome) and accuracy(outcome) > 0.75,
        "https://arxiv.org/abs/2007.07314",
    ),
    Program(
        "features_of_a_teacher_before_labels",
        "convolutional",
        _features_then_labels,
        frozenset(),
        _student_is_accurate,
        "https://arxiv.org/abs/1412.6550",
    ),
    Program(
        "body_at_a_thousandth_of_the_rate_of_the_head",
        "convolutional",
        _rates_of_body_and_head,
        frozenset(),
        lambda outcome: ran_to_end(outcome) and accuracy(outcome) > 0.8,
        "https://arxiv.org/abs/1801.06146",
    ),
    Program(
        "padded_captions_without_recurrence",
        "sequence",
        _padded_captions,
        frozenset(),
        lambda outcome: ran_to_end(outcome) and outcome.validation[-1] < 0.35,
        "https://arxiv.org/abs/1711.09151",
    ),
    Program(
        "transformer_that_sees_half_of_the_patches",
        "sequence",
        _half_of_the_patches,
        frozenset(),
        lambda outcome: ran_to_end(outcome) and accuracy(outcome) > 0.7,
        "https://arxiv.org/abs/2208.07220",
    ),
]
