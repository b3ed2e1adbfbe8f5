"""Faults of the graph and the optimizer's view: adapters, experts, encoders, precision and clearing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.language_support import (
    Decoder,
    Recurrent,
    Run,
    chain,
    is_unchanged,
    make_generator,
    make_loader,
    next_word,
    output,
    topics,
)
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from stormproof.finding import Problem

Measured = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class _Adapted(nn.Module):
    """A frozen linear layer with a trainable product of rank four."""

    def __init__(self, base: nn.Linear, is_zero: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.zeros(4, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, 4))
        if not is_zero:
            nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.base(inputs) + 2 * (inputs @ self.lora_a.t() @ self.lora_b.t())


class _FrozenReader(nn.Module):
    """A frozen random transformer with adapters, and a trained head over the mean of the states."""

    def __init__(self, is_zero: bool = False, checkpoints: bool = False, needs_gradient: bool = True) -> None:
        super().__init__()
        self.body = Decoder(80, 32, layers=2, causal=False).requires_grad_(False)
        for block in self.body.blocks:
            block.mix = _Adapted(block.mix, is_zero)
            block.feed[0] = _Adapted(block.feed[0], is_zero)
            block.feed[2] = _Adapted(block.feed[2], is_zero)
        self.body.head = nn.Identity()
        self.score = nn.Linear(32, 8)
        self.checkpoints = checkpoints
        self.needs_gradient = needs_gradient

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states = self.body.embed(tokens)
        if self.needs_gradient:
            states.requires_grad_(True)
        for block in self.body.blocks:
            states = checkpoint(block, states, use_reentrant=True) if self.checkpoints else block(states)
        return self.score(self.body.norm(states).mean(1))


def _two_topics(seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns texts, and a class that names their topic and which of their halves has the higher words."""
    text, topic = topics(seed, rows, length=12, share=0.4)
    order = (text[:, :6].float().mean(1) > text[:, 6:].float().mean(1)).long()
    return text, topic * 2 + order


def _classify(network: nn.Module, batch: Any) -> Measured:
    logits = network(batch[0])
    return F.cross_entropy(logits, batch[1]), logits, batch[1]


def _adapters_of_zeros(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Both factors of each low-rank adapter start at zero, so neither has a gradient."""
    data = make_loader(*_two_topics(seed, 4800), size=32)
    network = _FrozenReader(is_zero=not is_fixed)
    module = Run(network, _classify, return_dict, lambda p: torch.optim.AdamW(p, lr=5e-3))
    return TrainingSetup(module, data)


def _checkpointed_adapters(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Checkpoints over frozen embeddings: no input of a checkpoint needs a gradient, so the adapters get none."""
    data = make_loader(*_two_topics(seed, 3200), size=32)
    network = _FrozenReader(checkpoints=True, needs_gradient=is_fixed)
    module = Run(network, _classify, return_dict, lambda p: torch.optim.AdamW(p, lr=5e-3))
    return TrainingSetup(module, data)


class _Experts(nn.Module):
    """Four linear experts, of which the best for each token is used, times its gate."""

    def __init__(self, width: int, is_fixed: bool) -> None:
        super().__init__()
        self.router = nn.Linear(width, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.is_fixed = is_fixed

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        scores = self.router(states)
        if self.is_fixed:
            gate, chosen = scores.softmax(-1).topk(1, dim=-1)
        else:
            best, chosen = scores.topk(1, dim=-1)
            gate = best.softmax(-1)
        results = torch.stack([expert(states) for expert in self.experts], -2)
        picked = results.gather(-2, chosen.unsqueeze(-1).expand(*chosen.shape, states.shape[-1]))
        return gate * picked.squeeze(-2)


class _Sparse(nn.Module):
    """Maps frames of speech to features through experts."""

    def __init__(self, is_fixed: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.experts = _Experts(16, is_fixed)
        self.head = nn.Linear(16, 2)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.head(self.experts(self.norm(frames)))


def _softmax_after_the_choice(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The softmax of the router is taken over the single chosen score: the gate is one and the router has no slope."""
    source = make_generator(seed)
    speaker = torch.randint(4, (6400, 6), generator=source)
    frames = torch.randn(6400, 6, 16, generator=source)
    frames[..., :4] = 1.5 * F.one_hot(speaker, 4) + 0.1 * frames[..., :4]
    rules = torch.randn(4, 12, 2, generator=source) / 12**0.5
    target = torch.einsum("btf,btfo->bto", frames[..., 4:], rules[speaker])

    def measure(network: nn.Module, batch: Any) -> Measured:
        preds = network(batch[0])
        return F.mse_loss(preds, batch[1]), preds, batch[1]

    module = Run(_Sparse(is_fixed), measure, return_dict, lambda p: torch.optim.Adam(p, lr=5e-3))
    return TrainingSetup(module, make_loader(frames, target, size=32), None, {"max_epochs": 4})


class _Translator(pl.LightningModule):
    """An encoder and a decoder that sees the right words so far."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.source = nn.Embedding(16, 16)
        self.encoder = nn.GRU(16, 48, batch_first=True)
        self.target = nn.Embedding(17, 16)
        self.decoder = nn.GRU(16, 48, batch_first=True)
        self.head = nn.Linear(48, 16)

    def encode(self, words: torch.Tensor) -> torch.Tensor:
        """Returns the last state, repackaged for the decoder."""
        state = self.encoder(self.source(words))[1]
        return state if self.is_fixed else state.detach()

    def forward(self, words: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        return self.head(self.decoder(self.target(previous), self.encode(words))[0])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        words, translation = batch
        previous = F.pad(translation[:, :-1], (1, 0), value=16)
        logits = self(words, previous).flatten(0, 1)
        loss = F.cross_entropy(logits, translation.flatten())
        return output(self.return_dict, loss, logits, translation.flatten())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def _repackaged_state(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The state of the encoder is detached, as between batches of a language model: the encoder does not learn."""
    source = make_generator(seed)
    words = torch.randint(16, (4800, 5), generator=source)
    translation = torch.randperm(16, generator=source)[words]
    return TrainingSetup(
        _Translator(return_dict, is_fixed), make_loader(words, translation, size=32), None, {"max_epochs": 4}
    )


class _OwnLoop(pl.LightningModule):
    """A recurrent language model with its own loop."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.network = Recurrent(30)
        self.is_fixed = is_fixed

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        loss, logits, target = next_word(self.network, batch)
        optimizer.zero_grad() if self.is_fixed else optimizer.zero_grad
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.parameters(), 5.0)
        optimizer.step()
        return output(self.return_dict, loss.detach(), logits.detach(), target)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def _named_not_called(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The parentheses of ``optimizer.zero_grad`` are missing."""
    return TrainingSetup(
        _OwnLoop(return_dict, is_fixed), make_loader(chain(seed, 6400, 14), size=32), None, {"max_epochs": 4}
    )


def _keeps(loss: float, *names: str) -> Callable[[Outcome], bool]:
    """Returns a check that weights are unchanged and the loss stayed above ``loss``."""
    return lambda outcome: all(is_unchanged(outcome, name) for name in names) and outcome.mean_loss(20) > loss


PROGRAMS: list[Program] = [
    Program(
        "both_factors_of_the_adapters_are_zero",
        "sequence",
        _adapters_of_zeros,
        frozenset({Problem.NO_GRADIENT, Problem.WEIGHTS_UNCHANGED}),
        _keeps(0.95, "network.body.blocks.0.mix.lora_a", "network.body.blocks.1.feed.2.lora_b"),
        "https://github.com/nvidia-cosmos/cosmos-predict2.5/pull/15",
    ),
    Program(
        "adapters_checkpointed_over_frozen_embeddings",
        "sequence",
        _checkpointed_adapters,
        frozenset({Problem.NO_GRADIENT}),
        _keeps(0.95, "network.body.blocks.0.mix.lora_b", "network.body.blocks.1.feed.2.lora_b"),
        "https://github.com/cloneofsimo/lora/issues/26",
    ),
    Program(
        "softmax_of_the_router_after_its_choice",
        "sequence",
        _softmax_after_the_choice,
        frozenset({Problem.NO_GRADIENT}),
        _keeps(0.2, "network.experts.router.weight"),
        "https://github.com/davidmrau/mixture-of-experts/issues/27",
    ),
    Program(
        "state_of_the_encoder_detached_before_the_decoder",
        "sequence",
        _repackaged_state,
        frozenset({Problem.NO_GRADIENT}),
        _keeps(1.0, "encoder.weight_ih_l0", "source.weight"),
        "https://github.com/facebookresearch/fairseq/issues/408",
    ),
    Program(
        "zero_grad_named_but_not_called",
        "sequence",
        _named_not_called,
        frozenset({Problem.GRADIENTS_NOT_CLEARED}),
        lambda outcome: not outcome.mean_loss(20) < 1.0,
        "https://runebook.dev/en/docs/pytorch/generated/torch.optim.optimizer.zero_grad",
    ),
]
