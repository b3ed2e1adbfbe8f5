"""Two ranks report of a split what one process does: each sample counts once, whatever their number."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof_train.data.in_memory import InMemoryDataModule, Split
from stormproof_train.data.spec import DataSpec
from stormproof_train.models import MLP
from tests.support.loss_references import CLASS_COUNTS, build_loss
from tests.support.ranks import run_on_two_ranks
from tests.support.task_fits import IGNORE_LIGHTNING_WARNINGS, make_task, make_trainer

pytestmark = pytest.mark.slow

BATCH = 8
SIZES = [2, 3, 7, 8, 9, 16, 17, 23, 40]
"""Of the splits: fewer than a batch, and one more and one less than the ranks can share equally."""
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("cross_entropy", {}),
    "weighted": ("cross_entropy", {"class_weights": "balanced"}),
    "weighted focal": ("focal", {"class_weights": [1.0, 5.0, 0.2]}),
    "torch's, weighted": ("", {}),
    "regression": ("mse", {}),
}
CLASSES = DataSpec((4,), 3, 3, class_counts=CLASS_COUNTS)
NUMBERS = DataSpec((4,), None, 2)


class Random(InMemoryDataModule):
    """As many samples as are asked for."""

    def __init__(self, samples: int, spec: DataSpec, drop_last: bool = False) -> None:
        super().__init__(BATCH, 0, drop_last, 0)
        self.count, self.spec = samples, spec

    def load(self) -> tuple[Split, Split]:
        return self._drawn(37, 1), self._drawn(self.count, 2)

    def load_test(self) -> Split:
        return self._drawn(self.count, 3)

    def _drawn(self, count: int, seed: int) -> Split:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(count, 4, generator=generator)
        if self.spec.num_classes:
            return inputs, torch.randint(3, (count,), generator=generator)
        return inputs, torch.randn(count, 2, generator=generator)


class Normalized(nn.Module):
    """Its buffers are rank 0's in each forward pass of a fit: a collective, for which no rank may be missing."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.normalization, self.network = nn.BatchNorm1d(4), MLP((4,), outputs, nn.Tanh, width=8, depth=1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(self.normalization(inputs))


class SampleRecorder(pl.Callback):
    """The training samples of each epoch on this rank, each by its first number."""

    def __init__(self) -> None:
        self.samples: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.samples += batch[0][:, 0].tolist()


def _numbers(folder: Path, ranks: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, (word, arguments) in LOSSES.items():
        spec = NUMBERS if name == "regression" else CLASSES
        loss = build_loss(word, **arguments) if word else nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0, 0.1]))
        for size in SIZES if name in {"plain", "regression"} else SIZES[-2:]:
            torch.manual_seed(0)
            task = make_task(spec, network=Normalized(spec.num_outputs), loss=loss)
            sample_recorder, strategy = SampleRecorder(), "ddp" if ranks > 1 else "auto"
            options: Any = {
                "devices": ranks,
                "strategy": strategy,
                "callbacks": [sample_recorder],
                "inference_mode": False,
            }
            trainer, recorder = make_trainer(
                folder, **options
            )  # metrics cannot be trained with after an inference mode
            data = Random(size, spec)
            trainer.validate(task, datamodule=data, verbose=False)
            trainer.test(task, datamodule=data, verbose=False)
            logged = {key: [value for _, value in rows] for key, rows in recorder.rows.items()}
            predictions = task.test_predictions.predictions() if trainer.is_global_zero else None
            trainer.fit(task, datamodule=data)
            results[f"{name}, {size}"] = {
                "logged": logged,
                "seen": sample_recorder.samples,
                "steps": trainer.global_step,
            }
            if predictions is not None:
                results[f"{name}, {size}"] |= {
                    "outputs": predictions.outputs.tolist(),
                    "target": predictions.target.tolist(),
                }
    return results


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _numbers(tmp_path_factory.mktemp("alone"), ranks=1)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_on_two_ranks(__file__, str(folder))
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@IGNORE_LIGHTNING_WARNINGS
@pytest.mark.parametrize("case", [f"{name}, {size}" for name in ("plain", "regression") for size in SIZES])
def test_validation_and_test_say_what_one_process_says(alone: dict[str, Any], ranks: list[dict[str, Any]], case: str):
    for rank in ranks:
        logged = rank[case]["logged"]
        assert logged.keys() == alone[case]["logged"].keys()
        assert {"val/loss", "test/loss"} <= logged.keys()
        for name, values in alone[case]["logged"].items():
            exact = name.endswith("/accuracy")  # a share of counts
            assert logged[name] == (values if exact else pytest.approx(values, rel=1e-6, abs=1e-6)), name


@IGNORE_LIGHTNING_WARNINGS
@pytest.mark.parametrize("case", [f"{name}, {size}" for name in ("plain", "regression") for size in SIZES])
def test_the_predictions_of_two_ranks_are_those_of_one_in_the_same_order(
    alone: dict[str, Any], ranks: list[dict[str, Any]], case: str
):
    assert "target" not in ranks[1][case]
    assert ranks[0][case]["target"] == alone[case]["target"]
    for actual, expected in zip(ranks[0][case]["outputs"], alone[case]["outputs"], strict=True):
        assert actual == pytest.approx(expected, abs=1e-6)


@IGNORE_LIGHTNING_WARNINGS
@pytest.mark.parametrize("name", ["weighted", "weighted focal", "torch's, weighted"])
def test_a_loss_with_weights_is_that_of_all_samples_together(
    alone: dict[str, Any], ranks: list[dict[str, Any]], name: str
):
    for size in SIZES[-2:]:
        values = alone[f"{name}, {size}"]["logged"]["val/loss"]
        assert values != alone[f"plain, {size}"]["logged"]["val/loss"]
        for rank in ranks:
            assert rank[f"{name}, {size}"]["logged"]["val/loss"] == pytest.approx(values, rel=1e-6)


@IGNORE_LIGHTNING_WARNINGS
def test_an_epoch_trains_on_each_sample_once_in_as_many_steps(alone: dict[str, Any], ranks: list[dict[str, Any]]):
    case = "plain, 23"
    together = ranks[0][case]["seen"] + ranks[1][case]["seen"]
    assert len(together) == len(set(together)) == 37
    assert sorted(together) == sorted(alone[case]["seen"])
    assert [rank[case]["steps"] for rank in ranks] == [alone[case]["steps"]] * 2 == [5, 5]


def _on_two_ranks(folder: Path) -> None:
    results = _numbers(folder, ranks=2)
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    destroy_gloo_before_exit()
    _on_two_ranks(Path(sys.argv[1]))
