import pytest

from stormproof.cli.doctor import installation_risks

TABLE = [
    ("torch", "2.13.0+cpu", None),
    ("torch", "2.10.0", None),
    ("torch", "2.10.0a0+git1234", None),
    ("torch", "2.9.1+cu128", "corrupts memory"),
    ("torch", "2.6.0", "corrupts memory"),
    ("torch", "2.5.1", "runs code from a crafted checkpoint"),
    ("torch", "1.13.1", "runs code from a crafted checkpoint"),
    ("pytorch-lightning", "2.6.6", None),
    ("pytorch-lightning", "2.7.0.dev1", None),
    ("pytorch-lightning", "2.10", None),
    ("pytorch-lightning", "2.6.5", "runs code from a crafted checkpoint"),
    ("pytorch-lightning", "2.6.4.post1", "runs code from a crafted checkpoint"),
    ("pytorch-lightning", "2.6.3", "was published by an attacker"),
    ("lightning", "2.6.2", "was published by an attacker"),
    ("lightning", "2.6", "runs code from a crafted checkpoint"),
    ("lightning", "not a version", "runs code from a crafted checkpoint"),
]


@pytest.mark.parametrize(("package", "number", "what"), TABLE)
def test_a_release_is_known_to_be_bad_or_not(package: str, number: str, what: str | None):
    risks = installation_risks({package: number})
    assert [f"{package} {number}" in risk.summary and what in risk.summary for risk in risks] == [True] * bool(what)
    assert all(risk.reason and risk.location and package in risk.advice for risk in risks)


def test_each_package_counts():
    assert len(installation_risks({"torch": "2.9.0", "pytorch-lightning": "2.6.3", "lightning": "2.6.3"})) == 3


def test_this_environment_is_good():
    assert installation_risks() == []


def test_what_is_installed_is_asked(monkeypatch: pytest.MonkeyPatch):
    packages = []

    def version(package: str) -> str:
        packages.append(package)
        return "2.6.2"

    monkeypatch.setattr("stormproof.cli.doctor.installation.version", version)
    assert len(installation_risks()) == 3
    assert packages == ["torch", "pytorch-lightning", "lightning"]
