import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from stormproof_train.compression.deployment import export as module
from stormproof_train.compression.deployment.deployed_model import DeployedModel
from stormproof_train.compression.deployment.export import export_onnx, measure_max_difference
from stormproof_train.errors import UserError
from stormproof_train.models import CNN, MLP
from stormproof_train.predict.artifact_metadata import METADATA_KEY, ArtifactMetadata
from tests.stormproof_train.compression.trained_networks import DIGITS, MODELS
from tests.support.hydra_configs import build_activation, list_activations

pytestmark = pytest.mark.slow

SAMPLES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def _export_and_run(network: nn.Module, inputs: torch.Tensor = SAMPLES) -> nn.Module:
    """With statistics of batch norms that are not those of a new one."""
    with torch.no_grad():
        network.train()(inputs * 2 + 1)
    return network.eval()


def _exported(network: nn.Module, path: Path, inputs: torch.Tensor = SAMPLES) -> DeployedModel:
    deployed = DeployedModel(_export_and_run(network, inputs), "probabilities")
    export_onnx(deployed, inputs, path, DIGITS)
    return deployed


class _SideBySide(nn.Module):
    """Several networks of the same inputs, in one file: most of an export's time is the same for a larger one."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([network(x) for network in self.networks], dim=1)


@pytest.mark.slow
def test_each_activation_gives_the_same_in_the_file(tmp_path: Path):
    torch.manual_seed(0)
    overrides = list_activations()
    assert len(overrides) == 36
    networks = [MLP((1, 8, 8), 10, build_activation(word), width=8, depth=1) for word in overrides]
    deployed = DeployedModel(_SideBySide(networks).eval(), "scores")
    export_onnx(deployed, SAMPLES, tmp_path / "model.onnx", DIGITS)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for size, tolerance in ((1, 1e-5), (100, 1e-4)):
        expected = deployed(size * SAMPLES).detach().numpy()
        (actual,) = session.run(None, {"input": size * SAMPLES.numpy()})
        errors = np.abs(actual - expected).max(axis=(0, 2)) / np.abs(expected).max(axis=(0, 2)).clip(1)
        assert {word: error for word, error in zip(overrides, errors, strict=True) if not error < tolerance} == {}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_each_model_gives_the_same_in_the_file_for_any_batch(model: str, tmp_path: Path):
    torch.manual_seed(0)
    networks = [MODELS[model](build_activation(word)) for word in ("gelu", "rrelu", "maxout", "swiglu", "crelu")]
    deployed = _exported(_SideBySide(networks), tmp_path / "model.onnx")
    for size in (1, 7, 32):
        assert measure_max_difference(tmp_path / "model.onnx", deployed, SAMPLES[:size]) < 1e-5
    assert "BatchNormalization" not in _operations(tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (CNN((1, 40), 10, nn.ReLU, width=4, depth=1, norm="batch"), (1, 40)),
        (CNN((1, 4, 8, 8), 10, nn.ReLU, width=4, depth=1, norm="batch"), (1, 4, 8, 8)),
        (nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8), nn.Flatten()), (4, 5, 5)),
    ],
    ids=["over a sequence", "over a volume", "depthwise"],
)
def test_batch_norms_become_a_part_of_the_layer_before(network: nn.Module, shape: tuple[int, ...], tmp_path: Path):
    inputs = torch.randn(4, *shape)
    deployed = _exported(network, tmp_path / "model.onnx", inputs)
    assert measure_max_difference(tmp_path / "model.onnx", deployed, inputs) < 1e-5
    operations = _operations(tmp_path / "model.onnx")
    assert "Conv" in operations
    assert "BatchNormalization" not in operations


def _operations(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("kind", ["probabilities", "scores", "values"])
def test_the_file_says_what_it_is(kind: Any, tmp_path: Path):
    facts = ArtifactMetadata(kind, ["ä", "b"], [4], "small_mouse", "kind", {"kind": "array"})
    export_onnx(DeployedModel(nn.Linear(4, 2), kind, shift=3.0), torch.zeros(1, 4), tmp_path / "model.onnx", facts)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (model_input,), (model_output,) = session.get_inputs(), session.get_outputs()
    assert (model_input.name, model_input.type, model_input.shape[1:]) == ("input", "tensor(float)", [4])
    assert isinstance(model_input.shape[0], str)
    assert model_output.name == kind
    written = session.get_modelmeta().custom_metadata_map[METADATA_KEY]
    assert ArtifactMetadata.from_json(written) == facts
    assert json.loads(written)["input_shape"] == [4]


@pytest.mark.slow
def test_the_network_stays_as_it_is(tmp_path: Path):
    deployed = DeployedModel(MODELS["resnet"](nn.RReLU).train().double(), "scores")
    deployed.network.head.eval()
    before = {name: value.clone() for name, value in deployed.state_dict().items()}
    modes = [value.training for value in deployed.modules()]
    random = torch.get_rng_state()
    export_onnx(deployed, SAMPLES.double(), tmp_path / "model.onnx", DIGITS)
    actual = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"input": SAMPLES.numpy()})[0]
    assert actual.dtype == np.float32
    assert [value.training for value in deployed.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in deployed.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


SCRIPT = """
import sys
from pathlib import Path
import torch
from stormproof_train.compression.deployment.deployed_model import DeployedModel
from stormproof_train.compression.deployment.export import export_onnx
from stormproof_train.predict.artifact_metadata import ArtifactMetadata
from torch import nn

torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 10))
metadata = ArtifactMetadata("scores", [], [1, 8, 8], "r")
export_onnx(DeployedModel(network, "scores"), torch.ones(3, 1, 8, 8), Path(sys.argv[1]), metadata)
"""


@pytest.mark.slow
def test_another_process_makes_the_same_bytes_and_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "script.py").write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, "-W", "error", tmp_path / "script.py", tmp_path / "other.onnx"],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert (result.stdout, result.stderr) == ("", "")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other.onnx", "script.py"]
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "one.onnx")])
    exec(compile(SCRIPT, "elsewhere.py", "exec"), {})
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()


class _Eigenvalues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x.unsqueeze(1) * x.unsqueeze(2)).real


class _Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "told"),
    [
        (_Eigenvalues(), "aten.linalg_eig"),
        (_Branching(), r"data-dependent .* \(test_export.py, line \d+, in forward\)"),
    ],
)
def test_what_has_no_form_in_onnx_is_named(
    network: nn.Module, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(UserError, match=f"^Sequential cannot be exported to ONNX: .*{told}") as error:
        export_onnx(DeployedModel(nn.Sequential(network), "values"), torch.ones(2, 4), tmp_path / "model.onnx", DIGITS)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_a_network_too_large_for_one_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1_000)
    with pytest.raises(UserError, match="4,040 bytes of weights, but an ONNX file is limited to 1,000"):
        export_onnx(DeployedModel(nn.Linear(100, 10), "values"), torch.ones(2, 100), tmp_path / "model.onnx", DIGITS)


@pytest.mark.slow
def test_the_difference_is_that_of_the_worst_sample(tmp_path: Path):
    deployed = DeployedModel(nn.Linear(1, 1, bias=False), "values")
    export_onnx(deployed, torch.ones(2, 1), tmp_path / "model.onnx", DIGITS)
    with torch.no_grad():
        deployed.network.weight += 0.5
    assert measure_max_difference(tmp_path / "model.onnx", deployed, torch.tensor([[1.0], [-3.0]])) == pytest.approx(
        1.5
    )
