import sys

import pytest

from stormproof_train import cli


def test_hydra_1_3_is_rejected_on_python_3_14(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    monkeypatch.setattr(cli, "version", lambda package: {"hydra-core": "1.3.8"}[package])
    assert cli.main(["activation=elu"]) == 2
    sentence = "Hydra 1.3.8 does not support Python 3.14. Run: pip install 'hydra-core>=1.4.0rc3,<1.5'"
    assert capsys.readouterr().err == f"stormproof: {sentence}\n"
