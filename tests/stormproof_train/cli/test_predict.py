import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.parser import parse_model
from PIL import Image
from torch import nn

from stormproof_train.cli import main
from stormproof_train.compression.deployment.deployed_model import DeployedModel
from stormproof_train.compression.deployment.export import export_onnx
from stormproof_train.data.image_folder import ImageFolder
from stormproof_train.predict.artifact_metadata import METADATA_KEY, ArtifactMetadata
from tests.support.csv_tables import make_csv, people_csv
from tests.support.image_trees import write_pets

pytestmark = pytest.mark.slow

BARE = """
import sys
for name in ("torch", "pytorch_lightning", "hydra", "omegaconf", "torchvision", "sklearn", "onnx"):
    sys.modules[name] = None  # importing it raises
from stormproof_train.cli.main import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of images, of rows and of arrays, with what they were trained on."""
    root = tmp_path_factory.mktemp("predicting")
    torch.manual_seed(0)
    images, rows = ImageFolder(str(write_pets(root / "pets", 8)), image_size=8), make_csv(root, people_csv())
    of_images = ArtifactMetadata("probabilities", images.classes, [3, 8, 8], "owls", "kind", images.preparation)
    of_rows = ArtifactMetadata("scores", rows.classes, [len(rows.input_names)], "people", "y", rows.preparation)
    of_arrays = ArtifactMetadata("values", [], [4], "prices", "price")
    for name, facts in {"images": of_images, "rows": of_rows, "arrays": of_arrays}.items():
        (root / name).mkdir()
        features, outputs = int(np.prod(facts.input_shape)), len(facts.classes) or 1
        network = nn.Sequential(nn.Flatten(), nn.Linear(features, outputs))
        torch.save(network, root / f"{name}.pt")
        deployed = DeployedModel(network, facts.kind, shift=100.0)
        export_onnx(deployed, torch.zeros(2, *facts.input_shape), root / name / "model.onnx", facts)
    np.save(root / "new.npy", np.arange(100.0).reshape(25, 4))
    return root


def _predict(*overrides: str) -> int:
    return main.main(["predict", *overrides])


def _read_error(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("stormproof: ")
    assert err.count("\n") == 1
    return err


def _network(folder: Path, name: str) -> Any:
    return torch.load(folder / f"{name}.pt", weights_only=False)


def test_images_are_told_without_torch(folder: Path, tmp_path: Path):
    overrides = [f"model={folder / 'images'}", f"input={folder / 'pets'}", "output=predictions.csv"]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", BARE, "predict", *overrides],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, result.stderr, result.returncode) == ("24 predictions: predictions.csv\n", "", 0)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [str(path) for path in sorted((folder / "pets").rglob("*.png"))]
    data = ImageFolder(str(folder / "pets"), image_size=8)
    data.setup("fit")
    inputs = {file: data._train[index][0] for index, (file, _) in enumerate(data._train._samples)}
    for row in rows:
        if row["file"] in inputs:
            expected = _network(folder, "images")(inputs[row["file"]].unsqueeze(0)).softmax(1)[0].tolist()
            actual = [float(row[f"probability of {name}"]) for name in ("cat", "dog", "owl")]
            assert actual == pytest.approx(expected, abs=1e-5)
            assert row["predicted"] == ("cat", "dog", "owl")[int(np.argmax(expected))]


def test_a_table_is_told_without_torch_and_shown(folder: Path, tmp_path: Path):
    overrides = [f"model={folder / 'rows' / 'model.onnx'}", f"input={folder / 'table.csv'}"]
    result = subprocess.run(
        [sys.executable, "-c", BARE, "predict", *overrides], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (result.stderr, result.returncode) == ("", 0)
    assert "people" in result.stdout
    assert "predicted" in result.stdout
    assert "score" in result.stdout
    assert result.stdout.endswith("and 40 more; output=predictions.csv saves all\n")
    assert not list(tmp_path.iterdir())


def test_values_are_in_a_column_named_for_the_target(folder: Path, tmp_path: Path):
    assert _predict(f"model={folder / 'arrays'}", f"input={folder / 'new.npy'}", f"output={tmp_path / 'o.csv'}") == 0
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = _network(folder, "arrays")(torch.arange(100.0).reshape(25, 4)) + 100
    assert [row["row"] for row in rows] == [str(number) for number in range(1, 26)]
    assert [float(row["price"]) for row in rows] == pytest.approx(expected.flatten().tolist(), rel=1e-6)


def test_classes_without_names_are_numbered(folder: Path, tmp_path: Path):
    facts = ArtifactMetadata("probabilities", [], [2], "small_mouse")
    export_onnx(DeployedModel(nn.Identity(), "probabilities"), torch.zeros(2, 2), tmp_path / "model.onnx", facts)
    np.save(tmp_path / "in.npy", np.array([[0.0, 50.0]]))
    _predict(f"model={tmp_path}", f"input={tmp_path / 'in.npy'}", f"output={tmp_path / 'o.csv'}")
    assert (tmp_path / "o.csv").read_text().splitlines()[0] == "row,predicted,probability of 0,probability of 1"
    assert (tmp_path / "o.csv").read_text().splitlines()[1].startswith("1,1,")


def test_a_table_may_be_written_in_another_way_than_that_of_the_training(folder: Path, tmp_path: Path):
    (tmp_path / "new.csv").write_text("age;city;height\n20,5;Rome;150,25\n")
    (tmp_path / "same.csv").write_text("age,city,height\n20.5,Rome,150.25\n")
    model = f"model={folder / 'rows'}"
    written = ["data.separator=';'", "data.decimal=,"]
    assert _predict(model, f"input={tmp_path / 'new.csv'}", f"output={tmp_path / 'one.csv'}", *written) == 0
    assert _predict(model, f"input={tmp_path / 'same.csv'}", f"output={tmp_path / 'other.csv'}") == 0
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "other.csv").read_text()


def test_help_says_how_it_is_called(capsys: pytest.CaptureFixture[str]):
    assert _predict("--help") == 0
    assert "predict model=compressed/<name> input=photos/" in capsys.readouterr().out


WRONG_WORDS = {
    ("input=x.npy",): "predict needs model=…",
    ("model={arrays}",): "predict needs input=…",
    ("model={arrays}", "input=x.npy"): "input=x.npy does not exist (from ",
    ("model={arrays}", "inputs=x.npy"): "inputs=x.npy is not an option of predict. Did you mean input=…?",
    ("model={arrays}", "x.npy"): "x.npy is not an option of predict. Did you mean ",
    ("model=nowhere", "input={new}"): "model=nowhere does not exist. Choose the file of an artifact, or its folder",
    ("model={root}", "input={new}"): "contains no model.onnx. compress writes it",
    ("model={new}", "input={new}"): "new.npy is not an executable ONNX file: ",
    ("model={arrays}", "input={new}", "output=no/x.csv"): "output=no/x.csv cannot be written: the folder no does not",
    ("model={arrays}", "input={new}", "output={root}"): "is a folder. Choose a file in an existing folder",
    ("model={arrays}", "input={root}/table.csv"): "this network needs an .npy or .npz file with arrays",
    ("model={images}", "input={new}"): "samples of shape (4,), expected (samples, 3, 8, 8)",
    ("model={images}", "input={root}/table.csv"): "table.csv: this network needs an image, or a folder of images",
    ("model={images}", "input={root}/arrays"): "arrays contains no images (.jpg, ",
    ("model={rows}", "input={root}/table.csv", "output={root}/table.csv"): "is an input of the command",
    ("model={rows}", "input={root}/pets"): "pets: this network needs a .csv file, not a folder",
    ("model={rows}", "input={root}/table.csv", "data.separator=ab"): "`separator` must be one character",
}  # fmt: skip


@pytest.mark.parametrize(("words", "wanted"), WRONG_WORDS.items(), ids=[" ".join(words) for words in WRONG_WORDS])
def test_a_wrong_word_is_a_sentence(
    words: tuple[str, ...], wanted: str, folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    places = {name: folder / name for name in ("arrays", "images", "rows")} | {
        "root": folder,
        "new": folder / "new.npy",
    }
    assert _predict(*(word.format(**places) for word in words)) == 2
    assert wanted in _read_error(capsys)
    assert not list(tmp_path.iterdir())


WRONG_FILES = {
    ("rows", "new.csv", b"age,city\n20,Rome\n"): "has no column 'height'. Columns: ",
    ("rows", "none.csv", b"size\n20\n"): "none.csv has no column 'age' and no column 'height', 'city'. Columns: size",
    ("rows", "new.csv", b"age,city,height\nold,Rome,150\n"): "'age' must be a finite number, got 'old' on line 2",
    ("rows", "new.csv", b"age,city,height\n20,K\xf6ln,150\n"): "is not text in utf-8 (line 2). Set data.encoding",
    ("rows", "new.csv", b"age,city,height\n"): "has column names but no rows",
    ("images", "new.png", b"no image"): "new.png cannot be read (",
    ("arrays", "new.npy", b"no array"): "new.npy cannot be read as an array: ",
    ("arrays", "new.npz", b"PK no array"): "new.npz cannot be read as an array: ",
}


@pytest.mark.parametrize(("file", "wanted"), WRONG_FILES.items(), ids=[str(file) for file in WRONG_FILES])
def test_a_wrong_file_is_a_sentence(
    file: tuple[str, str, bytes], wanted: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model, name, content = file
    (tmp_path / name).write_bytes(content)
    assert _predict(f"model={folder / model}", f"input={tmp_path / name}") == 2
    assert wanted in _read_error(capsys)


WRONG_ARRAYS = {
    "of one sample": (np.zeros(4), "is an array of shape (4,) and type float64, expected numbers (samples, …)"),
    "of none": (np.zeros((0, 4)), "is an array of shape (0, 4)"),
    "of text": (np.array([["a"] * 4]), "and type <U1, expected numbers (samples, …)"),
    "with a gap": (
        np.array([[1.0, np.nan, 2.0, np.inf]]),
        "2 of its numbers are NaN, infinite or too large for float32. Replace them",
    ),
    "too large": (
        np.array([[1.0, 1e300, 2.0, 3.0]]),
        "1 of its numbers are NaN, infinite or too large for float32. Replace them",
    ),
    "of objects": (np.array([[None] * 4]), "cannot be read as an array: Object arrays cannot be loaded"),
}


@pytest.mark.parametrize(("array", "wanted"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS)
def test_a_wrong_array_is_a_sentence(array: Any, wanted: str, folder: Path, tmp_path: Path, capsys: Any):
    np.save(tmp_path / "in.npy", array)
    assert _predict(f"model={folder / 'arrays'}", f"input={tmp_path / 'in.npy'}") == 2
    assert wanted in _read_error(capsys)


def test_a_network_of_whole_numbers_is_given_no_others(tmp_path: Path, capsys: Any):
    model = parse_model("""<ir_version: 10, opset_import: ["": 20]> agraph (int64[N, 2] input) => (float[N, 2] values) {
        values = Cast<to = 1>(input)
    }""")
    onnx.helper.set_model_props(model, {METADATA_KEY: ArtifactMetadata("values", [], [2], "counts").to_json()})
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "in.npy", np.array([[1.0, 2.5], [np.nan, 1e300]]))
    assert _predict(f"model={tmp_path}", f"input={tmp_path / 'in.npy'}") == 2
    assert "in.npy: 3 of its numbers are not int64" in _read_error(capsys)
    np.save(tmp_path / "in.npy", np.array([[1.0, -3.0]]))
    assert _predict(f"model={tmp_path}", f"input={tmp_path / 'in.npy'}") == 0


def test_of_several_arrays_one_has_to_be_called_inputs(folder: Path, tmp_path: Path, capsys: Any):
    np.savez(tmp_path / "in.npz", x=np.zeros((2, 4)), y=np.zeros(2))
    assert _predict(f"model={folder / 'arrays'}", f"input={tmp_path / 'in.npz'}") == 2
    assert "in.npz contains the arrays x, y. Name one of them inputs" in _read_error(capsys)


def test_an_image_of_sixteen_bits_is_refused(folder: Path, tmp_path: Path, capsys: Any):
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "deep.png")
    assert _predict(f"model={folder / 'images'}", f"input={tmp_path / 'deep.png'}") == 2
    assert "deep.png has more than 8 bits per channel. Convert it to 8" in _read_error(capsys)


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (None, "has no metadata about its classes and inputs"),
        ("{", "is damaged: "),
        ('{"kind": "values"}', "is damaged: the metadata was not written by this application"),
        (
            '{"kind": "x", "classes": [], "input_shape": [4], "run": "r"}',
            "is damaged: unknown kind of predictions x",
        ),
    ],
)
def test_a_file_of_others_is_refused(facts: str | None, wanted: str, folder: Path, tmp_path: Path, capsys: Any):
    model = onnx.load(folder / "arrays" / "model.onnx")
    model.ClearField("metadata_props")
    if facts is not None:
        onnx.helper.set_model_props(model, {"stormproof": facts})
    onnx.save(model, tmp_path / "foreign.onnx")
    assert _predict(f"model={tmp_path}", f"input={folder / 'new.npy'}") == 2
    assert "contains no model.onnx. Choose one of foreign.onnx" in _read_error(capsys)
    assert _predict(f"model={tmp_path / 'foreign.onnx'}", f"input={folder / 'new.npy'}") == 2
    assert wanted in _read_error(capsys)


def test_what_is_not_installed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setattr(main, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert _predict(f"model={folder / 'arrays'}", f"input={folder / 'new.npy'}") == 2
    assert "predict needs onnxruntime, which is not installed. Run: pip install -e '.[compress]'" in _read_error(capsys)


def test_the_command_line_imports_no_torch():
    code = "import sys, stormproof_train.cli.main; assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
