from importlib.metadata import PackageNotFoundError

import pytest

from stormproof.cli.doctor import installation_risks

TABLE = [
    ("2.6.6", None),
    ("2.7.0.dev1", None),
    ("2.10", None),
    ("2.6.5", "runs code from a crafted checkpoint"),
    ("2.6.4.post1", "runs code from a crafted checkpoint"),
    ("2.6.3", "was published by an attacker"),
    ("2.6.2", "was published by an attacker"),
    ("2.6", "runs code from a crafted checkpoint"),
    ("not a version", "runs code from a crafted checkpoint"),
]


@pytest.mark.parametrize(("number", "problem"), TABLE)
def test_vulnerable_releases_are_risks(number: str, problem: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stormproof.cli.doctor.installation.version", lambda package: number)
    risks = list(installation_risks())
    assert [f"lightning {number}" in risk.summary and problem in risk.summary for risk in risks] == [True] * bool(
        problem
    )
    assert all(risk.reason and risk.location and "lightning" in risk.advice for risk in risks)


def test_this_environment_has_no_risks():
    assert list(installation_risks()) == []


def test_a_missing_package_is_no_risk(monkeypatch: pytest.MonkeyPatch):
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("stormproof.cli.doctor.installation.version", version)
    assert list(installation_risks()) == []
