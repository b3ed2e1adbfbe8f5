"""The model card of an artifact."""

import json
import math
import re
from typing import Any

import numpy as np
import onnxruntime
import pytest

from stormproof_train.compression import rebuilding
from stormproof_train.compression.report.card import model_card
from stormproof_train.predict.artifact_metadata import ArtifactMetadata
from tests.support.compression_records import ARTIFACTS, artifact_record, compression_record, regression_record

CLASSES = [str(number) for number in range(10)]
FACTS = ArtifactMetadata("probabilities", CLASSES, [1, 8, 8], "digits-cnn", "digit", {"kind": "image", "channels": 1})
HOSTILE = "a|b\n# <script>`*[x](y)*`"


def _make_card(name: str, **fields: Any) -> str:
    numbers = compression_record()
    return model_card(
        numbers, {**next(artifact for artifact in ARTIFACTS if artifact["name"] == name), **fields}, FACTS
    )


def test_a_card_says_what_it_is_how_good_and_how_to_run_it():
    text = _make_card("pruned-2x-int8")
    assert text.startswith("# digits-cnn: pruned-2x-int8\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Results", "Inputs and outputs", "How to run it", "Data", "Limits",
    ]  # fmt: skip
    for part in (
        "From the run `runs/digits-cnn-relu-3fa91c20`",
        "| accuracy on the test split (95% interval) | 0.9690 (0.9610 to 0.9770) | 0.9730 (0.9650 to 0.9810) |",
        "| size of the file | 108 kB | 820 kB |",
        "- 0.40 (-0.10 to 0.90) on the test split",
        "Latencies were measured on AMD EPYC 9R14 with 1 thread; it has int8 instructions.",
        "differ from those of its network in PyTorch by at most 3.1e-06",
        "| `input` | (N, 1, 8, 8) | float32 |",
        "| `probabilities` | (N, 10) | float32 |",
        "stormproof-train predict model=FOLDER input=FILE",
        "were calibrated on 512 training samples",
    ):
        assert part in text
    assert text.count("```") % 2 == 0


def test_the_code_of_a_card_is_python(monkeypatch: pytest.MonkeyPatch):
    class Session:
        def __init__(self, path: str, providers: list[str]) -> None:
            assert (path, providers) == ("model.onnx", ["CPUExecutionProvider"])

        def run(self, _: None, feeds: dict[str, Any]) -> list[Any]:
            assert feeds["input"].shape == (1, 1, 8, 8)
            assert feeds["input"].dtype == np.float32
            return [np.full((1, 10), 0.1)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    first, second = re.findall(r"```python\n(.*?)```", _make_card("pruned-2x-int8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(first, names)
    assert names["probabilities"].shape == (1, 10)
    monkeypatch.setattr(rebuilding, "load_network", lambda path: f"the network of {path}")
    exec(second, names)
    assert names["network"] == "the network of model.ckpt"


@pytest.mark.parametrize(
    ("name", "told", "sentence"),
    [
        ("pruned-2x-int8", {}, "- It was selected on validation"),
        ("pruned-2x", {}, "- It is not the recommended artifact."),
        ("original", {}, "- It is the original in another format."),
        ("original-weights-int8", {}, "- Drawback: not faster."),
        (
            "pruned-2x",
            {"degradation_by_class": [{"name": "7", "degradation": 0.031}, {"name": "1", "degradation": -0.1}]},
            ": 7 (3.10).",
        ),
    ],
)
def test_the_limits_are_those_of_this_artifact(name: str, told: dict[str, Any], sentence: str):
    limits = _make_card(name, **told).partition("## Limits")[2]
    assert sentence in limits
    assert ("int8 ranges" in limits) == name.endswith("2x-int8")


def test_what_was_not_read_and_is_not_known_is_not_told():
    numbers = regression_record()
    facts = ArtifactMetadata("values", [], [10], "diabetes-mlp", None)
    text = model_card(numbers, numbers["artifacts"][1], facts)
    assert "the test split was not used" in text
    assert "on the test split" not in text
    assert "rmse on validation" in text
    assert "| `values` | (N, values) | float32 | the predicted values, in the unit of the target |" in text
    assert "The preparation of inputs is unknown" in text
    assert "Classes" not in text


def test_texts_are_no_markdown_and_end_no_cell():
    facts = ArtifactMetadata("probabilities", [HOSTILE, "ok"], [2], HOSTILE, HOSTILE, {"kind": HOSTILE, "fence": "```"})
    fields = dict.fromkeys(("run", "checkpoint"), HOSTILE)
    machine = {"processor": HOSTILE, "threads": 1, "int8": HOSTILE}
    artifact = artifact_record("pruned-2x", 0.0, method=HOSTILE, folder=HOSTILE, remarks=[HOSTILE])
    text = model_card(
        compression_record([ARTIFACTS[0], artifact], headline=HOSTILE, machine=machine, **fields), artifact, facts
    )
    assert not re.search(r"^# <", text, re.MULTILINE)
    prose = re.sub(r"```json.*?```|(`+)[^\n]*?\1", "", text, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<script", prose)
    for line in prose.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in {4, 5}
    described = re.findall(r"```json\n(.*?)\n```", text, re.DOTALL)[0]
    assert json.loads(described)["kind"] == HOSTILE


@pytest.mark.parametrize("value", [None, math.nan, "nan", math.inf])
def test_a_number_that_is_missing_leaves_a_card(value: Any):
    pair = {"value": value, "low": value, "high": value}
    numbers = ("calibration_error", "bytes", "parameters", "macs", "memory", "load_seconds", "difference")
    fields: dict[str, Any] = {
        **dict.fromkeys(numbers, value),
        **dict.fromkeys(("validation", "degradation", "test", "test_degradation"), pair),
        "latency": {"1": {"median": value, "p95": value, "original": value}}, "speedup": {"1": pair}, "mcnemar": None,
    }  # fmt: skip
    artifact = artifact_record("pruned-2x", 0.0, **fields)
    text = model_card(compression_record([ARTIFACTS[0], artifact]), artifact, FACTS)
    assert not re.search(r"\b(nan|inf)\b", text)
    assert "- Size: unknown" in text
