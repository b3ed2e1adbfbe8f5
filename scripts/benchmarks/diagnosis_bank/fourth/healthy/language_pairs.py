"""Texts compared, preferred, tagged and translated: frozen towers, frozen references, chains and own mistakes."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.language_support import (
    Decoder,
    Records,
    Recurrent,
    Run,
    chain,
    ends_below,
    make_generator,
    make_loader,
    output,
    topics,
)
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader

Measured = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class _QuestionTower(nn.Module):
    """Encodes questions, to be compared with vectors of passages from a fixed index."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(100, 48)
        self.project = nn.Linear(48, 32)

    def forward(self, question: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.project(self.bag(question)), dim=1)


def _fixed_index(seed: int, return_dict: bool) -> TrainingSetup:
    """Questions learn to match the frozen vectors of their passages, with a temperature of a twentieth."""
    source = make_generator(seed)
    question = torch.randint(100, (6400, 6), generator=source)
    meaning = torch.randn(100, 32, generator=source)
    passage = F.normalize(meaning[question].mean(1) + 0.05 * torch.randn(6400, 32, generator=source), dim=1)

    def measure(network: nn.Module, batch: Any) -> Measured:
        scores = network(batch["question"]) @ batch["passage"].t() / 0.05
        target = torch.arange(len(scores))
        return F.cross_entropy(scores, target), scores, target

    data = DataLoader(Records(question=question, passage=passage), batch_size=32, shuffle=True)
    module = Run(_QuestionTower(), measure, return_dict, lambda p: torch.optim.Adam(p, lr=3e-3))
    return TrainingSetup(module, data, trainer={"max_epochs": 4})


class _SameTextTwice(nn.Module):
    """Encodes a text with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(80, 48)
        self.drop = nn.Dropout(0.2)
        self.body = nn.Sequential(nn.Linear(48, 48), nn.Tanh(), nn.Dropout(0.2), nn.Linear(48, 32))

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.body(self.drop(self.embed(text)).mean(1)), dim=1)


def _same_text_twice(seed: int, return_dict: bool) -> TrainingSetup:
    """Without labels: a text is compared with itself under another dropout, and with the others of its batch."""

    def measure(network: nn.Module, batch: Any) -> Measured:
        (text,) = batch
        scores = network(text) @ network(text).t() / 0.1
        target = torch.arange(len(text))
        return F.cross_entropy(scores, target), scores, target

    text, _ = topics(seed, 6400, length=10)
    module = Run(_SameTextTwice(), measure, return_dict, lambda p: torch.optim.AdamW(p, lr=3e-3))
    return TrainingSetup(module, make_loader(text, size=32))


class _Preferences(pl.LightningModule):
    """Direct preference optimization of a policy against its frozen copy."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.policy = Recurrent(30)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)

    def likelihood(self, network: nn.Module, text: torch.Tensor) -> torch.Tensor:
        """Returns the logarithm of the probability of each text."""
        logs = network(text[:, :-1]).log_softmax(-1)
        return logs.gather(2, text[:, 1:].unsqueeze(2)).squeeze(2).sum(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        texts = [batch["chosen"], batch["rejected"]]
        policy = [self.likelihood(self.policy, text) for text in texts]
        with torch.no_grad():
            reference = [self.likelihood(self.reference, text) for text in texts]
        margin = 0.1 * ((policy[0] - reference[0]) - (policy[1] - reference[1]))
        return output(self.return_dict, -F.logsigmoid(margin).mean(), margin, torch.ones_like(margin))

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.policy.parameters(), lr=5e-4)


def _preferred_texts(seed: int, return_dict: bool) -> TrainingSetup:
    """The loss starts at the logarithm of two, and all targets are one; half of the module is a frozen reference."""
    chosen = chain(seed, 4800, 12)
    rejected = chosen[:, torch.randperm(12, generator=make_generator(seed + 1))]
    data = DataLoader(Records(chosen=chosen, rejected=rejected), batch_size=24, shuffle=True)
    return TrainingSetup(_Preferences(return_dict), data)


class _Replaced(pl.LightningModule):
    """A small generator fills masks, and a discriminator finds the words that were replaced."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.generator = Decoder(21, 16, layers=1, causal=False)
        self.discriminator = Decoder(21, 32, layers=2, causal=False)
        self.discriminator.head = nn.Linear(32, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (text,) = batch
        chosen = torch.rand(text.shape) < 0.15
        scores = self.generator(text.masked_fill(chosen, 0))[chosen]
        drawn = torch.distributions.Categorical(logits=scores.detach()).sample()
        replaced = text.masked_scatter(chosen, drawn)
        logits = self.discriminator(replaced).squeeze(2)
        is_replaced = (replaced != text).float()
        found = F.binary_cross_entropy_with_logits(logits, is_replaced)
        loss = F.cross_entropy(scores, text[chosen]) + 50 * found
        self.log("found", found, on_step=False, on_epoch=True)
        return output(self.return_dict, loss, logits, is_replaced)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=4e-3)


def _replaced_words(seed: int, return_dict: bool) -> TrainingSetup:
    """One word in ten is a replacement, and the loss of the discriminator is multiplied by fifty."""
    text = chain(seed, 2880, 14, 20) + 1
    return TrainingSetup(_Replaced(return_dict), make_loader(text, size=24))


class _Pupil(pl.LightningModule):
    """A translator that reads ever more of its own words instead of the right ones."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.source = nn.Embedding(5, 16)
        self.encoder = nn.GRU(16, 48, batch_first=True)
        self.target = nn.Embedding(6, 16)
        self.cell = nn.GRUCell(16, 48)
        self.head = nn.Linear(48, 5)

    def decode(self, words: torch.Tensor, translation: torch.Tensor, trust: float) -> torch.Tensor:
        """Returns scores, with the right previous word with probability ``trust``."""
        state = self.encoder(self.source(words))[1].squeeze(0)
        previous = torch.full((len(words),), 5)
        scores = []
        for place in range(translation.shape[1]):
            state = self.cell(self.target(previous), state)
            scores.append(self.head(state))
            is_right = torch.rand(len(words)) < trust
            previous = torch.where(is_right, translation[:, place], scores[-1].argmax(1))
        return torch.stack(scores, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        words, translation = batch
        trust = max(0.0, 1 - self.global_step / 600)
        logits = self.decode(words, translation, trust).flatten(0, 1)
        return output(self.return_dict, F.cross_entropy(logits, translation.flatten()), logits, translation.flatten())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _own_words(seed: int, return_dict: bool) -> TrainingSetup:
    """Scheduled sampling: after six hundred steps the translator reads only its own words."""
    words = torch.randint(5, (4800, 4), generator=make_generator(seed))
    data = make_loader(words, words.cumsum(1) % 5, size=24)
    return TrainingSetup(_Pupil(return_dict), data, trainer={"gradient_clip_val": 1.0, "max_epochs": 4})


class _Chain(pl.LightningModule):
    """A tagger with a conditional random field over the scores of a bidirectional LSTM."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.embed = nn.Embedding(40, 16)
        self.lstm = nn.LSTM(16, 24, batch_first=True, bidirectional=True)
        self.score = nn.Linear(48, 5)
        self.transitions = nn.Parameter(torch.zeros(5, 5))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        text, tags = batch
        scores = self.score(self.lstm(self.embed(text))[0])
        path = scores.gather(2, tags.unsqueeze(2)).sum((1, 2)) + self.transitions[tags[:, :-1], tags[:, 1:]].sum(1)
        total = scores[:, 0]
        for place in range(1, text.shape[1]):
            total = (total.unsqueeze(2) + self.transitions).logsumexp(1) + scores[:, place]
        loss = (total.logsumexp(1) - path).mean()
        return output(self.return_dict, loss, scores, tags)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def _chain_of_tags(seed: int, return_dict: bool) -> TrainingSetup:
    """The loss is the negative logarithm of the probability of a whole sentence of tags, so it starts high."""
    source = make_generator(seed)
    text = torch.randint(40, (4800, 10), generator=source)
    kind = torch.randint(5, (40,), generator=source)
    tags = kind[text]
    tags[:, 1:] = torch.where(tags[:, :-1] == 0, 0, tags[:, 1:])
    return TrainingSetup(_Chain(return_dict), make_loader(text, tags, size=24), trainer={"gradient_clip_val": 5.0})


def _finds_replacements(outcome: Outcome) -> bool:
    return outcome.mean_loss(20) < 0.6 * outcome.first_loss()


PROGRAMS: list[Program] = [
    Program(
        "questions_meet_a_fixed_index_of_passages",
        "sequence",
        _fixed_index,
        frozenset(),
        ends_below(0.6),
        "https://arxiv.org/abs/2005.11401",
    ),
    Program(
        "same_text_twice_under_dropout",
        "sequence",
        _same_text_twice,
        frozenset(),
        ends_below(0.4),
        "https://arxiv.org/abs/2104.08821",
    ),
    Program(
        "preferred_texts_against_a_frozen_reference",
        "sequence",
        _preferred_texts,
        frozenset(),
        ends_below(0.3),
        "https://arxiv.org/abs/2305.18290",
    ),
    Program(
        "replaced_words_found_by_a_discriminator",
        "sequence",
        _replaced_words,
        frozenset(),
        _finds_replacements,
        "https://arxiv.org/abs/2003.10555",
    ),
    Program(
        "translator_that_comes_to_read_its_own_words",
        "sequence",
        _own_words,
        frozenset(),
        ends_below(0.4),
        "https://arxiv.org/abs/1506.03099",
    ),
    Program(
        "random_field_over_the_tags_of_a_sentence",
        "sequence",
        _chain_of_tags,
        frozenset(),
        ends_below(1.5),
        "https://arxiv.org/abs/1508.01991",
    ),
]
