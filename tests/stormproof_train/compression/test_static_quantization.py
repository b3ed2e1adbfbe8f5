from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from trained_networks import DIGITS, digits, trained_on_digits

from stormproof_train.compression.deployment.deployed import Deployed
from stormproof_train.compression.deployment.export import export
from stormproof_train.compression.deployment.static_quantization import quantize_static
from stormproof_train.errors import UserError
from stormproof_train.predict.facts import KEY, Facts

SAMPLES = digits()["train"][:128]


@pytest.fixture(scope="module", params=["mlp", "cnn", "resnet"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained network in float32 and in int8."""
    folder = tmp_path_factory.mktemp(request.param)
    export(trained_on_digits(request.param), torch.from_numpy(SAMPLES[:2]), folder / "float.onnx", DIGITS)
    quantize_static(folder / "float.onnx", folder / "int8.onnx", SAMPLES)
    return folder / "float.onnx", folder / "int8.onnx"


def _right(path: Path) -> float:
    (outputs,) = onnxruntime.InferenceSession(path).run(None, {"input": digits()["test"]})
    return float((outputs.argmax(1) == digits()["test_labels"]).mean())


def test_it_is_smaller_and_about_as_good(pair: tuple[Path, Path]):
    full, int8 = pair
    assert _right(full) > 0.8
    assert abs(_right(full) - _right(int8)) < 0.03
    assert int8.stat().st_size < 0.7 * full.stat().st_size


def test_all_layers_but_the_last_are_of_eight_bits(pair: tuple[Path, Path]):
    graph = onnx.load(pair[1]).graph
    read = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in graph.node if node.op_type in {"Conv", "Gemm"}]
    assert [set(node.input) <= read for node in layers] == [True] * (len(layers) - 1) + [False]
    (softmax,) = (node for node in graph.node if node.op_type == "Softmax")
    assert softmax.input[0] == layers[-1].output[0]


def test_each_channel_has_a_step_of_its_own(pair: tuple[Path, Path]):
    steps = [each for each in onnx.load(pair[1]).graph.initializer if each.name.endswith("weight_scale")]
    assert steps
    assert all(len(each.dims) == 1 and each.dims[0] > 1 for each in steps)


def test_the_facts_stay(pair: tuple[Path, Path]):
    for path in pair:
        told = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        assert Facts.read(told[KEY]) == DIGITS


def test_the_same_samples_make_the_same_bytes_in_silence(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    full, int8 = pair
    monkeypatch.chdir(tmp_path)
    before = sorted(full.parent.iterdir())
    quantize_static(full, Path("again.onnx"), SAMPLES)
    assert Path("again.onnx").read_bytes() == int8.read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == ["again.onnx"]
    assert sorted(full.parent.iterdir()) == before
    assert capfd.readouterr() == ("", "")


def test_seven_bits_are_half_as_large(pair: tuple[Path, Path], tmp_path: Path):
    quantize_static(pair[0], tmp_path / "seven.onnx", SAMPLES, reduce_range=True)
    for path, largest in ((pair[1], 127), (tmp_path / "seven.onnx", 64)):
        weights = [onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
        assert max(np.abs(each.astype(int)).max() for each in weights if each.dtype == np.int8) == largest


def test_a_linear_network_is_refused(tmp_path: Path):
    export(Deployed(nn.Linear(4, 2), "scores"), torch.ones(2, 4), tmp_path / "model.onnx", DIGITS)
    with pytest.raises(UserError, match="has no layer but the last, which stays in float32"):
        quantize_static(tmp_path / "model.onnx", tmp_path / "int8.onnx", np.ones((8, 4), np.float32))
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
