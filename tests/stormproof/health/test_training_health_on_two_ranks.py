"""On two ranks, both report diverged replicas. Statistics that may differ between ranks are not reported."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its name everywhere)
from torch.utils.data import DataLoader, TensorDataset

from stormproof import TrainingHealth
from tests.support.ranks import run_on_two_ranks

pytestmark = pytest.mark.slow


class Classifier(pl.LightningModule):
    """Has statistics of a batch norm, which each rank keeps for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Drifting(Classifier):
    """Changes a weight on one rank only."""

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_rank == 1 and self.global_step == 10:
            with torch.no_grad():
                self.network[3].weight[0, 0] += 1e-3


KINDS: dict[str, type[Classifier]] = {"together": Classifier, "apart": Drifting}


def _on_two_ranks(folder: Path) -> None:
    findings_by_name: dict[str, Any] = {}
    for name, kind in KINDS.items():
        pl.seed_everything(0, verbose=False)
        inputs = torch.randn(640, 8)
        data = TensorDataset(inputs, (inputs @ torch.randn(8, 4)).argmax(1))
        health = TrainingHealth(run_folder=folder / name)
        disabled = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainer = pl.Trainer(
            max_epochs=2, strategy="ddp", devices=2, accelerator="cpu", callbacks=[health], **disabled
        )  # fmt: skip
        trainer.fit(kind(), DataLoader(data, batch_size=16, shuffle=True))
        findings_by_name[name] = [
            [str(finding.problem), str(finding.severity), finding.step] for finding in health.findings
        ]
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(findings_by_name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    assert run_on_two_ranks(__file__, str(folder)).count("REPLICAS_DIVERGED") == 1
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_finds_that_the_replicas_diverged(folder: Path, rank: int):
    findings = json.loads((folder / f"rank{rank}.json").read_text())
    assert findings["apart"] == [["replicas_diverged", "critical", 20]]


@pytest.mark.parametrize("rank", [0, 1])
def test_replicas_with_statistics_of_their_own_are_healthy(folder: Path, rank: int):
    assert json.loads((folder / f"rank{rank}.json").read_text())["together"] == []


def test_one_rank_writes_it_down(folder: Path):
    lines = (folder / "apart" / "findings.jsonl").read_text().splitlines()
    assert [json.loads(line)["problem"] for line in lines] == ["replicas_diverged"]
    assert not (folder / "together").exists()


if __name__ == "__main__":
    _on_two_ranks(Path(sys.argv[1]))
