"""Healthy multi-task learning, distillation, semi-supervised and continual learning, and fine-tuning."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.systems_support import accuracy, digits, evaluate, loader, mlp, pretrain, regimes, rng, split
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional


class UncertaintyWeighting(pl.LightningModule):
    """Regression and classification with a learned variance for the weight of each task."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.trunk = mlp(16, 64, 64, activation=nn.GELU)
        self.amount, self.category = nn.Linear(64, 1), nn.Linear(64, 4)
        self.log_variances = nn.Parameter(torch.zeros(2))
        self.return_dict = return_dict

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = functional.gelu(self.trunk(inputs))
        return self.amount(hidden).squeeze(1), self.category(hidden)

    def loss(self, preds: tuple[torch.Tensor, torch.Tensor], target: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        losses = torch.stack(
            [functional.mse_loss(preds[0], target[0]) / 2, functional.cross_entropy(preds[1], target[1])]
        )
        return (losses * (-self.log_variances).exp() + self.log_variances / 2).sum()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        preds, target = self(batch[0]), (batch[1], batch[2])
        loss = self.loss(preds, target)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(self(batch[0]), (batch[1], batch[2])))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(
            [
                {"params": [p for name, p in self.named_parameters() if name != "log_variances"]},
                {"params": [self.log_variances], "lr": 2e-2},
            ],
            lr=3e-3,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [3e-3, 2e-2], total_steps=312)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def build_uncertainty_weighting(seed: int, return_dict: bool) -> TrainingSetup:
    """The learned variances make the loss negative."""
    generator = rng(seed)
    inputs = torch.randn(6000, 16, generator=generator)
    amount = 0.3 * inputs[:, :4].sum(1) + 0.1 * inputs[:, 4] * inputs[:, 5]
    category = (inputs[:, :2] > 0).long() @ torch.tensor([1, 2])
    train, validation = split([inputs, amount, category], seed, 1000)
    return TrainingSetup(
        UncertaintyWeighting(return_dict), loader(*train), loader(*validation, batch_size=500), {"max_epochs": 4}
    )


def task_errors(outcome: Outcome) -> float:
    """Returns the larger one of the relative error of the regression and the error rate of the classification."""

    def metric(module: UncertaintyWeighting, *batch: torch.Tensor) -> torch.Tensor:
        amount, category = module(batch[0])
        errors = functional.mse_loss(amount, batch[1]) / batch[1].var(), (category.argmax(1) != batch[2]).float().mean()
        return torch.stack(errors).max()

    return evaluate(outcome, metric)


class SoftDistillation(Supervised):
    """Student of a frozen teacher with batch normalization. The teacher stays in evaluation mode."""

    def __init__(self, teacher: nn.Module, *args: Any) -> None:
        super().__init__(*args)
        self.teacher = teacher

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, target = batch
        self.teacher.eval()
        with torch.no_grad():
            soft = functional.softmax(self.teacher(images) / 4, 1)
        preds = self(images)
        distance = functional.kl_div(functional.log_softmax(preds / 4, 1), soft, reduction="batchmean")
        loss = 0.9 * 16 * distance + 0.1 * self.loss(preds, target)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.network.parameters())


def build_soft_distillation(seed: int, return_dict: bool) -> TrainingSetup:
    """A linear student learns from a frozen teacher at a high temperature and with some wrong labels."""
    train, validation = split(list(digits()), seed, 300)
    teacher = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    pretrain(teacher, *train, steps=60)
    is_wrong = torch.rand(len(train[1]), generator=rng(seed)) < 0.2
    train[1] = torch.where(is_wrong, torch.randint(10, is_wrong.shape, generator=rng(seed)), train[1])
    module = SoftDistillation(
        teacher,
        nn.Linear(64, 10),
        functional.cross_entropy,
        return_dict,
        lambda parameters: torch.optim.Adam(parameters, 5e-3),
    )
    return TrainingSetup(module, loader(*train, batch_size=32), loader(*validation, batch_size=300), {"max_epochs": 5})


class MeanTeacher(pl.LightningModule):
    """Few labels, many images without label, and a teacher that is the moving average of the student."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.3), nn.Linear(96, 10))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.return_dict = return_dict

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.teacher(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        labeled, target, unlabeled = batch
        preds = self.student(labeled)
        noisy, clean = (unlabeled + 0.1 * torch.randn_like(unlabeled) for _ in range(2))
        with torch.no_grad():
            belief = self.teacher(clean).softmax(1)
        consistency = functional.mse_loss(self.student(noisy).softmax(1), belief)
        loss = functional.cross_entropy(preds, target) + 20 * min(1.0, self.global_step / 120) * consistency
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for average, weight in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            average.lerp_(weight, 0.05)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.student.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def build_mean_teacher(seed: int, return_dict: bool) -> TrainingSetup:
    """The same 100 labeled images come again and again, and the teacher is in no optimizer."""
    (images, labels), validation = split(list(digits()), seed, 300)
    repeated = torch.arange(len(images)) % 100
    train = images[repeated], labels[repeated], images
    return TrainingSetup(
        MeanTeacher(return_dict), loader(*train, batch_size=32), loader(*validation, batch_size=300), {"max_epochs": 5}
    )


class ElasticConsolidation(Supervised):
    """Two tasks one after the other. A penalty keeps the weights that the first task needs."""

    def __init__(self, permutation: torch.Tensor, *args: Any) -> None:
        super().__init__(*args)
        self.permutation = permutation
        self.anchors: list[torch.Tensor] = []
        self.importance = [torch.zeros_like(p) for p in self.parameters()]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, target = batch
        preds = self(images[:, self.permutation] if self.current_epoch >= 3 else images)
        loss = self.loss(preds, target)
        for weight, anchor, importance in zip(self.parameters(), self.anchors, self.importance, strict=False):
            loss = loss + 20 * (importance * (weight - anchor).pow(2)).sum()
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, target = batch
        self.log(
            "val_loss", self.loss(self(images[:, self.permutation] if self.current_epoch >= 3 else images), target)
        )

    def on_train_epoch_end(self) -> None:
        if self.current_epoch != 2:
            return
        batches: Any = self.trainer.train_dataloader
        for images, target in batches:
            gradients = torch.autograd.grad(self.loss(self(images), target), list(self.parameters()))
            for importance, gradient in zip(self.importance, gradients, strict=True):
                importance.add_(gradient.pow(2), alpha=len(images) / len(batches))
        self.anchors = [p.detach().clone() for p in self.parameters()]


def build_consolidation(seed: int, return_dict: bool) -> TrainingSetup:
    """The loss jumps when the second task begins after three epochs."""
    train, validation = split(list(digits()), seed, 300)
    permutation = torch.arange(64)
    permutation[:32] = torch.randperm(32, generator=rng(seed))
    module = ElasticConsolidation(
        permutation, mlp(64, 128, 10), functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3)
    )
    return TrainingSetup(module, loader(*train, batch_size=32), loader(*validation, batch_size=300), {"max_epochs": 6})


def worse_task_accuracy(outcome: Outcome) -> float:
    """Returns the lower one of the accuracies of both tasks."""

    def metric(module: ElasticConsolidation, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        hits = [(module(x).argmax(1) == target).float().mean() for x in (images, images[:, module.permutation])]
        return torch.stack(hits).min()

    return evaluate(outcome, metric)


def build_bias_tuning(seed: int, return_dict: bool) -> TrainingSetup:
    """Only the biases and a new head train, and all other weights are frozen."""
    images, labels = digits()
    train, validation = split([images, labels], seed, 300)
    network = mlp(64, 96, 64, 10)
    pretrain(network, *train, steps=80)
    network[4] = nn.Linear(64, 2)
    for layer in (network[0], network[2]):
        layer.bias.requires_grad_(True)
    shifted = [[0.5 * x + 0.4, (y % 2 == 0).long()] for x, y in (train, validation)]
    module = Supervised(
        network,
        functional.cross_entropy,
        return_dict,
        lambda parameters: torch.optim.SGD([p for p in parameters if p.requires_grad], lr=3e-3, momentum=0.9),
    )
    return TrainingSetup(
        module, loader(*shifted[0], batch_size=32), loader(*shifted[1], batch_size=300), {"max_epochs": 4}
    )


class BalancedExperts(pl.LightningModule):
    """Mixture with two of six experts for each sample and a penalty for an unequal load."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(12, 6, bias=False), nn.ModuleList(nn.Linear(12, 1) for _ in range(6))
        nn.init.normal_(self.router.weight, std=0.02)
        self.return_dict = return_dict

    def route(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise = 1 + 0.1 * torch.randn_like(inputs) if self.training else 1.0
        scores = self.router(inputs * noise)
        best, chosen = scores.topk(2, dim=1)
        gate = torch.zeros_like(scores).scatter(1, chosen, best.softmax(1))
        load = (gate > 0).float().mean(0)
        penalty = 6 * (load * scores.softmax(1).mean(0)).sum() + 1e-3 * scores.logsumexp(1).pow(2).mean()
        outputs = torch.cat([expert(inputs) for expert in self.experts], 1)
        return (gate * outputs).sum(1), penalty

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.route(inputs)[0]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        preds, penalty = self.route(inputs)
        loss = functional.mse_loss(preds, target) + 0.01 * penalty
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-2)


def build_balanced_experts(seed: int, return_dict: bool) -> TrainingSetup:
    """Each expert receives the gradient of only some samples, and the router starts near zero."""
    train, validation = split(list(regimes(seed)), seed, 1000)
    return TrainingSetup(
        BalancedExperts(return_dict), loader(*train), loader(*validation, batch_size=500), {"max_epochs": 4}
    )


PROGRAMS = [
    Program(
        "multi_task_learning_with_learned_variances_and_negative_loss",
        "dense",
        build_uncertainty_weighting,
        frozenset(),
        lambda outcome: task_errors(outcome) < 0.2,
        "https://github.com/SimplexLab/TorchJD/pull/721 (uncertainty weighting, Kendall et al. 2018)",
    ),
    Program(
        "linear_student_of_frozen_teacher_with_wrong_labels",
        "dense",
        build_soft_distillation,
        frozenset(),
        lambda outcome: accuracy(outcome) > 0.8,
        "Hinton et al. (2015), Distilling the knowledge in a neural network (cited from memory)",
    ),
    Program(
        "mean_teacher_with_few_labels",
        "dense",
        build_mean_teacher,
        frozenset(),
        lambda outcome: accuracy(outcome) > 0.75,
        "Tarvainen and Valpola (2017), Mean teachers (cited from memory)",
    ),
    Program(
        "elastic_weight_consolidation_of_two_tasks_in_sequence",
        "dense",
        build_consolidation,
        frozenset(),
        lambda outcome: worse_task_accuracy(outcome) > 0.6,
        "Kirkpatrick et al. (2017), Overcoming catastrophic forgetting (cited from memory)",
    ),
    Program(
        "bias_only_fine_tuning_of_frozen_network",
        "dense",
        build_bias_tuning,
        frozenset(),
        lambda outcome: accuracy(outcome) > 0.8,
        "Ben Zaken et al. (2022), BitFit (cited from memory)",
    ),
    Program(
        "mixture_of_two_in_six_experts_with_load_penalty",
        "regression",
        build_balanced_experts,
        frozenset(),
        lambda outcome: outcome.validation[-1] < 0.4,
        "Fedus et al. (2022), Switch transformers, and Shazeer et al. (2017) (cited from memory)",
    ),
]
