from pathlib import Path

import pytest

from stormproof_train.cli import main
from stormproof_train.errors import UserError
from stormproof_train.mapping_file import read_mapping

BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_aliases_that_expand_to_billions_of_values_are_refused(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(BOMB)
    with pytest.raises(
        UserError, match=r"config.yaml is damaged \(its YAML aliases expand to more than 1,000,000 values\)"
    ):
        read_mapping(tmp_path / "config.yaml")


def test_an_alias_within_itself_is_refused(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("a: &a [*a]")
    with pytest.raises(UserError, match="its YAML aliases expand to more than"):
        read_mapping(tmp_path / "config.yaml")


def test_a_few_aliases_are_accepted(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("a: &a {b: 1}\nc: [*a, *a]")
    assert read_mapping(tmp_path / "config.yaml") == {"a": {"b": 1}, "c": [{"b": 1}, {"b": 1}]}


def test_a_folder_of_configs_with_such_aliases_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(BOMB)
    for overrides in ([f"--config-dir={tmp_path}"], ["--config-dir", str(tmp_path)], ["seed=1", f"-cd={tmp_path}"]):
        assert main.main(overrides) == 2
        assert "mine.yaml: its YAML aliases expand to more than 1,000,000 values" in capsys.readouterr().err
