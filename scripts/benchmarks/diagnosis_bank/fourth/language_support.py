"""Texts drawn from a seed, small language models, and checks of outcomes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.program import Outcome
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset, TensorDataset

Measure = Callable[[nn.Module, Any], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def make_generator(seed: int) -> torch.Generator:
    """Returns a generator that depends only on ``seed``."""
    return torch.Generator().manual_seed(seed)


def make_loader(*tensors: torch.Tensor, size: int, shuffle: bool = True) -> DataLoader[Any]:
    """Returns a loader of tensors."""
    return DataLoader(TensorDataset(*tensors), batch_size=size, shuffle=shuffle)


class Records(Dataset[dict[str, torch.Tensor]]):
    """Samples as dictionaries."""

    def __init__(self, **columns: torch.Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def chain(seed: int, rows: int, length: int, vocabulary: int = 30) -> torch.Tensor:
    """Returns text in which each word has three possible successors, with probabilities 0.8, 0.15 and 0.05."""
    source = make_generator(seed)
    successors = torch.randint(vocabulary, (vocabulary, 3), generator=source)
    text = torch.empty(rows, length, dtype=torch.long)
    text[:, 0] = torch.randint(vocabulary, (rows,), generator=source)
    for place in range(1, length):
        draw = torch.rand(rows, generator=source)
        choice = (draw > 0.8).long() + (draw > 0.95).long()
        text[:, place] = successors[text[:, place - 1], choice]
    return text


def overlapping_pairs(seed: int, rows: int, length: int, letters: int = 5) -> torch.Tensor:
    """Returns random letters as overlapping pairs: a token names its letter and the letter before."""
    drawn = torch.randint(letters, (rows, length + 1), generator=make_generator(seed))
    return drawn[:, 1:] * letters + drawn[:, :-1]


def topics(
    seed: int, rows: int, length: int = 16, vocabulary: int = 80, classes: int = 4, share: float = 0.3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns texts of word numbers from 1 on, and their topic, which ``share`` of the words come from."""
    source = make_generator(seed)
    labels = torch.randint(classes, (rows,), generator=source)
    own = 1 + labels.unsqueeze(1) * 5 + torch.randint(5, (rows, length), generator=source)
    other = torch.randint(1 + 5 * classes, vocabulary, (rows, length), generator=source)
    return torch.where(torch.rand(rows, length, generator=source) < share, own, other), labels


class RMSNorm(nn.Module):
    """Divides by the root mean square of the features."""

    def __init__(self, width: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.scale * states / (states.pow(2).mean(-1, keepdim=True) + self.epsilon).sqrt()


def rotate(states: torch.Tensor) -> torch.Tensor:
    """Returns queries or keys (..., time, width) turned by angles that grow with the position."""
    half = states.shape[-1] // 2
    angles = torch.arange(states.shape[-2]).unsqueeze(1) * 10000 ** (-torch.arange(half) / half)
    first, second = states[..., :half], states[..., half:]
    cosine, sine = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
    turned = [first * cosine - second * sine, first * sine + second * cosine]
    return torch.cat(turned, -1)


class Block(nn.Module):
    """A block of a transformer with norms before the branches and rotary positions."""

    def __init__(
        self, width: int, heads: int = 2, causal: bool = True, norm: Callable[[int], nn.Module] = RMSNorm
    ) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.norm_1 = norm(width)
        self.mix = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_2 = norm(width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attend(self, states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the output of the attention. The mask (batch, time) is True where keys can be seen."""
        rows, length, width = states.shape
        parts = self.mix(states).view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        visible = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(
            rotate(parts[0]), rotate(parts[1]), parts[2], attn_mask=visible, is_causal=self.causal
        )
        return self.out(mixed.transpose(1, 2).reshape(rows, length, width))

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        states = states + self.attend(self.norm_1(states), mask)
        return states + self.feed(self.norm_2(states))


class Decoder(nn.Module):
    """A transformer that predicts the next word, with tied weights."""

    def __init__(self, vocabulary: int, width: int = 32, layers: int = 2, causal: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.blocks = nn.ModuleList(Block(width, causal=causal) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states = self.embed(tokens)
        for block in self.blocks:
            states = block(states)
        return self.head(self.norm(states))


class Recurrent(nn.Module):
    """A GRU that predicts the next word."""

    def __init__(self, vocabulary: int, width: int = 32, embedded: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, embedded)
        self.gru = nn.GRU(embedded, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(self.embed(tokens))[0])


def next_word(network: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the loss of predictions of the next word, the logits and the words."""
    tokens = batch[0]
    logits, target = network(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
    return F.cross_entropy(logits, target), logits, target


class Run(pl.LightningModule):
    """A module whose loss a function of network and batch computes.

    Args:
        network: The network.
        measure: Maps network and batch to loss, predictions and target.
        return_dict: If True, the training step returns predictions and targets with the loss.
        optimizer: Maps the parameters to what ``configure_optimizers`` returns.
    """

    def __init__(
        self, network: nn.Module, measure: Measure, return_dict: bool, optimizer: Callable[[Any], Any]
    ) -> None:
        super().__init__()
        self.network = network
        self.measure = measure
        self.return_dict = return_dict
        self.optimizer = optimizer

    def forward(self, *inputs: Any) -> Any:
        return self.network(*inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, preds, target = self.measure(self.network, batch)
        return output(self.return_dict, loss, preds, target)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        loss, preds, target = self.measure(self.network, batch)
        self.log("val_loss", loss)
        return output(self.return_dict, loss, preds, target)

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


def output(return_dict: bool, loss: torch.Tensor, preds: Any, target: Any) -> Any:
    """Returns what a training step returns."""
    return {"loss": loss, "preds": preds, "target": target} if return_dict else loss


def stepwise(optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> dict[str, Any]:
    """Returns an optimizer whose rate is multiplied by a function of the step."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def stays_above(limit: float) -> Callable[[Outcome], bool]:
    """Returns a check that the run ended with a mean loss above ``limit``."""
    return lambda outcome: outcome.error is None and outcome.mean_loss(20) > limit


def ends_below(limit: float) -> Callable[[Outcome], bool]:
    """Returns a check that the run ended with a mean loss below ``limit``."""
    return lambda outcome: outcome.error is None and outcome.mean_loss(20) < limit


def is_broken(outcome: Outcome) -> bool:
    """Returns True if the last losses or any weight are NaN or infinite."""
    weights = outcome.after.state_dict().values()
    return not math.isfinite(outcome.mean_loss()) or not all(bool(weight.isfinite().all()) for weight in weights)


def is_unchanged(outcome: Outcome, name: str) -> bool:
    """Returns True if a weight is what it was before training."""
    return torch.equal(outcome.before[name], outcome.after.state_dict()[name])
