"""Learning without labels, or from another network."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from diagnosis_bank.second.healthy.datasets import blobs, make_generator, make_loader, sentences, split, stripes, tones
from diagnosis_bank.second.healthy.measures import all_of, has_changed, is_accurate, loss_fell, ran_to_end, step_output
from torch import nn


def _nearest(outcome: Outcome, encoder: nn.Module, inputs: torch.Tensor, target: torch.Tensor) -> float:
    """Returns the share of samples whose nearest neighbor in the code has the same class."""
    outcome.after.eval()
    with torch.no_grad():
        codes = F.normalize(encoder(inputs), dim=1)
    likeness = codes @ codes.T - 2 * torch.eye(len(codes))
    return float((target[likeness.argmax(1)] == target).float().mean())


def _views(images: torch.Tensor) -> torch.Tensor:
    shift = int(torch.randint(-3, 4, ()))
    return images.roll(shift, dims=-1) * (0.8 + 0.4 * torch.rand(len(images), 1, 1, 1)) + 0.2 * torch.randn_like(images)


def _encoder() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class _Byol(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.encoder = _encoder()
        self.projector = nn.Sequential(nn.Linear(24, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
        self.predictor = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
        self.target = copy.deepcopy(nn.Sequential(self.encoder, self.projector)).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = _views(batch[0]), _views(batch[0])
        preds = self.predictor(self.projector(self.encoder(torch.cat([first, second]))))
        with torch.no_grad():
            target_projection = self.target(torch.cat([second, first]))
        loss = 2 - 2 * F.cosine_similarity(preds, target_projection.detach()).mean()
        return step_output(self.return_dict, loss, F.normalize(preds, dim=1), F.normalize(target_projection, dim=1))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        online = nn.Sequential(self.encoder, self.projector)
        for slow, fast in zip(self.target.parameters(), online.parameters(), strict=True):
            slow.lerp_(fast, 0.02)

    def configure_optimizers(self) -> Any:
        trained = (weight for weight in self.parameters() if weight.requires_grad)
        return torch.optim.AdamW(trained, lr=2e-3, weight_decay=1e-4)


def _byol(seed: int, return_dict: bool) -> TrainingSetup:
    """BYOL: a predictor and a slow copy without gradients."""
    return TrainingSetup(_Byol(return_dict), make_loader(stripes(seed, 768)[0], size=32), trainer={"max_epochs": 5})


def _byol_learned(outcome: Outcome) -> bool:
    module: Any = outcome.after
    inputs, target = stripes(99, 256)
    return (
        loss_fell(0.8)(outcome)
        and has_changed(outcome, "target.0.0.weight")
        and (_nearest(outcome, module.encoder, inputs, target) > 0.85)
    )


class _Contrastive(pl.LightningModule):
    """A small CLIP: two towers, a learned clamped temperature, cross entropy over the batch."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.images = nn.Sequential(nn.Flatten(), nn.Linear(144, 48), nn.GELU(), nn.Linear(48, 16, bias=False))
        self.text_encoder = nn.Sequential(nn.EmbeddingBag(40, 32), nn.Linear(32, 16, bias=False))
        self.logit_scale = nn.Parameter(torch.tensor(2.3))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, tokens = batch
        with torch.no_grad():
            self.logit_scale.clamp_(max=2.5)
        left = F.normalize(self.images(images), dim=-1)
        right = F.normalize(self.text_encoder(tokens), dim=-1)
        logits = self.logit_scale.exp() * left @ right.T
        labels = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        return step_output(self.return_dict, loss, logits, labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.1)


def _contrastive(seed: int, return_dict: bool) -> TrainingSetup:
    """Image and caption towers. The targets are 0, 1, 2, … in every batch, the temperature is at its clamp."""
    random = make_generator(seed)
    tokens = torch.randint(40, (960, 5), generator=random)
    patterns = torch.randn(40, 144, generator=random)
    images = patterns[tokens].sum(1) / 5**0.5 + 0.3 * torch.randn(960, 144, generator=random)
    return TrainingSetup(
        _Contrastive(return_dict), make_loader(images.view(-1, 1, 12, 12), tokens), trainer={"max_epochs": 4}
    )


class _MaskedWords(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.tokens = nn.Embedding(21, 32)
        self.places = nn.Parameter(0.02 * torch.randn(12, 32))
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.decoder = nn.Linear(32, 20)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (tokens,) = batch
        hidden = torch.rand(tokens.shape) < 0.2
        hidden[:, 3] = True
        labels = tokens.masked_fill(~hidden, -100)
        states = self.encoder(self.tokens(tokens.masked_fill(hidden, 20)) + self.places)
        logits = self.decoder(states).transpose(1, 2)
        return step_output(self.return_dict, F.cross_entropy(logits, labels), logits, labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _masked_words(seed: int, return_dict: bool) -> TrainingSetup:
    """A small BERT: four of five labels are -100, and the loss remains at ln 20 for a while."""
    return TrainingSetup(_MaskedWords(return_dict), make_loader(sentences(seed, 1280)), trainer={"max_epochs": 6})


class _MaskedAutoencoder(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.encoder = nn.Sequential(nn.Linear(16, 48), nn.GELU(), nn.Linear(48, 24))
        self.mixer = nn.GRU(24, 32, batch_first=True, bidirectional=True)
        self.mask_token = nn.Parameter(torch.zeros(24))
        self.decoder = nn.Linear(64, 16)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        waves, _ = batch
        patches = waves.unfold(1, 16, 16)
        hidden = torch.rand(patches.shape[:2]) < 0.4
        codes = torch.where(hidden.unsqueeze(-1), self.mask_token, self.encoder(patches))
        preds = self.decoder(self.mixer(codes)[0])
        error = ((preds - patches) ** 2).mean(-1)
        loss = (error * hidden).sum() / hidden.sum().clamp(min=1)
        return step_output(self.return_dict, loss, preds, patches)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def _masked_autoencoder(seed: int, return_dict: bool) -> TrainingSetup:
    """A masked autoencoder on waves. The loss counts only masked patches."""
    return TrainingSetup(
        _MaskedAutoencoder(return_dict), make_loader(*tones(seed, 960, length=96)), trainer={"max_epochs": 6}
    )


class _Distilled(pl.LightningModule):
    def __init__(self, teacher: nn.Module, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.student = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
        self.teacher = [teacher.eval()]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.student(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        with torch.no_grad():
            soft = F.softmax(self.teacher[0](inputs) / 4, dim=1)
        logits = self.student(inputs)
        distill = F.kl_div(F.log_softmax(logits / 4, dim=1), soft, reduction="batchmean") * 16
        return step_output(self.return_dict, 0.1 * F.cross_entropy(logits, target) + 0.9 * distill, logits, target)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def _distilled(seed: int, return_dict: bool) -> TrainingSetup:
    """A student with a frozen teacher in a list, so that it is not a submodule."""
    inputs, target = blobs(seed, 1600, apart=0.7)
    teacher = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(teacher(inputs[:1280]), target[:1280], label_smoothing=0.1).backward()
        optimizer.step()
    train, validation = split(1280, inputs, target)
    return TrainingSetup(_Distilled(teacher, return_dict), make_loader(*train), make_loader(*validation, size=64))


class _Barlow(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.backbone = nn.Sequential(nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 24))
        self.projector = nn.Sequential(nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16))
        self.norm = nn.BatchNorm1d(16, affine=False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, _ = batch
        first, second = (
            self.norm(self.projector(self.backbone(inputs + 0.5 * torch.randn_like(inputs)))) for _ in range(2)
        )
        cross = first.T @ second / len(inputs)
        off = cross - torch.diag(torch.diag(cross))
        loss = ((torch.diag(cross) - 1) ** 2).sum() + 0.02 * (off**2).sum()
        return step_output(self.return_dict, loss, cross, torch.eye(16))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def _barlow(seed: int, return_dict: bool) -> TrainingSetup:
    """Barlow twins: the target is the identity matrix in every batch."""
    return TrainingSetup(_Barlow(return_dict), make_loader(*blobs(seed, 1920), size=64), trainer={"max_epochs": 4})


def _barlow_learned(outcome: Outcome) -> bool:
    if not ran_to_end(outcome) or outcome.mean_loss() > 0.6 * outcome.first_loss():
        return False
    inputs, target = next(iter(outcome.fit.train))
    module: Any = outcome.after
    return _nearest(outcome, module.backbone, inputs, target) > 0.8


PROGRAMS = [
    Program(
        "byol_with_slow_target",
        "convolutional",
        _byol,
        frozenset(),
        _byol_learned,
        "https://github.com/Lightning-Universe/lightning-bolts/issues/801",
    ),
    Program(
        "clip_with_clamped_temperature",
        "convolutional",
        _contrastive,
        frozenset(),
        loss_fell(0.4),
        "https://arxiv.org/abs/2103.00020",
    ),
    Program(
        "masked_language_model",
        "sequence",
        _masked_words,
        frozenset(),
        loss_fell(0.75),
        "https://arxiv.org/abs/1810.04805",
    ),
    Program(
        "masked_autoencoder_on_waves",
        "sequence",
        _masked_autoencoder,
        frozenset(),
        loss_fell(0.6),
        "https://arxiv.org/abs/2111.06377",
    ),
    Program(
        "distillation_from_hidden_teacher",
        "dense",
        _distilled,
        frozenset(),
        all_of(is_accurate(0.8), loss_fell(0.5)),
        "https://arxiv.org/abs/1503.02531",
    ),
    Program(
        "barlow_twins",
        "dense",
        _barlow,
        frozenset(),
        _barlow_learned,
        "https://arxiv.org/abs/2103.03230",
    ),
]
