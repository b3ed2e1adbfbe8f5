"""CheckpointRecovery(resume=True) resumes where a package calls ``fit`` without ``ckpt_path``."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stormproof import CheckpointRecovery, resumable
from stormproof.errors import NotResumableError
from stormproof.testing import Faults
from tests.support.small_fits import LIGHTNINGS_OWN, loader, module, trainer

pytestmark = LIGHTNINGS_OWN


def fit(folder: Path, faults: Faults | None = None, ckpt_path: str | None = None, **options: Any) -> Any:
    recovery = CheckpointRecovery(folder, every_n_steps=1, asynchronous=False, resume=True)
    trained, fitting = module(), trainer(callbacks=[recovery, *filter(None, [faults])], **options)
    fitting.fit(trained, resumable(loader(shuffle=True), seed=1), ckpt_path=ckpt_path)
    return trained.layer.weight.detach(), fitting


def interrupt(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="a fault ordered"):
        fit(folder, Faults().fail(step=4))


def test_an_interrupted_fit_resumes_exactly_without_ckpt_path(tmp_path: Path):
    whole, _ = fit(tmp_path / "whole")
    interrupt(tmp_path / "interrupted")
    resumed, fitting = fit(tmp_path / "interrupted")
    assert torch.equal(whole, resumed)
    assert fitting.ckpt_path.endswith(".ckpt")
    assert "resume_start" not in vars(fitting._checkpoint_connector)


def test_a_given_ckpt_path_has_priority(tmp_path: Path):
    interrupt(tmp_path)
    given = str(min(tmp_path.glob("*.ckpt")))
    assert given != CheckpointRecovery(tmp_path).latest()
    assert fit(tmp_path, ckpt_path=given)[1].ckpt_path == given


def test_a_second_fit_of_the_same_process_never_takes_over_a_finished_one(tmp_path: Path):
    fit(tmp_path)
    with pytest.raises(NotResumableError, match="holds a checkpoint of step 6, and fit was given none"):
        fit(tmp_path)
