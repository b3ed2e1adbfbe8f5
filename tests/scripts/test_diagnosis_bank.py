"""A smoke test of the diagnosis bank. scripts/benchmarks/diagnosis.py runs and judges all of it."""

import time
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from benchmarks.diagnosis import PARTS, Verdict, judge_program, load_programs, verdict_line
from diagnosis_bank.program import Program
from torch import nn
from torch.utils.data import DataLoader, Dataset

from stormproof import TrainingHealth
from stormproof.finding import Problem
from tests.support.cases import DRILL_STRIDE

"""CI runs every so many of the long trials."""
pytestmark = pytest.mark.filterwarnings("ignore")


def judge_programs(programs: list[Program], seeds: int = 1) -> list[Verdict]:
    runs = [
        (program, seed, return_dict) for program in programs for seed in range(seeds) for return_dict in (True, False)
    ]
    verdicts = [judge_program(*run) for run in runs]
    return [verdict for verdict in verdicts if verdict.took_effect]


def test_names_are_unique_and_each_part_has_what_it_should():
    for part in PARTS:
        programs = load_programs(part)
        assert len({program.name for program in programs}) == len(programs)
        if part == "classifiers":
            assert not any(program.problems for program in programs)
            continue
        assert sum(bool(program.problems) for program in programs) >= 20
        assert sum(not program.problems for program in programs) >= 12
        assert {program.domain for program in programs} == {"dense", "convolutional", "sequence", "regression"}


@pytest.mark.slow
def test_programs_without_their_faults_are_healthy():
    programs = load_programs("fourth", fixed=True)
    assert len(programs) == 96
    (verdict,) = judge_programs([program for program in programs if program.name.startswith("several_labels")])[:1]
    assert not verdict.is_found


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_healthy_trainings_are_not_talked_about(part: int):
    healthy = [program for program in load_programs("development") if not program.problems]
    alarms = [verdict_line(verdict) for verdict in judge_programs(healthy[part::16]) if verdict.is_found]
    assert alarms == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_most_faults_are_found_and_called_by_their_name(part: int):
    faulty = [program for program in load_programs("development") if program.problems]
    verdicts = judge_programs(faulty[part::12])
    wrong = [verdict_line(verdict) for verdict in verdicts if not verdict.is_right]
    assert len(wrong) <= 0.2 * len(verdicts), wrong


@pytest.mark.drill
def test_fixed_programs_have_no_warnings():
    programs = [program for part in ("held_out", "fourth") for program in load_programs(part, fixed=True)]
    verdicts = [judge_program(program, 0, True) for program in programs[::DRILL_STRIDE]]
    alarms = [verdict_line(verdict) for verdict in verdicts if verdict.took_effect and verdict.is_found]
    assert len(alarms) <= 2 + 0.02 * len(verdicts), alarms


class Slow(Dataset[torch.Tensor]):
    """Samples that take their time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.ones(2)


class TimedWork(pl.LightningModule):
    """A step of a given length."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.layer, self.seconds = nn.Linear(2, 1), seconds

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return (self.layer(batch) - 1).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def is_starving(waits: float, works: float) -> bool:
    health = TrainingHealth()
    pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[health],
    ).fit(TimedWork(works), DataLoader(Slow(waits / 4), batch_size=4))  # fmt: skip
    return Problem.DATA_STARVATION in [finding.problem for finding in health.findings]


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_starvation_is_found_where_it_is():
    trials = range(0, 100, DRILL_STRIDE)
    results = [is_starving(waits=0.02 + 0.0004 * trial, works=0.008) for trial in trials]
    false = [is_starving(waits=0.004, works=0.012 + 0.0001 * trial) for trial in trials]
    assert sum(results) >= 0.95 * len(results)
    assert sum(false) <= 0.01 * len(false)
