from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from stormproof_train.compression.deployment.deployed_model import DeployedModel
from stormproof_train.compression.deployment.export import export_onnx
from stormproof_train.compression.deployment.static_quantization import quantize_static
from stormproof_train.errors import UserError
from stormproof_train.predict.artifact_metadata import METADATA_KEY, ArtifactMetadata
from tests.stormproof_train.compression.trained_networks import DIGITS, load_digits, train_on_digits

pytestmark = pytest.mark.slow

SAMPLES = load_digits()["train"][:128]


@pytest.fixture(scope="module", params=["mlp", "cnn", "resnet", "transformer"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained network in float32 and in int8."""
    folder = tmp_path_factory.mktemp(request.param)
    export_onnx(train_on_digits(request.param), torch.from_numpy(SAMPLES[:2]), folder / "float.onnx", DIGITS)
    quantize_static(folder / "float.onnx", folder / "int8.onnx", SAMPLES)
    return folder / "float.onnx", folder / "int8.onnx"


def _right(path: Path) -> float:
    (outputs,) = onnxruntime.InferenceSession(path).run(None, {"input": load_digits()["test"]})
    return float((outputs.argmax(1) == load_digits()["test_labels"]).mean())


def test_it_is_smaller_and_about_as_good(pair: tuple[Path, Path]):
    full, int8 = pair
    assert _right(full) > 0.8
    assert abs(_right(full) - _right(int8)) < 0.03
    assert int8.stat().st_size < 0.7 * full.stat().st_size


def _int8_nodes(graph: onnx.GraphProto) -> list[tuple[str, bool]]:
    """The layers, and whether all that they read is stored in 8 bits (a bias in 32)."""
    read = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    arrays = {initializer.name for initializer in graph.initializer} | read
    return [
        (node.op_type, set(node.input) <= read)
        for node in graph.node
        if node.op_type in {"Conv", "Gemm", "MatMul"} and node.input[1] in arrays
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "layers"),
    [
        ("mlp", [("Gemm", True), ("Gemm", True), ("Gemm", False)]),
        ("cnn", [("Conv", False), ("Conv", True), ("Conv", True), ("Conv", True), ("Gemm", False)]),
        (
            "transformer",
            [("Conv", False), *[("MatMul", True), ("MatMul", True), ("MatMul", True), ("Gemm", True)], ("Gemm", False)],
        ),
    ],
    indirect=["pair"],
)
def test_layers_but_the_last_and_convolutions_of_few_channels_are_of_eight_bits(
    pair: tuple[Path, Path], layers: list[tuple[str, bool]]
):
    graph = onnx.load(pair[1]).graph
    assert _int8_nodes(graph) == layers
    softmax = [node for node in graph.node if node.op_type == "Softmax"][-1]
    last = [node for node in graph.node if node.op_type == "Gemm"][-1]
    assert softmax.input[0] == last.output[0]


def _steps(graph: onnx.GraphProto, kind: str) -> list[int]:
    """How many steps the weights of each layer have."""
    arrays = {initializer.name: onnx.numpy_helper.to_array(initializer) for initializer in graph.initializer}
    read = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in graph.node if node.op_type == kind and node.input[1] in read]
    return [arrays[read[node.input[1]].input[1]].size for node in layers]


@pytest.mark.parametrize("pair", ["cnn"], indirect=True)
def test_each_channel_of_a_convolution_has_a_step_of_its_own(pair: tuple[Path, Path]):
    graph = onnx.load(pair[0]).graph
    channels = [
        initializer.dims[0]
        for initializer in graph.initializer
        if len(initializer.dims) == 4 and initializer.dims[1] >= 4
    ]
    assert channels
    assert _steps(onnx.load(pair[1]).graph, "Conv") == channels


@pytest.mark.parametrize("pair", ["mlp"], indirect=True)
def test_a_dense_layer_has_one_step(pair: tuple[Path, Path]):
    assert _steps(onnx.load(pair[1]).graph, "Gemm") == [1, 1]


def _as_it_runs(path: Path, folder: Path) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "as_it_runs.onnx")
    options.log_severity_level = 3  # that such a file is for this machine alone
    onnxruntime.InferenceSession(path, options)
    return [node.op_type for node in onnx.load(folder / "as_it_runs.onnx").graph.node]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "between"),
    [
        (nn.ReLU, []),
        (nn.ELU, ["Elu", "QuantizeLinear"]),
        (nn.SiLU, ["QuickGelu", "QuantizeLinear"]),
    ],
)
def test_between_dense_layers_8_bits_go_on_behind_a_relu_and_float32_behind_what_knows_no_8_bits(
    activation: Any, between: list[str], tmp_path: Path
):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(64, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 10), nn.Softmax(1)
    )
    inputs = torch.from_numpy(SAMPLES[:, 0].reshape(len(SAMPLES), -1))
    export_onnx(DeployedModel(network, "probabilities"), inputs, tmp_path / "float.onnx", DIGITS)
    quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", inputs.numpy())
    ops = _as_it_runs(tmp_path / "int8.onnx", tmp_path)
    first, second = (index for index, op in enumerate(ops) if op == "QGemm")
    assert ops[first + 1 : second] == between
    (expected,) = onnxruntime.InferenceSession(tmp_path / "float.onnx").run(None, {"input": inputs.numpy()})
    (actual,) = onnxruntime.InferenceSession(tmp_path / "int8.onnx").run(None, {"input": inputs.numpy()})
    assert np.abs(actual - expected).max() < 0.01


@pytest.mark.parametrize("pair", ["transformer"], indirect=True)
def test_attention_computes_in_float32_between_its_layers(pair: tuple[Path, Path], tmp_path: Path):
    ops = _as_it_runs(pair[1], tmp_path)
    assert ops.count("MatMulIntegerToFloat") == 3
    assert {"Softmax", "MatMul"} <= set(ops)
    assert "QLinearMatMul" not in ops


def test_the_facts_stay(pair: tuple[Path, Path]):
    for path in pair:
        metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        assert ArtifactMetadata.from_json(metadata[METADATA_KEY]) == DIGITS


@pytest.mark.slow
def test_the_same_samples_make_the_same_bytes_in_silence(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    full, int8 = pair
    monkeypatch.chdir(tmp_path)
    before = sorted(full.parent.iterdir())
    quantize_static(full, Path("again.onnx"), SAMPLES)
    assert Path("again.onnx").read_bytes() == int8.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["again.onnx"]
    assert sorted(full.parent.iterdir()) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_seven_bits_are_half_as_large(pair: tuple[Path, Path], tmp_path: Path):
    quantize_static(pair[0], tmp_path / "seven.onnx", SAMPLES, reduce_range=True)
    for path, largest in ((pair[1], 127), (tmp_path / "seven.onnx", 64)):
        weights = [onnx.numpy_helper.to_array(array) for array in onnx.load(path).graph.initializer]
        assert max(np.abs(array.astype(int)).max() for array in weights if array.dtype == np.int8) == largest


@pytest.mark.slow
def test_a_linear_network_is_refused(tmp_path: Path):
    export_onnx(DeployedModel(nn.Linear(4, 2), "scores"), torch.ones(2, 4), tmp_path / "model.onnx", DIGITS)
    with pytest.raises(UserError, match="all its layers stay in float32"):
        quantize_static(tmp_path / "model.onnx", tmp_path / "int8.onnx", np.ones((8, 4), np.float32))
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


HEAD = '<ir_version: 10, opset_import: ["": 20]> agraph'
"""Of a network written down node by node."""


def _written(tmp_path: Path, inputs: str, nodes: str, **weights: tuple[int, ...]) -> Path:
    model = onnx.parser.parse_model(f"{HEAD} ({inputs}) => (float[N, 4] scores) {{ {nodes} }}")
    drawn = np.random.default_rng(0)
    for name, shape in weights.items():
        values = (drawn.normal(size=shape) / max(1, np.prod(shape[1:])) ** 0.5).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"
    onnx.save(model, tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


ROW, IMAGE = "float[N, 4] input", "float[N, 4, 8, 8] input"
WRITTEN: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {
    "a dense layer that a ReLU and a sum take": (
        ROW,
        "h = Gemm(input, A, a) r = Relu(h) s = Add(h, r) scores = Gemm(s, B, b)",
        {"A": (4, 4), "a": (4,), "B": (4, 4), "b": (4,)},
    ),
    "convolutions, and a dense layer behind which is an ELU": (
        IMAGE,
        (
            "c = Conv(input, K) d = Relu(c) e = Conv(d, L) f = Relu(e) g = Conv(f, M) m = GlobalAveragePool(g) "
            "v = Flatten(m) h = Gemm(v, A, a) r = Elu(h) scores = Gemm(r, B, b)"
        ),
        {"K": (4, 4, 3, 3), "L": (4, 4, 3, 3), "M": (4, 4, 3, 3), "A": (4, 4), "a": (4,), "B": (4, 4), "b": (4,)},
    ),
    "a last layer that is the first again": (
        ROW,
        "h = Gemm(input, A, a) r = Relu(h) g = Gemm(r, B, b) q = Relu(g) scores = Gemm(q, A, a)",
        {"A": (4, 4), "a": (4,), "B": (4, 4), "b": (4,)},
    ),
    "a clip without 0": (
        ROW,
        (
            "low = Constant<value_float = 0.5>() high = Constant<value_float = 2.0>() h = Gemm(input, A, a) "
            "r = Clip(h, low, high) scores = Gemm(r, B, b)"
        ),
        {"A": (4, 4), "a": (4,), "B": (4, 4), "b": (4,)},
    ),
    "a weight that is computed": (
        IMAGE,
        (
            "c = Conv(input, K) d = Relu(c) w = Mul(L, L) e = Conv(d, w) m = GlobalAveragePool(e) v = Flatten(m) "
            "scores = Gemm(v, B, b)"
        ),
        {"K": (4, 4, 3, 3), "L": (4, 4, 3, 3), "B": (4, 4), "b": (4,)},
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_comes_out_is_nearly_the_same(name: str, tmp_path: Path):
    inputs, nodes, weights = WRITTEN[name]
    path = _written(tmp_path, inputs, nodes, **weights)
    shape = (256, 4) if inputs is ROW else (64, 4, 8, 8)
    samples = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    quantize_static(path, tmp_path / "int8.onnx", samples)
    expected, actual = (
        onnxruntime.InferenceSession(model_path).run(None, {"input": samples})[0]
        for model_path in (path, tmp_path / "int8.onnx")
    )
    assert np.sqrt(np.mean((actual - expected) ** 2)) < 0.03 * expected.std()
