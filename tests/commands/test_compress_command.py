"""``train.py compress``: from a run to artifacts that can be deployed, each measured where it runs."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stormproof_train.compression.rebuilding import load_network
from stormproof_train.data.digits import Digits
from tests.support import forked_command
from tests.support.cases import DRILL_STRIDE
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

QUICK_OVERRIDES = ("timing=0.02", "training=0.2", "logger=none")
"""Of a compression whose times nobody looks at."""
COMPRESS_OVERRIDES = (
    "compress",
    "run=runs/mlp",
    "budget=5pp",
    "minimize=size",
    "methods=[prune,distill,int8]",
    *QUICK_OVERRIDES,
)
TEST_PATH = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
inputs = np.load(sys.argv[2])
(outputs,) = session.run(None, {session.get_inputs()[0].name: inputs})
np.save(sys.argv[3], outputs)
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def run_compress(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return forked_command.run(list(arguments), cwd=folder, env=os.environ, timeout=280)


def read_answer(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "compressed" / name / "answer.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short trainings on digits, and one of a regression."""
    folder = tmp_path_factory.mktemp("compressed")
    quiet = ["logger=none", "report=false"]
    for name, overrides in {
        "mlp": ["trainer.max_epochs=12", "model.norm=batch", "model.width=64"],
        "numbers": ["data=diabetes", "trainer.max_epochs=10"],
    }.items():
        result = run_compress(folder, f"name={name}", *overrides, *quiet)
        assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def compressed(runs: Path) -> subprocess.CompletedProcess[str]:
    return run_compress(
        runs,
        "compress",
        "run=runs/mlp",
        "budget=5pp",
        "minimize=size",
        "methods=[prune,distill,int8]",
        *QUICK_OVERRIDES,
    )


def test_all_artifacts_are_rows_and_what_is_within_the_budget_is_tested(
    runs: Path, compressed: subprocess.CompletedProcess[str]
):
    assert compressed.returncode == 0, compressed.stderr
    answer = read_answer(runs, "mlp")
    rows = {artifact["name"]: artifact for artifact in answer["artifacts"]}
    assert [*rows][:3] == ["original", "original-int8", "pruned-2x"]
    within = [artifact for artifact in rows.values() if artifact["within"]]
    assert len(within) >= 3
    assert {artifact["dominated_by"] for artifact in rows.values()} <= {
        None,
        *(artifact["name"] for artifact in within),
    }
    assert all(artifact["degradation"]["high"] <= 0.05 for artifact in within if artifact["name"] != "original")
    assert all((artifact["test"] is None) != artifact["within"] for artifact in rows.values())
    assert rows["pruned-2x"]["macs"] * 2 <= rows["original"]["macs"]
    assert rows["original-int8"]["bytes"] < rows["original"]["bytes"]
    for artifact in rows.values():
        for batch, latency in artifact["latency"].items():
            assert latency["original"] / latency["median"] == pytest.approx(artifact["speedup"][batch]["value"])
    best = rows[answer["best"]]
    assert best["within"]
    assert best["bytes"] == min(artifact["bytes"] for artifact in within)


def test_the_folder_holds_what_one_deploys(runs: Path, compressed: subprocess.CompletedProcess[str]):
    folder, best = runs / "compressed" / "mlp", read_answer(runs, "mlp")["best"]
    for name in ("model.onnx", "model.ckpt", "README.md"):
        assert (folder / name).read_bytes() == (folder / "artifacts" / best / name).read_bytes()
    assert "<html" in (folder / "report.html").read_text()
    assert best in compressed.stdout
    assert not (folder / "lease.json").exists()


def test_an_artifact_is_run_by_onnxruntime_alone_and_is_as_good_as_its_row_says(
    runs: Path, compressed: subprocess.CompletedProcess[str], tmp_path: Path
):
    data = Digits(seed=0)
    data.setup("test")
    inputs, target = data.load_test()
    np.save(tmp_path / "inputs.npy", inputs.numpy())
    (tmp_path / "alone.py").write_text(TEST_PATH)
    for row in read_answer(runs, "mlp")["artifacts"]:
        if not row["within"]:
            continue
        model = runs / "compressed" / "mlp" / row["folder"] / "model.onnx"
        paths = [str(path) for path in (model, tmp_path / "inputs.npy", tmp_path / "outputs.npy")]
        result = subprocess.run(
            [sys.executable, "-I", str(tmp_path / "alone.py"), *paths], capture_output=True, text=True, check=True
        )
        assert not {"torch", "stormproof", "stormproof_train", "onnx"} & set(json.loads(result.stdout))
        outputs = np.load(tmp_path / "outputs.npy")
        np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=1e-5)
        assert (outputs.argmax(axis=1) == target.numpy()).mean() == pytest.approx(row["test"]["value"], abs=1e-9)


def test_a_file_that_is_not_what_was_measured_is_made_again_and_no_other(
    runs: Path, compressed: subprocess.CompletedProcess[str]
):
    artifacts = runs / "compressed" / "mlp" / "artifacts"
    before = {path: path.read_bytes() for path in artifacts.rglob("*") if path.is_file() and path.name != "README.md"}
    damaged = (artifacts / "original-int8" / "model.onnx", artifacts / "pruned-2x" / "measured.json")
    for path in damaged:
        path.write_bytes(before[path][:500])
    result = run_compress(runs, *COMPRESS_OVERRIDES)
    assert result.returncode == 0, result.stderr
    made_again = {file.parent.name for file in damaged}
    assert set(re.findall(r"^(\S+): the files in ", result.stdout, re.MULTILINE)) == made_again
    after = {path: path.read_bytes() for path in before}
    assert {path.parent.name for path in before if before[path] != after[path]} == made_again
    assert {path.name for path in before if before[path] != after[path]} == {"measured.json"}  # the times


def test_the_weights_of_an_artifact_rebuild_its_network(runs: Path, compressed: subprocess.CompletedProcess[str]):
    folder = runs / "compressed" / "mlp" / "artifacts" / "pruned-2x"
    content = torch.load(folder / "model.ckpt", weights_only=True)
    assert set(content["network"]["shapes"]) >= {"1", "4", "7"}
    network, inputs = load_network(folder / "model.ckpt"), torch.randn(5, 1, 8, 8)
    from onnxruntime import InferenceSession

    session = InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"input": inputs.numpy()})
    torch.testing.assert_close(network(inputs).softmax(dim=1).detach(), torch.from_numpy(outputs), atol=1e-5, rtol=0)


def test_a_fine_tuning_is_a_run_that_can_be_evaluated_and_reported(
    runs: Path, compressed: subprocess.CompletedProcess[str]
):
    run = runs / "compressed" / "mlp" / "runs" / "pruned-2x"
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    result = run_compress(runs, "evaluate", f"checkpoint={run}", "split=validation", f"output={runs / 'evaluated'}")
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((runs / "evaluated" / "evaluation.json").read_text())
    row = next(artifact for artifact in read_answer(runs, "mlp")["artifacts"] if artifact["name"] == "pruned-2x")
    assert evaluation["headline"]["accuracy"]["value"] == pytest.approx(row["validation"]["value"])
    assert run_compress(runs, "report", str(run)).returncode == 0


def test_what_was_compressed_can_be_compressed_again(runs: Path, compressed: subprocess.CompletedProcess[str]):
    overrides = ("run=compressed/mlp/runs/pruned-2x", "budget=10pp", "minimize=size", "methods=int8", "name=again")
    result = run_compress(runs, "compress", *overrides, *QUICK_OVERRIDES)
    assert result.returncode == 0, result.stderr
    before, after = (read_answer(runs, name)["artifacts"] for name in ("mlp", "again"))
    pruned = next(artifact for artifact in before if artifact["name"] == "pruned-2x")
    assert [artifact["name"] for artifact in after] == ["original", "original-int8"]
    assert (after[0]["macs"], after[0]["validation"]) == (pruned["macs"], pruned["validation"])


def test_the_same_command_again_makes_nothing_anew(runs: Path, compressed: subprocess.CompletedProcess[str]):
    folder = runs / "compressed" / "mlp"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*") if path.name != "README.md"}
    rerun = run_compress(runs, *COMPRESS_OVERRIDES)
    assert rerun.returncode == 0, rerun.stderr
    after = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*") if path.name != "README.md"}
    assert after == before
    assert rerun.stdout.splitlines()[-1] == compressed.stdout.splitlines()[-1]


def test_another_budget_takes_what_is_there(runs: Path, compressed: subprocess.CompletedProcess[str]):
    folder = runs / "compressed" / "mlp"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/summary.json")}
    result = run_compress(runs, *[word.replace("5pp", "4pp") for word in COMPRESS_OVERRIDES])
    assert result.returncode == 0, result.stderr
    assert read_answer(runs, "mlp")["budget"]["requested"] == "4pp"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run_compress(runs, *COMPRESS_OVERRIDES).returncode == 0


def test_what_makes_other_artifacts_wants_another_folder(runs: Path, compressed: subprocess.CompletedProcess[str]):
    result = run_compress(runs, *[word.replace("training=0.2", "training=0.3") for word in COMPRESS_OVERRIDES])
    assert result.returncode == 2
    assert (
        "contains artifacts of another compression: training: 0.2 -> 0.3. Use another folder (name=…), or delete"
        in result.stderr
    )


@pytest.mark.parametrize(
    ("method", "word"), [("prune", "pruned"), pytest.param("factor", "factored", marks=pytest.mark.drill)]
)
def test_an_error_of_a_regression_is_compressed_until_the_target_is_reached(method: str, word: str, runs: Path):
    overrides = ("target.macs=2", f"methods=[{method},distill]", "minimize=macs", "samples=50", f"name={method}")
    result = run_compress(runs, "compress", "run=runs/numbers", *overrides, *QUICK_OVERRIDES)
    assert result.returncode == 0, result.stderr
    answer = read_answer(runs, method)
    assert answer["headline"] == "rmse"
    assert answer["artifacts"][0]["calibration_error"] is None
    rows = {entry["name"]: entry for entry in answer["artifacts"]}
    assert [*rows] == ["original", f"{word}-2x", f"{word}-1.4x"]
    assert rows["original"]["macs"] > rows[f"{word}-1.4x"]["macs"] > rows[f"{word}-2x"]["macs"]
    assert answer["best"] == f"{word}-2x"
    assert any("50 of 88 validation samples were used" in entry for entry in answer["skipped"])


@pytest.mark.drill
def test_what_a_killed_compression_comes_to_is_what_it_would_have_come_to(
    runs: Path, compressed: subprocess.CompletedProcess[str], tmp_path: Path
):
    shutil.copytree(runs / "runs", tmp_path / "runs")
    generator = random.Random(0)
    for _ in range(max(2, 12 // DRILL_STRIDE)):
        with (tmp_path / "out").open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "stormproof_train", *COMPRESS_OVERRIDES], cwd=tmp_path, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
            time.sleep(generator.uniform(4, 20))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    result = run_compress(tmp_path, *COMPRESS_OVERRIDES)
    assert result.returncode == 0, result.stderr
    assert _files(tmp_path) == _files(runs)


@pytest.mark.drill
def test_told_to_end_it_saves_and_the_same_command_goes_on(
    runs: Path, compressed: subprocess.CompletedProcess[str], tmp_path: Path
):
    shutil.copytree(runs / "runs", tmp_path / "runs")
    process = forked_command.start(
        [*COMPRESS_OVERRIDES], cwd=tmp_path, env=os.environ, stdout=tmp_path / "out", stderr=tmp_path / "err"
    )
    run = tmp_path / "compressed" / "mlp" / "runs" / "pruned-2x"
    wait_for(lambda: (run / "metrics.csv").exists() or not process.is_alive())  # the fine-tuning runs
    assert process.is_alive(), (tmp_path / "err").read_text()
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join()
    assert process.exitcode == 75, (tmp_path / "err").read_text()
    assert (tmp_path / "err").read_text() == "stormproof: stopped; the same command resumes\n"
    assert json.loads((run / "run.json").read_text())["status"] in {"preempted", "finished"}
    result = run_compress(tmp_path, *COMPRESS_OVERRIDES)
    assert result.returncode == 0, result.stderr
    assert _files(tmp_path) == _files(runs)


def _files(folder: Path) -> dict[str, bytes]:
    """The networks of all artifacts, by their names."""
    artifacts = (folder / "compressed" / "mlp" / "artifacts").iterdir()
    return {artifact_folder.name: (artifact_folder / "model.onnx").read_bytes() for artifact_folder in artifacts}


@pytest.mark.drill
def test_two_ranks_train_on_what_one_process_has_pruned(runs: Path):
    result = run_compress(
        runs, "compress", "run=runs/mlp", "budget=10pp", "methods=prune", "minimize=size", "name=ranks", "trainer=ddp",
        "trainer.devices=2", "trainer.accelerator=cpu", *QUICK_OVERRIDES,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    record = json.loads((runs / "compressed/ranks/runs/pruned-2x/run.json").read_text())
    assert [attempt["ranks"] for attempt in record["attempts"]] == [2]


MISTAKES = {
    "too little": (["budget=0.1pp"], "budget=0.1pp cannot be verified on"),
    "no run": (["run=runs/none", "budget=1pp"], "runs/none is neither the folder of a run nor a checkpoint"),
    "other data": (["budget=5pp", "data.batch_size=3"], "the data differ from those that"),
    "another network": (["budget=5pp", "model.width=3"], "Other settings are those of the run."),
    "no directions": ([], "set a budget"),
    "a folder's name": (["budget=5pp", "name=a/b"], "name='a/b' is not a valid folder name"),
    "a length": (["budget=5pp", "trainer.max_steps=3"], "set the length of fine-tuning relative to the run"),
    "all of it": (["budget=1"], "use 1pp for percentage points"),
    "too far": (["target.macs=1000"], "must be above 1 and at most 64"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_sentence_before_anything_is_trained(name: str, runs: Path):
    overrides, sentence = MISTAKES[name]
    arguments = overrides if any(word.startswith("run=") for word in overrides) else ["run=runs/mlp", *overrides]
    before = set(runs.glob("compressed/*/runs/*"))
    named = [] if any(word.startswith("name=") for word in overrides) else ["name=mistake"]
    result = run_compress(runs, "compress", *arguments, *QUICK_OVERRIDES, *named)
    assert result.returncode == 2, result.stdout
    assert sentence in result.stderr
    assert set(runs.glob("compressed/*/runs/*")) == before
