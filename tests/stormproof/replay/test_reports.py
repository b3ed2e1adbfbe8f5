"""The reports of a certification."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from stormproof.replay.certification import NO_TIME, Certification, Result, Skipped
from stormproof.replay.comparison.causes import CAUSAL_ORDER
from stormproof.replay.comparison.verdict import BatchPosition, Verdict, VerdictKind
from stormproof.replay.faults.fault import Fault, FaultKind
from stormproof.replay.pause import PausePoint
from stormproof.replay.reports.fixes import FIXES, fix_for
from stormproof.replay.reports.sentences import CONSEQUENCES, FAULTS, HEADLINES, headline
from stormproof.replay.reports.text_report import text_report
from stormproof.replay.reports.write import write_reports

KILL = Fault(FaultKind.KILL, 412, PausePoint("step", 412))
DIFFERS = Verdict(
    VerdictKind.DIFFERS, 411, 9, step=412, component="data/indices", others=("rng/numpy",),
    restored=("parameters", "optimizer/AdamW", "learning_rate", "rng/torch"), batch=BatchPosition(2, 401, 2, True),
)  # fmt: skip
EXACT = Verdict(VerdictKind.EXACT, 411, 30)
ORDER = "batch of step 412 (data order): epoch 2 starts again, because the position in it was not restored"
REFUSED = "refused: the restarted command exited before its first step (exit code 1)"
TORN = Result(replace(KILL, kind=FaultKind.TORN), 412, Verdict(VerdictKind.REFUSED, exit_code=1, message="bad <zip>"))
EXAMPLE = Certification(
    ("python", "train.py", "<b>"), 800, 1, 30.0, 95.0, "lightning", {"torch": "2.13.0"},
    (Result(KILL, 412, DIFFERS, 4.0), Result(KILL, 50, EXACT), TORN),
    (Skipped(KILL, NO_TIME), Skipped(KILL, NO_TIME), Skipped(KILL, "the command ended before the fault")),
    ("variables/train.run_id",),
)  # fmt: skip


def test_the_text_names_the_first_difference_and_the_fix():
    assert text_report(EXAMPLE, Path("certify/report.html")).splitlines() == [
        "step 412: data order differs from the uninterrupted run",
        "  fault: SIGKILL after step 412, resumed from step 411",
        f"  first difference: {ORDER}",
        "  also not restored: NumPy random state",
        "  restored: parameters, optimizer (AdamW), learning rate, torch random state",
        "  fix: Wrap the loader: resumable(loader).",
        "  fix for NumPy random state: Use CheckpointRecovery and resumable from Stormproof.",
        '       recovery = CheckpointRecovery("checkpoints", every_n_train_steps=50)',
        "       trainer = pl.Trainer(callbacks=[recovery])",
        "       trainer.fit(module, resumable(loader), ckpt_path=recovery.latest_checkpoint())",
        "FAIL  SIGKILL after step 412: step 412: data order differs from the uninterrupted run",
        "ok    SIGKILL after step 50: exact: resumed from step 411, 30 steps compared",
        f"safe  SIGKILL and truncation of the newest checkpoint after step 412: {REFUSED}",
        "skip  2 faults: no time was left (raise --budget)",
        "skip  SIGKILL after step 412: the command ended before the fault",
        "Ignored, because they differ between two runs without faults: variable `run_id` of `train`",
        (
            "The command resumed exactly after 1 of 3 faults and refused a damaged checkpoint after 1. "
            "Report: certify/report.html"
        ),
    ]


class _Page(HTMLParser):
    """Collects the text and the attributes of a page, and checks that its tags are nested."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.attributes, self.open = list[str](), list[tuple[str, str | None]](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_all_reports_are_written_and_well_formed(tmp_path: Path):
    write_reports(EXAMPLE, tmp_path, json_file=tmp_path / "other.json", junit_file=tmp_path / "other.xml")
    page = _Page()
    page.feed((tmp_path / "report.html").read_text(encoding="utf-8"))
    text = "".join(page.words)
    assert not page.open
    assert "epoch 2 starts again" in text
    assert "python train.py '<b>'" in text
    assert "bad <zip>" in text
    assert not [name for name, value in page.attributes if name in {"src", "href"} or "http:" in (value or "")]
    document = json.loads((tmp_path / "other.json").read_text())
    assert (document["exact"], document["faults"][0]["component"]) == (False, "data/indices")
    assert document["faults"][0]["also_not_restored"] == ["rng/numpy"]
    suite = ET.parse(tmp_path / "other.xml").getroot()
    assert suite.attrib.items() >= {"tests": "6", "failures": "1", "skipped": "3"}.items()
    badge = ET.parse(tmp_path / "badge.svg").getroot()
    assert badge.attrib["aria-label"] == "resume: 1 of 3 exact"


def test_control_characters_of_a_command_are_escaped(tmp_path: Path):
    write_reports(replace(EXAMPLE, command=("train\x1b[31m",)), tmp_path)
    assert "\x1b" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_exact_certification_has_a_green_badge(tmp_path: Path):
    exact = replace(EXAMPLE, results=(Result(KILL, 412, EXACT), TORN))
    assert exact.is_exact
    assert not text_report(exact, tmp_path).startswith("step")


def test_the_most_frequent_cause_is_named():
    other = replace(DIFFERS, component="scaler")
    results = tuple(Result(KILL, 412, verdict) for verdict in (other, DIFFERS, DIFFERS))
    worst = replace(EXAMPLE, results=results).worst
    assert worst is not None
    assert worst.verdict.component == "data/indices"


@pytest.mark.parametrize("kind", VerdictKind)
def test_each_verdict_has_a_sentence(kind: VerdictKind):
    verdict = replace(DIFFERS, kind=kind, loaded=("last\x07.pt",))
    assert kind in HEADLINES
    assert "\x07" not in headline(verdict)


@pytest.mark.parametrize("framework", ["torch", "lightning", "transformers", "accelerate"])
def test_each_component_has_a_consequence_and_a_fix(framework: str):
    results = {"optimizer", "parameters", "gradients"}  # explained by the state before the step
    for kind in CAUSAL_ORDER:
        assert kind in CONSEQUENCES or kind in results or kind == "data/indices"
        assert fix_for(kind, framework)
    assert all("torch" in fixes for fixes in FIXES.values())


def test_each_fault_has_a_name():
    assert FAULTS.keys() == set(FaultKind)
