from pathlib import Path

import pytest


def test_generated_files_are_current():
    import generate

    names = [str(path.relative_to(generate.ROOT)) for path in generate.outdated()]
    assert not names, f"{', '.join(names)} are outdated: run `make generate`."


def test_a_loss_without_columns_for_the_docs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import generate

    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("# Mine.\n_target_: stormproof_train.losses.MSE\n")
    monkeypatch.setattr(generate, "CONF", tmp_path)
    with pytest.raises(AssertionError, match=r"conf/loss/mine.yaml needs a comment `# formula: …` for docs/losses.md"):
        generate.docs_of_losses()
