"""Healthy everyday programs: frozen layers, own loops, several optimizers and schedules."""

from __future__ import annotations

from typing import Any, cast

import torch
from diagnosis_bank.fifth.everyday_support import (
    DigitNet,
    TextClassifier,
    accuracy,
    completed,
    digit_images,
    generator,
    healthy_program,
    loaders,
    on_validation,
    pretrained_digit_net,
    reviews,
)
from diagnosis_bank.program import Outcome, Supervised, TrainingSetup
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def is_accurate(outcome: Outcome) -> bool:
    """True if more than 80 % of the validation samples are right."""
    return completed(outcome) and accuracy(outcome) > 0.8


class NormalizedDigitNet(DigitNet):
    """DigitNet with batch norm."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.features.insert(1, nn.BatchNorm2d(16))
        self.features.insert(5, nn.BatchNorm2d(32))


class FrozenBackbone(Supervised):
    """Trains a new head on a frozen backbone, whose batch norm stays in evaluation mode."""

    network: DigitNet

    def __init__(self, return_dict: bool) -> None:
        super().__init__(
            pretrained_digit_net(NormalizedDigitNet(5)), nn.CrossEntropyLoss(), return_dict, cast("Any", None)
        )
        self.network.features.requires_grad_(False)
        self.network.fc = nn.Linear(self.network.fc.in_features, 5)

    def on_train_epoch_start(self) -> None:
        self.network.features.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch.no_grad():
            features = self.network.features(images)
        return self.network.fc(features)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.network.fc.parameters(), lr=1e-2)


def frozen_backbone(seed: int, return_dict: bool) -> TrainingSetup:
    """Transfer learning: only the new head is trained, and only the head is in the optimizer."""
    images, labels = digit_images(5, 9)
    return TrainingSetup(FrozenBackbone(return_dict), *loaders(seed, images, labels, batch_size=16))


class GradualUnfreezing(Supervised):
    """Loads the matching weights of a checkpoint and trains the backbone from the second epoch on."""

    network: DigitNet

    def __init__(self, return_dict: bool) -> None:
        super().__init__(DigitNet(10), nn.CrossEntropyLoss(), return_dict, cast("Any", None))
        checkpoint = pretrained_digit_net().state_dict()
        own = self.network.state_dict()
        matching = {name: weight for name, weight in checkpoint.items() if weight.shape == own[name].shape}
        self.network.load_state_dict(matching, strict=False)
        self.network.features.requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.network.features.requires_grad_(True)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(
            [
                {"params": self.network.features[0].parameters(), "lr": 3e-5},
                {"params": self.network.features[3].parameters(), "lr": 3e-4},
                {"params": self.network.fc.parameters(), "lr": 1e-2},
            ]
        )


def gradual_unfreezing(seed: int, return_dict: bool) -> TrainingSetup:
    """Fine-tuning with a larger head, a backbone that is frozen at first, and small learning rates for early layers."""
    return TrainingSetup(GradualUnfreezing(return_dict), *loaders(seed, *digit_images()))


class TiedLanguageModel(nn.Module):
    """Next-word model whose output layer is the embedding, with logits (N, C, T)."""

    def __init__(self, words: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.out = nn.Linear(width, words, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(self.embed(tokens))[0]).transpose(1, 2)


def tied_language_model(seed: int, return_dict: bool) -> TrainingSetup:
    """A language model with tied weights learns a noisy cyclic grammar. Its loss cannot fall below the noise."""
    rng = generator(seed)
    steps = torch.randint(1, 3, (900, 13), generator=rng)
    is_noise = torch.rand(900, 13, generator=rng) < 0.1
    steps = torch.where(is_noise, torch.randint(40, (900, 13), generator=rng), steps)
    words = (torch.randint(40, (900, 1), generator=rng) + steps.cumsum(1)) % 40
    module = Supervised(
        TiedLanguageModel(40), nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=1e-2)
    )
    return TrainingSetup(
        module, *loaders(seed, words[:, :-1], words[:, 1:], batch_size=24), {"gradient_clip_val": 0.25}
    )


def knows_the_grammar(outcome: Outcome) -> bool:
    """True if the perplexity is below 8. It is 40 for a uniform prediction."""
    return completed(outcome) and on_validation(outcome, nn.functional.cross_entropy) < 2.08


class StatefulForecaster(Supervised):
    """LSTM over long series with truncated backpropagation, which keeps its state from batch to batch."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(nn.LSTM(1, 24, batch_first=True), nn.MSELoss(), return_dict, cast("Any", None))
        self.out = nn.Linear(24, 1)
        self.automatic_optimization = False
        self.state: tuple[torch.Tensor, torch.Tensor] | None = None

    def on_train_epoch_start(self) -> None:
        self.state = None

    def forward(self, series: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.out(self.network(series)[0])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        series, target = batch
        optimizer: Any = self.optimizers()
        states, (hidden, cell) = self.network(series, self.state)
        self.state = (hidden.detach(), cell.detach())
        preds = self.out(states)
        loss = self.loss(preds, target)
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=5e-3)


def stateful_forecast(seed: int, return_dict: bool) -> TrainingSetup:
    """Consecutive chunks of 24 long series in order, without shuffling, with the detached state of the last chunk."""
    rng = generator(seed)
    phase = 6.28 * torch.rand(32, 1, generator=rng)
    wave = torch.sin((0.15 + 0.2 * torch.rand(32, 1, generator=rng)) * torch.arange(641) + phase)
    series = (wave + 0.1 * torch.randn(32, 641, generator=rng))[..., None]
    inputs, target = (part.unflatten(1, (40, 16)).transpose(0, 1) for part in (series[:, :-1], series[:, 1:]))
    train = TensorDataset(inputs[:, :24].flatten(0, 1), target[:, :24].flatten(0, 1))
    held_out = TensorDataset(inputs[:, 24:].flatten(0, 1), target[:, 24:].flatten(0, 1))
    return TrainingSetup(
        StatefulForecaster(return_dict), DataLoader(train, 24), DataLoader(held_out, 80), {"max_epochs": 5}
    )


def forecasts_better_than_the_last_value(outcome: Outcome) -> bool:
    """True if the squared error is at most a fifth of the variance 0.5 of the series."""
    return completed(outcome) and on_validation(outcome, nn.functional.mse_loss) < 0.1


class AccumulatedMixedPrecision(Supervised):
    """Own loop with accumulation over four small batches, bfloat16 and clipping of unscaled gradients."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(
            DigitNet(10), nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=5e-3)
        )
        self.automatic_optimization = False
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        with torch.autocast("cpu", dtype=torch.bfloat16):
            preds = self(images)
            loss = self.loss(preds, labels)
        self.manual_backward(self.scaler.scale(loss / 4))
        if (batch_idx + 1) % 4 == 0:
            optimizer: Any = self.optimizers()
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            self.scaler.step(optimizer)
            self.scaler.update()
            optimizer.zero_grad()
        return {"loss": loss, "preds": preds, "target": labels} if self.return_dict else loss


def accumulated_mixed_precision(seed: int, return_dict: bool) -> TrainingSetup:
    """Gradients of scaled losses are added over four batches of 8 and cleared after each step."""
    images, labels = digit_images()
    module = AccumulatedMixedPrecision(return_dict)
    return TrainingSetup(module, *loaders(seed, images, labels, batch_size=8), {"max_epochs": 2})


class TwoOptimizers(Supervised):
    """SparseAdam for the embedding, and SGD with momentum for the other layers."""

    network: TextClassifier

    def __init__(self, return_dict: bool) -> None:
        network = TextClassifier()
        network.embed = nn.Embedding(200, 24, sparse=True)
        super().__init__(network, nn.CrossEntropyLoss(), return_dict, cast("Any", None))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, labels = batch
        preds = self(tokens)
        loss = self.loss(preds, labels)
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        return {"loss": loss, "preds": preds, "target": labels} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        others = [*self.network.rnn.parameters(), *self.network.out.parameters()]
        return [
            torch.optim.SparseAdam(list(self.network.embed.parameters()), lr=2e-2),
            torch.optim.SGD(others, lr=0.1, momentum=0.9),
        ]


def sparse_embedding(seed: int, return_dict: bool) -> TrainingSetup:
    """Text classifier with sparse gradients of the embedding, of which most rows are unused in a batch."""
    tokens, labels = reviews(seed, count=1200)
    return TrainingSetup(TwoOptimizers(return_dict), *loaders(seed, tokens, labels, batch_size=16))


class ZeroInitializedBlock(nn.Module):
    """Residual block whose last convolution is zero at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(4, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        last: Any = self.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.layers(images)


def zero_initialized_residuals(seed: int, return_dict: bool) -> TrainingSetup:
    """Residual network with zero-initialized blocks and head, a one-cycle schedule and dropout."""
    images, labels = digit_images()
    head = nn.Linear(256, 10)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        ZeroInitializedBlock(16),
        nn.MaxPool2d(2),
        ZeroInitializedBlock(16),
        nn.Flatten(),
        nn.Dropout(0.3),
        head,
    )

    def optimizer(weights: Any) -> Any:
        adam = torch.optim.AdamW(weights, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=1e-2, total_steps=132, final_div_factor=1e4)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, optimizer)
    return TrainingSetup(module, *loaders(seed, images, labels))


PROGRAMS = [
    healthy_program(
        "new_head_on_a_frozen_backbone_in_evaluation_mode",
        "convolutional",
        frozen_backbone,
        is_accurate,
        "PyTorch tutorial on transfer learning: ConvNet as fixed feature extractor",
    ),
    healthy_program(
        "gradual_unfreezing_of_a_partially_loaded_checkpoint",
        "convolutional",
        gradual_unfreezing,
        is_accurate,
        "Howard and Ruder 2018, ULMFiT (https://arxiv.org/abs/1801.06146)",
    ),
    healthy_program(
        "language_model_with_tied_weights",
        "sequence",
        tied_language_model,
        knows_the_grammar,
        "Press and Wolf 2017 (https://arxiv.org/abs/1608.05859); pytorch/examples word_language_model --tied",
    ),
    healthy_program(
        "stateful_lstm_with_truncated_backpropagation",
        "sequence",
        stateful_forecast,
        forecasts_better_than_the_last_value,
        "Lightning documentation: truncated backpropagation through time with manual optimization",
    ),
    healthy_program(
        "accumulation_loop_with_scaled_loss_and_clipping",
        "convolutional",
        accumulated_mixed_precision,
        is_accurate,
        "PyTorch documentation: automatic mixed precision examples, gradient accumulation",
    ),
    healthy_program(
        "sparse_embedding_gradients_with_two_optimizers",
        "sequence",
        sparse_embedding,
        is_accurate,
        "torch.optim.SparseAdam and nn.Embedding(sparse=True)",
    ),
    healthy_program(
        "zero_initialized_residual_network_with_one_cycle_schedule",
        "convolutional",
        zero_initialized_residuals,
        is_accurate,
        "Goyal et al. 2017 (https://arxiv.org/abs/1706.02677) and Smith 2018 (https://arxiv.org/abs/1803.09820)",
    ),
]
