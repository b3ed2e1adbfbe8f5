"""``scripts/lightning_suite.py``: which failures it counts."""

from pathlib import Path

import lightning_suite
import pytest
from lightning_suite import Outcome, failures, nearest_tag, prepare, read_expected, report

TESTS = """
import os
import lightning.pytorch as pl

def ours(trainer):
    return any(type(each).__module__.startswith("stormproof") for each in trainer.callbacks)

def test_passes():
    assert pl.Trainer(logger=False) is not None

def test_fails_with_them():
    assert not ours(pl.Trainer(logger=False))

def test_fails_always():
    raise ValueError("mine")

def test_fails_once(tmp_path_factory):
    mark = os.path.join(os.path.dirname(__file__), "mark")
    if not os.path.exists(mark):
        open(mark, "w").close()
        raise ValueError("mine")
"""


@pytest.mark.parametrize(
    ("tags", "wanted", "found"),
    [
        (["2.6.5", "2.6.6", "2.7.0"], "2.6.6", "2.6.6"),
        (["2.6.5", "2.7.0", "app/0.7", "2.7.0rc1"], "2.6.6", "2.6.5"),
        (["2.10.0", "2.9.1"], "2.11.0.post1", "2.10.0"),
        (["2.10.0", "2.9.1"], "2.6.6", "2.9.1"),
    ],
)
def test_the_nearest_tag_is_the_last_one_before_a_version_that_has_none(tags: list[str], wanted: str, found: str):
    assert nearest_tag(tags, wanted) == found


def test_a_test_whose_teardown_fails_has_failed():
    lines = ["passed setup a b", "passed call a b", "failed teardown a b", "skipped setup c", "passed call d"]
    assert Outcome.read(lines) == Outcome(frozenset({"d"}), frozenset({"a b"}), frozenset({"c"}))


def test_unexpected_failures_and_passes_are_a_difference(capsys: pytest.CaptureFixture[str]):
    outcome = Outcome(frozenset({"a"}), frozenset({"b"}), frozenset())
    assert not report("monitors", outcome, {"b"}, {"b": "why", "not run": "why"})
    assert report("monitors", outcome, {"b"}, {})
    assert report("monitors", outcome, {"b"}, {"a": "why", "b": "why"})
    assert "expected to fail, but passes: a (why)" in capsys.readouterr().out


@pytest.mark.parametrize("callbacks", ["monitors", "recovery"])
def test_each_expected_failure_has_a_reason_and_is_in_the_selection(callbacks: str):
    reasons = read_expected(callbacks)
    assert reasons
    assert all(reasons.values())
    assert all(test.startswith(lightning_suite.SELECTION) for test in reasons)


@pytest.mark.slow
def test_what_fails_without_the_callbacks_or_once_is_left_out(tmp_path: Path):
    checkout = tmp_path / "checkout"
    (checkout / "tests/tests_pytorch").mkdir(parents=True)
    (checkout / "pyproject.toml").write_text("")
    (checkout / "tests/tests_pytorch/test_all.py").write_text(TESTS)
    outcome, failed_tests = failures(prepare(checkout, tmp_path), ["test_all.py"], "monitors", tmp_path / "log")
    assert failed_tests == {"test_all.py::test_fails_with_them"}
    assert outcome.passed == {"test_all.py::test_passes"}
