from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from stormproof_train.compression.artifact_builder import quantize_weights
from stormproof_train.compression.deployment.deployed_model import DeployedModel
from stormproof_train.compression.deployment.export import export_onnx
from stormproof_train.errors import UserError
from stormproof_train.predict.artifact_metadata import METADATA_KEY, ArtifactMetadata
from tests.stormproof_train.compression.trained_networks import DIGITS, MODELS, load_digits, train_on_digits

pytestmark = pytest.mark.slow


def _outputs(path: Path) -> np.ndarray:
    (outputs,) = onnxruntime.InferenceSession(path).run(None, {"input": load_digits()["test"]})
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_it_is_smaller_and_nearly_the_same(model: str, tmp_path: Path):
    full, small = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    export_onnx(train_on_digits(model), torch.from_numpy(load_digits()["train"][:2]), full, DIGITS)
    quantize_weights(full, small)
    full_outputs, small_outputs = _outputs(full), _outputs(small)
    assert (full_outputs.argmax(1) == load_digits()["test_labels"]).mean() > 0.7
    assert (full_outputs.argmax(1) == small_outputs.argmax(1)).mean() > 0.98
    assert np.abs(full_outputs - small_outputs).mean() < 0.003
    assert small.stat().st_size < 0.6 * full.stat().st_size
    metadata = onnxruntime.InferenceSession(small).get_modelmeta().custom_metadata_map
    assert ArtifactMetadata.from_json(metadata[METADATA_KEY]) == DIGITS


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        network[0].weight[3] *= 100
        network[0].weight[4] = 0
    export_onnx(DeployedModel(network, "scores"), torch.ones(2, 32), tmp_path / "float.onnx", DIGITS)
    return tmp_path / "float.onnx"


@pytest.mark.slow
def test_each_weight_is_off_by_half_a_step_of_its_channel_at_most(exported: Path):
    quantize_weights(exported, exported.with_name("int8.onnx"))
    arrays = [
        onnx.numpy_helper.to_array(array) for array in onnx.load(exported.with_name("int8.onnx")).graph.initializer
    ]
    (quantized,) = (array for array in arrays if array.dtype == np.int8)
    (steps,) = (array for array in arrays if array.shape == (16, 1))
    (before,) = (
        onnx.numpy_helper.to_array(array)
        for array in onnx.load(exported).graph.initializer
        if list(array.dims) == [16, 32]
    )
    assert (quantized.dtype, steps.shape) == (np.int8, (16, 1))
    restored = quantized * steps
    assert (np.abs(restored - before) <= steps * 0.501).all()
    assert steps.max() > 20 * np.median(steps)
    assert not restored[4].any()


@pytest.mark.slow
def test_the_same_file_makes_the_same_bytes(exported: Path):
    quantize_weights(exported, exported.with_name("one.onnx"))
    quantize_weights(exported, exported.with_name("other.onnx"))
    assert exported.with_name("one.onnx").read_bytes() == exported.with_name("other.onnx").read_bytes()
    assert len(list(exported.parent.iterdir())) == 3


@pytest.mark.slow
def test_a_small_layer_stays_as_it_is_and_a_network_of_such_is_refused(exported: Path, tmp_path: Path):
    quantize_weights(exported, tmp_path / "int8.onnx")
    graph = onnx.load(tmp_path / "int8.onnx").graph
    assert [node.op_type for node in graph.node] == ["Cast", "Mul", "Gemm", "Relu", "Gemm"]
    export_onnx(DeployedModel(nn.Linear(4, 2), "scores"), torch.ones(2, 4), tmp_path / "tiny.onnx", DIGITS)
    with pytest.raises(UserError, match="has no layer with 256 weights or more"):
        quantize_weights(tmp_path / "tiny.onnx", tmp_path / "smaller.onnx")
    assert not (tmp_path / "smaller.onnx").exists()


@pytest.mark.slow
def test_a_runtime_reads_the_weights_once(exported: Path, tmp_path: Path):
    quantize_weights(exported, tmp_path / "int8.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "as_it_runs.onnx")
    options.log_severity_level = 3  # that such a file is for this machine alone
    onnxruntime.InferenceSession(tmp_path / "int8.onnx", options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "as_it_runs.onnx").graph.node]
    assert len(kinds) == 2
    assert not {"Cast", "Mul"} & set(kinds)
