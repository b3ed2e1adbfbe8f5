"""Faults of inputs and layers: offsets, pairs, padding, norms, shapes and states."""

from __future__ import annotations

import math
from typing import Any

import torch
from diagnosis_bank.fourth.language_support import (
    Block,
    RMSNorm,
    Run,
    chain,
    is_broken,
    make_generator,
    make_loader,
    next_word,
    stays_above,
    topics,
)
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from stormproof.finding import Problem

Measured = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class _Bags(nn.Module):
    """Classifies flat texts with offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(80, 32)
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, words: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return self.head(self.bag(words, offsets))


def _lengths_for_offsets(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The collate function forgets the cumulative sum: all bags but the first and the last are empty."""

    def collate(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
        texts, labels = zip(*samples, strict=True)
        offsets = torch.tensor([0] + [len(text) for text in texts[:-1]])
        return torch.cat(texts), offsets.cumsum(0) if is_fixed else offsets, torch.stack(labels)

    def measure(network: nn.Module, batch: Any) -> Measured:
        logits = network(batch[0], batch[1])
        return F.cross_entropy(logits, batch[2]), logits, batch[2]

    dataset = TensorDataset(*topics(seed, 9600, length=12, share=0.4))
    data = DataLoader(dataset, batch_size=24, shuffle=True, collate_fn=collate)
    module = Run(_Bags(), measure, return_dict, lambda p: torch.optim.Adam(p, lr=1e-3))
    return TrainingSetup(module, data, trainer={"max_epochs": 4})


class _Towers(nn.Module):
    """Two encoders whose normalized outputs are compared within the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.question = nn.Sequential(nn.EmbeddingBag(200, 48), nn.Linear(48, 32))
        self.passage = nn.Sequential(nn.EmbeddingBag(200, 48), nn.Linear(48, 32))
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, question: torch.Tensor, passage: torch.Tensor) -> torch.Tensor:
        first, second = F.normalize(self.question(question), dim=1), F.normalize(self.passage(passage), dim=1)
        return self.scale.exp() * first @ second.t()


def _passages_by_length(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The passages are sorted by length to save padding, and the questions are not."""
    source = make_generator(seed)
    question = torch.randint(1, 100, (8000, 6), generator=source)
    length = torch.randint(6, 13, (8000,), generator=source)
    passage = 100 + torch.cat([question, torch.randint(0, 100, (8000, 6), generator=source)], 1)
    passage = passage * (torch.arange(12) < length.unsqueeze(1))
    if not is_fixed:
        passage = passage[length.argsort(stable=True)]

    def measure(network: nn.Module, batch: Any) -> Measured:
        scores = network(batch[0], batch[1])
        target = torch.arange(len(scores))
        return F.cross_entropy(scores, target), scores, target

    module = Run(_Towers(), measure, return_dict, lambda p: torch.optim.Adam(p, lr=3e-3))
    return TrainingSetup(module, make_loader(question, passage, size=32), trainer={"max_epochs": 4})


class _LastState(nn.Module):
    """Classifies the last state of an LSTM."""

    def __init__(self, is_fixed: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(80, 24, padding_idx=0)
        self.lstm = nn.LSTM(24, 32, batch_first=True)
        self.head = nn.Linear(32, 4)
        self.is_fixed = is_fixed

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        states, (last, _) = self.lstm(self.embed(text))
        if self.is_fixed:
            end = (text != 0).sum(1) - 1
            return self.head(states[torch.arange(len(text)), end])
        return self.head(last[-1])


def _state_after_the_padding(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Short texts are padded to 120 words, and the state after the padding is read."""
    text, labels = topics(seed, 3200, length=8, share=0.5)
    module = Supervised(_LastState(is_fixed), F.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, make_loader(F.pad(text, (0, 112)), labels, size=32))


class _Masked(nn.Module):
    """A transformer over padded texts, whose norms have no epsilon unless fixed."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(80, 32, padding_idx=0)
        self.block = Block(32, causal=False, norm=lambda width: RMSNorm(width, epsilon))
        self.head = nn.Linear(32, 4)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        is_word = text != 0
        states = self.block(self.embed(text), is_word).masked_fill(~is_word.unsqueeze(2), 0)
        return self.head(states.sum(1) / is_word.sum(1, keepdim=True))


def _norm_of_padding(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """A root mean square norm without epsilon divides the zero embedding of the padding by zero."""
    text, labels = topics(seed, 4800, length=12, share=0.4)
    length = torch.randint(4, 13, (4800, 1), generator=make_generator(seed + 1))
    text = text * (torch.arange(12) < length)
    network = _Masked(1e-6 if is_fixed else 0.0)
    module = Supervised(network, F.cross_entropy, return_dict, lambda p: torch.optim.AdamW(p, lr=2e-3))
    return TrainingSetup(module, make_loader(text, labels, size=32))


class _Stress(nn.Module):
    """Convolutions over the words, with a channel of output."""

    def __init__(self, is_fixed: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.convs = nn.Sequential(
            nn.Conv1d(16, 32, 3, padding=1), nn.GELU(), nn.Conv1d(32, 32, 3, padding=1), nn.GELU(), nn.Conv1d(32, 1, 1)
        )
        self.is_fixed = is_fixed

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        levels = self.convs(self.embed(text).transpose(1, 2))
        return levels.squeeze(1) if self.is_fixed else levels


def _channel_against_rows(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Predictions (batch, 1, time) are compared with targets (batch, time), each with all texts of the batch."""
    source = make_generator(seed)
    text = torch.randint(40, (6400, 12), generator=source)
    weight = torch.randn(40, generator=source)
    level = weight[text] + 0.7 * F.pad(weight[text][:, :-1], (1, 0)) + 0.1 * torch.randn(6400, 12, generator=source)
    module = Supervised(_Stress(is_fixed), nn.SmoothL1Loss(), return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, make_loader(text, level, size=32))


class _StateSpace(nn.Module):
    """A diagonal state-space layer over embeddings, with an input and a skip."""

    def __init__(self, is_fixed: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 24)
        self.a_log = nn.Parameter(torch.arange(1.0, 9.0).log().repeat(24, 1))
        self.step = nn.Parameter(torch.full((24, 1), 0.2))
        self.b = nn.Parameter(torch.randn(24, 8) / 8**0.5)
        self.c = nn.Parameter(torch.randn(24, 8) / 8**0.5)
        self.head = nn.Linear(24, 30)
        self.sign = -1.0 if is_fixed else 1.0

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        inputs = self.embed(text)
        decay = (self.step * self.sign * self.a_log.exp()).exp()
        state = torch.zeros(len(text), 24, 8)
        outputs = []
        for place in range(text.shape[1]):
            state = decay * state + self.step * self.b * inputs[:, place].unsqueeze(2)
            outputs.append((state * self.c).sum(2))
        return self.head(torch.stack(outputs, 1) + inputs)


def _lost_minus(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The minus in front of the exponential of ``a_log`` is missing, so the states grow instead of fading."""
    module = Run(_StateSpace(is_fixed), next_word, return_dict, lambda p: torch.optim.Adam(p, lr=5e-3))
    return TrainingSetup(module, make_loader(chain(seed, 2560, 41), size=32))


def _empty_documents(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """A few documents consist of stop words only, so dividing their TF-IDF vector by its norm gives NaN."""
    text, labels = topics(seed, 8000, length=14, share=0.35)
    is_empty = torch.rand(8000, generator=make_generator(seed + 1)) < 0.002
    text[is_empty] = 0
    counts = F.one_hot(text, 80).sum(1).float()[:, 1:]
    weights = counts * (8000 / (1 + (counts > 0).sum(0))).log()
    norm = weights.norm(dim=1, keepdim=True)
    vectors = weights / (norm.clamp(min=1e-6) if is_fixed else norm)
    network = nn.Sequential(nn.Linear(79, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 4))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda p: torch.optim.Adagrad(p, lr=2e-2))
    return TrainingSetup(module, make_loader(vectors, labels, size=20))


PROGRAMS: list[Program] = [
    Program(
        "offsets_of_the_bags_without_a_cumulative_sum",
        "sequence",
        _lengths_for_offsets,
        frozenset({Problem.OUTPUT_IGNORES_INPUT, Problem.NO_BETTER_THAN_CONSTANT}),
        stays_above(1.0),
        "https://iifx.dev/en/articles/372026107",
    ),
    Program(
        "passages_sorted_by_length_without_their_questions",
        "sequence",
        _passages_by_length,
        frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS, Problem.NO_BETTER_THAN_CONSTANT}),
        stays_above(2.5),
        "https://github.com/hsgodhia/hred/issues/2",
    ),
    Program(
        "state_read_after_a_long_padding",
        "sequence",
        _state_after_the_padding,
        frozenset({Problem.OUTPUT_IGNORES_INPUT, Problem.NO_BETTER_THAN_CONSTANT, Problem.VANISHING_GRADIENTS}),
        stays_above(1.2),
        "https://statedai.com/how-to-handle-variable-length-sequences-padding-in-pytorch-rnn.html",
    ),
    Program(
        "root_mean_square_norm_of_padding_without_epsilon",
        "sequence",
        _norm_of_padding,
        frozenset({Problem.NON_FINITE}),
        is_broken,
        "https://github.com/apple/coremltools/pull/2822",
    ),
    Program(
        "channel_of_a_text_convolution_against_rows",
        "regression",
        _channel_against_rows,
        frozenset({Problem.BROADCAST_MISMATCH}),
        stays_above(0.2),
        "https://docs.pytorch.org/docs/stable/notes/broadcasting.html",
    ),
    Program(
        "state_space_layer_whose_decay_lost_its_minus",
        "sequence",
        _lost_minus,
        frozenset({Problem.EXPLODING_GRADIENTS, Problem.NON_FINITE}),
        lambda outcome: not outcome.mean_loss(20) < 1.5,
        "https://github.com/johnma2006/mamba-minimal/issues/29",
    ),
    Program(
        "documents_of_stop_words_only",
        "sequence",
        _empty_documents,
        frozenset({Problem.NON_FINITE_DATA}),
        is_broken,
        "https://www.codegenes.net/blog/pytorch-division-by-zero-init",
    ),
]
