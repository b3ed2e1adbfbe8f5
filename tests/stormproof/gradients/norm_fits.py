"""Small trainings whose gradient norms are measured, and the same ones in a plain loop of one process."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from stormproof import GradientNormMonitor
from stormproof.distributed.rank import global_rank

BATCH_SIZE, STEPS = 4, 6
LAYERS = ("first", "second", "last")
QUIET_TRAINER = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


@dataclass(frozen=True)
class FitCase:
    """What a training is like."""

    accumulate: int = 1
    clip: float | None = None
    algorithm: str = "norm"
    half_precision: bool = False  # 16-bit autocast and a gradient scaler
    fused: bool = False
    manual: bool = False  # two optimizers, each with a loss of its own
    sharded: bool = False  # FSDP2
    tensor_parallel: int = 1  # ranks that share the first two layers; with FSDP2 if there are more


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


def compute_loss(net: nn.Module, batch: Any, weight: float = 1.0) -> torch.Tensor:
    inputs, targets = batch
    return weight * (net(inputs).float() - targets).square().mean()


def make_optimizer(parameters: Any, case: FitCase) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, fused=case.fused)


def parameter_groups(net: Any, case: FitCase) -> list[list[nn.Parameter]]:
    """The parameters of each optimizer."""
    body = [*net.first.parameters(), *net.second.parameters()]
    head = list(net.last.parameters())
    return [body, head] if case.manual else [[*body, *head]]


class Module(pl.LightningModule):
    def __init__(self, case: FitCase) -> None:
        super().__init__()
        self.case = case
        self.automatic_optimization = not case.manual
        torch.manual_seed(0)
        self.net = Net()

    def configure_model(self) -> None:
        if self.case.tensor_parallel > 1:
            from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

            plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
            parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)  # type: ignore[index]
        if self.case.sharded:
            from torch.distributed.fsdp import fully_shard

            mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
            for layer in (self.net.first, self.net.second, self.net):
                fully_shard(layer, mesh=mesh)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.case.manual:
            return compute_loss(self.net, batch)
        for number, optimizer in enumerate(self.optimizers()):
            self.toggle_optimizer(optimizer)
            self.manual_backward(compute_loss(self.net, batch, weight=1.0 + number) / self.case.accumulate)
            if (batch_idx + 1) % self.case.accumulate == 0:
                if self.case.clip:
                    self.clip_gradients(optimizer, self.case.clip, self.case.algorithm)
                optimizer.step()
                optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)
        return None

    def configure_optimizers(self) -> Any:
        return [make_optimizer(group, self.case) for group in parameter_groups(self.net, self.case)]


def make_dataset(case: FitCase, ranks: int) -> TensorDataset:
    count = BATCH_SIZE * STEPS * case.accumulate * ranks
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(count, 5, generator=generator), 3 * torch.randn(count, 2, generator=generator))


def measure_norms(case: FitCase, ranks: int = 1) -> list[dict[str, float]]:
    """The norms of each step, as the monitor has them, by layer and optimizer in turn."""
    return [record.norms for record in fit_with_monitor(case, ranks).history]


def fit_with_monitor(case: FitCase, ranks: int = 1) -> GradientNormMonitor:
    """Trains on all ranks of a job together."""
    data_ranks = ranks // case.tensor_parallel
    monitor = GradientNormMonitor(every_n_steps=1, table=False)
    settings: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": ranks,
    }
    if not case.manual:
        settings |= {"accumulate_grad_batches": case.accumulate, "gradient_clip_val": case.clip}
        settings |= {"gradient_clip_algorithm": case.algorithm} if case.clip else {}
    if case.half_precision:
        settings["plugins"] = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    if case.sharded or case.tensor_parallel > 1:
        from pytorch_lightning.strategies import ModelParallelStrategy

        settings["strategy"] = ModelParallelStrategy(data_ranks, case.tensor_parallel)
    elif ranks > 1:
        settings["strategy"] = "ddp_find_unused_parameters_true" if case.manual else "ddp"
    trainer = pl.Trainer(callbacks=[monitor], **settings, **QUIET_TRAINER)
    samples = make_dataset(case, data_ranks)
    sampler = DistributedSampler(samples, data_ranks, global_rank() // case.tensor_parallel, shuffle=False)
    trainer.fit(Module(case), DataLoader(samples, batch_size=BATCH_SIZE, sampler=sampler))
    return monitor


def reference_norms(case: FitCase, ranks: int = 1) -> list[dict[str, float]]:
    """The same of a loop that shares nothing with the monitor, over the samples of all ranks."""
    torch.manual_seed(0)
    net = Net()
    optimizers = [make_optimizer(group, case) for group in parameter_groups(net, case)]
    samples = make_dataset(case, ranks)
    shares = case.accumulate * ranks
    context = torch.autocast("cpu", torch.float16) if case.half_precision else nullcontext()
    norms = []
    for number in range(STEPS * case.accumulate):
        batches = [_batch(samples, rank, ranks, number) for rank in range(ranks)]
        for weight, optimizer in enumerate(optimizers, 1):
            group = parameter_groups(net, case)[weight - 1]
            for batch in batches:
                with context:
                    loss = compute_loss(net, batch, weight) / shares
                # the factor has no effect but for half precision, in which less is rounded to 0
                for parameter, scaled in zip(group, torch.autograd.grad(loss * 2.0**10, group), strict=True):
                    gradient = scaled / 2.0**10
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            if (number + 1) % case.accumulate:
                continue
            norms.append(_norms(net, group))
            if case.clip and case.algorithm == "norm":
                nn.utils.clip_grad_norm_(group, case.clip)
            elif case.clip:
                nn.utils.clip_grad_value_(group, case.clip)
            optimizer.step()
            optimizer.zero_grad()
    return norms


def _norms(net: Net, group: list[nn.Parameter]) -> dict[str, float]:
    norms = {}
    for layer in LAYERS:
        layer_parameters = [
            parameter
            for parameter in getattr(net, layer).parameters()
            if any(parameter is group_parameter for group_parameter in group)
        ]
        if layer_parameters:
            entries = torch.cat(
                [parameter.grad.flatten() for parameter in layer_parameters if parameter.grad is not None]
            )
            norms[f"net.{layer}"] = float(entries.double().norm())
    return norms


def _batch(samples: TensorDataset, rank: int, ranks: int, number: int) -> tuple[torch.Tensor, ...]:
    """The batch that a DistributedSampler gives: each rank has every ``ranks``-th sample."""
    indices = range(rank, len(samples), ranks)[number * BATCH_SIZE : (number + 1) * BATCH_SIZE]
    return samples[list(indices)]
