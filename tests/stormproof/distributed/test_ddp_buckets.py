import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.distributed.elastic.utils.distributed import get_free_port

from stormproof import CheckpointRecovery, resumable
from stormproof.distributed import ddp_buckets
from tests.support.ranks import call_on_ranks
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_loader, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS
STEPS = 4


class OtherOrder(pl.LightningModule):
    """Executes its layers in another order than it registers them, so that DDP's rebuilt buckets differ."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.middle = nn.Linear(256, 1), nn.Linear(2, 256), nn.Linear(256, 256)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        noise = torch.randn(8, 2) + batch.sum()
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(noise))))).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stops(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise KeyError("stopped")


def fit(folder: str, rank: int, strategy: str, *callbacks: pl.Callback) -> list[torch.Tensor]:
    torch.manual_seed(rank)
    recovery = CheckpointRecovery(folder, every_n_train_steps=1, async_save=False)
    module = OtherOrder()
    module.load_state_dict({name: torch.linspace(-0.1, 0.1, tensor.numel()).view_as(tensor) for name, tensor in
                            module.state_dict().items()})  # fmt: skip
    pl_trainer = make_trainer(callbacks=[recovery, *callbacks], max_epochs=1, strategy=strategy, devices=3)
    try:
        pl_trainer.fit(module, resumable(make_loader(2 * 3 * STEPS), seed=1), ckpt_path=recovery.latest_checkpoint())
    except KeyError:
        assert callbacks
    return [parameter.detach() for parameter in module.parameters()]


def on_a_rank(rank: int, folder: str, port: int, strategy: str) -> None:
    os.environ.update(
        LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    uninterrupted = fit(f"{folder}/whole", rank, strategy)

    def is_exact(name: str, step: int) -> bool:
        fit(f"{folder}/{name}{step}", rank, strategy, Stops(step))
        return all(map(torch.equal, fit(f"{folder}/{name}{step}", rank, strategy), uninterrupted))

    assert all(is_exact("resumed", step) for step in range(2, STEPS + 1))
    if strategy == "ddp":
        ddp_buckets.restore_order = lambda *_: None
        assert not all(is_exact("forgotten", step) for step in range(2, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_find_unused_parameters_true"])
def test_three_ranks_resume_bit_for_bit_because_buckets_are_rebuilt_in_the_saved_order(strategy: str, tmp_path: Path):
    call_on_ranks(3, on_a_rank, str(tmp_path), get_free_port(), strategy)


def average(state: Any, bucket: Any) -> Any:
    return bucket


class Compressor:
    def compress(self, state: Any, bucket: Any) -> Any:
        return bucket


@pytest.mark.parametrize(
    ("hook", "state", "is_announced"),
    [
        (average, None, False),
        (average, torch.distributed.ProcessGroup(0, 1), False),
        (average, PowerSGDState(None), True),
        (Compressor().compress, None, True),
    ],
    ids=["no state", "process group", "PowerSGD", "bound method"],
)
def test_a_stateful_communication_hook_is_announced_with_fewer_than_three_ranks(
    hook: Any, state: Any, is_announced: bool
):
    model = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(model)
    model._comm_hooks = [(hook, state)]
    problem = ddp_buckets.find_order_problem(model)
    assert (problem or "").startswith("the state of DDP's communication hook") == is_announced
