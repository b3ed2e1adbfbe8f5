"""Reduces overfitting, one change at a time, and writes docs/evidence/case_<data>.md and its figure.

    pip install -e ".[train,docs,mnist1d]"
    python scripts/case.py mnist1d [--seeds 10] [--jobs 2] [--runs-dir runs/case] [--output docs]
    python scripts/case.py fashion_mnist --seeds 3

Each run is ``train.py`` with the overrides of one row of case_ladder.py and one seed. The seed fixes the validation
split and the initial weights, so that rows are compared in pairs. A network is tested once, with its last weights, or
with its best weights if it stops early. The best combination is selected by validation only. Finished runs are not
trained again.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytorch_lightning as pl
import torch
from case_ladder import AUGMENTATION, SPLITS, Row, ladder
from case_report import draw, measure, render

from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.overrides import normalize_overrides
from stormproof_train.main import run

ROOT = Path(__file__).resolve().parents[1]


class PredictionSaver(pl.Callback):
    """Saves the outputs for each split at the test, in evaluation mode and without augmentation."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
        arrays = {}
        for split, loader in zip(SPLITS, loaders, strict=True):
            with torch.inference_mode():
                batches = [(pl_module(inputs.to(pl_module.device)).cpu(), labels) for inputs, labels in loader]
            arrays[f"{split}_logits"] = torch.cat([logits for logits, _ in batches]).numpy()
            arrays[f"{split}_labels"] = torch.cat([labels for _, labels in batches]).numpy()
        np.savez(self.folder / "predictions.npz", **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("data", choices=sorted(AUGMENTATION))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/case"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    parser.add_argument("overrides", nargs="*", help="further overrides of every run")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("an interval needs --seeds 2 or more")
    rows, seeds = ladder(arguments.data), range(arguments.seeds)
    jobs = [
        ([*row.overrides, *arguments.overrides, f"seed={seed}"], _folder(arguments.runs_dir, arguments.data, row, seed))
        for seed in seeds
        for row in rows
    ]
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for number, message in enumerate(pool.map(_train, *zip(*jobs, strict=True)), start=1):
            print(f"{number} of {len(jobs)}: {message}", flush=True)
    measured = {
        row.name: [measure(_folder(arguments.runs_dir, arguments.data, row, seed)) for seed in seeds] for row in rows
    }
    (arguments.output / "figures").mkdir(parents=True, exist_ok=True)
    figure = f"figures/case_{arguments.data}.svg"
    draw(rows, measured, arguments.output / figure)
    command = (
        f"python scripts/case.py {arguments.data} --seeds {arguments.seeds} {' '.join(arguments.overrides)}".strip()
    )
    hours = sum(measurement.seconds for runs in measured.values() for measurement in runs) / 3600
    page = render(arguments.data, rows, measured, f"../{figure}", f"`{command}`, {hours:.1f} core hours")
    (arguments.output / "evidence").mkdir(exist_ok=True)
    (arguments.output / "evidence" / f"case_{arguments.data}.md").write_text(page)
    print(page)


def _folder(runs_dir: Path, data: str, row: Row, seed: int) -> Path:
    slug = "-".join("".join(sign if sign.isalnum() else " " for sign in row.name).split())
    return runs_dir.absolute() / f"{data}-{slug}-{seed}"


def _train(run_overrides: Sequence[str], folder: Path) -> str:
    """Trains one run unless it is finished, and returns its test accuracy as text."""
    torch.set_num_threads(1)  # one core per run
    overrides = [
        *run_overrides, "logger=none", f"runs_dir={folder.parent}", f"name={folder.name}",
        "callbacks.predictions._target_=case.Predictions", f"callbacks.predictions.folder={folder}",
    ]  # fmt: skip
    try:
        with redirect_stdout(StringIO()), hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
            summary = run(hydra.compose("config", normalize_overrides(overrides)))
    except Exception as error:  # noqa: BLE001 (some errors cannot be pickled, their messages can)
        raise RuntimeError(f"{folder.name}: {error}") from None
    return f"{folder.name}: {summary['test']['accuracy']:.4f}"


if __name__ == "__main__":
    main()
