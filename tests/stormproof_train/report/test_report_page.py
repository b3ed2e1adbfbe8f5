import hashlib
import json
import os
import re
from importlib.metadata import version
from pathlib import Path

import platformdirs
import pytest

from stormproof_train.cli.main import main
from stormproof_train.cli.report import run as report
from stormproof_train.errors import UserError
from stormproof_train.report.kit import page as kit_page
from stormproof_train.report.write import write_report
from tests.support.forked_command import Command
from tests.support.run_folders import make_predictions, training_rows, write_run

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which the script lies already, so that nobody waits for it."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(kit_page.vl_convert, "javascript_bundle", lambda snippet: "window.vegaEmbed = '</script>'")
    return tmp_path / "cache"


def _charts(page: str) -> list:
    return json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL).group(1))


def _head(page: str) -> list[str]:
    """Of the first table."""
    return re.findall(r"<th[^>]*>(.*?)</th>", re.search(r"<thead>(.*?)</thead>", page, re.DOTALL).group(1))


def test_the_page_lies_beside_the_files_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "run", rows=training_rows(200), predictions=make_predictions())
    assert report([str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Result", "Curves", "Gradients and updates", "Units", "Time", "Attempts", "Evaluation of the test split",
        "Configuration",
    ]  # fmt: skip
    assert len(_charts(page)) == page.count('role="img"') == len(re.findall(r"<figcaption>", page))


def test_it_says_which_weights_were_tested_where_a_metric_chose_them(tmp_path: Path):
    run = write_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text()) | {"weights": "checkpoints/000002-step-40.ckpt"}
    (run / "summary.json").write_text(json.dumps(summary))
    report([str(run)])
    assert "The weights of checkpoints/000002-step-40.ckpt were tested." in (run / "report.html").read_text()


def test_of_a_run_that_was_not_tested_the_page_shows_validation_alone(tmp_path: Path):
    run = write_run(tmp_path / "run", rows=training_rows(200), tested=False)
    summary = json.loads((run / "summary.json").read_text()) | {"weights": "checkpoints/000002-step-40.ckpt"}
    (run / "summary.json").write_text(json.dumps(summary))
    report([str(run)])
    page = (run / "report.html").read_text()
    assert _head(page) == ["metric", "validation"]
    assert "The weights of checkpoints/000002-step-40.ckpt were validated." in page
    assert "Evaluation of the test split" not in page


def test_json_has_the_numbers_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "run", rows=training_rows(200))
    report([str(run), "--json"])
    numbers = json.loads(capsys.readouterr().out)
    assert not (run / "report.html").exists()
    report([str(run), "--output", str(tmp_path / "page.html")])
    points = _charts((tmp_path / "page.html").read_text())[0]["data"]["points"]
    curve = numbers["curves"]["train/loss"]
    assert points["value"][: len(curve["values"])] == curve["values"]
    assert points["of"][0] == "train/loss"


def test_hostile_names_stay_text(tmp_path: Path):
    run = write_run(
        tmp_path / "run", rows=[(1, 9, f'"{HOSTILE.replace(chr(34), "")}"', 1.0), *training_rows(100, [HOSTILE])]
    )
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"name": HOSTILE, "status": HOSTILE}))
    report([str(run)])
    page = (run / "report.html").read_text()
    assert HOSTILE not in page
    assert page.count("</script>") == page.count("<script") == 3
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    assert any(
        line.get("of", [""])[0] == HOSTILE for chart in _charts(page) for line in [chart["data"].get("points")] if line
    )


def test_several_runs_make_one_page(tmp_path: Path):
    runs = [write_run(tmp_path / name, rows=training_rows(100), settings={"seed": name}) for name in ("a", "b")]
    assert report([*map(str, runs), str(runs[0]), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count('type="checkbox"') == 2
    assert re.findall(r"<h2>(.*?)</h2>", page)[0] == "Settings that differ"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "nowhere does not exist; give the folder of a run"),
        ([], "the following arguments are required"),
        (["--yaml"], "report: "),
    ],
)
def test_a_wrong_word_is_a_sentence(words: list[str], sentence: str):
    with pytest.raises(UserError, match=sentence):
        report(words)


def test_a_page_that_cannot_be_written_is_a_sentence(tmp_path: Path):
    run = write_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\): give another --output"):
        report([str(run), "--output", str(tmp_path / "no" / "where.html")])


@pytest.mark.parametrize(("folder", "code"), [("run", 0), ("elsewhere", 2)])
def test_the_command_ends_with_its_code(tmp_path: Path, folder: str, code: int):
    write_run(tmp_path / "run")
    assert main(["report", str(tmp_path / folder)]) == code


@pytest.mark.slow
def test_a_run_ends_with_its_report(command: Command, tmp_path: Path):
    script = tmp_path / "cache" / "stormproof" / f"vega-embed-{version('vl-convert-python')}.txt"
    script.parent.mkdir(parents=True)
    content = "window.vegaEmbed = null"
    script.write_text(f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = command("trainer.max_steps=20", "name=mine", "report=true", env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert "warning" not in result.stdout
    assert "It finished after 20 steps" in (tmp_path / "runs" / "mine" / "report.html").read_text()
    changed = json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())["changed"]
    assert {"key": "trainer.max_steps", "value": 20, "default": -1} in changed


def test_at_the_end_of_a_run_whatever_goes_wrong_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "run")
    (run / "run.json").write_text('{"id": "", "identity": "", "status": "finished", "attempts": [3]}')
    write_report(run)
    assert capsys.readouterr().out.startswith(f"warning: {run / 'report.html'} could not be written: ")


def test_the_script_is_put_together_once_and_cannot_end_its_element(cache: Path, monkeypatch: pytest.MonkeyPatch):
    assert kit_page.load_vega_script() == r"window.vegaEmbed = '<\/script>'"
    monkeypatch.delattr(kit_page.vl_convert, "javascript_bundle")
    assert kit_page.load_vega_script() == r"window.vegaEmbed = '<\/script>'"


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path):
    cache.write_text("a file where the folder should be")
    assert kit_page.load_vega_script() == r"window.vegaEmbed = '<\/script>'"


@pytest.mark.parametrize("damage", [b"", b"window.vegaEmbed = nothing", b"\xff\xfe"])
def test_a_copy_that_was_damaged_is_made_again(cache: Path, damage: bytes):
    whole = kit_page.load_vega_script()
    (cached_file,) = cache.rglob("vega-embed-*")
    cached_file.write_bytes(damage)
    assert kit_page.load_vega_script() == whole
    assert cached_file.read_text().endswith(whole)


def test_a_user_without_a_home_has_a_page_too(monkeypatch: pytest.MonkeyPatch):
    def homeless(name: str) -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(platformdirs, "user_cache_path", homeless)
    assert kit_page.load_vega_script().startswith("window.vegaEmbed")


@pytest.mark.slow
def test_no_file_of_a_run_is_written_over(tmp_path: Path):
    run = write_run(tmp_path / "run")
    for name in ("metrics.csv", "summary.json", "findings.jsonl"):
        before = (run / name).read_bytes()
        with pytest.raises(UserError, match="give another --output"):
            report([str(run), "--output", str(run / name)])
        assert (run / name).read_bytes() == before


def test_of_all_that_lies_beside_each_other_the_sweeps_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name)
    (tmp_path / "runs/sweeps").mkdir()
    assert report(["runs/a", "runs/b", "runs/sweeps"]) == 0
    assert "2 runs" in (tmp_path / "runs.html").read_text()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("evaluation.json", '{"samples": 3, "headline": {"accuracy": 1}}'),
        ("run.json", '{"id": "", "identity": "", "status": "finished", "attempts": [3]}'),
    ],
)
def test_a_file_that_no_run_has_written_is_a_sentence(tmp_path: Path, file: str, content: str):
    run = write_run(tmp_path / "run", rows=training_rows(100), predictions=make_predictions())
    (run / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"Restore|is damaged"):
        report([str(run)])
