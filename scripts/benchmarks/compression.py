"""Compares the result of ``compress`` with torch-pruning and onnxruntime's quantization with their defaults.

    python train.py experiment=fashion_mnist_cnn name=cnn
    python train.py compress run=runs/cnn budget=1pp
    python scripts/benchmarks/compression.py compressed/cnn

torch-pruning prunes to the number of multiply-accumulates of the best artifact. Its network is then fine-tuned for the
same number of steps. All files are measured alternately, on the same samples, in fresh processes.
"""

from __future__ import annotations

import copy
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from onnxruntime import quantization
from torch import nn

from stormproof_train.compression.budget import estimate_degradation
from stormproof_train.compression.deployment.deployed_model import DeployedModel
from stormproof_train.compression.deployment.export import export_onnx
from stormproof_train.compression.deployment.isolated_process import IsolatedProcess
from stormproof_train.compression.deployment.static_quantization import CalibrationBatches
from stormproof_train.compression.deployment.suppress_output import suppress_output
from stormproof_train.compression.fine_tuning import FineTuning, count_steps, run_fine_tuning
from stormproof_train.compression.original import OriginalModel, load_original
from stormproof_train.compression.samples import Samples, load_samples
from stormproof_train.compression.structure.macs import count_macs
from stormproof_train.compression.structure.rebuild import Structure
from stormproof_train.compression.structure.shapes import changed_shapes
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.initialization.checkpoint import extract_network_weights, read_checkpoint
from stormproof_train.lightning_output import suppress_lightning_output
from stormproof_train.predict.artifact_metadata import ArtifactMetadata

ROUNDS, SECONDS = 7, 0.4


def main(folder: Path, *overrides: str) -> None:
    """Creates the artifacts of the other tools and prints a table of all artifacts.

    Args:
        folder: Folder of a finished compression.
        overrides: Overrides that this compression passed to its fine-tuning runs.
    """
    suppress_lightning_output()
    answer = json.loads((folder / "answer.json").read_text())
    settings = json.loads((folder / "compress.json").read_text())["compress"]
    original = load_original(Path(answer["checkpoint"]), conf_dir(), overrides)
    peers = folder / "peers"
    peers.mkdir(exist_ok=True)
    outputs = 0 if original.spec.num_classes else original.spec.num_outputs
    calibration = load_samples(original.data, "train", outputs, answer["samples"]["calibration"])
    rows = {artifact["name"]: artifact for artifact in answer["artifacts"]}
    our_artifacts = dict.fromkeys(["original", "original-int8", rows[answer["best"]]["network"], answer["best"]])
    files = {f"ours: {name}": folder / rows[name]["folder"] / "model.onnx" for name in our_artifacts}
    source, best = folder / "artifacts" / "original" / "model.onnx", rows[answer["best"]]
    files["onnxruntime: quantize_static"] = _static(source, peers / "static.onnx", calibration)
    files["onnxruntime: quantize_dynamic"] = _dynamic(source, peers / "dynamic.onnx")
    if best["macs"] < rows["original"]["macs"]:
        steps = count_steps(original, settings["training"])
        inputs = torch.from_numpy(calibration.inputs)
        try:
            _pruned(original, 0.1, inputs)(inputs[:2])
        except RuntimeError as error:
            print(f"torch-pruning produces a network that does not run: {error}")
        else:
            pruned = _pruned_by_peer(original, best["macs"], steps, folder, inputs)
            files[f"torch-pruning: {count_macs(pruned, inputs):,} MACs"] = _exported(
                original, pruned, peers / "pruned.onnx", calibration
            )
    splits = {
        split: load_samples(original.data, split, outputs, settings["samples"]) for split in ("validation", "test")
    }
    _print(files, splits, original.task.test_predictions.kind, settings["threads"])


def _static(source: Path, target: Path, samples: Samples) -> Path:
    with suppress_output():
        quantization.quantize_static(str(source), str(target), CalibrationBatches(samples.inputs))
    return target


def _dynamic(source: Path, target: Path) -> Path:
    with suppress_output():
        quantization.quantize_dynamic(str(source), str(target))
    return target


def _pruned_by_peer(original: OriginalModel, most: int, steps: int, folder: Path, inputs: torch.Tensor) -> nn.Module:
    """Prunes with the default pruner of torch-pruning, which removes the same share of channels from every layer."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if count_macs(_pruned(original, middle, inputs), inputs) <= most else (middle, high)
    network = _pruned(original, high, inputs)
    fresh = original.build_network(Structure(), original.task.network.state_dict())
    structure = Structure(changed_shapes(network, fresh))
    start = folder / "starts" / "torch-pruning.ckpt"
    torch.save(network.state_dict(), start)
    fine_tuning = FineTuning("torch-pruning", folder / "runs", folder.name, start, structure, steps, uses_teacher=False)
    checkpoint = run_fine_tuning(fine_tuning, original, folder / "fine_tuning", folder / "logs" / "torch-pruning.log")
    return original.build_network(structure, extract_network_weights(read_checkpoint(checkpoint)))


def _pruned(original: OriginalModel, ratio: float, inputs: torch.Tensor) -> nn.Module:
    network = copy.deepcopy(original.task.network)
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    importance = tp.importance.GroupMagnitudeImportance()
    tp.pruner.BasePruner(network, inputs[:2], importance, pruning_ratio=ratio, ignored_layers=[head]).step()
    return network.eval()


def _exported(original: OriginalModel, network: nn.Module, path: Path, samples: Samples) -> Path:
    deployed = DeployedModel.from_task(original.task, network)
    metadata = ArtifactMetadata(deployed.kind, [], list(original.spec.input_shape), original.trained_weights.run.name)
    export_onnx(deployed, torch.from_numpy(samples.inputs), path, metadata)
    return path


def _print(files: dict[str, Path], splits: dict[str, Samples], kind: Any, threads: int) -> None:
    predictions_by_split = {
        split: {name: _predictions(path, samples, kind) for name, path in files.items()}
        for split, samples in splits.items()
    }
    timed: dict[str, list[Any]] = {name: [] for name in files}
    with ExitStack() as processes:
        isolated = {
            name: processes.enter_context(IsolatedProcess(path, splits["validation"].inputs[:1], threads))
            for name, path in files.items()
        }
        for _ in range(ROUNDS):
            for name, process in isolated.items():
                timed[name].append(process.measure_latencies(SECONDS))
    reference, *_ = files

    def of(name: str, batch: int) -> float:
        return median(timing[batch].median for timing in timed[name])

    print(f"{'':40} {'validation':>10} {'lost, 95%':>24} {'test':>7} {'kB':>7} {'x smaller':>9} "
          f"{'ms 1':>7} {'x faster':>8} {'ms 32':>7} {'x faster':>8}")  # fmt: skip
    for name, path in files.items():
        validation_score, test_score = predictions_by_split["validation"][name], predictions_by_split["test"][name]
        gone = estimate_degradation(predictions_by_split["validation"][reference], validation_score)
        size, first = path.stat().st_size, files[reference].stat().st_size
        print(
            f"{name:40} {_right(validation_score):10.4f} {gone.value:8.4f} ({gone.low:.4f} to {gone.high:.4f}) "
            f"{_right(test_score):7.4f} "
            f"{size / 1000:7.1f} {first / size:9.2f} {of(name, 1) * 1000:7.3f} {of(reference, 1) / of(name, 1):8.2f} "
            f"{of(name, 32) * 1000:7.2f} {of(reference, 32) / of(name, 32):8.2f}"
        )


def _predictions(path: Path, samples: Samples, kind: Any) -> Predictions:
    with IsolatedProcess(path, samples.inputs) as process:
        return Predictions(kind, process.predict(), samples.target)


def _right(predictions: Predictions) -> float:
    return float(np.mean(predictions.classes == predictions.target))


if __name__ == "__main__":
    asked_for = sys.argv[1:]
    sys.argv = [str(Path(__file__).resolve().parents[2] / "train.py")]  # fine-tuning runs are started with this command
    main(Path(asked_for[0]), *asked_for[1:])
