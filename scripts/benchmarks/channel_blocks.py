"""Measures the latency of convolutional networks with different layer widths in onnxruntime.

python scripts/benchmarks/channel_blocks.py [--rounds 5] [--networks 7]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import nn

from stormproof_train.compression.deployment.deployed_model import DeployedModel
from stormproof_train.compression.deployment.export import export_onnx
from stormproof_train.compression.deployment.isolated_process import IsolatedProcess
from stormproof_train.compression.deployment.static_quantization import quantize_static
from stormproof_train.compression.structure.macs import count_macs
from stormproof_train.predict.artifact_metadata import ArtifactMetadata

WIDTHS = (
    (16, 16, 32, 32, 64, 64), (10, 12, 22, 26, 40, 42), (8, 8, 24, 24, 48, 48), (16, 16, 16, 16, 32, 32),
    (8, 16, 16, 16, 48, 48), (5, 9, 18, 19, 26, 30), (8, 8, 16, 16, 32, 32),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", type=int, default=len(WIDTHS), help="number of networks, from the first")
    arguments = parser.parse_args()
    inputs = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    metadata = ArtifactMetadata("probabilities", [], [1, 28, 28], "widths")
    head = ("float 1", "float 32", "int8 1", "int8 32")
    print(
        f"{'widths':32} {'MACs':>7} {' '.join(f'{item:>8}' for item in head)}   ms, median of {arguments.rounds} rounds"
    )
    with TemporaryDirectory() as folder:
        for widths in WIDTHS[: arguments.networks]:
            network, path = _network(widths), Path(folder, f"{'-'.join(map(str, widths))}.onnx")
            export_onnx(DeployedModel(network, "probabilities"), inputs, path, metadata)
            quantize_static(path, path.with_suffix(".int8.onnx"), inputs.numpy())
            timings = []
            for item in (path, path.with_suffix(".int8.onnx")):
                with IsolatedProcess(item, inputs.numpy()) as process:
                    rounds = [process.measure_latencies(0.3) for _ in range(arguments.rounds)]
                timings += [median(timing[batch].median for timing in rounds) * 1000 for batch in (1, 32)]
            numbers = " ".join(f"{item:8.3f}" for item in timings)
            print(f"{widths!s:32} {count_macs(network, inputs) / 1e6:6.2f}M {numbers}")


def _network(widths: Sequence[int]) -> nn.Module:
    layers: list[nn.Module] = []
    incoming = 1
    for number, width in enumerate(widths):
        if number in {2, 4}:
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Conv2d(incoming, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        incoming = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(incoming, 10)).eval()


if __name__ == "__main__":
    main()
