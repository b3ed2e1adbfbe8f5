"""Faults of vocabularies: new words without an optimizer, numbers of words, and a count for each ticket."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.language_support import Run, make_generator, make_loader, output, stays_above, topics
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset

from stormproof.finding import Problem

Measured = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class _NewWords(pl.LightningModule):
    """A classifier whose vocabulary is enlarged before training."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.embed = nn.Embedding(20, 8)
        self.gru = nn.GRU(8, 16, batch_first=True)
        self.head = nn.Linear(16, 8)
        self.is_fixed = is_fixed
        if is_fixed:
            self.enlarge()

    def enlarge(self) -> None:
        """Replaces the embedding by one for 120 words, and keeps the vectors of the first twenty."""
        larger = nn.Embedding(120, 8)
        with torch.no_grad():
            larger.weight[:20] = self.embed.weight
        self.embed = larger

    def on_train_start(self) -> None:
        if not self.is_fixed:
            self.enlarge()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        text, labels = batch
        logits = self.head(self.gru(self.embed(text))[0].amax(1))
        return output(self.return_dict, F.cross_entropy(logits, labels), logits, labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _enlarged_too_late(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The embedding is enlarged for new words as training starts, when the optimizer has the old one."""
    data = make_loader(*topics(seed, 6400, length=12, vocabulary=120, classes=8, share=0.35), size=32)
    return TrainingSetup(_NewWords(return_dict, is_fixed), data)


class _ByNumber(nn.Module):
    """A recurrent classifier that reads the numbers of words, or their vectors if fixed."""

    def __init__(self, is_fixed: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(5000, 16) if is_fixed else None
        self.gru = nn.GRU(16 if is_fixed else 1, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        inputs = text.float().unsqueeze(2) if self.embed is None else self.embed(text)
        return self.head(self.gru(inputs)[0].mean(1))


def _numbers_of_words(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The numbers of the words, up to five thousand, are read as measurements by a GRU."""
    text, labels = topics(seed, 6400, length=12, share=0.4)
    text = torch.randperm(5000, generator=make_generator(seed + 1))[text]

    def measure(network: nn.Module, batch: Any) -> Measured:
        logits = network(batch[0])
        return F.cross_entropy(logits, batch[1]), logits, batch[1]

    module = Run(_ByNumber(is_fixed), measure, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, make_loader(text, labels, size=32))


class _Tickets(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Tickets as strings, that are split and numbered when they are read."""

    def __init__(self, seed: int, is_fixed: bool) -> None:
        text, self.labels = topics(seed, 960, length=12, share=0.5)
        self.lines = [" ".join(f"w{word}" for word in row) for row in text.tolist()]
        self.known = self.count() if is_fixed else None
        self.seconds = 0.0

    def count(self) -> dict[str, int]:
        """Returns a number for each word of the tickets, by frequency."""
        counts = Counter(word for line in self.lines for word in line.split())
        return {word: number for number, (word, _) in enumerate(sorted(counts.items()))}

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = time.perf_counter()
        known = self.known or self.count()
        words = torch.tensor([known[word] for word in self.lines[index].split()])
        self.seconds += time.perf_counter() - start
        return words, self.labels[index]


def _vocabulary_of_each_ticket(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The vocabulary of all tickets is counted anew for each ticket that is read."""
    network = nn.Sequential(nn.EmbeddingBag(80, 24), nn.ReLU(), nn.Linear(24, 4))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda p: torch.optim.Adam(p, lr=1e-2))
    return TrainingSetup(module, DataLoader(_Tickets(seed, is_fixed), batch_size=16, shuffle=True))


def _reads_slowly(outcome: Outcome) -> bool:
    dataset: Any = outcome.fit.train.dataset
    return dataset.seconds > 5e-3 * len(outcome.losses)


PROGRAMS: list[Program] = [
    Program(
        "embedding_enlarged_after_the_optimizer_was_made",
        "sequence",
        _enlarged_too_late,
        frozenset({Problem.NOT_IN_OPTIMIZER}),
        stays_above(0.2),
        "https://github.com/huggingface/transformers/pull/3532",
    ),
    Program(
        "numbers_of_words_read_as_measurements",
        "sequence",
        _numbers_of_words,
        frozenset({Problem.INPUT_BADLY_SCALED}),
        stays_above(1.0),
        "https://iifx.dev/en/articles/274547016",
    ),
    Program(
        "vocabulary_counted_for_each_ticket",
        "sequence",
        _vocabulary_of_each_ticket,
        frozenset({Problem.DATA_STARVATION}),
        _reads_slowly,
        "https://github.com/facebookresearch/DPR/issues/113",
    ),
]
