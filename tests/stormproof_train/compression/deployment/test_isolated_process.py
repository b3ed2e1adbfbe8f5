import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stormproof_train.compression.deployment import isolated_process as module
from stormproof_train.compression.deployment.deployed_model import DeployedModel
from stormproof_train.compression.deployment.export import export_onnx
from stormproof_train.compression.deployment.isolated_process import SCRIPT, IsolatedProcess
from stormproof_train.errors import UserError
from tests.stormproof_train.compression.trained_networks import DIGITS

pytestmark = pytest.mark.slow

INPUTS = np.random.default_rng(0).normal(size=(70, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "model.onnx"
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))
    export_onnx(DeployedModel(network, "scores"), torch.from_numpy(INPUTS), path, DIGITS)
    return path


@pytest.mark.slow
def test_an_artifact_is_measured_in_a_process_of_its_own(artifact: Path):
    large_array = np.ones(100_000_000)  # 800 MB, which a process that is started from here has none of
    with IsolatedProcess(artifact, INPUTS) as process:
        latencies = process.measure_latencies(0.05)
        assert large_array.nbytes > process.memory
        assert 0 < process.baseline_memory < process.memory < 400e6
    assert process.bytes == artifact.stat().st_size
    assert 0 < process.load_seconds < 60
    assert set(latencies) == {1, 32}
    for latency in latencies.values():
        assert 0 < latency.median <= latency.p95
        assert latency.runs >= 10


@pytest.mark.slow
def test_the_outputs_are_those_of_the_network(artifact: Path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))
    expected = network(torch.from_numpy(INPUTS)).detach().numpy()
    with IsolatedProcess(artifact, INPUTS) as process:
        assert np.allclose(process.predict(), expected, atol=1e-5)


def test_the_process_imports_neither_torch_nor_this_application(artifact: Path, tmp_path: Path):
    np.save(tmp_path / "inputs.npy", INPUTS)
    code = (
        "import runpy, sys\n"
        "sys.modules.update(torch=None, stormproof=None, stormproof_train=None)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", code, str(SCRIPT), str(artifact), str(tmp_path / "inputs.npy"), "1"],
        input=f"time 0\npredict {tmp_path / 'outputs.npy'}\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(result.stdout.splitlines()) == 3
    assert np.load(tmp_path / "outputs.npy").shape == (70, 3)


def test_an_artifact_is_timed_as_often_as_one_asks(artifact: Path):
    with IsolatedProcess(artifact, INPUTS) as process:
        assert process.memory == process.baseline_memory
        rounds = [process.measure_latencies(0.01) for _ in range(3)]
        assert all(set(timing) == {1, 32} for timing in rounds)
        assert process.memory > process.baseline_memory
        assert np.array_equal(process.predict(), process.predict())


def test_a_failure_is_told_by_its_last_line(artifact: Path, tmp_path: Path):
    (tmp_path / "broken.onnx").write_bytes(artifact.read_bytes()[:100])
    with pytest.raises(UserError, match=r"broken\.onnx could not be measured: .*(Protobuf|protobuf|INVALID)") as error:
        IsolatedProcess(tmp_path / "broken.onnx", INPUTS)
    assert "\n" not in str(error.value)


def test_a_killed_process_is_told_as_one(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "alone.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(module, "SCRIPT", tmp_path / "alone.py")
    with pytest.raises(UserError, match="was killed by SIGKILL, possibly because memory ran out"):
        IsolatedProcess(artifact, INPUTS)


@pytest.mark.parametrize("wrong", [{"inputs": INPUTS[:0]}, {"threads": 0}])
def test_what_cannot_be_started_is_refused(wrong: dict, artifact: Path):
    with pytest.raises(ValueError, match="at least one input and one thread are needed"):
        IsolatedProcess(artifact, **{"inputs": INPUTS, **wrong})


def test_no_time_below_none_is_taken(artifact: Path):
    with (
        IsolatedProcess(artifact, INPUTS) as process,
        pytest.raises(ValueError, match="`seconds` must not be negative, got -1"),
    ):
        process.measure_latencies(-1)


def test_a_process_that_is_killed_later_is_told_as_one_too(artifact: Path):
    with IsolatedProcess(artifact, INPUTS) as process:
        process._process.kill()
        with pytest.raises(UserError, match="was killed by SIGKILL"):
            process.predict()
