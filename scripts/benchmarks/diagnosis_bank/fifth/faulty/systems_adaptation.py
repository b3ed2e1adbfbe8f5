"""Faulty fine-tuning, distillation, mixtures of experts and federated averaging."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.systems_support import accuracy, digits, evaluate, loader, mlp, pretrain, regimes, rng, split
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional

from stormproof.problem import Problem


def source_and_target_task(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns inputs and labels of two related tasks: the second has mixed features and other classes."""
    generator = rng(seed)
    centers = 1.2 * torch.randn(24, 20, generator=generator)
    group = torch.randint(24, (7000,), generator=generator)
    inputs = centers[group] + 0.5 * torch.randn(7000, 20, generator=generator)
    relabel = torch.randperm(24, generator=generator)
    mixing = torch.linalg.qr(torch.randn(20, 20, generator=generator))[0]
    return inputs[:3000], group[:3000] % 6, inputs[3000:] @ mixing, relabel[group[3000:]] % 6


class Adapter(nn.Module):
    """Residual bottleneck after a frozen layer."""

    def __init__(self, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, bottleneck), nn.Linear(bottleneck, dim)
        nn.init.normal_(self.up.weight, std=1e-2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.up(functional.relu(self.down(hidden)))


class LoRALinear(nn.Module):
    """Frozen linear layer with a trainable update of low rank."""

    def __init__(self, base: nn.Linear, rank: int, starts_at_zero: bool) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.zeros(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        if not starts_at_zero:  # (bug here: with both factors at zero, both gradients are zero)
            nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.base(inputs) + inputs @ self.lora_a.T @ self.lora_b.T


def pretrained_layers(seed: int) -> tuple[nn.Sequential, list[torch.Tensor], list[torch.Tensor]]:
    """Returns layers trained on the source task, and training and validation data of the target task."""
    inputs, labels, new_inputs, new_labels = source_and_target_task(seed)
    network = mlp(20, 32, 32, 6)
    pretrain(network, inputs, labels)
    train, validation = split([new_inputs, new_labels], seed, 800)
    return network, train, validation


def build_adapters(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The list of parameters for the optimizer is made before the adapters are added to the network."""
    network, train, validation = pretrained_layers(seed)
    network[4] = nn.Linear(32, 6)
    trainable = [p for p in network.parameters() if p.requires_grad]  # (bug here)
    layers: Any = network
    network = nn.Sequential(*layers[:2], Adapter(32, 24), *layers[2:4], Adapter(32, 24), layers[4])
    if is_fixed:
        trainable = [p for p in network.parameters() if p.requires_grad]
    module = Supervised(
        network, functional.cross_entropy, return_dict, lambda parameters: torch.optim.AdamW(trainable, lr=5e-3)
    )
    return TrainingSetup(module, loader(*train), loader(*validation, batch_size=400), {"max_epochs": 4})


def build_lora(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Both factors of the low-rank updates start at zero, so that their gradients are always zero."""
    network, train, validation = pretrained_layers(seed)
    for index in (0, 2):
        network[index] = LoRALinear(cast("nn.Linear", network[index]), 8, starts_at_zero=not is_fixed)
    network[4] = nn.Linear(32, 6)
    module = Supervised(
        network,
        functional.cross_entropy,
        return_dict,
        lambda parameters: torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=5e-3),
    )
    return TrainingSetup(module, loader(*train), loader(*validation, batch_size=400), {"max_epochs": 4})


class Experts(nn.Module):
    """Mixture of experts that sends each sample to the best two experts."""

    def __init__(self, dim: int, n_experts: int, uses_gate: bool) -> None:
        super().__init__()
        self.router = nn.Linear(dim, n_experts)
        self.experts = nn.ModuleList(nn.Linear(dim, 1) for _ in range(n_experts))
        self.uses_gate = uses_gate

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        scores, chosen = self.router(inputs).topk(2, dim=1)
        outputs = torch.cat([expert(inputs) for expert in self.experts], 1).gather(1, chosen)
        if self.uses_gate:
            return (outputs * scores.softmax(1)).sum(1)
        return outputs.mean(1)  # (bug here: only the indices of topk are used)


def build_experts(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The router only selects experts, without a weight for their output, so that it has no gradient."""
    train, validation = split(list(regimes(seed)), seed, 1000)
    module = Supervised(
        Experts(12, 6, is_fixed),
        functional.mse_loss,
        return_dict,
        lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    )
    return TrainingSetup(module, loader(*train), loader(*validation, batch_size=500), {"max_epochs": 5})


def squared_error(outcome: Outcome) -> float:
    """Returns the validation error of a standardized target."""
    return evaluate(outcome, lambda module, inputs, target: functional.mse_loss(module(inputs), target))


class Distillation(pl.LightningModule):
    """Student that learns the softened outputs of a frozen teacher."""

    def __init__(self, teacher: nn.Module, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.teacher, self.student = teacher, mlp(64, 48, 10)
        self.return_dict, self.is_fixed, self.temperature = return_dict, is_fixed, 3.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.student(images) / self.temperature
        return (
            functional.log_softmax(logits, 1) if self.is_fixed else functional.softmax(logits, 1)
        )  # (bug here: kl_div takes logs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.teacher.eval()
        with torch.no_grad():
            target = functional.softmax(self.teacher(batch[0]) / self.temperature, 1)
        preds = self(batch[0])
        loss = functional.kl_div(preds, target, reduction="batchmean") * self.temperature**2
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        target = functional.softmax(self.teacher(batch[0]) / self.temperature, 1)
        self.log("val_loss", functional.kl_div(self(batch[0]), target, reduction="batchmean") * self.temperature**2)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.student.parameters(), lr=3e-3)


def build_distillation(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The student's probabilities, not their logarithms, are passed to the Kullback-Leibler divergence."""
    train, validation = split(list(digits()), seed, 300)
    teacher = mlp(64, 128, 10)
    pretrain(teacher, *train, steps=100)
    module = Distillation(teacher, return_dict, is_fixed)
    return TrainingSetup(module, loader(*train, batch_size=32), loader(*validation, batch_size=300), {"max_epochs": 6})


def divergence_from_teacher(outcome: Outcome) -> float:
    """Returns the divergence of the student from the teacher at temperature 1."""

    def metric(module: Distillation, images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        student = functional.log_softmax(module.student(images), 1)
        return functional.kl_div(
            student, functional.log_softmax(module.teacher(images), 1), reduction="batchmean", log_target=True
        )

    return evaluate(outcome, metric)


class FederatedAveraging(pl.LightningModule):
    """Federated averaging in one process. Each round trains a copy of the server's network for each client."""

    def __init__(self, return_dict: bool, averages_buffers: bool, n_clients: int = 4) -> None:
        super().__init__()
        self.automatic_optimization = False
        blocks = [
            nn.Sequential(nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU())
            for n_in, n_out in ((64, 64), (64, 64), (64, 32))
        ]
        self.server = nn.Sequential(*blocks, nn.Linear(32, 10))
        self.clients = nn.ModuleList(copy.deepcopy(self.server) for _ in range(n_clients))
        self.server.requires_grad_(False)
        self.return_dict, self.averages_buffers = return_dict, averages_buffers

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.server(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, target = batch
        client = batch_idx % len(self.clients)
        optimizers: Any = self.optimizers()
        optimizer = optimizers[client]
        preds = self.clients[client](images)
        loss = functional.cross_entropy(preds, target)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        if batch_idx % (5 * len(self.clients)) == 5 * len(self.clients) - 1:
            self.average()
        return {"loss": loss.detach(), "preds": preds.detach(), "target": target} if self.return_dict else loss.detach()

    @torch.no_grad()
    def average(self) -> None:
        """Ends the round: the server takes the mean of the clients, and the clients take the server's weights."""
        for name, shared in self.server.state_dict().items():
            is_buffer = "running" in name or "tracked" in name
            if is_buffer and not self.averages_buffers:  # (bug here: parameters() has no running statistics)
                continue
            values = [client.state_dict()[name] for client in self.clients]
            shared.copy_(torch.stack([value.float() for value in values]).mean(0).to(shared.dtype))
            for value in values:
                value.copy_(shared)

    def on_train_epoch_end(self) -> None:
        self.average()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(client.parameters(), lr=0.1) for client in self.clients]


def build_federated(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The server averages the clients' parameters, but not the running statistics of batch normalization."""
    train, validation = split(list(digits(scale=1.0)), seed, 300)
    module = FederatedAveraging(return_dict, averages_buffers=is_fixed)
    return TrainingSetup(module, loader(*train, batch_size=16), loader(*validation, batch_size=300), {"max_epochs": 4})


PROGRAMS = [
    Program(
        "adapters_added_after_the_parameter_list_of_the_optimizer",
        "dense",
        build_adapters,
        frozenset({Problem.NOT_IN_OPTIMIZER}),
        lambda outcome: not accuracy(outcome) > 0.92,
        "https://github.com/adapter-hub/adapters/issues/260",
    ),
    Program(
        "low_rank_adaptation_with_both_factors_at_zero",
        "dense",
        build_lora,
        frozenset({Problem.NO_GRADIENT}),
        lambda outcome: not accuracy(outcome) > 0.92,
        "https://github.com/Guitaricet/relora/issues/18",
    ),
    Program(
        "router_of_experts_selects_by_index_only",
        "regression",
        build_experts,
        frozenset({Problem.NO_GRADIENT}),
        lambda outcome: not squared_error(outcome) < 0.4,
        "https://github.com/davidmrau/mixture-of-experts/issues/11 (gate weights cannot be updated through top-k)",
    ),
    Program(
        "distillation_with_probabilities_in_kl_div",
        "dense",
        build_distillation,
        frozenset({Problem.LOSS_INPUT_MISMATCH}),
        lambda outcome: not divergence_from_teacher(outcome) < 0.15,
        "https://github.com/microsoft/ProDA/issues/20 and https://github.com/AberHu/Knowledge-Distillation-Zoo/issues/12",
    ),
    Program(
        "federated_averaging_without_batch_norm_statistics",
        "dense",
        build_federated,
        frozenset({Problem.BATCH_NORM_STATISTICS_LAG}),
        lambda outcome: not accuracy(outcome) > 0.85,
        "https://github.com/SymbioticLab/FedScale/issues/57 and https://github.com/TsingZ0/PFLlib/issues/260",
    ),
]
