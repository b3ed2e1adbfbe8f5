"""Faulty everyday programs: layers, optimizers, schedules and training loops."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from diagnosis_bank.fifth.everyday_support import (
    DigitNet,
    TextClassifier,
    accuracy,
    color_images,
    completed,
    digit_images,
    faulty_program,
    loaders,
    pretrained_digit_net,
    reviews,
)
from diagnosis_bank.program import Outcome, Supervised, TrainingSetup
from sklearn import datasets
from torch import nn

from stormproof.problem import Problem


def is_inaccurate(outcome: Outcome) -> bool:
    """True if less than 60 % of the validation samples are right."""
    return completed(outcome) and accuracy(outcome) < 0.6


def lost_accuracy(outcome: Outcome) -> bool:
    """True if less than 88 % of the validation samples are right. Careful fine-tuning reaches 95 %."""
    return completed(outcome) and accuracy(outcome) < 0.88


class ReplacedHead(Supervised):
    """Fine-tunes the head of a pretrained network, whose other layers are frozen."""

    network: DigitNet

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__(pretrained_digit_net(), nn.CrossEntropyLoss(), return_dict, cast("Any", None))
        self.network.features.requires_grad_(False)
        self.adam = torch.optim.Adam(self.network.fc.parameters(), lr=5e-3)
        self.network.fc = nn.Linear(self.network.fc.in_features, 5)  # (bug here) Adam has the old layer
        if is_fixed:
            self.adam = torch.optim.Adam(self.network.fc.parameters(), lr=5e-3)

    def configure_optimizers(self) -> Any:
        return self.adam


def head_replaced_after_optimizer(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The head is replaced for the new classes after the optimizer was created with the old head."""
    images, labels = digit_images(5, 9)
    module = ReplacedHead(return_dict, is_fixed)
    return TrainingSetup(module, *loaders(seed, images, labels, batch_size=16))


def fast_fine_tuning(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """A pretrained network is fine-tuned with a learning rate of 0.1 as in training from scratch."""
    images, labels = digit_images(5, 9)
    network = pretrained_digit_net()
    network.fc = nn.Linear(network.fc.in_features, 5)
    learning_rate = 0.01 if is_fixed else 0.1  # (bug here)
    module = Supervised(
        network,
        nn.CrossEntropyLoss(),
        return_dict,
        lambda weights: torch.optim.SGD(weights, lr=learning_rate, momentum=0.9),
    )
    return TrainingSetup(module, *loaders(seed, images, labels, batch_size=16))


def warmup_in_epochs(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The warmup is planned in steps, but Lightning calls the scheduler once per epoch by default."""
    tokens, labels = reviews(seed, count=1200)

    def optimizer(weights: Any) -> Any:
        adam = torch.optim.AdamW(weights, lr=5e-3)
        warmup, total = 80, 240
        schedule = torch.optim.lr_scheduler.LambdaLR(
            adam, lambda step: min(step / warmup, max(0.0, (total - step) / (total - warmup)))
        )
        if is_fixed:
            return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
        return {"optimizer": adam, "lr_scheduler": schedule}  # (bug here) the interval is "epoch"

    module = Supervised(TextClassifier(), nn.CrossEntropyLoss(), return_dict, optimizer)
    return TrainingSetup(module, *loaders(seed, tokens, labels, batch_size=16), {"max_epochs": 4})


def is_near_chance(outcome: Outcome) -> bool:
    """True if the binary classifier is right for less than 80 % of the validation samples."""
    return completed(outcome) and accuracy(outcome) < 0.8


class ScaledLoss(Supervised):
    """Mixed precision with an own GradScaler and gradient clipping."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__(
            DigitNet(10), nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adadelta(weights, lr=1.0)
        )
        self.automatic_optimization = False
        self.scaler = torch.amp.GradScaler("cpu")
        self.is_fixed = is_fixed

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            preds = self(images)
            loss = self.loss(preds, labels)
        self.manual_backward(self.scaler.scale(loss))
        if self.is_fixed:
            self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(self.parameters(), 12)  # (bug here) clips the scaled gradients
        self.scaler.step(optimizer)
        self.scaler.update()
        return {"loss": loss, "preds": preds, "target": labels} if self.return_dict else loss


def clipping_before_unscaling(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The gradients are clipped while they are multiplied by the loss scale, which leaves almost nothing of them."""
    images, labels = digit_images()
    return TrainingSetup(ScaledLoss(return_dict, is_fixed), *loaders(seed, images, labels), {"max_epochs": 4})


class AccumulatedText(Supervised):
    """Text classifier with gradient accumulation over four batches in an own loop."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__(
            TextClassifier(),
            nn.CrossEntropyLoss(),
            return_dict,
            lambda weights: torch.optim.SGD(weights, lr=0.3, momentum=0.9),
        )
        self.automatic_optimization = False
        self.is_fixed = is_fixed

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, labels = batch
        optimizer: Any = self.optimizers()
        preds = self(tokens)
        loss = self.loss(preds, labels)
        self.manual_backward(loss / 4)
        if (batch_idx + 1) % 4 == 0:
            optimizer.step()
            if self.is_fixed:
                optimizer.zero_grad()  # (bug here) this line is missing
        return {"loss": loss, "preds": preds, "target": labels} if self.return_dict else loss


def accumulation_without_zero_grad(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The gradients of an own accumulation loop are never cleared."""
    tokens, labels = reviews(seed)
    module = AccumulatedText(return_dict, is_fixed)
    return TrainingSetup(module, *loaders(seed, tokens, labels, batch_size=16))


class ClearedTooEarly(Supervised):
    """Regression in an own loop."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        network = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
        super().__init__(network, nn.MSELoss(), return_dict, lambda weights: torch.optim.SGD(weights, lr=0.03))
        self.automatic_optimization = False
        self.is_fixed = is_fixed

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        optimizer: Any = self.optimizers()
        preds = self(inputs)
        loss = self.loss(preds, target)
        if self.is_fixed:
            optimizer.zero_grad()
        self.manual_backward(loss)
        if not self.is_fixed:
            optimizer.zero_grad()  # (bug here) clears the gradients that the step needs
        optimizer.step()
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss


def zero_grad_before_step(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The gradients are cleared between the backward pass and the step of the optimizer."""
    features, disease = datasets.load_diabetes(return_X_y=True)
    inputs = torch.tensor(features, dtype=torch.float32) * 21
    target = torch.tensor(disease, dtype=torch.float32)[:, None]
    target = (target - target.mean()) / target.std()
    module = ClearedTooEarly(return_dict, is_fixed)
    return TrainingSetup(module, *loaders(seed, inputs, target, batch_size=8), {"max_epochs": 4})


def has_a_high_error(outcome: Outcome) -> bool:
    """True if the squared error is above 0.75. The variance is 1, and a trained network reaches about 0.5."""
    return completed(outcome) and outcome.validation[-1] > 0.75


def tensorflow_batch_norm_momentum(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """A momentum of 0.001, ported from a decay rate, keeps the statistics for evaluation near their start."""
    images, labels = color_images(seed)
    momentum = 0.1 if is_fixed else 0.001  # (bug here)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16, momentum=momentum),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1, bias=False),
        nn.BatchNorm2d(24, momentum=momentum),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 4),
    )
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=5e-3))
    return TrainingSetup(module, *loaders(seed, images, labels))


def evaluates_worse_than_it_trains(outcome: Outcome) -> bool:
    """True if the network is much worse in evaluation mode than with the statistics of the batches."""
    module = copy.deepcopy(outcome.after).train()
    losses = [
        float(nn.functional.cross_entropy(module(images), labels)) for images, labels in outcome.fit.validation or ()
    ]
    return completed(outcome) and outcome.validation[-1] > sum(losses) / len(losses) + 0.3


class TanhLayer(nn.Module):
    """Own fully connected layer with tanh."""

    def __init__(self, inputs: int, outputs: int, is_fixed: bool) -> None:
        super().__init__()
        scale = inputs**-0.5 if is_fixed else 1.0  # (bug here) standard normal weights
        self.weight = nn.Parameter(scale * torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.tanh(inputs @ self.weight + self.bias)


def standard_normal_tanh_layers(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The weights of own tanh layers are standard normal although the layers are wide."""
    images, labels = digit_images()
    network = nn.Sequential(
        nn.Flatten(), *(TanhLayer(64 if i == 0 else 128, 128, is_fixed) for i in range(4)), nn.Linear(128, 10)
    )
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9)
    )
    return TrainingSetup(module, *loaders(seed, images, labels), {"max_epochs": 4})


PROGRAMS = [
    faulty_program(
        "head_replaced_after_the_optimizer_was_created",
        "convolutional",
        head_replaced_after_optimizer,
        {Problem.NOT_IN_OPTIMIZER},
        is_inaccurate,
        "https://github.com/pytorch/pytorch/issues/54765 and https://github.com/microsoft/nni/issues/4521",
    ),
    faulty_program(
        "fine_tuning_with_the_learning_rate_of_training_from_scratch",
        "convolutional",
        fast_fine_tuning,
        {Problem.LEARNING_RATE_TOO_HIGH},
        lost_accuracy,
        "https://www.mikulskibartosz.name/the-optimal-learning-rate-during-fine-tuning-of-an-artificial-neural-network/",
    ),
    faulty_program(
        "warmup_planned_in_steps_and_scheduled_per_epoch",
        "sequence",
        warmup_in_epochs,
        {Problem.LEARNING_RATE_ZERO, Problem.LEARNING_RATE_TOO_LOW},
        is_near_chance,
        "https://github.com/ace-step/ACE-Step/pull/198",
    ),
    faulty_program(
        "gradients_clipped_before_unscaling_in_mixed_precision",
        "convolutional",
        clipping_before_unscaling,
        {Problem.LEARNING_RATE_TOO_LOW},
        is_inaccurate,
        "https://github.com/pytorch/pytorch/issues/40907 and https://github.com/Lightning-AI/pytorch-lightning/issues/9599",
    ),
    faulty_program(
        "gradient_accumulation_loop_without_zero_grad",
        "sequence",
        accumulation_without_zero_grad,
        {Problem.GRADIENTS_NOT_CLEARED},
        is_near_chance,
        "https://github.com/facebookresearch/nwm/issues/16 and https://github.com/tenstorrent/tt-blacksmith/pull/711",
    ),
    faulty_program(
        "zero_grad_between_backward_and_step",
        "regression",
        zero_grad_before_step,
        {Problem.WEIGHTS_UNCHANGED},
        has_a_high_error,
        "https://github.com/IDEA-Research/DN-DETR/issues/18 and http://xiaobeizi.cn/x/6iuujguWdu (copy of a question)",
    ),
    faulty_program(
        "batch_norm_momentum_ported_from_a_decay_rate",
        "convolutional",
        tensorflow_batch_norm_momentum,
        {Problem.BATCH_NORM_STATISTICS_LAG},
        evaluates_worse_than_it_trains,
        "https://github.com/Cadene/pretrained-models.pytorch/issues/5 (momentum 0) and "
        "https://github.com/keras-team/keras/issues/6839 (decay rate 0.9997)",
    ),
    faulty_program(
        "standard_normal_weights_of_wide_tanh_layers",
        "dense",
        standard_normal_tanh_layers,
        {Problem.SATURATED_UNITS},
        is_inaccurate,
        "https://breno.bearblog.dev/the-weights-in-a-study-on-fixing-the-saturated-function and "
        "https://discuss.pytorch.org/t/gradient-seems-to-small-when-training-parameters/153791",
    ),
]
