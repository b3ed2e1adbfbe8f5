"""Measures the speedup of int8 in onnxruntime with three quantizations: ours, per channel, and onnxruntime's defaults.

    python scripts/benchmarks/int8_layers.py [--rounds 7] [--networks WORD …]

"Per channel" quantizes all layers but the last with one step per channel. Speedups are relative to the same network in
float32, on one thread, for one sample and for 32. The files are measured alternately. Weights are random, so only the
times are meaningful.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import onnx
import torch
from onnxruntime import quantization
from onnxruntime.quantization.registry import QDQRegistry
from torch import nn

from stormproof_train.compression.deployment.deployed_model import DeployedModel
from stormproof_train.compression.deployment.export import export_onnx
from stormproof_train.compression.deployment.isolated_process import IsolatedProcess
from stormproof_train.compression.deployment.static_quantization import FLOAT32_OPS, CalibrationBatches, quantize_static
from stormproof_train.compression.deployment.suppress_output import suppress_output
from stormproof_train.models import CNN, MLP, ResNet, Transformer
from stormproof_train.predict.artifact_metadata import ArtifactMetadata

SECONDS, SAMPLES = 0.2, 64
IMAGE, TABLE = (1, 28, 28), (64,)


@dataclass(frozen=True)
class Row:
    """A network and the shape of a sample."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGE


ROWS = (
    Row("CNN, ReLU", lambda: CNN(IMAGE, 10, nn.ReLU)),
    Row("CNN, SiLU", lambda: CNN(IMAGE, 10, nn.SiLU)),
    Row("ResNet, ReLU", lambda: ResNet(IMAGE, 10, nn.ReLU)),
    Row("MLP of 1024, ReLU", lambda: MLP(TABLE, 10, nn.ReLU, widths=[1024] * 3), TABLE),
    Row("MLP of 512, SiLU", lambda: MLP(TABLE, 10, nn.SiLU, widths=[512] * 3), TABLE),
    Row("MLP of 512, ELU", lambda: MLP(TABLE, 10, nn.ELU, widths=[512] * 3), TABLE),
    Row("MLP of 512, layer norm", lambda: MLP(TABLE, 10, nn.ReLU, widths=[512] * 3, norm="layer"), TABLE),
    Row("transformer of 64", lambda: Transformer(IMAGE, 10, nn.GELU, patch_size=4)),
    *(
        Row(f"convolutions {few} to {many} to {many}", lambda few=few, many=many: _two(few, many), (few, 32, 32))
        for few, many in ((1, 16), (2, 16), (3, 16), (3, 64), (4, 16), (8, 16), (16, 16))
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="+", default=[""], help="networks whose name contains one of these words")
    arguments = parser.parse_args()
    print(f"{'':32} {'ours':>13} {'by channel':>13} {'defaults':>13}   times faster for 1, for 32")
    for row in (row for row in ROWS if any(word in row.name for word in arguments.networks)):
        with TemporaryDirectory() as folder:
            files = _files(row, Path(folder))
            inputs = torch.zeros(1, *row.shape).numpy()
            with ExitStack() as processes:
                isolated = {
                    name: processes.enter_context(IsolatedProcess(path, inputs, 1)) for name, path in files.items()
                }
                rounds = [
                    {name: entry.measure_latencies(SECONDS) for name, entry in isolated.items()}
                    for _ in range(arguments.rounds)
                ]
        times = {
            (name, batch): median(entry[name][batch].median for entry in rounds) for name in files for batch in (1, 32)
        }
        timings = [
            f"{times['float', 1] / times[name, 1]:6.2f} {times['float', 32] / times[name, 32]:6.2f}"
            for name in files
            if name != "float"
        ]
        print(f"{row.name:32} {' '.join(timings)}", flush=True)


def _two(few: int, many: int) -> nn.Module:
    convolutions = (nn.Conv2d(few, many, 3, padding=1), nn.ReLU(), nn.Conv2d(many, many, 3, padding=1), nn.ReLU())
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(many, 10))


def _files(row: Row, folder: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    inputs = torch.randn(SAMPLES, *row.shape)
    files = {name: folder / f"{name}.onnx" for name in ("float", "ours", "by channel", "defaults")}
    metadata = ArtifactMetadata("probabilities", [], list(row.shape), "int8")
    export_onnx(DeployedModel(row.build().eval(), "probabilities"), inputs, files["float"], metadata)
    quantize_static(files["float"], files["ours"], inputs.numpy())
    last = onnx.load(files["float"]).graph.node[-2:]
    assert [node.op_type for node in last] == ["Gemm", "Softmax"]
    with suppress_output():
        quantization.quantize_static(
            str(files["float"]), str(files["by channel"]), CalibrationBatches(inputs.numpy()), per_channel=True,
            op_types_to_quantize=[node for node in QDQRegistry if node not in FLOAT32_OPS],
            nodes_to_exclude=[node.name for node in last],
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        quantization.quantize_static(str(files["float"]), str(files["defaults"]), CalibrationBatches(inputs.numpy()))
    return files


if __name__ == "__main__":
    main()
