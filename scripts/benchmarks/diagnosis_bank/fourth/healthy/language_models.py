"""Language models that train in unusual ways: gates, states, clusters, samples and growing texts."""

from __future__ import annotations

import math
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
    next_word,
    output,
    stepwise,
)
from diagnosis_bank.program import Program, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader

Measured = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _rotary_with_z_loss(seed: int, return_dict: bool) -> TrainingSetup:
    """A decoder with rotary positions, a penalty of the normalizer, and a cosine that ends at a rate of zero."""
    data = make_loader(chain(seed, 2560, 16), size=16)
    total = 3 * len(data)

    def optimizer(parameters: Any) -> Any:
        weights = list(parameters)
        groups = [
            {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": 0.1},
            {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW(groups, lr=4e-3, betas=(0.9, 0.95))
        return stepwise(adam, lambda step: min((step + 1) / 40, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / total))))

    def measure(network: nn.Module, batch: Any) -> Measured:
        loss, logits, target = next_word(network, batch)
        return loss + 1e-4 * logits.logsumexp(-1).pow(2).mean(), logits, target

    module = Run(Decoder(30), measure, return_dict, optimizer)
    return TrainingSetup(module, data, trainer={"gradient_clip_val": 1.0})


class _GatedConvolutions(nn.Module):
    """Causal convolutions with gates and weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 32)
        self.convs = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv1d(32, 64, 3, dilation=dilation)) for dilation in (1, 2)
        )
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(32, 30))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states = self.embed(tokens).transpose(1, 2)
        for conv in self.convs:
            padded = F.pad(states, (2 * conv.dilation[0], 0))
            states = states + F.glu(conv(padded), dim=1)
        return self.head(states.transpose(1, 2))


def _rate_of_one_clipped_at_a_tenth(seed: int, return_dict: bool) -> TrainingSetup:
    """Nesterov momentum with a rate of one and a gradient that is clipped to a tenth in each step."""
    module = Run(
        _GatedConvolutions(), next_word, return_dict, lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, nesterov=True)
    )
    return TrainingSetup(module, make_loader(chain(seed, 6400, 20), size=32), trainer={"gradient_clip_val": 0.1})


class _StateSpace(nn.Module):
    """A diagonal state-space layer between embedding and head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 32)
        self.a_log = nn.Parameter(torch.arange(1.0, 9.0).log().repeat(32, 1))
        self.step_log = nn.Parameter(torch.empty(32, 1).uniform_(math.log(1e-3), math.log(1e-1)))
        self.b = nn.Parameter(torch.ones(32, 8))
        self.c = nn.Parameter(torch.randn(32, 8))
        self.skip = nn.Parameter(torch.ones(32))
        self.mix = nn.Sequential(nn.GELU(), nn.Linear(32, 64), nn.GLU())
        self.head = nn.Linear(32, 30)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        inputs = self.embed(tokens)
        rate = -self.a_log.exp() * self.step_log.exp()
        lags = torch.arange(tokens.shape[1]).view(-1, 1, 1)
        kernel = ((rate * lags).exp() * self.b * self.c * self.step_log.exp()).sum(2)
        size = 2 * tokens.shape[1]
        product = torch.fft.rfft(inputs, n=size, dim=1) * torch.fft.rfft(kernel, n=size, dim=0)
        states = torch.fft.irfft(product, n=size, dim=1)[:, : tokens.shape[1]]
        return self.head(inputs + self.mix(states + self.skip * inputs))


class _TwoRates(pl.LightningModule):
    """The parameters of the decay have a hundredth of the rate of the others, and no weight decay."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.network = _StateSpace()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return output(self.return_dict, *next_word(self.network, batch))

    def configure_optimizers(self) -> Any:
        slow = [self.network.a_log, self.network.step_log]
        names = {id(parameter) for parameter in slow}
        fast = [parameter for parameter in self.parameters() if id(parameter) not in names]
        return torch.optim.AdamW(
            [{"params": fast, "weight_decay": 0.05}, {"params": slow, "lr": 5e-5, "weight_decay": 0.0}], lr=5e-3
        )


def _slow_decays(seed: int, return_dict: bool) -> TrainingSetup:
    """A state-space layer by Fourier transforms, whose time scales hardly move."""
    return TrainingSetup(_TwoRates(return_dict), make_loader(chain(seed, 3840, 24), size=24))


class _Clusters(pl.LightningModule):
    """A recurrent model with an adaptive softmax over a long tail of words."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.body = Recurrent(1000, 32)
        self.body.head = nn.Identity()
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(32, 1000, cutoffs=[20, 100], div_value=2.0)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (text,) = batch
        states, target = self.body(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()
        result = self.softmax(states, target)
        return output(self.return_dict, result.loss, result.output, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), lr=0.1)


def _rare_clusters(seed: int, return_dict: bool) -> TrainingSetup:
    """Nearly all words are of the first cluster, so the layers of the last one rarely have a gradient."""
    source = make_generator(seed)
    text = chain(seed, 3200, 16, 20)
    is_rare = torch.rand(3200, 16, generator=source) < 0.002
    text = torch.where(is_rare, torch.randint(20, 1000, (3200, 16), generator=source), text)
    return TrainingSetup(_Clusters(return_dict), make_loader(text, size=32))


def _answers_only(seed: int, return_dict: bool) -> TrainingSetup:
    """The loss sees the last word of eighteen, which depends on the first: all other labels are ignored."""
    source = make_generator(seed)
    text = torch.randint(1, 12, (6400, 18), generator=source)
    text[:, -2] = 0
    text[:, -1] = torch.randperm(11, generator=source)[text[:, 0] - 1] + 1
    labels = torch.full_like(text, -100)
    labels[:, -1] = text[:, -1]

    def measure(network: nn.Module, batch: Any) -> Measured:
        logits = network(batch["input_ids"])[:, :-1].flatten(0, 1)
        target = batch["labels"][:, 1:].flatten()
        return F.cross_entropy(logits, target, ignore_index=-100), logits, target

    data = DataLoader(Records(input_ids=text, labels=labels), batch_size=32, shuffle=True)
    module = Run(Decoder(12), measure, return_dict, lambda p: torch.optim.Adam(p, lr=3e-3))
    return TrainingSetup(module, data)


class _Grows(pl.LightningModule):
    """Tags each digit with the sum so far modulo three, in sequences that become longer by the epoch."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.network = Recurrent(3, 32, 8)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        length = 3 * 2**self.current_epoch
        digits, sums = (part[:, :length] for part in batch)
        logits = self.network(digits).flatten(0, 1)[:, :3]
        loss = F.cross_entropy(logits, sums.flatten())
        return output(self.return_dict, loss, logits, sums.flatten())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def _growing_texts(seed: int, return_dict: bool) -> TrainingSetup:
    """The length doubles with each epoch, from three to twenty-four, and the loss jumps each time."""
    digits = torch.randint(3, (6400, 24), generator=make_generator(seed))
    module = _Grows(return_dict)
    module.network.head = nn.Linear(32, 3)
    data = make_loader(digits, digits.cumsum(1) % 3, size=32)
    return TrainingSetup(module, data, trainer={"max_epochs": 4, "gradient_clip_val": 1.0})


class _Sampled(pl.LightningModule):
    """Compares the next word with words drawn by their frequency, and corrects by the probability of the draw."""

    def __init__(self, return_dict: bool, frequency: torch.Tensor) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.body = Recurrent(400, 32)
        self.body.head = nn.Identity()
        self.words = nn.Embedding(400, 32)
        nn.init.zeros_(self.words.weight)
        self.register_buffer("frequency", frequency)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (text,) = batch
        states, target = self.body(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()
        drawn = torch.multinomial(self.frequency, 30, replacement=True)
        wrong = states @ self.words(drawn).t() - (30 * self.frequency[drawn]).log()
        wrong = wrong.masked_fill(drawn == target.unsqueeze(1), -1e4)
        right = (states * self.words(target)).sum(1) - (30 * self.frequency[target]).log()
        scores = torch.cat([right.unsqueeze(1), wrong], 1)
        first = torch.zeros(len(scores), dtype=torch.long)
        return output(self.return_dict, F.cross_entropy(scores, first), scores, first)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _right_word_first(seed: int, return_dict: bool) -> TrainingSetup:
    """Sampled softmax: the right word is always the first of the scores, so each target is zero."""
    text = chain(seed, 4800, 14, 400)
    frequency = torch.bincount(text.flatten(), minlength=400).float() + 1
    return TrainingSetup(_Sampled(return_dict, frequency / frequency.sum()), make_loader(text, size=32))


PROGRAMS: list[Program] = [
    Program(
        "rotary_decoder_with_z_loss_and_a_cosine_to_zero",
        "sequence",
        _rotary_with_z_loss,
        frozenset(),
        ends_below(0.8),
        "https://arxiv.org/abs/2204.02311",
    ),
    Program(
        "gated_convolutions_at_a_rate_of_one_clipped_at_a_tenth",
        "sequence",
        _rate_of_one_clipped_at_a_tenth,
        frozenset(),
        ends_below(0.9),
        "https://arxiv.org/abs/1612.08083",
    ),
    Program(
        "state_space_layer_with_slow_time_scales",
        "sequence",
        _slow_decays,
        frozenset(),
        ends_below(0.9),
        "https://arxiv.org/abs/2206.11893",
    ),
    Program(
        "adaptive_softmax_with_rarely_used_clusters",
        "sequence",
        _rare_clusters,
        frozenset(),
        ends_below(0.85),
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveLogSoftmaxWithLoss.html",
    ),
    Program(
        "loss_of_the_answer_only",
        "sequence",
        _answers_only,
        frozenset(),
        ends_below(0.3),
        "https://huggingface.co/docs/trl/sft_trainer",
    ),
    Program(
        "texts_twice_as_long_in_each_epoch",
        "sequence",
        _growing_texts,
        frozenset(),
        ends_below(0.15),
        "https://arxiv.org/abs/1410.4615",
    ),
    Program(
        "sampled_softmax_with_the_right_word_first",
        "sequence",
        _right_word_first,
        frozenset(),
        ends_below(0.8),
        "https://arxiv.org/abs/1412.2007",
    ),
]
