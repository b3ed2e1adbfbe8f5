import re
from importlib import import_module
from pathlib import Path

import generate
import pytest
from docs_pages.paths import API, ROOT

PACKAGES = [
    "stormproof",
    "stormproof_train.activations",
    "stormproof_train.losses",
    "stormproof_train.initialization",
    "stormproof_train.models",
]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_on_an_api_page(package: str):
    pages = "".join(page.read_text() for page in (ROOT / API).glob("*.md"))
    documented = re.findall(r"^::: (.+)$", pages, re.MULTILINE)
    names = [f"{package}.{name}" for name in import_module(package).__all__]
    assert not [name for name in names if documented.count(name) != 1], "run `make generate`"


def test_generated_files_are_current():
    names = [str(path.relative_to(generate.ROOT)) for path in generate.outdated()]
    assert not names, f"{', '.join(names)} are outdated: run `make generate`."
    assert not [*generate.unexpected()], "these API pages have no public name: delete them"


def test_a_loss_without_columns_for_the_docs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("# Mine.\n_target_: stormproof_train.losses.MSE\n")
    monkeypatch.setattr(generate, "CONF", tmp_path)
    with pytest.raises(
        AssertionError, match=r"conf/loss/mine.yaml needs a comment `# formula: …` for docs/reference/losses.md"
    ):
        generate.docs_of_losses()
