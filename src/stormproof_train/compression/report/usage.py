"""How an artifact is used: what it takes and gives, and code that runs it."""

from __future__ import annotations

from stormproof_train.compression.artifact import MODEL, WEIGHTS
from stormproof_train.compression.deployment.export import INPUT
from stormproof_train.compression.report.artifacts import Artifact
from stormproof_train.compression.report.markdown import code, table
from stormproof_train.predict.facts import Facts

MOST_CLASSES = 50
"""Of more only the first are named: the file has all."""

_OUTPUTS = {
    "probabilities": "the probability of each class; those of a sample sum to 1",
    "scores": "a score for each class, the highest of the predicted one; they are no probabilities",
    "values": "the predicted values, in the unit of the target",
}


def inputs_and_outputs(facts: Facts) -> list[str]:
    """The lines that say what the file takes, and what it gives."""
    shape = ", ".join(["N", *map(str, facts.input_shape)])
    outputs = f"N, {len(facts.classes)}" if facts.classes else "N, values"
    rows = [
        (code(INPUT), f"({shape})", "float32", "N samples, any number of them, prepared as the training data were"),
        (code(facts.kind), f"({outputs})", "float32", _OUTPUTS[facts.kind]),
    ]
    told = table(("name", "shape", "dtype", "meaning"), rows)
    if facts.classes:
        named = ", ".join(code(each) for each in facts.classes[:MOST_CLASSES])
        more = len(facts.classes) - MOST_CLASSES
        told += ["", f"Classes, in the order of the output: {named}{f' and {more:,} more' if more > 0 else ''}."]
    return told


def running(own: Artifact, facts: Facts) -> list[str]:
    """The lines that say how to run it, by itself and on files, and how to have it in PyTorch."""
    before = " before it was quantized" if own.quantization != "none" else ""
    shape = ", ".join(["1", *map(str, facts.input_shape)])
    return [
        "```python",
        "import numpy as np",
        "import onnxruntime",
        f'session = onnxruntime.InferenceSession("{MODEL}", providers=["CPUExecutionProvider"])',
        f"inputs = np.zeros(({shape}), dtype=np.float32)  # yours",
        f'({facts.kind},) = session.run(None, {{"{INPUT}": inputs}})',
        "```",
        "",
        "On files, prepared as the training data were:",
        "",
        "```sh",
        "stormproof-train predict model=FOLDER input=FILE",
        "```",
        "",
        f"FOLDER is that of this card ({code(own.folder)} of the compression).",
        "",
        f"Its network in PyTorch{before}, in evaluation mode, out of {code(WEIGHTS)}:",
        "",
        "```python",
        "from stormproof_train.compression.rebuilding import load_network",
        f'network = load_network("{WEIGHTS}")',
        "```",
    ]
