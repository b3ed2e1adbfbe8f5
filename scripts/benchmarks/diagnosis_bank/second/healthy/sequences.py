"""Text, speech and series: tied tables, masks of minus infinity, blanks, carried states."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from diagnosis_bank.second.healthy.datasets import RecordDataset, make_generator, make_loader, sentences
from diagnosis_bank.second.healthy.measures import has_changed, loss_fell, ran_to_end, step_output
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader


class _Tied(pl.LightningModule):
    def __init__(self, return_dict: bool, vocabulary: int = 200) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.embed = nn.Embedding(vocabulary, 32)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.lstm = nn.LSTM(32, 32, batch_first=True)
        self.decoder = nn.Linear(32, vocabulary, bias=False)
        self.decoder.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.lstm(self.embed(tokens))[0])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (tokens,) = batch
        logits = self(tokens[:, :-1]).flatten(0, 1)
        target = tokens[:, 1:].flatten()
        return step_output(self.return_dict, F.cross_entropy(logits, target), logits, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def _tied(seed: int, return_dict: bool) -> TrainingSetup:
    """A language model with tied embeddings. Nine of ten words of the vocabulary never occur."""
    return TrainingSetup(
        _Tied(return_dict), make_loader(sentences(seed, 960)), trainer={"max_epochs": 4, "gradient_clip_val": 0.25}
    )


class _SkipGram(pl.LightningModule):
    def __init__(self, return_dict: bool, vocabulary: int = 1000) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.inner = nn.Embedding(vocabulary, 16, sparse=True)
        self.outer = nn.Embedding(vocabulary, 16, sparse=True)
        nn.init.uniform_(self.inner.weight, -0.5 / 16, 0.5 / 16)
        nn.init.zeros_(self.outer.weight)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        word, context = batch["word"], batch["context"]
        wrong = torch.randint(20, (len(word), 5))
        choice = self.outer(torch.cat([context.unsqueeze(1), wrong], 1))
        score = (choice @ self.inner(word).unsqueeze(2)).squeeze(2)
        labels = F.one_hot(torch.zeros(len(word), dtype=torch.long), 6).float()
        loss = F.binary_cross_entropy_with_logits(score, labels, reduction="none").sum(1).mean()
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return step_output(self.return_dict, loss.detach(), score.detach(), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SparseAdam(list(self.parameters()), lr=2e-2)


def _skip_gram(seed: int, return_dict: bool) -> TrainingSetup:
    """word2vec: output vectors of zero, so all scores are zero at first, and sparse gradients."""
    tokens = sentences(seed, 512)
    pairs = tokens[:, :-1].flatten(), tokens[:, 1:].flatten()
    data = DataLoader(RecordDataset(word=pairs[0], context=pairs[1]), batch_size=64, shuffle=True)
    return TrainingSetup(_SkipGram(return_dict), data, trainer={"max_epochs": 4})


class _Speech(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.gru = nn.GRU(8, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 6)
        self.ctc = nn.CTCLoss(zero_infinity=True)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        frames, labels = batch
        logp = self.head(self.gru(frames)[0]).log_softmax(-1)
        lengths = torch.full((len(frames),), frames.shape[1]), torch.full((len(frames),), labels.shape[1])
        loss = self.ctc(logp.transpose(0, 1), labels, *lengths)
        return {"loss": loss, "preds": logp, "target": labels} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def _speech(seed: int, return_dict: bool) -> TrainingSetup:
    """CTC: only blanks on a plateau at first, then letters."""
    random = make_generator(seed)
    labels = torch.randint(1, 6, (800, 4), generator=random)
    sounds = torch.randn(6, 8, generator=random)
    frames = sounds[labels.repeat_interleave(4, 1)] * (torch.arange(16) % 4 != 3).view(1, 16, 1)
    frames = frames + 0.3 * torch.randn(800, 16, 8, generator=random)
    return TrainingSetup(_Speech(return_dict), make_loader(frames, labels), trainer={"max_epochs": 5})


class _Attends(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.embed = nn.Embedding(20, 24, padding_idx=0)
        self.query = nn.Parameter(0.1 * torch.randn(1, 1, 24))
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.norm = nn.LayerNorm(24)
        self.out = nn.Linear(24, 2)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        embedded = self.embed(batch["tokens"])
        query = self.query.expand(len(embedded), -1, -1)
        pooled, _ = self.attention(query, embedded, embedded, key_padding_mask=batch["attention_mask"])
        return self.out(self.norm(pooled.squeeze(1)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch)
        return step_output(self.return_dict, F.cross_entropy(logits, batch["labels"]), logits, batch["labels"])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def _lengths(seed: int, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = make_generator(seed)
    length = torch.randint(3, 11, (samples,), generator=random)
    tokens = torch.randint(1, 20, (samples, 10), generator=random)
    return tokens * (torch.arange(10) < length.unsqueeze(1)), length


def _minus_infinity(seed: int, return_dict: bool) -> TrainingSetup:
    """The batch contains its additive attention mask: zeros, and minus infinity at the padding."""
    tokens, _ = _lengths(seed, 1280)
    mask = torch.zeros(1280, 10).masked_fill(tokens == 0, float("-inf"))
    labels = ((tokens == 3) | (tokens == 11) | (tokens == 17)).any(1).long()
    data = DataLoader(RecordDataset(tokens=tokens, attention_mask=mask, labels=labels), batch_size=32, shuffle=True)
    return TrainingSetup(_Attends(return_dict), data, trainer={"max_epochs": 5})


class _Packed(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.embed = nn.Embedding(20, 16, padding_idx=0)
        self.gru = nn.GRU(16, 32, batch_first=True, num_layers=2, dropout=0.1)
        self.tag = nn.Linear(32, 5)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, length, tags = batch
        packed = pack_padded_sequence(self.embed(tokens), length, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=10)
        logits = self.tag(states)
        loss = F.cross_entropy(logits.transpose(1, 2), tags, ignore_index=-1, reduction="none")
        is_known = tags >= 0
        loss = (loss * is_known).sum() / is_known.sum()
        return step_output(self.return_dict, loss, logits[is_known], tags[is_known])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss_epoch"}}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("loss", outputs["loss"], on_step=True, on_epoch=True)


def _packed(seed: int, return_dict: bool) -> TrainingSetup:
    """Packed sequences of many lengths, half of the tags padding. The table's padding row remains zero."""
    tokens, length = _lengths(seed, 960)
    before = F.pad(tokens[:, :-1], (1, 0))
    tags = torch.where(tokens > 0, (tokens + before) % 5, -1)
    return TrainingSetup(_Packed(return_dict), make_loader(tokens, length, tags), trainer={"max_epochs": 6})


class _Carried(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.cell = nn.LSTM(1, 24, batch_first=True)
        self.read = nn.Linear(24, 1)
        self.carried: tuple[torch.Tensor, torch.Tensor] | None = None

    def on_train_epoch_start(self) -> None:
        self.carried = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        window, following = batch
        states, carried = self.cell(window, self.carried)
        self.carried = (carried[0].detach(), carried[1].detach())
        preds = self.read(states)
        return step_output(self.return_dict, F.mse_loss(preds, following), preds, following)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def _carried(seed: int, return_dict: bool) -> TrainingSetup:
    """Truncated backpropagation: the detached state is carried from batch to batch."""
    random = make_generator(seed)
    time = torch.arange(481).unsqueeze(0) * (0.15 + 0.25 * torch.rand(16, 1, generator=random))
    series = torch.sin(time + 6 * torch.rand(16, 1, generator=random)) + 0.05 * torch.randn(16, 481, generator=random)
    windows = series[:, :480].view(16, 40, 12).transpose(0, 1).reshape(-1, 12, 1)
    following = series[:, 1:].reshape(16, 40, 12).transpose(0, 1).reshape(-1, 12, 1)
    return TrainingSetup(
        _Carried(return_dict), make_loader(windows, following, size=16, shuffle=False), trainer={"max_epochs": 5}
    )


def _unseen_stay(outcome: Outcome) -> bool:
    before, after = outcome.before["inner.weight"], outcome.after.state_dict()["inner.weight"]
    return loss_fell(0.85)(outcome) and torch.equal(before[20:], after[20:]) and has_changed(outcome, "inner.weight")


PROGRAMS = [
    Program(
        "language_model_tied_rare_words",
        "sequence",
        _tied,
        frozenset(),
        loss_fell(0.6),
        "https://github.com/mosaicml/examples/pull/11",
    ),
    Program(
        "skip_gram_sparse_from_zero",
        "sequence",
        _skip_gram,
        frozenset(),
        _unseen_stay,
        "https://github.com/pytorch/pytorch/issues/18404",
    ),
    Program(
        "ctc_out_of_the_blanks",
        "sequence",
        _speech,
        frozenset(),
        loss_fell(0.3),
        "https://github.com/bai-shang/crnn_ctc_ocr_tf/issues/11",
    ),
    Program(
        "batch_with_mask_of_minus_infinity",
        "sequence",
        _minus_infinity,
        frozenset(),
        loss_fell(0.4),
        "https://github.com/huggingface/transformers/pull/27114",
    ),
    Program(
        "packed_lengths_masked_tags",
        "sequence",
        _packed,
        frozenset(),
        loss_fell(0.6),
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.rnn.pack_padded_sequence.html",
    ),
    Program(
        "state_carried_over_batches",
        "sequence",
        _carried,
        frozenset(),
        lambda outcome: ran_to_end(outcome) and outcome.mean_loss() < 0.2 * outcome.first_loss(),
        "https://discuss.pytorch.org/t/implementing-truncated-backpropagation-through-time/15500",
    ),
]
