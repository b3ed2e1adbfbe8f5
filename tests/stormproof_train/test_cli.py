import sys

import pytest

from stormproof_train import cli


def test_a_hydra_that_does_not_start_on_this_python_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    monkeypatch.setattr(cli, "version", lambda package: {"hydra-core": "1.3.8"}[package])
    assert cli.main(["activation=elu"]) == 2
    way_out = "pip install --pre 'hydra-core>=1.4.0rc3,<1.5'"
    assert capsys.readouterr().err == f"stormproof: Hydra 1.3.8 does not start on Python 3.14: {way_out}\n"
