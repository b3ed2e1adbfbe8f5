"""Faults of targets and losses: shifts, ignored labels, blanks, smoothing and scales."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.fourth.language_support import (
    Decoder,
    Records,
    Recurrent,
    Run,
    chain,
    ends_below,
    is_broken,
    make_generator,
    make_loader,
    overlapping_pairs,
    stays_above,
    topics,
)
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader

from stormproof.finding import Problem

Measured = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _causal_loss(network: nn.Module, batch: Any) -> Measured:
    logits = network(batch["input_ids"])[:, :-1].flatten(0, 1)
    labels = batch["labels"][:, 1:].flatten()
    return F.cross_entropy(logits, labels), logits, labels


def _shifted_twice(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The data set shifts the labels, and so does the loss: the model is asked for the word after the next."""
    text = overlapping_pairs(seed, 2560, 21)
    labels = text[:, :-1] if is_fixed else text[:, 1:]
    data = DataLoader(Records(input_ids=text[:, :-1], labels=labels), batch_size=16, shuffle=True)
    module = Run(Decoder(25), _causal_loss, return_dict, lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.01))
    return TrainingSetup(module, data)


class _TimeMajor(nn.Module):
    """An LSTM over (time, batch)."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 24)
        self.lstm = nn.LSTM(24, 48)
        self.head = nn.Linear(48, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embed(tokens.t()))[0])


def _flattened_in_another_order(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Logits (time, batch) and targets (batch, time) are flattened as if their orders were equal."""

    def measure(network: nn.Module, batch: Any) -> Measured:
        logits = network(batch[0][:, :-1])
        target = batch[0][:, 1:]
        target = target.t() if is_fixed else target
        flat = logits.reshape(-1, logits.shape[-1])
        return F.cross_entropy(flat, target.reshape(-1)), flat, target.reshape(-1)

    module = Run(_TimeMajor(30), measure, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, make_loader(chain(seed, 6400, 18), size=32), trainer={"max_epochs": 4})


def _answers_cut_off(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Texts are cut to 14 words, so that some have no word of the answer: the loss mask of a small batch is zero."""
    text = chain(seed, 480, 14)
    prompt = torch.randint(4, 17, (480, 1), generator=make_generator(seed + 1))
    mask = (torch.arange(14) >= prompt).float()
    if is_fixed:
        has_answer = mask.any(1)
        text, mask = text[has_answer], mask[has_answer]

    def measure(network: nn.Module, batch: Any) -> Measured:
        logits = network(batch["tokens"])[:, :-1].flatten(0, 1)
        target, weight = batch["tokens"][:, 1:].flatten(), batch["loss_mask"][:, 1:].flatten()
        losses = F.cross_entropy(logits, target, reduction="none")
        return (losses * weight).sum() / weight.sum(), logits, target

    data = DataLoader(Records(tokens=text, loss_mask=mask), batch_size=2, shuffle=True)
    module = Run(Decoder(30), measure, return_dict, lambda p: torch.optim.AdamW(p, lr=8e-3))
    return TrainingSetup(module, data, trainer={"accumulate_grad_batches": 4, "gradient_clip_val": 1.0})


class _Listener(nn.Module):
    """A convolution and a GRU from frames to letters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 24, 3, padding=1)
        self.gru = nn.GRU(24, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 6)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.conv(frames.transpose(1, 2)))
        return self.head(self.gru(hidden.transpose(1, 2))[0])


def _frames(seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns frames of four letters with pauses, and the letters."""
    source = make_generator(seed)
    letters = torch.randint(1, 6, (rows, 4), generator=source)
    sounds = 1.5 * torch.randn(6, 6, generator=source)
    frames = sounds[letters.repeat_interleave(4, 1)] * (torch.arange(16) % 4 < 3).view(1, 16, 1)
    return frames + 0.3 * torch.randn(rows, 16, 6, generator=source), letters


def _shares_into_ctc(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The CTC loss receives probabilities instead of their logarithms, and is negative."""

    def measure(network: nn.Module, batch: Any) -> Measured:
        frames, letters = batch
        scores = network(frames)
        scores = scores.log_softmax(-1) if is_fixed else scores.softmax(-1)
        lengths = torch.full((len(frames),), 16), torch.full((len(frames),), 4)
        return F.ctc_loss(scores.transpose(0, 1), letters, *lengths, zero_infinity=True), scores, letters

    module = Run(_Listener(), measure, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, make_loader(*_frames(seed, 1920), size=24), trainer={"max_epochs": 5})


class _Slots(nn.Module):
    """Scores of the next word, with minus infinity for the words that the grammar forbids here."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Recurrent(24)

    def forward(self, tokens: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        return self.body(tokens).masked_fill(~allowed, float("-inf"))


def _smoothed_over_forbidden_words(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Label smoothing gives a share of the target to words whose logits are minus infinity."""
    text = chain(seed, 4800, 13, 24)
    target = text[:, 1:]
    allowed = torch.rand(4800, 12, 24, generator=make_generator(seed + 1)) < 0.7
    allowed.scatter_(2, target.unsqueeze(2), True)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.0 if is_fixed else 0.1)

    def measure(network: nn.Module, batch: Any) -> Measured:
        logits = network(batch["tokens"], batch["allowed"]).flatten(0, 1)
        return criterion(logits, batch["target"].flatten()), logits, batch["target"].flatten()

    data = DataLoader(Records(tokens=text[:, :-1], allowed=allowed, target=target), batch_size=32, shuffle=True)
    module = Run(_Slots(), measure, return_dict, lambda p: torch.optim.RMSprop(p, lr=2e-3))
    return TrainingSetup(module, data, trainer={"max_epochs": 4})


def _masked_in_place(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The labels are not a copy of the tokens, so masking the tokens makes each label the mask."""

    def measure(network: nn.Module, batch: Any) -> Measured:
        tokens = batch[0].clone()
        labels = tokens.clone() if is_fixed else tokens
        chosen = torch.rand(tokens.shape) < 0.2
        tokens[chosen] = 0
        logits = network(tokens)[chosen]
        return F.cross_entropy(logits, labels[chosen]), logits, labels[chosen]

    text = chain(seed, 1920, 16, 20) + 1
    module = Run(Decoder(21, causal=False), measure, return_dict, lambda p: torch.optim.Adam(p, lr=5e-3))
    return TrainingSetup(module, make_loader(text, size=24), trainer={"max_epochs": 5})


class _Twins(nn.Module):
    """Cosine of the mean embeddings of two texts, after a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(80, 32, mode="mean")
        self.project = nn.Linear(32, 32)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return F.cosine_similarity(self.project(self.embed(first)), self.project(self.embed(second)), dim=1)


def _scores_up_to_five(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Similarities from zero to five are fitted with a cosine, without a division by five."""
    first, topic = topics(seed, 9600, length=12, share=0.6)
    second, other = topics(seed + 1000, 9600, length=12, share=0.6)
    distance = (topic - other).abs()
    score = (5 - 5 * distance / 3).clamp(0, 5)
    score = score / 5 if is_fixed else score

    def measure(network: nn.Module, batch: Any) -> Measured:
        preds = network(batch[0], batch[1])
        return F.mse_loss(preds, batch[2]), preds, batch[2]

    module = Run(_Twins(), measure, return_dict, lambda p: torch.optim.Adam(p, lr=5e-3))
    return TrainingSetup(module, make_loader(first, second, score, size=32), trainer={"max_epochs": 4})


class _Pair(nn.Module):
    """A cross-encoder: one text of question and answer, whose mean state is scored."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(81, 24)
        self.gru = nn.GRU(24, 32, batch_first=True, bidirectional=True)
        self.score = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, question: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        joint = torch.cat([question, torch.full_like(question[:, :1], 80), answer], 1)
        return self.score(self.gru(self.embed(joint))[0].mean(1)).squeeze(1)


def _pairs(seed: int, rows: int, wrong: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns questions, answers and whether they are of one topic."""
    question, topic = topics(seed, rows, length=6, classes=2, share=0.8)
    answer, other = topics(seed + 1000, rows, length=6, classes=2, share=0.8)
    is_wrong = torch.rand(rows, generator=make_generator(seed + 2)) < wrong
    keep = (topic == other) != is_wrong
    return question[keep], answer[keep], (topic == other)[keep].float()


def _right_answers_only(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The pairs come from a list of clicks, and no wrong answers are drawn: each label is one."""
    train = make_loader(*_pairs(seed, 6000, 0.5 if is_fixed else 0.0), size=32)
    validation = make_loader(*_pairs(seed + 50, 400, 0.5), size=100, shuffle=False)

    def measure(network: nn.Module, batch: Any) -> Measured:
        preds = network(batch[0], batch[1])
        return F.binary_cross_entropy_with_logits(preds, batch[2]), preds, batch[2]

    module = Run(_Pair(), measure, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


def _has_many_errors(outcome: Outcome) -> bool:
    """Returns True if the CTC loss of the trained network, computed properly, is large."""
    dataset: Any = outcome.fit.train.dataset
    frames, letters = (tensor[:256] for tensor in dataset.tensors)
    with torch.no_grad():
        logs = outcome.after(frames).log_softmax(-1).transpose(0, 1)
    return float(F.ctc_loss(logs, letters, torch.full((256,), 16), torch.full((256,), 4))) > 0.3


PROGRAMS: list[Program] = [
    Program(
        "labels_shifted_by_the_data_set_and_by_the_loss",
        "sequence",
        _shifted_twice,
        frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS, Problem.NO_BETTER_THAN_CONSTANT}),
        stays_above(3.0),
        "https://github.com/huggingface/transformers/pull/44642",
    ),
    Program(
        "logits_by_time_flattened_against_targets_by_row",
        "sequence",
        _flattened_in_another_order,
        frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS, Problem.NO_BETTER_THAN_CONSTANT}),
        stays_above(2.0),
        "https://taourl.com/read-2624309.html",
    ),
    Program(
        "answers_cut_off_so_that_a_small_batch_has_no_label",
        "sequence",
        _answers_cut_off,
        frozenset({Problem.NON_FINITE}),
        is_broken,
        "https://github.com/NVIDIA-NeMo/Speech/issues/8025",
    ),
    Program(
        "probabilities_into_the_ctc_loss",
        "sequence",
        _shares_into_ctc,
        frozenset({Problem.LOSS_INPUT_MISMATCH}),
        _has_many_errors,
        "https://github.com/SeanNaren/deepspeech.pytorch/issues/488",
    ),
    Program(
        "labels_smoothed_over_forbidden_words",
        "sequence",
        _smoothed_over_forbidden_words,
        frozenset({Problem.NON_FINITE}),
        is_broken,
        "https://github.com/facebookresearch/pytext/pull/1698",
    ),
    Program(
        "labels_masked_together_with_the_tokens",
        "sequence",
        _masked_in_place,
        frozenset({Problem.DEGENERATE_TARGETS}),
        ends_below(0.05),
        "https://github.com/ServiceNow/Fast-LLM/pull/253",
    ),
    Program(
        "similarities_up_to_five_fitted_with_a_cosine",
        "sequence",
        _scores_up_to_five,
        frozenset({Problem.UNREACHABLE_TARGETS}),
        stays_above(1.0),
        "https://github.com/huggingface/sentence-transformers/issues/1095",
    ),
    Program(
        "pairs_for_the_reranker_without_wrong_answers",
        "sequence",
        _right_answers_only,
        frozenset({Problem.DEGENERATE_TARGETS}),
        lambda outcome: outcome.mean_loss() < 0.05 and outcome.validation[-1] > 1,
        "https://github.com/chijames/Poly-Encoder/issues/7",
    ),
]
