"""A slow rank is reported. Delays on both ranks are not."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its name everywhere)
from torch.utils.data import DataLoader, TensorDataset

from stormproof import TrainingHealth
from tests.support.cases import DRILL_STRIDE
from tests.support.ranks import run_on_two_ranks

TRIALS = range(0, 100, DRILL_STRIDE)


class TimedWork(pl.LightningModule):
    """Works for some seconds on each batch, of which a rank has its own share; its buffers are made equal each time."""

    def __init__(self, forward: tuple[float, float], backward: tuple[float, float] = (0.0, 0.0)) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
        self.seconds = (forward, backward)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        time.sleep(self.seconds[0][self.global_rank])
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def on_before_backward(self, loss: torch.Tensor) -> None:
        time.sleep(self.seconds[1][self.global_rank])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


class Fetched(TensorDataset):
    seconds = 0.0

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.seconds)
        return super().__getitem__(index)


def find_slow_ranks(module: TimedWork, waits: tuple[float, float] = (0.0, 0.0), steps: int = 45) -> list[list[Any]]:
    pl.seed_everything(0, verbose=False)
    inputs = torch.randn(8 * steps, 8)
    data, health = Fetched(inputs, (inputs @ torch.randn(8, 4)).argmax(1)), TrainingHealth()
    disabled = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(max_epochs=1, strategy="ddp", devices=2, accelerator="cpu", callbacks=[health], **disabled)
    data.seconds = waits[int(os.environ["RANK"])] / 4
    trainer.fit(module, DataLoader(data, batch_size=4))
    return [
        [finding.where, finding.evidence["share_of_time_lost"]]
        for finding in health.findings
        if finding.problem == "slow_rank"
    ]


CASES: dict[str, Any] = {
    "forward": lambda: find_slow_ranks(TimedWork((0.004, 0.012))),
    "data": lambda: find_slow_ranks(TimedWork((0.004, 0.004)), waits=(0.008, 0.0)),
    "both": lambda: find_slow_ranks(TimedWork((0.008, 0.008)), waits=(0.004, 0.004)),
    "neither": lambda: find_slow_ranks(TimedWork((0.0, 0.0))),
    "few": lambda: find_slow_ranks(TimedWork((0.004, 0.012)), steps=20),
}


def _cases() -> dict[str, Any]:
    return {name: case() for name, case in CASES.items()}


def _trials() -> dict[str, Any]:
    """Returns findings of trials with sleeps of 4 to 14 ms and 8 ms of work on one rank, and of 0 to 10 ms on both."""
    slow = [find_slow_ranks(TimedWork((0.008 + 0.004 + 0.0001 * trial, 0.008))) for trial in TRIALS]
    even = [find_slow_ranks(TimedWork((0.0001 * trial, 0.0001 * trial))) for trial in TRIALS]
    return {"slow": slow, "even": even}


def on_two_ranks(what: str, folder: Path, timeout: float) -> list[dict[str, Any]]:
    run_on_two_ranks(__file__, what, str(folder), timeout=timeout)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_two_ranks("cases", tmp_path_factory.mktemp("ranks"), 200)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "slow"), [("forward", 1), ("data", 0)])
def test_the_slow_rank_is_named_with_its_host_and_what_it_costs(ranks: list[dict[str, Any]], case: str, slow: int):
    for rank in ranks:
        ((where, lost),) = rank[case]
        assert where == f"rank {slow} on {os.uname().nodename}"
        assert 0.2 < lost < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("case", ["both", "neither", "few"])
def test_ranks_that_are_as_slow_as_each_other_or_few_batches_are_no_finding(ranks: list[dict[str, Any]], case: str):
    assert [rank[case] for rank in ranks] == [[], []]


@pytest.mark.drill
@pytest.mark.timeout(1200)
def test_of_many_trials_slow_ranks_are_found_and_no_others(tmp_path: Path):
    rank_zero, rank_one = on_two_ranks("trials", tmp_path, 1100)
    assert rank_zero == rank_one
    assert sum(map(bool, rank_zero["slow"])) >= 0.95 * len(TRIALS)
    assert sum(map(bool, rank_zero["even"])) <= 0.01 * len(TRIALS)


if __name__ == "__main__":
    results = {"cases": _cases, "trials": _trials}[sys.argv[1]]()
    Path(sys.argv[2], f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))
