"""Quantizes layers to int8 with ranges from calibration."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
from onnxruntime.quantization.registry import QDQRegistry

from stormproof.checkpoint import atomic_write
from stormproof_train.compression.deployment.cleanup_passes import run_cleanup_passes
from stormproof_train.compression.deployment.export import INPUT_NAME
from stormproof_train.compression.deployment.int8_nodes import CLIPPING_OPS, MIN_CHANNELS, WEIGHTED_OPS, Int8Nodes
from stormproof_train.compression.deployment.suppress_output import suppress_output
from stormproof_train.errors import UserError
from stormproof_train.predict.artifact_metadata import METADATA_KEY

BATCH_SIZE = 32
"""Batch size of the calibration."""

FLOAT32_OPS = ("Softmax", "LayerNormalization")
"""Operations whose outputs lose too much precision with 8 bits."""


def quantize_static(source: Path, target: Path, samples: NDArray[np.float32], reduce_range: bool = False) -> None:
    r"""Writes a file whose layers compute in 8 bits, with int8 weights and uint8 inputs.

    A number r is stored as :math:`q = \mathrm{round}(r / s) + z`. The scale s of a convolution's weights is chosen per
    channel. Dense layers have one scale per tensor, because onnxruntime takes a third longer with scales per channel.
    Activations get s and z from their smallest and largest values on the samples. :class:`Int8Nodes` selects the nodes
    that stay in float32, as do softmax and layer norm. The same file and samples yield the same bytes.

    Args:
        source: Path of an artifact in float32.
        target: Path of the file, written atomically.
        samples: Training samples (samples, \*input_shape).
        reduce_range: Whether weights use 7 bits. Sums of products with 8 bits overflow on x86 without VNNI.

    Raises:
        UserError: If all layers stay in float32.

    References:
        Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only inference,
        2018, section 2.
    """
    model = onnx.load(source)
    int8_nodes = Int8Nodes.from_graph(model.graph)
    if not int8_nodes.int8_layers:
        raise UserError(
            f"int8 would not change {source}: all its layers stay in float32, as the last layer and convolutions of "
            f"fewer than {MIN_CHANNELS} channels do"
        )
    weight_overrides = [{"quant_type": QuantType.QInt8, "reduce_range": reduce_range}]
    with TemporaryDirectory() as folder, suppress_output():
        quantized_path = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            model,
            str(quantized_path),
            CalibrationBatches(samples),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted(
                {*WEIGHTED_OPS, *(QDQRegistry if int8_nodes.quantizes_all_ops else CLIPPING_OPS)} - {*FLOAT32_OPS}
            ),
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(int8_nodes.float32_nodes),
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"TensorQuantOverrides": dict.fromkeys(int8_nodes.dense_weights, weight_overrides)},
        )
        quantized_model = onnx.load(quantized_path)
    _remove_quantization(quantized_model.graph, int8_nodes.float32_outputs)
    quantized_model = run_cleanup_passes(quantized_model)
    onnx.helper.set_model_props(
        quantized_model, {entry.key: entry.value for entry in model.metadata_props if entry.key == METADATA_KEY}
    )
    with atomic_write(target) as file:
        file.write(quantized_model.SerializeToString(deterministic=True))


class CalibrationBatches(CalibrationDataReader):
    """Provides samples to onnxruntime's calibration.

    Args:
        samples: Samples (samples, ...), read in batches of 32.
    """

    def __init__(self, samples: NDArray[np.float32]) -> None:
        self._batches = iter(
            [{INPUT_NAME: samples[start : start + BATCH_SIZE]} for start in range(0, len(samples), BATCH_SIZE)]
        )

    def get_next(self) -> Any:
        """Returns the next batch, or None after the last one."""
        return next(self._batches, None)


def _remove_quantization(graph: onnx.GraphProto, names: set[str]) -> None:
    """Removes quantization and dequantization between these tensors and their consumers."""
    quantizers = {
        node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in names
    }
    dequantizers = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantizers
    }
    for node in graph.node:
        node.input[:] = [
            quantizers[dequantizers[name].input[0]].input[0] if name in dequantizers else name for name in node.input
        ]
    for node in (*quantizers.values(), *dequantizers.values()):
        graph.node.remove(node)
