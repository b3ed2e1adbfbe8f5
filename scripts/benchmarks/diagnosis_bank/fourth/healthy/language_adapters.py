"""Networks of text of which only a part is trained: adapters, prompts, reservoirs, experts and bags."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.language_support import (
    Block,
    RMSNorm,
    Run,
    ends_below,
    is_unchanged,
    make_generator,
    make_loader,
    output,
    topics,
)
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

Measured = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _classify(network: nn.Module, batch: Any) -> Measured:
    logits = network(batch[0])
    return F.cross_entropy(logits, batch[1]), logits, batch[1]


class _LowRank(nn.Module):
    """A frozen layer and a product of two small matrices, the second of which is zero at first."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.base(inputs) + 4 * self.up(self.down(inputs))


class _Reader(nn.Module):
    """A transformer over the words and a head over the mean of its states."""

    def __init__(self, classes: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(80, 32)
        self.blocks = nn.ModuleList(Block(32, causal=False) for _ in range(layers))
        self.norm = RMSNorm(32)
        self.head = nn.Linear(32, classes)

    def read(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the scores of embedded words."""
        for block in self.blocks:
            states = block(states)
        return self.head(self.norm(states).mean(1))

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.read(self.embed(text))


def _low_rank_adapters(seed: int, return_dict: bool) -> TrainingSetup:
    """Frozen weights, adapters that are zero at first, so that half of them have no gradient in the first step."""
    network = _Reader()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for block in network.blocks:
        block.mix = _LowRank(block.mix)
        block.out = _LowRank(block.out)
    network.head.requires_grad_(True)
    data = make_loader(*topics(seed, 4800, length=12), size=32)
    module = Run(network, _classify, return_dict, lambda p: torch.optim.AdamW(p, lr=5e-3))
    return TrainingSetup(module, data)


class _Prompted(nn.Module):
    """A frozen reader with eight trained vectors, at first those of a word, in front of the words."""

    def __init__(self, reader: _Reader) -> None:
        super().__init__()
        self.reader = reader.requires_grad_(False)
        self.prompt = nn.Parameter(reader.embed.weight[76].detach().repeat(8, 1))

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        front = self.prompt.expand(len(text), -1, -1)
        return self.reader.read(torch.cat([front, self.reader.embed(text)], 1))


def _task(text: torch.Tensor, labels: torch.Tensor, task: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns texts after eight words that name the task, which is a rotation of the labels."""
    return torch.cat([(76 + task).unsqueeze(1).expand(-1, 8), text], 1), (labels + task) % 4


def _prompt_of_eight_vectors(seed: int, return_dict: bool) -> TrainingSetup:
    """A pretrained network, of which only a prompt is trained."""
    reader = _Reader()
    text, labels = topics(seed, 9600, length=8, vocabulary=76, share=0.5)
    task = torch.randint(4, (9600,), generator=make_generator(seed + 1))
    adam = torch.optim.Adam(reader.parameters(), lr=3e-3)
    for inputs, target in zip(*(part.split(32) for part in _task(text, labels, task)), strict=True):
        adam.zero_grad()
        F.cross_entropy(reader(inputs), target).backward()
        adam.step()
    new_text, new_labels = topics(seed + 2, 4800, length=8, vocabulary=76, share=0.5)
    data = make_loader(new_text, (new_labels + 2) % 4, size=32)
    module = Run(_Prompted(reader), _classify, return_dict, lambda p: torch.optim.Adam(p, lr=0.03))
    return TrainingSetup(module, data)


class _Reservoir(nn.Module):
    """Frozen random embeddings and a frozen random LSTM, whose largest states are classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(80, 24)
        self.lstm = nn.LSTM(24, 128, batch_first=True, bidirectional=True)
        self.embed.requires_grad_(False)
        self.lstm.requires_grad_(False)
        self.head = nn.Linear(256, 4)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embed(text))[0].amax(1))


def _random_sentence_encoder(seed: int, return_dict: bool) -> TrainingSetup:
    """Only a linear layer is trained over a random encoder."""
    data = make_loader(*topics(seed, 6400, length=10, share=0.6), size=32)
    module = Run(_Reservoir(), _classify, return_dict, lambda p: torch.optim.Adam(p, lr=5e-3))
    return TrainingSetup(module, data)


class _Thaws(pl.LightningModule):
    """A classifier whose layers are thawed from the last to the first, one by the epoch."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.embed = nn.Embedding(80, 24)
        self.first = nn.GRU(24, 32, batch_first=True)
        self.second = nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(64, 4)

    def on_train_epoch_start(self) -> None:
        for depth, layer in enumerate([self.head, self.second, self.first, self.embed]):
            layer.requires_grad_(depth <= self.current_epoch)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        text, labels = batch
        states = self.second(self.first(self.embed(text))[0])[0]
        logits = self.head(torch.cat([states.mean(1), states.amax(1)], 1))
        return output(self.return_dict, F.cross_entropy(logits, labels), logits, labels)

    def configure_optimizers(self) -> Any:
        layers = [self.head, self.second, self.first, self.embed]
        groups = [{"params": list(layer.parameters()), "lr": 1e-2 / 1.5**depth} for depth, layer in enumerate(layers)]
        return torch.optim.Adam(groups, betas=(0.7, 0.99))


def _thawed_by_the_epoch(seed: int, return_dict: bool) -> TrainingSetup:
    """Three of four layers are frozen in the first epoch, and one more is trained in each that follows."""
    data = make_loader(*topics(seed, 3200, length=10), size=32)
    return TrainingSetup(_Thaws(return_dict), data, trainer={"max_epochs": 4})


class _Switch(nn.Module):
    """Four experts, one of them for each word, with the loss that balances their loads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 16)
        self.router = nn.Linear(16, 4, bias=False)
        nn.init.normal_(self.router.weight, std=0.02)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(4))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 60)
        self.balance = torch.zeros(())

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        states = self.embed(text).flatten(0, 1)
        shares = self.router(states).softmax(-1)
        gate, chosen = shares.max(-1)
        mixed = torch.zeros_like(states)
        for number, expert in enumerate(self.experts):
            place = (chosen == number).nonzero().squeeze(1)
            mixed = mixed.index_add(0, place, gate[place].unsqueeze(1) * expert(states[place]))
        load = F.one_hot(chosen, 4).float().mean(0)
        self.balance = 4 * (load * shares.mean(0)).sum()
        return self.head(self.norm(states + mixed)).view(*text.shape, 60)


def _switch_with_balance(seed: int, return_dict: bool) -> TrainingSetup:
    """A switch layer, whose experts see a few words each, with an auxiliary loss that stays at one."""
    source = make_generator(seed)
    text = torch.randint(60, (4800, 12), generator=source)
    target = torch.randperm(60, generator=source)[text]

    def measure(network: nn.Module, batch: Any) -> Measured:
        logits = network(batch[0]).flatten(0, 1)
        loss = F.cross_entropy(logits, batch[1].flatten()) + 0.01 * network.balance
        return loss, logits, batch[1].flatten()

    module = Run(_Switch(), measure, return_dict, lambda p: torch.optim.Adam(p, lr=3e-3))
    return TrainingSetup(module, make_loader(text, target, size=32))


class _News(pl.LightningModule):
    """Bags of words with offsets, with a rate of five that is divided by ten after each epoch."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.bag = nn.EmbeddingBag(2000, 32, sparse=True)
        self.head = nn.Linear(32, 4)
        nn.init.uniform_(self.bag.weight, -0.5, 0.5)
        nn.init.uniform_(self.head.weight, -0.5, 0.5)
        nn.init.zeros_(self.head.bias)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        labels, words, offsets = batch
        logits = self.head(self.bag(words, offsets))
        return output(self.return_dict, F.cross_entropy(logits, labels), logits, labels)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=5.0)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)]


def _news_at_a_rate_of_five(seed: int, return_dict: bool) -> TrainingSetup:
    """Texts of many lengths with sparse gradients, of which most words never occur."""

    def collate(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        texts = [text[text > 0] for text, _ in samples]
        offsets = torch.tensor([0] + [len(text) for text in texts[:-1]]).cumsum(0)
        return [torch.stack([label for _, label in samples]), torch.cat(texts), offsets]

    text, labels = topics(seed, 9600, length=16)
    text = text * (torch.arange(16) < torch.randint(8, 17, (9600, 1), generator=make_generator(seed + 1)))
    data = DataLoader(TensorDataset(text, labels), batch_size=16, shuffle=True, collate_fn=collate)
    return TrainingSetup(_News(return_dict), data)


def _only_the_prompt_moves(outcome: Outcome) -> bool:
    return ends_below(0.5)(outcome) and is_unchanged(outcome, "network.reader.head.weight")


PROGRAMS: list[Program] = [
    Program(
        "adapters_that_start_as_nothing_in_a_frozen_transformer",
        "sequence",
        _low_rank_adapters,
        frozenset(),
        ends_below(0.6),
        "https://arxiv.org/abs/2106.09685",
    ),
    Program(
        "prompt_of_eight_vectors_before_a_frozen_reader",
        "sequence",
        _prompt_of_eight_vectors,
        frozenset(),
        _only_the_prompt_moves,
        "https://arxiv.org/abs/2104.08691",
    ),
    Program(
        "head_over_a_random_sentence_encoder",
        "sequence",
        _random_sentence_encoder,
        frozenset(),
        ends_below(0.6),
        "https://arxiv.org/abs/1901.10444",
    ),
    Program(
        "layers_thawed_one_by_the_epoch",
        "sequence",
        _thawed_by_the_epoch,
        frozenset(),
        ends_below(0.4),
        "https://arxiv.org/abs/1801.06146",
    ),
    Program(
        "switch_layer_with_a_balancing_loss",
        "sequence",
        _switch_with_balance,
        frozenset(),
        ends_below(0.3),
        "https://arxiv.org/abs/2101.03961",
    ),
    Program(
        "bags_of_news_at_a_rate_of_five",
        "sequence",
        _news_at_a_rate_of_five,
        frozenset(),
        ends_below(0.4),
        "https://pytorch.org/tutorials/beginner/text_sentiment_ngrams_tutorial.html",
    ),
]
